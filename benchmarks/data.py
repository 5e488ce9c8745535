"""COCO at its full size: 110,000 images' worth of annotations, made by repeating the real ones, through `data coco`, `check` and `show`.

    python benchmarks/data.py

Prints seconds on the clock (which counts what else the machine did) and on the processor, and the greatest memory, of each command as a
process of its own. `check` and `show` run on two sizes: a command that streams needs the same memory for both. `show` gets a file of its
own for each image; run again, it finds its thumbnails. Reads the real data from PERCEPTION_R1_DATA (../shared/data by default); needs
2 GB of disk and about 5 minutes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
COCO = Path(os.environ.get("PERCEPTION_R1_DATA") or ROOT.parent / "shared" / "data") / "coco_val206"
IMAGES, CHECKED, SHOWN = 110_000, (500, 2_000), (1_000, 10_000)
SECONDS, MEGABYTES = 60, 1_500
POLYGON = [[round(k * 12.34 % 640, 2) for k in range(60)]]
"""As many numbers as a polygon of COCO has, more or less."""


class Cost(NamedTuple):
    """Of one process."""

    seconds: float
    processor: float
    megabytes: float


def repeated(content: dict[str, Any], polygons: bool) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    """The lists of an instances JSON with IMAGES images: the real ones, again and again, under new ids and file names."""
    real = content["images"]
    rounds = -(-IMAGES // len(real))
    kept = [{image["id"] for image in real[: IMAGES - len(real) * turn]} for turn in range(rounds)]
    shape = {"segmentation": POLYGON} if polygons else {}
    images = ({**image, "id": image["id"] + turn * 10**7, "file_name": f"{turn}-{image['file_name']}"} for turn in range(rounds) for image in real)
    yield "images", islice(images, IMAGES)
    notes = ((turn, note) for turn in range(rounds) for note in content["annotations"] if note["image_id"] in kept[turn])
    yield "annotations", ({**note, **shape, "image_id": note["image_id"] + turn * 10**7} for turn, note in notes)
    yield "categories", iter(content["categories"])


def write_instances(content: dict[str, Any], path: Path, *, polygons: bool) -> None:
    with path.open("w") as file:
        for first, (name, entries) in zip("{,,", repeated(content, polygons), strict=True):
            file.write(f'{first}"{name}": [')
            for number, entry in enumerate(entries):
                file.write((", " if number else "") + json.dumps(entry))
            file.write("]")
        file.write("}")


def link_images(content: dict[str, Any], folder: Path, number: int) -> None:
    """The first `number` image files, each with a name of its own."""
    folder.mkdir()
    names = [image["file_name"] for image in content["images"]]
    for k in range(number):
        target = folder / f"{k // len(names)}-{names[k % len(names)]}"
        try:
            os.link(COCO / "images" / names[k % len(names)], target)
        except OSError:  # another disk
            shutil.copyfile(COCO / "images" / names[k % len(names)], target)


def cost(title: str, *words: object) -> Cost:
    """Runs one command of ours and prints what it took."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "perception_r1.cli", *map(str, words)], env=environment, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{title}: failed\n{said}")
    found = Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
    print(f"{title:<58} {found.seconds:7.1f} s  {found.processor:7.1f} s of processor  {found.megabytes:6.0f} MB", flush=True)
    return found


def head(path: Path, number: int) -> Path:
    """A file of the first lines."""
    part = path.with_name(f"{path.stem}-{number}{path.suffix}")
    with path.open() as file, part.open("w") as out:
        out.writelines(islice(file, number))
    return part


def main() -> None:
    if not COCO.is_dir():
        raise SystemExit(f"{COCO}: found no such folder: set PERCEPTION_R1_DATA to the folder that holds coco_val206")
    content = json.loads((COCO / "instances.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        link_images(content, root / "images", max(CHECKED + SHOWN))
        for polygons in (True, False):  # the smaller file stays
            write_instances(content, root / "instances.json", polygons=polygons)
            size = (root / "instances.json").stat().st_size / 1e6
            name = f"{IMAGES:,} images, {size:.0f} MB {'with' if polygons else 'without'} polygons"
            found = cost(f"data coco, {name}", "data", "coco", root, "-o", root / "detection.jsonl")
        met = "met" if found.processor <= SECONDS and found.megabytes <= MEGABYTES else "NOT met"
        print(f"  at most {SECONDS} s of processor and {MEGABYTES:,} MB: {met}")
        cost(f"data coco --task counting, {IMAGES:,} images", "data", "coco", root, "--task", "counting", "-o", root / "counting.jsonl")
        for number in CHECKED:
            cost(f"check, {number:,} samples", "check", head(root / "detection.jsonl", number))
        page = root / "page.html"
        for number in SHOWN:
            part = head(root / "detection.jsonl", number)
            shutil.rmtree(root / "page_thumbnails", ignore_errors=True)
            cost(f"show, {number:,} samples", "show", part, "-o", page)
        cost(f"show, {number:,} samples, again", "show", part, "-o", page)
        print(f"  the page of {number:,} samples: {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
