"""The readers by name, with the options that a shorthand (`refcoco:ROOT?split=val`) or a data recipe may give them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from ..records import BadData, Sample
from .coco import coco_samples
from .downloads import Track, as_they_are
from .layouts import SceneOptions
from .pages import page_samples
from .pixmo import pixmo_samples
from .refcoco import refcoco_samples
from .references import RefOptions
from .samples import Skipped
from .scenes import scene_samples

COLUMNS = ("image", "text", "box", "id")
READERS: dict[str, dict[str, type]] = {
    "refcoco": dict.fromkeys(("split", "by", "name", "form", "boxes", "template", *COLUMNS), str)
    | {"images": Path, "null_is_empty": bool, "skip_bad": bool},
    "coco": {
        "task": str,
        "split": str,
        "annotations": str,
        "images": str,
        "ids": Path,
        "absent": int,
        "seed": int,
    }
    | {"name": str, "merge_names": bool, "skip_bad": bool},
    "pixmo": {"images": Path, "split": str, "unit": str, "truth": str, "any_hash": bool},
    "pages": {"form": str, "images": Path, "texts": str, "question": str, "dpi": int, "name": str},
    "scenes": {"n": int, "seed": int, "split": str}
    | {option.name: type(option.default) for option in fields(SceneOptions)},
}
"""The readers, with their options' types. A Path starts from where the command runs (in a data recipe, from its root), as the
source itself does; `annotations` and `images` of coco start from the source."""

MANY: dict[str, tuple[str, ...]] = {"refcoco": ("by", "images"), "pages": ("question",)}
"""Options that a data recipe may give several of, as a list."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a reader made of one source."""

    samples: list[Sample]
    report: Mapping[str, int]
    """What it counted, what it left out by reason."""
    problems: tuple[str, ...]
    """The first of what it left out, in words."""
    files: tuple[Path, ...]
    """The files that say what is true: annotations, texts, PDFs."""


def reader_options(reader: str, query: str) -> dict[str, Any]:
    """The options in `name=value&name=value`, typed, for one of READERS. Raises BadData for one that the reader does not have."""
    return {name: typed(reader, name, value) for name, value in parse_qsl(query, keep_blank_values=True)}


def typed(reader: str, name: str, value: str) -> Any:
    """The value of an option as its reader takes it. Raises BadData for an option that the reader does not have, or another type."""
    known = READERS[reader]
    if name not in known:
        raise BadData(f"data {reader}: option {name!r} is not known: expected one of {', '.join(known)}")
    if known[name] is int and not value.removeprefix("-").isdecimal():
        raise BadData(f"data {reader}: option {name}: found {value!r}, expected a whole number")
    if known[name] is bool and value not in ("true", "false"):
        raise BadData(f"data {reader}: option {name}: found {value!r}, expected true or false")
    return value == "true" if known[name] is bool else known[name](value)


def read_source(
    reader: str,
    source: Path | str,
    options: Mapping[str, Any],
    *,
    folder: Path,
    skipped: Skipped | None = None,
    drawn: tuple[int, int] | None = None,
    track: Track = as_they_are,
) -> Found:
    """What `reader`, one of READERS, makes of `source` with its `options`, typed; lists for those of MANY are taken too.

    `folder` is where images go that lie inside the source (rows with images, PDFs, scenes). Bad
    referring expressions and annotations are left out and counted in `skipped` when it is given.
    `drawn`: so many of pixmo's rows, by that seed. Raises BadData.
    """
    options = dict(options)
    if options.pop("skip_bad", False) and skipped is None:
        skipped = Skipped()
    if reader == "refcoco":
        return _refcoco(source, options, folder, skipped)
    if reader == "coco":
        coco = coco_samples(source, options.pop("task", "detection"), skipped=skipped, **options)
        problems = (*coco.problems, *(skipped.problems if skipped else ()))
        return Found(
            samples=coco.samples,
            report={**coco.report, **left_out(skipped)},
            problems=problems,
            files=coco.files,
        )
    if reader == "pixmo":
        images, any_hash = options.pop("images", Path(source) / "images"), options.pop("any_hash", False)
        pixmo = pixmo_samples(source, images, check_hash=not any_hash, drawn=drawn, track=track, **options)
        return Found(samples=pixmo.samples, report=_nonzero(pixmo.report), problems=pixmo.problems, files=pixmo.files)
    if reader == "pages":
        pages = page_samples(source, questions=several(options.pop("question", ())), rendered=folder, track=track, **options)
        return Found(samples=pages.samples, report=_nonzero(pages.report), problems=pages.problems, files=pages.files)
    samples = scene_samples(str(source), folder=folder, n=options.pop("n", 1000), split=options.pop("split", "train"), **options)
    return Found(samples=samples, report={}, problems=(), files=())


def _refcoco(source: Path | str, options: dict[str, Any], folder: Path, skipped: Skipped | None) -> Found:
    lists = {name: several(options.pop(name)) for name in ("by", "images") if name in options}
    columns = {name: options.pop(name) for name in COLUMNS if name in options}
    found = refcoco_samples(source, RefOptions(columns=columns, extract=folder, **lists, **options), skipped=skipped)
    problems = tuple(skipped.problems) if skipped else ()
    return Found(
        samples=found.samples,
        report={**found.report, **left_out(skipped)},
        problems=problems,
        files=found.files,
    )


def left_out(skipped: Skipped | None) -> dict[str, int]:
    """What was left out, by reason, as a report counts it."""
    return (
        {f"left out {reason}": count for reason, count in skipped.reasons.items()}
        if skipped
        else {}
    )


def several(value: Any) -> tuple[Any, ...]:
    """A list as a tuple; one value as a tuple of one."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def _nonzero(report: Mapping[str, int]) -> dict[str, int]:
    return {name: number for name, number in report.items() if number}


def in_words(report: Mapping[str, int]) -> str:
    """`rows 5, no_image 2`."""
    return ", ".join(f"{name} {number}" for name, number in report.items())
