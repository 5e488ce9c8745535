"""The arithmetic limit: how many operations a GRPO step needs where every rollout computes its prompt, and where a group does once.

    python benchmarks/arithmetic.py --model qwen2-vl-2b --group 8 16 32 --answer-tokens 40 --prompt-tokens 1300

Counts the matrix products and the attention of vision tower, text layers and head, from the model's config; a multiply-add is two
operations, and causal attention is counted as what it looks at. The backward pass is twice the forward; gradient checkpointing adds
a forward. Left out: norms, rotations, softmax, preprocessing, the optimizer. Nothing is measured here.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from random_model import MODELS, config_of
from transformers import Qwen2VLConfig

PHASES = ("rollouts", "policy", "reference")


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long the rows of a step are."""

    prompt: int
    """Tokens of a prompt, its image's included."""
    patches: int
    """Patches of its image; four of them make an image token."""
    answer: int
    """Tokens of each answer."""
    group: int
    """Answers to each prompt."""


def vision(config: Qwen2VLConfig, patches: int) -> float:
    """Operations of the vision tower on one image, its merger into text tokens included."""
    tower: Any = config.vision_config
    width = tower.embed_dim
    layer = 2 * patches * width**2 * (4 + 2 * tower.mlp_ratio) + 4 * patches**2 * width
    merged = width * tower.spatial_merge_size**2
    merger = 2 * patches / tower.spatial_merge_size**2 * merged * (merged + tower.hidden_size)
    return 2 * patches * tower.in_channels * tower.temporal_patch_size * tower.patch_size**2 * width + tower.depth * layer + merger


def text(config: Qwen2VLConfig, tokens: float, looks: float) -> float:
    """Operations of the text layers on `tokens`, which attend `looks` times in all to a token."""
    layers: Any = config.text_config
    width, heads = layers.hidden_size, layers.num_attention_heads
    size = getattr(layers, "head_dim", None) or width // heads
    products = width * size * 2 * (heads + layers.num_key_value_heads) + 3 * width * layers.intermediate_size
    return layers.num_hidden_layers * (2 * tokens * products + 4 * looks * heads * size)


def head(config: Qwen2VLConfig, tokens: float) -> float:
    layers: Any = config.text_config
    return 2.0 * tokens * layers.hidden_size * layers.vocab_size


def looks(start: int, tokens: int) -> float:
    """How often `tokens` after `start` others attend to a token, causally: (start + 1) + … + (start + tokens)."""
    return tokens * start + tokens * (tokens + 1) / 2


def operations(config: Qwen2VLConfig, lengths: Lengths, *, checkpointing: bool) -> dict[str, tuple[float, float]]:
    """Operations of each phase for one prompt and its group: (every rollout its own prompt, the prompt once)."""
    prompt, answer, group = lengths.prompt, lengths.answer, lengths.group
    image = vision(config, lengths.patches)
    prefill = image + text(config, prompt, looks(0, prompt)) + head(config, 1)
    decode = group * (text(config, answer - 1, looks(prompt, answer - 1)) + head(config, answer - 1))
    whole_rows = group * (image + text(config, prompt + answer, looks(0, prompt + answer)))
    packed = text(config, prompt - 1 + group * (answer + 1), looks(0, prompt - 1) + group * looks(prompt - 1, answer + 1))
    scored = head(config, group * answer)
    bodies, passes = (whole_rows, image + packed), 4 if checkpointing else 3
    found = {
        "rollouts": (group * prefill + decode, prefill + decode),
        "policy": (passes * bodies[0] + 3 * scored, passes * bodies[1] + 3 * scored),
        "reference": (bodies[0] + scored, bodies[1] + scored),
    }
    return found | {"whole": (sum(stock for stock, _ in found.values()), sum(ours for _, ours in found.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="prototype")
    parser.add_argument("--group", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--answer-tokens", type=int, nargs="+", default=[40, 512, 2048])
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[278, 1300], help="tokens of a prompt, 22 of them text")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    options = parser.parse_args()
    config = config_of(options.model)
    print(f"{options.model}: operations of a step (rollouts, policy, reference) in 10^12, and their limit: stock / ours")
    print(f"prompt  answer     G     stock      ours     {'     '.join(('whole', *PHASES))}")
    for prompt in options.prompt_tokens:
        for answer in options.answer_tokens:
            for group in options.group:
                lengths = Lengths(prompt=prompt, patches=4 * (prompt - 22), answer=answer, group=group)
                found = operations(config, lengths, checkpointing=options.checkpointing)
                ratios = "".join(f"{found[name][0] / found[name][1]:{len(name) + 4}.1f}x" for name in ("whole", *PHASES))
                print(f"{prompt:6}  {answer:6}  {group:4}  {found['whole'][0] / 1e12:8.2f}  {found['whole'][1] / 1e12:8.2f}{ratios}")


if __name__ == "__main__":
    main()
