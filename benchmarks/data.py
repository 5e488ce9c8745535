"""COCO at its full size: 110,000 images' worth of annotations, made by repeating the real ones, through `data coco`, `check`, `show` and `grpo`.

    python benchmarks/data.py                    # all parts
    python benchmarks/data.py convert            # or some of: convert check show train

Prints seconds on the clock (which counts what else the machine did) and on the processor, and the greatest memory, of each command as a
process of its own. `check`, `show` and `grpo` run on several sizes: what streams needs the same memory for all. `show` gets a file of its
own for each image; run again, it finds its thumbnails. Training takes four steps with the bundled policy, of which the weights are the
same whatever the data. Reads the real data from PERCEPTION_R1_DATA (../shared/data by default); needs 2 GB of disk and about 7 minutes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
COCO = Path(os.environ.get("PERCEPTION_R1_DATA") or ROOT.parent / "shared" / "data") / "coco_val206"
IMAGES, CHECKED, SHOWN, TRAINED = 110_000, (500, 2_000), (1_000, 10_000), (1_000, 110_000)
SECONDS, MEGABYTES = 60, 1_500
POLYGON = [[round(k * 12.34 % 640, 2) for k in range(60)]]
"""As many numbers as a polygon of COCO has, more or less."""


class Cost(NamedTuple):
    """Of one process."""

    seconds: float
    processor: float
    megabytes: float


def repeated(content: dict[str, Any], polygons: bool, number: int) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    """The lists of an instances JSON with so many images: the real ones, again and again, under new ids and file names."""
    real = content["images"]
    rounds = -(-number // len(real))
    kept = [{image["id"] for image in real[: number - len(real) * turn]} for turn in range(rounds)]
    shape = {"segmentation": POLYGON} if polygons else {}
    images = ({**image, "id": image["id"] + turn * 10**7, "file_name": f"{turn}-{image['file_name']}"} for turn in range(rounds) for image in real)
    yield "images", islice(images, number)
    notes = ((turn, note) for turn in range(rounds) for note in content["annotations"] if note["image_id"] in kept[turn])
    yield "annotations", ({**note, **shape, "image_id": note["image_id"] + turn * 10**7} for turn, note in notes)
    yield "categories", iter(content["categories"])


def write_instances(content: dict[str, Any], path: Path, *, polygons: bool, number: int) -> None:
    with path.open("w") as file:
        for first, (name, entries) in zip("{,,", repeated(content, polygons, number), strict=True):
            file.write(f'{first}"{name}": [')
            for place, entry in enumerate(entries):
                file.write((", " if place else "") + json.dumps(entry))
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


def samples(root: Path, number: int) -> Path:
    """A detection file of so many samples under different ids, of real images."""
    if not (root / "real.jsonl").exists():
        link_images(json.loads((COCO / "instances.json").read_text()), root / "images", max(SHOWN))
        write_instances(json.loads((COCO / "instances.json").read_text()), root / "instances.json", polygons=False, number=max(SHOWN))
        cost(f"data coco, {max(SHOWN):,} images", "data", "coco", root, "-o", root / "real.jsonl")
    part = root / f"samples-{number}.jsonl"
    with part.open("w") as out:
        for turn in range(-(-number // max(SHOWN))):
            with (root / "real.jsonl").open() as file:
                rows = (json.loads(line) for line in islice(file, number - turn * max(SHOWN)))
                out.writelines(json.dumps({**row, "id": f"{turn}-{row['id']}"}) + "\n" for row in rows)
    return part


def convert(root: Path) -> None:
    content = json.loads((COCO / "instances.json").read_text())
    link_images(content, root / "images", 1)
    for polygons in (True, False):  # the smaller file stays
        write_instances(content, root / "instances.json", polygons=polygons, number=IMAGES)
        size = (root / "instances.json").stat().st_size / 1e6
        name = f"{IMAGES:,} images, {size:.0f} MB {'with' if polygons else 'without'} polygons"
        found = cost(f"data coco, {name}", "data", "coco", root, "-o", root / "detection.jsonl")
        met = "met" if found.seconds <= SECONDS and found.megabytes <= MEGABYTES else "NOT met"
        print(f"  at most {SECONDS} s and {MEGABYTES:,} MB: {met}")
    cost(f"data coco --task counting, {IMAGES:,} images", "data", "coco", root, "--task", "counting", "-o", root / "counting.jsonl")


def check(root: Path) -> None:
    for number in CHECKED:
        cost(f"check, {number:,} samples", "check", samples(root, number))


def show(root: Path) -> None:
    page, part = root / "page.html", Path()
    for number in SHOWN:
        part = samples(root, number)
        shutil.rmtree(root / "page_thumbnails", ignore_errors=True)
        cost(f"show, {number:,} samples", "show", part, "-o", page)
    cost(f"show, {max(SHOWN):,} samples, again", "show", part, "-o", page)
    print(f"  the page of {max(SHOWN):,} samples: {page.stat().st_size / 1e6:.1f} MB")


def train(root: Path) -> None:
    settings = {"model": "tiny", "use_cpu": "true", "bf16": "false", "gradient_checkpointing": "false", "max_steps": 4, "num_generations": 4}
    settings |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_completion_length": 16, "max_pixels": 4096}
    for number in TRAINED:
        given = settings | {"data": samples(root, number), "output_dir": root / f"run-{number}"}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        cost(f"grpo detection, 4 steps, {number:,} samples", "grpo", "detection", *words)


PARTS: dict[str, Callable[[Path], None]] = {"convert": convert, "check": check, "show": show, "train": train}


def main() -> None:
    if not COCO.is_dir():
        raise SystemExit(f"{COCO}: found no such folder: set PERCEPTION_R1_DATA to the folder that holds coco_val206")
    named = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in named if name not in PARTS]:
        raise SystemExit(f"found part {unknown[0]}, expected some of {', '.join(PARTS)}")
    for name in named:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder))


if __name__ == "__main__":
    main()
