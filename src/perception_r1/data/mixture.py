"""What `--data` may name: a sample file, several with weights, or a reader's shorthand.

train.jsonl        a.jsonl:2,b.jsonl:1        coco:ROOT?split=val2017        scenes:counting?n=2000&seed=1&split=train
refcoco:ROOT?split=val&by=unc        refcoco:FILE.parquet?boxes=xywh&text=answer&images=FOLDER
"""

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, overload
from urllib.parse import parse_qsl

import numpy as np

from ..records import BadData, Sample
from .coco import coco_samples
from .refcoco import refcoco_samples
from .references import RefOptions
from .samples import read_samples, unique
from .scenes import SceneOptions, scene_samples

COLUMNS = ("image", "text", "box", "id")
READERS: dict[str, dict[str, type]] = {
    "refcoco": dict.fromkeys(("split", "by", "images", "name", "form", "boxes", "template", *COLUMNS), str),
    "coco": {"task": str, "split": str, "annotations": str, "images": str, "absent": int, "seed": int},
    "scenes": {"n": int, "seed": int, "split": str} | {option.name: type(option.default) for option in fields(SceneOptions)},
}
"""The readers that have a shorthand, with the options that may follow its `?`."""


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


def _part(piece: str, task: str | None, cache: Path | None) -> tuple[str, list[Sample], float | None]:
    name, weight = piece, None
    head, colon, tail = piece.rpartition(":")
    if colon and head not in READERS and _is_weight(tail):
        name, weight = head, float(tail)
        if not 0 < weight < float("inf"):
            raise BadData(f"data {piece!r}: found weight {tail}, expected a finite number above 0")
    reader, colon, rest = name.partition(":")
    if colon and reader in READERS:
        return name, _read_shorthand(reader, rest, task, cache), weight
    return name, list(read_samples(name)), weight


def _is_weight(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_shorthand(reader: str, rest: str, task: str | None, cache: Path | None) -> list[Sample]:
    target, _, query = rest.partition("?")
    options = reader_options(reader, query)
    if reader == "coco":
        return coco_samples(target, options.pop("task", task or "detection"), **options).samples
    folder = (cache or cache_folder()) / reader / "".join(letter if letter.isalnum() else "-" for letter in rest)
    if reader == "refcoco":
        lists = {name: (options.pop(name),) for name in ("by", "images") if name in options}
        columns = {name: options.pop(name) for name in COLUMNS if name in options}
        return refcoco_samples(target, RefOptions(columns=columns, extract=folder, **lists, **options)).samples
    return scene_samples(target, folder=folder, n=options.pop("n", 1000), split=options.pop("split", "train"), **options)


def reader_options(reader: str, query: str) -> dict[str, Any]:
    """The options in `name=value&name=value`, typed, for one of READERS. Raises BadData for one that the reader does not have."""
    known, options = READERS[reader], {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise BadData(f"data {reader}: option {name!r} is not known: expected one of {', '.join(known)}")
        if known[name] is int and not value.removeprefix("-").isdecimal():
            raise BadData(f"data {reader}: option {name}: found {value!r}, expected a whole number")
        options[name] = known[name](value)
    return options


def equalities(text: str) -> dict[str, str]:
    """`a=1,b=2` as {"a": "1", "b": "2"}. Raises BadData for a piece that is not name=value, or a name given twice."""
    pieces = [piece.strip().partition("=") for piece in text.split(",") if piece.strip()]
    for name, sign, value in pieces:
        if not (name and sign and value) or [piece[0] for piece in pieces].count(name) > 1:
            raise BadData(f"found {text!r}, expected name=value,name=value with each name once")
    return {name: value for name, _, value in pieces}


def parse_count(text: str) -> int:
    """A number of samples as people write it.

    >>> parse_count("500"), parse_count("5k"), parse_count("1.5k"), parse_count("2M")
    (500, 5000, 1500, 2000000)
    """
    digits = text.strip().lower()
    unit = {"k": 1000, "m": 1_000_000}.get(digits[-1:], 1)
    number = digits[:-1] if unit > 1 else digits
    if not number.replace(".", "", 1).isascii() or not number.replace(".", "", 1).isdecimal() or Fraction(number) * unit % 1 or Fraction(number) == 0:
        raise BadData(f"sample: found {text!r}, expected a whole number of at least 1, as 500 or 5k")
    return int(Fraction(number) * unit)


def subset(samples: Sequence[Sample], number: int, seed: int = 0) -> list[Sample]:
    """A random `number` of samples in their old order, the same for the same seed. Raises BadData when there are fewer.

    Stratified: of every source (in counting: of every source and asked label) its share of the whole is taken, rounded up or
    down. Each sample is as likely as any other: all are laid in one line, stratum after stratum and shuffled within, and
    taken at even steps from a random start.
    """
    if not 1 <= number <= len(samples):
        raise BadData(f"sample: found {len(samples)} samples, expected at least the {number} asked for, and to be asked for 1 or more")
    strata: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        strata[sample.task, sample.source or "", sample.query if sample.task == "counting" else ""].append(index)
    rng = random.Random(seed)
    line = [index for stratum in sorted(strata) for index in rng.sample(strata[stratum], len(strata[stratum]))]
    start = rng.randrange(len(line))
    return [samples[index] for index in sorted(line[(k * len(line) + start) // number] for k in range(number))]


def cache_folder() -> Path:
    """Where drawn scenes are kept between runs: `$XDG_CACHE_HOME/perception-r1`, by default `~/.cache/perception-r1`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perception-r1"
