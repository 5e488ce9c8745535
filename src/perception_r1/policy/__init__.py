"""The bundled tiny policy: a real transformers vision-language model, small enough to train on a laptop."""
