"""`perception-r1 data …`: a command for each reader. As in cli.py, each imports what it needs when it runs."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .terminal import Output, shown, usage

if TYPE_CHECKING:
    from .records import Sample

data_app = typer.Typer(help="Turn somebody's format into a sample file (JSONL, or Parquet by the suffix).", no_args_is_help=True)

Subset = Annotated[
    str | None,
    typer.Option("--sample", metavar="N", help="Only a random N of the samples, as 500 or 5k, with each source's share (counting: each label's)."),
]
SubsetSeed = Annotated[int, typer.Option("--seed", help="Which N of --sample.")]


def wanted(sample: str | None) -> int | None:
    """The number after --sample, before anything is read."""
    from .data.subsets import parse_count

    with usage():
        return parse_count(sample) if sample else None


def finish(
    samples: Sequence["Sample"],
    output: Path,
    *,
    number: int | None,
    seed: int,
    report: Mapping[str, int] | None = None,
    problems: Sequence[str] = (),
) -> None:
    """Writes the samples, or a subset of `number`, and says what happened on the way; the first problems go to stderr."""
    from .data.readers import in_words
    from .data.samples import write_samples
    from .data.subsets import subset

    chosen = subset(samples, number, seed) if number else samples
    count = write_samples(shown(chosen, "writing", len(chosen)), output)
    for problem in problems:
        print(problem, file=sys.stderr)
    print("; ".join(filter(None, (f"wrote {count} samples to {output}", in_words(report or {})))))


def nonzero(report: Mapping[str, int]) -> dict[str, int]:
    return {name: number for name, number in report.items() if number}


@data_app.command(epilog="Example: perception-r1 data scenes counting -n 2000 --seed 1 --split train --set max_count=8 -o scenes/train.jsonl")
def scenes(
    task: Annotated[str, typer.Argument(help="grounding, counting, detection or ocr; several joined by +.")],
    output: Output,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="How many scenes.")] = 1000,
    seed: int = 0,
    split: Annotated[str, typer.Option(help="train, validation or test; they never share a scene.")] = "train",
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An option of the drawing; may be given often.")] = None,
    sample: Subset = None,
) -> None:
    """Draw scenes with exact truth, beside FILE in the folder FILE_images. The same seed draws the same scenes."""
    from .data.readers import reader_options
    from .data.scenes import scene_samples

    subset_of = wanted(sample)
    with usage():
        options = reader_options("scenes", "&".join(settings or []))
        folder = output.parent / f"{output.stem}_images"
        samples = scene_samples(task, folder=folder, **({"n": number, "seed": seed, "split": split} | options))
    finish(samples, output, number=subset_of, seed=seed)


@data_app.command(epilog="Example: perception-r1 data coco /data/coco --split val2017 --task counting --absent 2 -o val.jsonl")
def coco(
    root: Annotated[Path, typer.Argument(help="Folder with instances*.json (or annotations/instances*.json) and the images.")],
    output: Output,
    task: Annotated[str, typer.Option(help="detection: a sample an image; counting: one an image and category.")] = "detection",
    split: Annotated[str | None, typer.Option(help="val2017, where there are several annotation files.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="The annotation file, relative to ROOT.")] = None,
    images: Annotated[Path | None, typer.Option(help="The image folder, relative to ROOT.")] = None,
    ids: Annotated[Path | None, typer.Option(help="Only the images that this file lists by id or file name: a line each, or a JSON list.")] = None,
    absent: Annotated[int, typer.Option(min=0, help="Counting: categories an image that it does not show (the answer is zero).")] = 0,
    name: Annotated[str, typer.Option(help="Beginning of ids, and the source.")] = "coco",
    merge_names: Annotated[
        bool, typer.Option("--merge-names", help="Join categories of one name but for case.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out annotations that cannot be right.")
    ] = False,
    sample: Subset = None,
    seed: Annotated[int, typer.Option(help="Which absent categories, and which samples of --sample.")] = 0,
) -> None:
    """COCO instances to detection or counting samples. Crowds: kept with their flag, and never counted."""
    from .data.coco import coco_samples
    from .data.readers import left_out
    from .data.samples import Skipped

    number, skipped = wanted(sample), Skipped() if skip_bad else None
    found = coco_samples(
        root, task, split=split, annotations=annotations, images=images, ids=ids, absent=absent,
        seed=seed, name=name, merge_names=merge_names, skipped=skipped,
    )  # fmt: skip
    problems = (*found.problems, *(skipped.problems if skipped else ()))
    report = {**found.report, **left_out(skipped)}
    finish(found.samples, output, number=number, seed=seed, report=report, problems=problems)


REFCOCO = "perception-r1 data refcoco refcoco refcoco+ refcocog --by unc --by umd --split train --images train2014 --sample 5k -o train.jsonl"


@data_app.command(epilog=f"Example: {REFCOCO}")
def refcoco(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders with refs(*).p, files of rows, or folders of Parquet shards.")],
    output: Output,
    split: Annotated[str | None, typer.Option(help="train, val, testA, testB or test; all for every one.")] = None,
    by: Annotated[list[str] | None, typer.Option(help="Whose split, where a folder has several: unc, google or umd; may be given often.")] = None,
    images: Annotated[list[Path] | None, typer.Option(help="Folder of images; may be given often, and the first that has an image wins.")] = None,
    form: Annotated[str, typer.Option(help="Of rows: rows, vlm-r1 (RefCOCOS too) or pr1.")] = "rows",
    boxes: Annotated[str | None, typer.Option(help="How rows write a box: xywh, xyxy (pixels), xyxy1000 or xyxy1. Never guessed.")] = None,
    columns: Annotated[str, typer.Option(help="Names of columns, as image=file_name,text=answer,box=bbox,id=question_id.")] = "",
    template: Annotated[str | None, typer.Option(help="Sentence around a row's phrase, as 'Find {}.'; '{}' for none.")] = None,
    null_is_empty: Annotated[bool, typer.Option("--null-is-empty", help="A row without a box says that nothing matches.")] = False,
    name: Annotated[str | None, typer.Option(help="Beginning of ids and source; the folder's or file's name by default.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out expressions that are bad or have no image, and count them.")] = False,
    sample: Subset = None,
    seed: SubsetSeed = 0,
) -> None:
    """Referring expressions (RefCOCO, RefCOCO+, RefCOCOg, RefCOCOS) to grounding samples, one a sentence.

    Images inside the rows are written beside FILE, to the folder FILE_images.
    """
    from .data.mixture import equalities
    from .data.readers import left_out
    from .data.refcoco import refcoco_samples
    from .data.references import RefOptions
    from .data.samples import Skipped, unique

    number = wanted(sample)
    with usage():
        options = RefOptions(
            split=split or "", by=tuple(by or ()), images=tuple(images or ()), name=name or "", form=form, boxes=boxes or "",
            columns=equalities(columns), template=template or "", null_is_empty=null_is_empty, extract=output.parent / f"{output.stem}_images",
        )  # fmt: skip
    skipped, report, samples = Skipped() if skip_bad else None, Counter[str](), list["Sample"]()
    for path in shown(paths, "reading", len(paths)):
        found = refcoco_samples(path, options, skipped=skipped)
        report.update(found.report)
        samples += found.samples
    problems = skipped.problems if skipped else ()
    report.update(left_out(skipped))
    samples = list(unique(samples, str(output)))
    finish(samples, output, number=number, seed=seed, report=report, problems=problems)


@data_app.command(epilog="Example: perception-r1 data pixmo pixmo --split train --images pixmo/images --download --sample 10k -o train.jsonl")
def pixmo(
    source: Annotated[Path, typer.Argument(help="A Parquet file of PixMo-Count, or the folder with its shards.")],
    output: Output,
    images: Annotated[Path, typer.Option(help="Folder of images, named by their SHA-256.")],
    split: Annotated[str | None, typer.Option(help="train, where there are several.")] = None,
    unit: Annotated[str, typer.Option(help="Of points: pixels, as published, or percent of the image's sides.")] = "pixels",
    truth: Annotated[str, typer.Option(help="points; or count, for validation and test, which are published without points.")] = "points",
    download: Annotated[bool, typer.Option("--download", help="Fetch first what is not in the folder; again only what is missing.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Downloads at a time.")] = 8,
    any_hash: Annotated[bool, typer.Option("--any-hash", help="Take images whose bytes changed since they were listed, and count them.")] = False,
    sample: Subset = None,
    seed: SubsetSeed = 0,
) -> None:
    """PixMo-Count to counting samples with points, or a bare count, as truth. Rows without their image or truth are left out and counted.

    With --download, --sample draws its rows first and fetches their images alone; dead links leave fewer samples than asked for.
    """
    from .data.downloads import DownloadSettings, download_images
    from .data.pixmo import pixmo_links, pixmo_samples
    from .data.readers import in_words

    number = wanted(sample)
    drawn = (number, seed) if download and number else None
    if download:
        settings = DownloadSettings(workers=workers, check_hash=not any_hash)
        fetched = download_images(pixmo_links(source, split=split, truth=truth, drawn=drawn), images, settings, track=shown)
        print(f"{in_words(fetched.report)}; the links that are dead: {fetched.dead_links}")
    found = pixmo_samples(source, images, split=split, unit=unit, truth=truth, check_hash=not any_hash, drawn=drawn, track=shown)
    finish(found.samples, output, number=None if drawn else number, seed=seed, report=nonzero(found.report), problems=found.problems)


@data_app.command(epilog="Example: perception-r1 data pages fox/en_page_ocr.json --images fox/en_pdf_png -o pages.jsonl")
def pages(
    source: Annotated[Path, typer.Argument(help="A conversation JSON, a PDF, or a folder of images with texts or of PDFs.")],
    output: Output,
    form: Annotated[str | None, typer.Option(help="conversation, folder or pdf, where the name does not say it.")] = None,
    images: Annotated[Path | None, typer.Option(help="Conversations: the folder that image paths start from.")] = None,
    texts: Annotated[str | None, typer.Option(help="Folder: the suffix of texts, as .gt.txt.")] = None,
    question: Annotated[list[str] | None, typer.Option(help="Conversations: another question for a page's text; may be given often.")] = None,
    dpi: Annotated[int, typer.Option(min=1, help="PDFs: dots an inch at which pages are rendered.")] = 144,
    name: Annotated[
        str | None, typer.Option(help="Beginning of ids, and the source; page and pages by default.")
    ] = None,
    sample: Subset = None,
    seed: SubsetSeed = 0,
) -> None:
    """Pages to OCR samples. Pages of PDFs are rendered beside FILE, into the folder FILE_images. Pages without a text are left out and counted."""
    from .data.pages import page_samples

    number, folder = wanted(sample), output.parent / f"{output.stem}_images"
    found = page_samples(
        source, form=form, images=images, texts=texts, questions=tuple(question or ()),
        rendered=folder, dpi=dpi, name=name, track=shown,
    )  # fmt: skip
    finish(found.samples, output, number=number, seed=seed, report=nonzero(found.report), problems=found.problems)


@data_app.command(epilog="Example: perception-r1 data recipe paper --root data --only refcoco,coco -o data")
def recipe(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name in recipes/data/ (paper), or a YAML file.")],
    root: Annotated[Path, typer.Option(help="Folder that the sources in the recipe start from.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the sample files and their manifest.json.")],
    only: Annotated[str, typer.Option(metavar="NAME,NAME", help="Only these files of the recipe; the others stay as they are.")] = "",
    seed: Annotated[int | None, typer.Option(help="Which samples; by default the recipe's.")] = None,
    download: Annotated[bool, typer.Option("--download", help="PixMo-Count: draw the sample, then fetch its images that are not there.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Downloads at a time.")] = 8,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out bad expressions and annotations.")
    ] = False,
) -> None:
    """Make all sample files of a recipe, in its sizes, with a manifest: sources and their hashes, seeds, counts, what was left out and why.

    `paper` makes the four of the paper: RefCOCO 5k, pages 5k, PixMo-Count 10k, COCO 110k.
    """
    from .data.downloads import DownloadSettings
    from .data.readers import in_words
    from .data.recipe import MANIFEST, Making, make_files, read_recipe

    with usage():
        plans = read_recipe(recipe, seed=seed, only=[name.strip() for name in only.split(",") if name.strip()])
    settings = DownloadSettings(workers=workers) if download else None
    for entry in make_files(plans, Making(root=root, output=output, download=settings, skip_bad=skip_bad, track=shown)):
        for problem in entry["left_out_first"]:
            print(problem, file=sys.stderr)
        counts = [f"{source}: {in_words(report)}" for source, report in [*entry["downloads"].items(), *entry["reports"].items()] if report]
        print("; ".join([f"wrote {entry['samples']} samples, of {entry['found']}, to {output / entry['file']}", *counts]), flush=True)
    print(f"manifest: {output / MANIFEST}")
