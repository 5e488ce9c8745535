"""Model folders of the real families with random weights: `python -m tests.random_models qwen2_5_vl FOLDER` makes one."""

import json
import shutil
import sys
from pathlib import Path


def build_random_model(folder: Path, family: str, vocabulary: Path) -> None:
    """A Qwen2-VL, Qwen2.5-VL or Qwen3-VL of two narrow layers and random weights, with the real vocabulary, as a model folder."""
    import torch
    import transformers as hf

    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(vocabulary / name, folder / name)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = json.loads((vocabulary / "chat_template.json").read_text())["chat_template"]
    token = tokenizer.convert_tokens_to_ids
    special = {f"{kind}_token_id": token(f"<|{kind}_pad|>") for kind in ("image", "video")}
    special |= {f"vision_{end}_token_id": token(f"<|vision_{end}|>") for end in ("start", "end")}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = {"vocab_size": 151680, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True, "rope_parameters": rope, "bos_token_id": None}
    vision = {"depth": 2, "hidden_size": 64, "num_heads": 4}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 64, "mlp_ratio": 2, "patch_size": 14}
        kinds = (hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor)
    elif family == "qwen2_5_vl":
        vision |= {"intermediate_size": 128, "patch_size": 14, "out_hidden_size": 64, "window_size": 112, "fullatt_block_indexes": [1]}
        kinds = (hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor)
    else:
        vision |= {"intermediate_size": 64, "patch_size": 16, "out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        kinds = (hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor)
    config, model_kind, processor_kind, videos = kinds
    torch.manual_seed(0)
    model = model_kind(config(text_config=text, vision_config=vision, tie_word_embeddings=True, **special))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # the default init answers every image alike; large embeddings make it repeat itself
            torch.nn.init.normal_(parameter, std=0.3 if "embed_tokens" in name else 0.15)
    # As Qwen ships it: sampling and a repetition penalty, which a greedy evaluation must override.
    model.generation_config.update(eos_token_id=[151645, 151643], pad_token_id=151643, do_sample=True, temperature=5.0, repetition_penalty=3.0)
    model.save_pretrained(folder)
    images = hf.Qwen2VLImageProcessor(patch_size=vision["patch_size"], min_pixels=3136, max_pixels=20_000)
    parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": videos(), "chat_template": tokenizer.chat_template}
    processor_kind(**parts).save_pretrained(folder)


if __name__ == "__main__":
    from tests.conftest import DATA

    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    build_random_model(Path(sys.argv[2]), sys.argv[1], DATA / "qwen_tokenizer_config")
