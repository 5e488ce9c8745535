"""Several answers to a prompt, as `perception-r1 probe` draws them: with the prompt's prefill shared, and computed for each.

    python benchmarks/probe.py [--answers 8] [--tokens 40] [--side 1000]

A random Qwen2-VL of 38 M parameters (benchmarks/random_model.py) answers one prompt about an image of side × side pixels. Both ways draw
the same tokens from the same seed, which is checked; they are timed in turn, and medians and their ratio are printed.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from PIL import Image
from random_model import build_model

from perception_r1.evaluation.backends import TransformersBackend
from perception_r1.training.rollouts import shared_prefill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("answers", 8), ("tokens", 40), ("side", 1000), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_model("prototype", Path(folder))
        ways = {
            name: TransformersBackend(folder, device="cpu", max_pixels=1_000_000, sharing=sharing)
            for name, sharing in (("shared", shared_prefill), ("each its own", None))
        }
        image = Image.effect_noise((given.side, given.side), 60).convert("RGB")
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        replies = {}
        for _ in range(given.repeats):
            for name, backend in ways.items():
                start = time.perf_counter()
                replies[name] = backend.generate(
                    ["Output all the bounding boxes of the dog"], [image], samples=given.answers, temperature=1.0, max_new_tokens=given.tokens
                )
                seconds[name].append(time.perf_counter() - start)
    if replies["shared"] != replies["each its own"]:
        raise SystemExit("the two ways drew different tokens")
    frame = replies["shared"][0].frame
    print(f"{given.answers} answers of at most {given.tokens} tokens, an image seen at {frame.seen_width} x {frame.seen_height}: the same tokens")
    shared, own = (statistics.median(seconds[name]) for name in ways)
    print(f"prefill shared {shared:.2f} s, each its own {own:.2f} s: {own / shared:.1f} times as fast")


if __name__ == "__main__":
    main()
