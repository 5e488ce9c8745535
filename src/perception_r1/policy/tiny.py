"""Architecture, tokenizer and processor of the bundled policy: a Qwen3-VL of 1.9 M parameters that sees 64 × 64 pixels.

Everything downstream treats it as any other Hugging Face model folder. Sizes follow what was seen to learn on two cores.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor, set_seed
from transformers.models.qwen2_vl import Qwen2VLImageProcessor

from ..data.layouts import COLOURS, RELATIONS, SHAPES, SIZES
from ..data.scenes import WORDS
from ..tasks.detection import COCO_NAMES
from ..tasks.task import THINK_REQUEST
from . import SETTINGS_FILE, WEIGHTS

SIDE = 64
"""Images are resized to about SIDE² pixels."""
PATCH, MERGE = 8, 1

_END, _PAD = "<|im_end|>", "<|endoftext|>"
_SPECIAL = (
    _PAD, "<|im_start|>", _END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
)  # fmt: skip
_FORMS = ('[{"bbox_2d": [', '], "label": "', '"}, {"bbox_2d": [', '"}]', "<think>", "</think>", "<answer>", "</answer>", "[]")
"""Pieces of the family's JSON that always stand together: one token each."""
_PROSE = (
    "Output the bounding box of the in image . all boxes Please output bbox coordinates and names OCR this user assistant system"
    " a an is on with at to and man woman person boy girl shirt hat holding standing sitting next behind front left right top bottom middle"
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] if message['content'] is string else message['content'][0]['text'] }}{{ '<|im_end|>' }}{% endgeneration %}
{%- elif message['content'] is string -%}
{{ message['content'] + '<|im_end|>' }}
{%- else -%}
{%- for part in message['content'] -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{{ '<|im_end|>' }}
{%- endif -%}
{{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges make one token of each number (with and without the comma), form and common word.

    Any text can be written; words outside the list fall back to bytes.
    """
    vocabulary = " ".join((_PROSE, THINK_REQUEST, *COLOURS, *SHAPES, *SIZES, *WORDS, *RELATIONS, *COCO_NAMES)).split()
    words = sorted(set(re.findall(r"[A-Za-z]+", " ".join(vocabulary))))
    pieces = [*_FORMS, ", ", *words, *(f" {word}" for word in words), *(f"{n}" for n in range(1001)), *(f"{n}, " for n in range(1001))]
    forms = "|".join(re.escape(form) for form in _FORMS)
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(rf"{forms}|\d{{1,4}}, |\d{{1,4}}|, | ?\p{{L}}+|\s+|."), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, special_tokens=list(_SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END, pad_token=_PAD, additional_special_tokens=list(_SPECIAL[3:]))


def make_processor() -> Qwen3VLProcessor:
    """The family's own processor, at the tiny policy's patch and image sizes."""
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "size": {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}}
    half = [0.5, 0.5, 0.5]
    images = Qwen2VLImageProcessor(image_mean=half, image_std=half, **sizes)
    videos = Qwen3VLVideoProcessor(image_mean=half, image_std=half, **sizes)
    return Qwen3VLProcessor(image_processor=images, tokenizer=make_tokenizer(), video_processor=videos, chat_template=CHAT_TEMPLATE)


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """The model's config: 4 text layers and 3 vision layers of width 128."""
    token = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 4096, "tie_word_embeddings": True, "pad_token_id": token(_PAD),
        "bos_token_id": None, "eos_token_id": token(_END), "initializer_range": 0.05,

        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 128, "intermediate_size": 384, "num_heads": 4, "patch_size": PATCH, "spatial_merge_size": MERGE,
        "temporal_patch_size": 2, "out_hidden_size": 128, "num_position_embeddings": (SIDE // PATCH) ** 2, "deepstack_visual_indexes": [0, 1],
        "initializer_range": 0.05,
    }  # fmt: skip
    marks: dict[str, Any] = {
        "image_token_id": token("<|image_pad|>"), "video_token_id": token("<|video_pad|>"), "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"), "pad_token_id": token(_PAD), "eos_token_id": token(_END),
    }  # fmt: skip
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **marks)


def _sinusoids(side: int, width: int) -> torch.Tensor:
    """Position embeddings (side², width) to start from: sines and cosines of rows and columns, as strong as the patches.

    From the family's own start (normal, 0.02) positions are 15 times weaker than patches, and boxes are learned much later.
    """
    angle = torch.arange(side)[:, None] * torch.pi / side * torch.arange(1, width // 4 + 1)[None].sqrt()
    axis = torch.cat([angle.sin(), angle.cos()], dim=1) / 2
    rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, width)


def _written_alike(embeddings: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
    """Starts embeddings (vocabulary, width) with what spelling tells: near numbers are near, a word is itself after a space."""
    token = tokenizer.convert_tokens_to_ids
    angle = torch.arange(1001)[:, None] / 1000 * torch.pi * torch.linspace(0.5, 24, embeddings.shape[1] // 2)
    numbers = torch.cat([angle.sin(), angle.cos()], dim=1) * embeddings.std() * 2**0.5
    comma = torch.randn(embeddings.shape[1]) * embeddings.std() * 0.7
    for value, code in enumerate(numbers):
        embeddings[token(f"{value}")] = code
        embeddings[token(tokenizer.tokenize(f"{value}, ")[0])] = code + comma
    for word in (*COLOURS, *SHAPES, *SIZES, *WORDS):
        embeddings[token(tokenizer.tokenize(f" {word}")[0])] = embeddings[token(word)]


def save_untrained(folder: Path | str, seed: int = 0) -> None:
    """Writes a policy of random weights, with its processor, as a Hugging Face model folder.

    Keys start equal to queries, so that attention begins by looking for what is alike (Trockman and Kolter, 2023,
    "Mimetic initialization of self-attention layers"), and embeddings start as `_written_alike` says.
    """
    set_seed(seed)
    processor = make_processor()
    model = Qwen3VLForConditionalGeneration(make_config(processor.tokenizer))
    positions = model.model.visual.pos_embed.weight
    with torch.no_grad():
        positions.copy_(_sinusoids(SIDE // PATCH, positions.shape[1]))
        _written_alike(model.model.language_model.embed_tokens.weight, processor.tokenizer)
        for layer in model.model.language_model.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    model.generation_config.update(pad_token_id=processor.tokenizer.pad_token_id, eos_token_id=processor.tokenizer.eos_token_id)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


SHIPPED = (
    "config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", SETTINGS_FILE,
)  # fmt: skip


def ship(run: Path | str, folder: Path | str = WEIGHTS) -> None:
    """Copies the policy of a run into the package, its weights in bfloat16; its config still says float32, so it loads as that."""
    run, folder = Path(run), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED:
        shutil.copy(run / name, folder / name)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(run / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":  # python -m perception_r1.policy.tiny runs/tiny-base
    ship(sys.argv[1])
