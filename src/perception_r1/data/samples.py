"""Sample files (JSONL, or Parquet with the same columns), their images, and what `--data` may name.

    {"id": "7", "task": "grounding", "image": "a.jpg", "width": 640, "height": 480, "query": "dog", "truth": {"boxes": [[10, 20, 90, 80]]}}

Reading streams; writing is atomic: the file appears whole or not at all.
"""

import itertools
import json
import os
import re
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from PIL import Image

from .. import not_installed
from ..records import BadData, Sample
from .regular import MISSING, expect_file, what_else
from .rows import Row, sample_from_row, sample_to_row

PARQUET_ROWS = 1000
"""Rows written to Parquet at a time."""

ROWS = "a file with one JSON object a line, or .parquet"
"""What is expected of a file of rows."""

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, or not a whole one."""


class LeftOut(BadData):
    """A row that a reader leaves out, with one word for the reason, which its report counts by."""

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason


@dataclass
class Skipped:
    """Counts the bad rows that a reader was told to leave out, and keeps the reasons of the first ones."""

    count: int = 0
    problems: list[str] = field(default_factory=list)
    keep: int = 20
    """How many reasons to keep."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Rows left out by the one word of a `LeftOut`; `bad_row` for any other problem."""

    def add(self, problem: str | BadData) -> None:
        self.count += 1
        self.reasons[problem.reason if isinstance(problem, LeftOut) else "bad_row"] += 1
        if len(self.problems) < self.keep:
            self.problems.append(str(problem))


def read_rows(path: Path | str) -> Iterator[tuple[str, Row | BadData]]:
    """Yields (file and line, row) of a JSONL or Parquet file; a line that is not JSON comes as the BadData that says so."""
    path = Path(path)
    expect_file(path, ROWS)
    yield from _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def _json_rows(path: Path) -> Iterator[tuple[str, Row | BadData]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as problem:
                row = BadData(f"{where}: found {line[:40]!r}, expected one JSON object in UTF-8 on a line ({problem})")
            yield where, row


def _parquet() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as problem:
        found = not_installed("pyarrow", "data")
        raise BadData(f"{found}; or use a .jsonl file instead of Parquet") from problem
    return pyarrow


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    arrow = _parquet()
    try:
        file = arrow.parquet.ParquetFile(path)
    except arrow.ArrowInvalid as problem:
        raise BadData(f"{path}: found {problem}, expected a Parquet file") from problem
    number = itertools.count(1)
    with file:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS):
            yield from ((f"{path}:row {next(number)}", row) for row in batch.to_pylist())


def read_samples(path: Path | str, *, skipped: Skipped | None = None) -> Iterator[Sample]:
    """Yields the samples of a file, one at a time. Images are not opened; their relative paths start at the file's folder.

    Raises BadData at the first bad row, or, given `skipped`, counts it there and goes on; a file with no sample is always an error.
    """
    path = Path(path)
    found = 0
    for where, row in read_rows(path):
        try:
            if isinstance(row, BadData):
                raise row
            sample = sample_from_row(row, path.parent, where)
        except BadData as problem:
            if skipped is None:
                raise
            skipped.add(str(problem))
            continue
        found += 1
        yield sample
    if not found:
        bad = f", {skipped.count} bad row{'s' * (skipped.count > 1)}, the first: {skipped.problems[0]}" if skipped and skipped.problems else ""
        raise BadData(f"{path}: found no sample, expected at least one{bad}")


