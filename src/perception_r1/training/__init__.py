"""Post-training: recipes, GRPO and supervised fine-tuning on TRL."""
