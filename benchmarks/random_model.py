"""The models of the benchmarks: Qwen2-VL and Qwen2.5-VL with random weights, as a model folder. Not a benchmark itself.

    python benchmarks/random_model.py prototype FOLDER

`prototype`: 38 M parameters in float32 (8 text layers of width 512, 6 vision layers of width 256) with the bundled policy's tokenizer.
`shallow`: the same with 2 text layers, for answers so long that the prototype would take hours.
`qwen2-vl-2b`, `qwen2.5-vl-3b`: the real config, tokenizer and chat template, from PERCEPTION_R1_DATA, in bfloat16.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from perception_r1.policy import tiny

MODELS = ("prototype", "shallow", "qwen2-vl-2b")
"""Those of which `arithmetic.py` counts the operations."""
KINDS: dict[str, tuple[Any, Any, Any, str]] = {
    "qwen2-vl-2b": (Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, "qwen2_vl_2b_config.json"),
    "qwen2.5-vl-3b": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, "qwen2_5_vl_3b_config.json"),
}
"""The real ones: config, model, processor, and where the config lies."""
DATA = Path(os.environ.get("PERCEPTION_R1_DATA") or Path(__file__).parents[2] / "shared" / "data")
REAL = DATA / "qwen_tokenizer_config"
VOCABULARY = 3008
"""Entries of the prototype's head: the bundled policy's tokens, up to a multiple of 64."""


def config_of(model: str, **tokens: Any) -> Any:
    """The config of one of MODELS; `tokens` are the ids of the marks around images, where they are not the real ones."""
    if model in KINDS:
        config_kind, _, _, file = KINDS[model]
        return config_kind(**json.loads((REAL / file).read_text()))
    rope = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6}
    text = {"vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    text |= {"num_hidden_layers": 2 if model == "shallow" else 8, "num_key_value_heads": 2}
    text |= {"tie_word_embeddings": True, "rope_parameters": rope, "bos_token_id": None, "eos_token_id": None}
    vision = {"depth": 6, "embed_dim": 256, "hidden_size": 512, "num_heads": 4, "mlp_ratio": 4, "patch_size": 14}
    return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens)


def _tokenizer(model: str, folder: Path) -> tuple[Any, str]:
    """The tokenizer and the chat template."""
    if model not in KINDS:
        return tiny.make_tokenizer(), tiny.CHAT_TEMPLATE
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / file).write_bytes((REAL / file).read_bytes())
    return AutoTokenizer.from_pretrained(folder), json.loads((REAL / "chat_template.json").read_text())["chat_template"]


def build_model(model: str, folder: Path, device: str = "cpu") -> None:
    """Writes weights (drawn on `device`, seed 0) and processor into `folder`."""
    tokenizer, template = _tokenizer(model, folder)
    images = Qwen2VLImageProcessor(patch_size=14, merge_size=2, size={"shortest_edge": 3136, "longest_edge": 2**30})
    parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": Qwen2VLVideoProcessor(), "chat_template": template}
    kind, processor = KINDS[model][1:3] if model in KINDS else (Qwen2VLForConditionalGeneration, Qwen2VLProcessor)
    processor(**parts).save_pretrained(folder)
    token = tokenizer.convert_tokens_to_ids
    marks = {f"{kind}_token_id": token(f"<|{kind}_pad|>") for kind in ("image", "video")}
    marks |= {f"vision_{end}_token_id": token(f"<|vision_{end}|>") for end in ("start", "end")}
    config = config_of(model, **marks)
    if len(tokenizer) > config.get_text_config().vocab_size:
        raise ValueError(f"{len(tokenizer)} tokens do not fit into a head of {config.get_text_config().vocab_size}")
    torch.manual_seed(0)
    with torch.device(device):
        weights: Any = kind(config)
        weights.to(torch.bfloat16 if model in KINDS else torch.float32)
    weights.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    weights.save_pretrained(folder)


if __name__ == "__main__":
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    build_model(sys.argv[1], Path(sys.argv[2]))
