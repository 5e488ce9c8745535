"""`perception-r1 data …`: a command for each reader. As in cli.py, each imports what it needs when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from .terminal import Output, shown, usage

data_app = typer.Typer(help="Turn somebody's format into a sample file (JSONL, or Parquet by the suffix).", no_args_is_help=True)


@data_app.command(epilog="Example: perception-r1 data scenes counting -n 2000 --seed 1 --split train --set max_count=8 -o scenes/train.jsonl")
def scenes(
    task: Annotated[str, typer.Argument(help="grounding, counting, detection or ocr; several joined by +.")],
    output: Output,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many scenes.")] = 1000,
    seed: int = 0,
    split: Annotated[str, typer.Option(help="train, validation or test; they never share a scene.")] = "train",
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the drawing; may be given often.")] = None,
) -> None:
    """Draw scenes with exact truth, beside FILE in the folder FILE_images. The same seed draws the same scenes."""
    from .data.mixture import reader_options
    from .data.samples import write_samples
    from .data.scenes import scene_samples

    with usage():
        options = reader_options("scenes", "&".join(settings or []))
        folder = output.parent / f"{output.stem}_images"
        samples = scene_samples(task, folder=folder, **({"n": number, "seed": seed, "split": split} | options))
    print(f"wrote {write_samples(samples, output)} samples to {output}")


@data_app.command(epilog="Example: perception-r1 data coco /data/coco --split val2017 --task counting --absent 2 -o val.jsonl")
def coco(
    root: Annotated[Path, typer.Argument(help="Folder with instances*.json (or annotations/instances*.json) and the images.")],
    output: Output,
    task: Annotated[str, typer.Option(help="detection: a sample an image; counting: one an image and category.")] = "detection",
    split: Annotated[str | None, typer.Option(help="val2017, where there are several annotation files.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="The annotation file, relative to ROOT.")] = None,
    images: Annotated[Path | None, typer.Option(help="The image folder, relative to ROOT.")] = None,
    absent: Annotated[int, typer.Option(min=0, help="Counting: categories an image that it does not show (the answer is zero).")] = 0,
    seed: Annotated[int, typer.Option(help="Which absent categories.")] = 0,
) -> None:
    """COCO instances to detection or counting samples. Crowds: kept with their flag, and never counted."""
    from .data.coco import coco_samples
    from .data.samples import write_samples

    found = coco_samples(root, task, split=split, annotations=annotations, images=images, absent=absent, seed=seed)
    count = write_samples(shown(found.samples, "writing"), output)
    print(f"wrote {count} samples to {output}; " + ", ".join(f"{name} {number}" for name, number in found.report.items()))
