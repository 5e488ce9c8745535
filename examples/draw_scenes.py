"""Draws scenes with exact truth, writes a sample file, checks it, and makes a page of pictures.

    python examples/draw_scenes.py scenes

The first argument is the folder to write to. The same in three commands: `perception-r1 data scenes`, `check`, `show`.
"""

import sys
from pathlib import Path

from perception_r1.data.check import check_file
from perception_r1.data.samples import open_image, write_samples
from perception_r1.data.scenes import scene_samples
from perception_r1.visualize import draw, gallery


def main(folder: Path) -> None:
    samples = scene_samples("counting+grounding+detection", folder=folder / "images", n=12, seed=0, split="train", max_objects=5)
    file = folder / "samples.jsonl"
    print(f"wrote {write_samples(samples, file)} samples to {file}")
    report = check_file(file)
    for task, count in sorted(report.samples.items()):
        print(f"{task}: {count} samples, {report.objects[task]} true objects")
    print(f"problems: {report.problems.count}")
    pictures = ((draw(open_image(sample), truth=sample.truth), f"{sample.task} {sample.query}") for sample in samples)
    with (folder / "pictures.html").open("w", encoding="utf-8") as page:
        page.writelines(gallery(pictures, "Drawn scenes"))
    print("wrote pictures.html")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "scenes"))
