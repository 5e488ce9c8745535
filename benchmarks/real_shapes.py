"""The packed row on the families' real configs, full size, with random weights: how far its log-probabilities are from rows of their own.

    python benchmarks/real_shapes.py qwen2_vl_2b qwen3_vl_2b qwen2_5_vl_3b

In float32 on the CPU, without gradient, a picture of 224 x 224 pixels and G answers of up to 24 tokens: log-probabilities of one packed row
against G ordinary forwards with a plain log_softmax and, beside it, of all G rows in one batch against the same: what batching alone
changes. The configs come from PERCEPTION_R1_DATA; a model of 3 B parameters takes 15 GB.
"""

import argparse
import json
from typing import Any

import torch
import transformers as hf
from random_model import REAL
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from perception_r1.training.shared_prefix import pack, share_prefix, shared_logps

KINDS: dict[str, tuple[Any, Any]] = {
    "qwen2_vl_2b": (hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration),
    "qwen2_5_vl_3b": (hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl_2b": (hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration),
}
PIXELS, ANSWER = 224, 24


def build(name: str) -> Any:
    """The model of one of KINDS, float32, weights drawn with seed 0."""
    config_kind, kind = KINDS[name]
    torch.manual_seed(0)
    with torch.device("cpu"):
        return kind(config_kind(**json.loads((REAL / f"{name}_config.json").read_text()))).float().eval()


def question(model: Any, group: int) -> dict[str, Tensor]:
    """A prompt of one picture and twenty words, and `group` answers of unequal length, all at random."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    patch, merge = config.vision_config.patch_size, config.vision_config.spatial_merge_size
    side = PIXELS // (patch * merge) * merge
    words = torch.randint(1000, 100_000, (20,), generator=generator).tolist()
    picture = [config.vision_start_token_id, *[config.image_token_id] * (side * side // merge**2), config.vision_end_token_id]
    ids = torch.tensor([[*picture, *words]])
    volume = 3 * config.vision_config.temporal_patch_size * patch**2
    lengths = torch.randint(1, ANSWER + 1, (1, group, 1), generator=generator)
    lengths[0, 0] = ANSWER
    return {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "image_grid_thw": torch.tensor([[1, side, side]]),
        "pixel_values": torch.randn(side * side, volume, generator=generator),
        "completion_ids": torch.randint(1000, 100_000, (1, group, ANSWER), generator=generator),
        "completion_mask": (torch.arange(ANSWER) < lengths).long(),
    }


def rows(model: Any, given: dict[str, Tensor], which: list[int]) -> Tensor:
    """Log-probabilities (len(which), S) of some answers, each in a row of its own, the prompt and its picture in each."""
    count, own = len(which), given["completion_ids"][0, which]
    ids = torch.cat([given["prompt_ids"].expand(count, -1), own], dim=1)
    types = torch.cat([given["mm_token_type_ids"].expand(count, -1), torch.zeros_like(own).int()], dim=1)
    mask = torch.cat([given["prompt_mask"].expand(count, -1), given["completion_mask"][0, which]], dim=1)
    images = {"pixel_values": given["pixel_values"].repeat(count, 1), "image_grid_thw": given["image_grid_thw"].expand(count, -1)}
    logits = model(input_ids=ids, attention_mask=mask, mm_token_type_ids=types, logits_to_keep=ANSWER + 1, **images).logits[:, :-1]
    return logits.float().log_softmax(-1).gather(-1, own[..., None])[..., 0] * given["completion_mask"][0, which]


@torch.no_grad()
def compare(name: str, group: int) -> None:
    model = build(name)
    given = question(model, group)
    alone = torch.cat([rows(model, given, [row]) for row in range(group)])
    batched = rows(model, given, list(range(group)))
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs",))
    share_prefix(model)
    images = {"pixel_values": given.pop("pixel_values"), "image_grid_thw": given["image_grid_thw"]}
    shared, _ = shared_logps(model, pack(model, **given), **images)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    apart = [float((found - alone).abs().max()) for found in (shared[0], batched)]
    typical = float(alone[given["completion_mask"][0] == 1].mean())
    shape = f"{name:<14}{count:7.2f} B {given['prompt_ids'].shape[1]:8d} {group:4d}"
    print(f"{shape} {typical:10.2f} {apart[0]:14.1e} {apart[1]:14.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=KINDS, default=["qwen2_vl_2b"])
    parser.add_argument("--group", type=int, default=3)
    options = parser.parse_args()
    print(f"{'model':<14}{'size':>9} {'prompt':>8} {'G':>4} {'mean logp':>10} {'packed, apart':>14} {'batch, apart':>14}")
    for name in options.models:
        compare(name, options.group)


if __name__ == "__main__":
    main()