class SampleFile(Sequence[Sample]):
    """The samples of a JSONL file, read from it whenever they are asked for: memory holds where each line starts, 8 bytes.

    Raises BadData for a bad row when the row is read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path, self.starts, at = Path(path), array("q"), 0
        expect_file(self.path, ROWS)
        with self.path.open("rb") as file:
            for line in file:
                if line.strip():
                    self.starts.append(at)
                at += len(line)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Sample]:
        return read_samples(self.path)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            return sample_from_row(json.loads(file.readline()), self.path.parent, f"{self.path}: sample {index + 1}")


def unique(samples: Iterable[Sample], name: str) -> Iterator[Sample]:
    """Passes the samples on. Raises BadData, naming the file or spec `name`, at the first id that was there before."""
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise BadData(f"{name}: sample {sample.id!r} is there twice, expected every id once: rename one")
        seen.add(sample.id)
        yield sample


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file. Raises BadData, with what was `expected`, for a file that is not there or holds no JSON."""
    expect_file(path, expected)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise BadData(f"{path}: found no JSON ({problem}), expected {expected}") from problem


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well and vanishes when it does not.

    Raises OSError that names `path` when the disk is full or the place cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise BadData(f"{path}: found a folder, expected the name of a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as problem:
        if problem.filename not in (None, str(part)):
            raise  # about another file
        raise OSError(problem.errno, problem.strerror, str(path)) from problem
    finally:
        part.unlink(missing_ok=True)


def write_samples(samples: Iterable[Sample], path: Path | str) -> int:
    """Writes a sample file, Parquet when its name ends so, else JSONL, and returns the number of samples. Image paths become
    relative to the file's folder. Raises OSError when it cannot be written, and then leaves what was there before.
    """
    path = Path(path)
    rows = (sample_to_row(sample, path.parent) for sample in samples)
    with replacing(path) as part:
        return _write_parquet(rows, part) if path.suffix == ".parquet" else _write_json(rows, part)


def json_line(row: Any) -> str:
    """A row as a line of a JSONL file that UTF-8 can hold, other letters than ASCII as they are.

    Half a surrogate pair, which JSON may hold and a model's answer may come with, is written as its escape. Raises ValueError for NaN.

    >>> json_line({"text": "猫 \\ud83d"}), json_line({"text": "猫"})
    ('{"text": "\\\\u732b \\\\ud83d"}\\n', '{"text": "猫"}\\n')
    """
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    return line if line.isascii() or not _HALF_PAIR.search(line) else json.dumps(row, allow_nan=False) + "\n"


_HALF_PAIR = re.compile("[\ud800-\udfff]")


def _write_json(rows: Iterable[dict[str, Any]], path: Path) -> int:
    with path.open("w", encoding="utf-8") as file:
        return sum(file.write(json_line(row)) > 0 for row in rows)


def _write_parquet(rows: Iterable[dict[str, Any]], path: Path) -> int:
    arrow = _parquet()
    text, whole, real = arrow.string(), arrow.int64(), arrow.float64()
    numbers, names = arrow.list_(arrow.list_(real)), arrow.list_(text)
    truth = arrow.struct([("boxes", numbers), ("points", numbers), ("labels", names), ("text", text), ("count", whole)])
    columns = [("id", text), ("task", text), ("image", text), ("width", whole), ("height", whole), ("query", text), ("truth", truth)]
    columns += [("source", text), ("categories", names), ("seen", arrow.list_(whole))]
    columns += [("crowd", arrow.list_(arrow.bool_())), ("area", arrow.list_(real))]
    schema, count, rows = arrow.schema(columns), 0, iter(rows)
    with arrow.parquet.ParquetWriter(path, schema) as file:
        while batch := list(itertools.islice(rows, PARQUET_ROWS)):
            file.write_table(arrow.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def open_image(sample: Sample) -> Image.Image:
    """The sample's image in RGB, pixels as stored: an EXIF rotation is NOT applied, since boxes are in stored pixels.

    Transparent parts are laid on white; 16-bit grey is scaled to 8. Raises BadData, naming the file, for a missing or
    corrupt image and for one whose size is not the sample's.
    """
    path = sample.image_path
    with stored_image(path, f"the image of sample {sample.id!r}") as file:
        width, height = file.size
        image = as_rgb(file) if (width, height) == (sample.width, sample.height) else None
    if image is None:
        raise BadData(
            f"{path}: found {width}x{height} pixels, expected the {sample.width}x{sample.height} of sample {sample.id!r}: "
            "sizes and boxes must be those of the stored pixels, before any EXIF rotation"
        )
    return image


@contextmanager
def stored_image(path: Path | IO[bytes], what: str) -> Iterator[Image.Image]:
    """The image file at `path`, open, its pixels as stored and not decoded yet.

    Raises BadData, naming the file and `what` was expected there, when it is missing, no file at
    all but a FIFO or a device, or when it turns out to be corrupt by the end of the block.
    """
    if isinstance(path, Path) and (found := what_else(path)):
        no_image = "" if found == MISSING else "no readable image but "
        raise BadData(f"{path}: found {no_image}{found}, expected {what}")
    try:
        with Image.open(path) as file:
            yield file
    except UNREADABLE as problem:
        raise BadData(f"{path}: found no readable image ({problem}), expected {what}") from problem


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of an image as stored, before any EXIF rotation. Reads the header alone. Raises BadData."""
    with stored_image(path, "an image") as file:
        return file.size


def as_rgb(image: Image.Image) -> Image.Image:
    """An RGB copy of an image of any mode. Raises BadData for 32-bit and floating-point pixels, whose range nobody knows."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise BadData(f"found pixels of mode {image.mode}, expected 8 or 16 bits a channel: convert the image")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
