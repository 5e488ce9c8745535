"""What `--data` may name: a sample file, several with weights, or a reader's shorthand.

train.jsonl        a.jsonl:2,b.jsonl:1        coco:ROOT?split=val2017        scenes:counting?n=2000&seed=1&split=train
refcoco:ROOT?split=val&by=unc        refcoco:FILE.parquet?boxes=xywh&text=answer&images=FOLDER
pixmo:ROOT?split=train&images=FOLDER        pages:FILE.json?images=FOLDER
"""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from ..records import BadData, Sample
from .readers import READERS, in_words, read_source, reader_options
from .samples import SampleFile, read_samples, unique


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Samples of one source."""

    name: str
    samples: Sequence[Sample]
    weight: float
    """Share of the draws that this part gets, relative to the other parts' weights."""


@dataclass(frozen=True, eq=False)
class Mixture(Sequence[Sample]):
    """The samples of all parts, one after the other, and how often each is to be drawn."""

    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return sum(len(part.samples) for part in self.parts)

    def __iter__(self) -> Iterator[Sample]:
        return itertools.chain.from_iterable(part.samples for part in self.parts)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        for part in self.parts:
            if 0 <= place < len(part.samples):
                return part.samples[place]
            place -= len(part.samples)
        raise IndexError(index)

    def probabilities(self) -> np.ndarray:
        """For each sample (S,), the probability that one draw takes it; all equal when no weights were given."""
        total = sum(part.weight for part in self.parts)
        return np.concatenate([np.full(len(part.samples), part.weight / total / len(part.samples)) for part in self.parts])


def load_data(spec: str, task: str | None = None, *, cache: Path | None = None) -> Mixture:
    """The samples that a `--data` spec names. `task`, when given, is what all of them must be, and what `coco:` makes.

    Every row is checked. Those of JSONL files stay on disk; those of Parquet files and shorthands are in memory.
    Scenes are drawn below `cache` (the user's cache folder by default). Raises BadData for a spec, file or option that
    is not there, an id that occurs twice, and a sample of another task.
    """
    pieces = [spec] if Path(spec).is_file() else spec.split(",")
    parts = [_part(piece.strip(), task, cache) for piece in pieces]
    weighted = [weight for _, _, weight in parts if weight is not None]
    if weighted and len(weighted) < len(parts):
        raise BadData(f"data {spec!r}: found weights on {len(weighted)} of {len(parts)} files, expected on all or on none: a.jsonl:2,b.jsonl:1")
    mixture = Mixture(tuple(Part(name=name, samples=samples, weight=weight or len(samples)) for name, samples, weight in parts))
    for sample in unique(mixture, spec):
        if task is not None and sample.task != task:
            raise BadData(f"data {spec!r}: sample {sample.id!r} is for {sample.task}, expected {task}")
    return mixture


def _part(piece: str, task: str | None, cache: Path | None) -> tuple[str, Sequence[Sample], float | None]:
    name, weight = piece, None
    head, colon, tail = piece.rpartition(":")
    if colon and head not in READERS and _is_weight(tail):
        name, weight = head, float(tail)
        if not 0 < weight < float("inf"):
            raise BadData(f"data {piece!r}: found weight {tail}, expected a finite number above 0")
    reader, colon, rest = name.partition(":")
    if colon and reader in READERS:
        return name, _read_shorthand(reader, rest, task, cache), weight
    return name, list(read_samples(name)) if Path(name).suffix == ".parquet" else SampleFile(name), weight


def _is_weight(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_shorthand(reader: str, rest: str, task: str | None, cache: Path | None) -> list[Sample]:
    target, _, query = rest.partition("?")
    folder = (cache or cache_folder()) / reader / "".join(letter if letter.isalnum() else "-" for letter in rest)
    options = reader_options(reader, query)
    if reader == "coco" and task is not None:
        options = {"task": task} | options
    found = read_source(reader, target, options, folder=folder)
    if found.problems:  # nothing is left out silently
        print(f"data {reader}:{rest}: {in_words(found.report)}; the first left out: {found.problems[0]}", file=sys.stderr)
    return found.samples


def equalities(text: str) -> dict[str, str]:
    """`a=1,b=2` as {"a": "1", "b": "2"}. Raises BadData for a piece that is not name=value, or a name given twice."""
    pieces = [piece.strip().partition("=") for piece in text.split(",") if piece.strip()]
    for name, sign, value in pieces:
        if not (name and sign and value) or [piece[0] for piece in pieces].count(name) > 1:
            raise BadData(f"found {text!r}, expected name=value,name=value with each name once")
    return {name: value for name, _, value in pieces}


def cache_folder() -> Path:
    """Where drawn scenes are kept between runs: `$XDG_CACHE_HOME/perception-r1`, by default `~/.cache/perception-r1`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perception-r1"
