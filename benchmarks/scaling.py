"""Draws how the cost of a step grows with G, with the picture's pixels and with the answer's length: stock TRL and ours.

    python benchmarks/scaling.py                                   # measures small sizes first (some minutes on 2 cores)
    python benchmarks/scaling.py FILE.json … -o docs/scaling.png   # what grpo_step.py --json wrote

Each panel shows the cases that differ in one thing only: the largest such set of the files.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from perception_r1.evaluation.plots import ticks

AXES = {"group": "rollouts a prompt, G", "patches": "image tokens", "answer_tokens": "answer tokens"}
ARMS = {"stock": ("stock TRL", "#d97706"), "ours": ("ours", "#2563eb")}
SMALL = {
    "group": ["--group", "2", "4", "8", "16", "--pixels", "224x224", "--answer-tokens", "16"],
    "pixels": ["--group", "8", "--pixels", "112x112", "224x224", "336x336", "448x448", "--answer-tokens", "16"],
    "answers": ["--group", "8", "--pixels", "224x224", "--answer-tokens", "8", "16", "32", "64"],
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 360, 66, 20, 56, 56

Case = dict[str, Any]


def measure(folder: Path, extra: Sequence[str]) -> list[Path]:
    """Runs grpo_step.py over the small sizes; the files that it wrote."""
    found = []
    for name, sizes in SMALL.items():
        found.append(folder / f"scaling-{name}.json")
        script = Path(__file__).with_name("grpo_step.py")
        subprocess.run([sys.executable, str(script), *sizes, *extra, "--json", str(found[-1])], check=True)
    return found


def along(cases: Sequence[Case], axis: str) -> list[Case]:
    """The largest set of cases that differ along `axis` only, in its order; a case measured twice counts as last measured."""
    sets: dict[tuple[Any, ...], dict[Any, Case]] = defaultdict(dict)
    for case in cases:
        others = tuple(case[name] for name in (*AXES, "prompts", "device", "model", "checkpointing", "threads") if name != axis)
        sets[others][case[axis]] = case
    most = max(sets.values(), key=len, default={})
    return [most[value] for value in sorted(most)]


def told(case: Case, axis: str) -> str:
    """What the cases of a panel share."""
    shared = {
        "group": f"G={case['group']}",
        "patches": f"{case['patches'] // 4} image tokens",
        "answer_tokens": f"{case['answer_tokens']} answer tokens",
    }
    return ", ".join(text for name, text in shared.items() if name != axis)


def panel(cases: Sequence[Case], axis: str) -> Image.Image:
    """Median seconds of a whole step, both arms, and the ratio at each point. All places are in units of half a pixel."""
    picture = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), "white")
    pen, small = ImageDraw.Draw(picture), ImageFont.load_default(size=24)
    xs = [case[axis] / (4 if axis == "patches" else 1) for case in cases]
    top, low, high = 1.12 * max(case["medians"]["stock"]["whole"] for case in cases), 0.0, 1.06 * max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        return 2 * (LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)), 2 * (HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM))

    for value in ticks(0, top):
        pen.line([place(low, value), place(high, value)], fill="#e5e7eb", width=2)
        pen.text((place(low, value)[0] - 10, place(low, value)[1]), f"{value:g}", fill="#475569", font=small, anchor="rm")
    for value in ticks(low, high):
        pen.text((place(value, 0)[0], place(value, 0)[1] + 8), f"{value:g}", fill="#475569", font=small, anchor="mt")
    for arm, (name, colour) in ARMS.items():
        points = [place(x, case["medians"][arm]["whole"]) for x, case in zip(xs, cases, strict=True)]
        pen.line(points, fill=colour, width=5)
        for x, y in points:
            pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=colour)
        pen.text((points[-1][0], points[-1][1] - 14), name, fill=colour, font=small, anchor="rb")
    for x, case in zip(xs, cases, strict=True):
        at = place(x, case["medians"]["ours"]["whole"])
        pen.text((at[0], at[1] + 10), f"{case['ratio']['whole']:.1f}x", fill=ARMS["ours"][1], font=small, anchor="mt")
    pen.text((2 * LEFT, 20), "seconds a step", fill="#111827", font=ImageFont.load_default(size=28))
    pen.text((2 * LEFT, 58), told(cases[0], axis), fill="#475569", font=small)
    pen.text((WIDTH + LEFT - RIGHT, 2 * HEIGHT - 14), AXES[axis], fill="#111827", font=small, anchor="mb")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="what grpo_step.py --json wrote")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/bench/scaling.png"))
    options, extra = parser.parse_known_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    cases: list[Case] = []
    for file in options.files or measure(options.output.parent, extra):
        found = json.loads(file.read_text())
        cases += [case | {"model": found["settings"]["model"]} for case in found["cases"] if not case["memory"]]
    panels = {axis: some for axis in AXES if len(some := along(cases, axis)) > 1}
    if not panels:
        raise SystemExit("expected at least two cases that differ in G, pixels or answer length alone: name more files")
    picture = Image.new("RGB", (2 * WIDTH * len(panels), 2 * HEIGHT), "white")
    for place, (axis, some) in enumerate(panels.items()):
        picture.paste(panel(some, axis), (2 * WIDTH * place, 0))
        for case in some:
            seconds = "  ".join(f"{name} {case['medians'][arm]['whole']:.3f} s" for arm, (name, _) in ARMS.items())
            print(f"{AXES[axis]:<22}{case[axis] // (4 if axis == 'patches' else 1):6}  {seconds}  {case['ratio']['whole']:.1f}x")
    picture.quantize(64).save(options.output, optimize=True)
    print(options.output)


if __name__ == "__main__":
    main()
