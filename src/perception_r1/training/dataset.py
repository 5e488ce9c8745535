"""Samples as the Hugging Face datasets that TRL's trainers read: text in Arrow on disk, images opened when a row is used."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from datasets import Dataset
from PIL import Image

from ..data.rows import sample_from_row, sample_to_row
from ..data.samples import open_image, replacing
from ..evaluation.checkpoint import frame_by_processor
from ..primitives.boxes import centres
from ..records import BadData, Frame, Sample
from ..rewards import RewardSettings
from ..tasks import Task

ROWS = 1000
"""Rows written to disk at a time."""


def packed(sample: Sample) -> str:
    """A sample as one JSON text, with an absolute image path: what a dataset row carries to the reward."""
    return json.dumps(sample_to_row(sample, Path("/")), ensure_ascii=False)


@lru_cache(maxsize=4096)
def unpacked(text: str) -> Sample:
    """The sample in a dataset row."""
    return sample_from_row(json.loads(text), Path("/"), "dataset row")


Shrinking = Callable[[Image.Image], Image.Image]
"""Makes an opened picture as small as the model sees it: `pictures.Shrink` of a run's processor."""


def _opened(batch: dict[str, list[Any]], shrink: Shrinking | None) -> dict[str, list[Any]]:
    """A batch with its images. A group's rows are one sample: its image is opened once."""
    packs = [pack[0] if isinstance(pack, list) else pack for pack in batch["sample"]]
    opened = {pack: open_image(unpacked(pack)) for pack in dict.fromkeys(packs)}
    if shrink:
        opened = {pack: shrink(picture) for pack, picture in opened.items()}
    return {**batch, "images": [[opened[pack]] for pack in packs]}


def _lazily(
    rows: Iterator[dict[str, Any]], path: Path | None, shrink: Shrinking | None
) -> Dataset:
    dataset = Dataset.from_list(list(rows)) if path is None else _on_disk(rows, path)
    dataset.set_transform(partial(_opened, shrink=shrink))
    return dataset


def _on_disk(rows: Iterator[dict[str, Any]], path: Path) -> Dataset:
    """Rows in a new Arrow file, mapped into memory: what is not looked at takes none of it."""
    first = pa.Table.from_pylist(list(itertools.islice(rows, ROWS)))
    with replacing(path) as part, pa.ipc.new_stream(str(part), first.schema) as file:
        file.write_table(first)
        while batch := list(itertools.islice(rows, ROWS)):
            file.write_table(pa.Table.from_pylist(batch, schema=first.schema))
    return Dataset.from_file(str(path))


def prompt_dataset(
    samples: Iterable[Sample],
    tasks: Mapping[str, Task],
    path: Path | None = None,
    shrink: Shrinking | None = None,
) -> Dataset:
    """Rows for GRPO: `prompt` (the conversation up to the answer), `images` (one picture), `sample` (packed).

    They lie in a file at `path` while the dataset is used, or in memory where there is none.
    Pictures go through `shrink`.
    """
    rows = ({"prompt": [{"role": "user", "content": tasks[sample.task].prompt(sample)}], "sample": packed(sample)} for sample in samples)
    return _lazily(rows, path, shrink)


def conversation_dataset(
    samples: Iterable[Sample],
    tasks: Mapping[str, Task],
    frame: Callable[[Sample], Frame],
    turns: int,
    path: Path | None = None,
    shrink: Shrinking | None = None,
) -> Dataset:
    """Rows for SFT: `messages`, up to `turns` questions about an image with true answers; `images`.

    `path` and `shrink` as above.
    """
    rows = ({"messages": _messages(group, tasks, frame), "sample": [packed(group[0])]} for group in conversations(samples, turns))
    return _lazily(rows, path, shrink)


def conversations(samples: Iterable[Sample], turns: int) -> Iterator[list[Sample]]:
    """Yields up to `turns` neighbours that ask about one image."""
    group: list[Sample] = []
    for sample in samples:
        if group and (len(group) == turns or group[0].image_path != sample.image_path):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _messages(group: Sequence[Sample], tasks: Mapping[str, Task], frame: Callable[[Sample], Frame]) -> list[dict[str, str]]:
    said = [(tasks[it.task].prompt(it), tasks[it.task].write(it, frame(it), thought(it) if tasks[it.task].thinking else "")) for it in group]
    return [{"role": role, "content": text} for pair in said for role, text in zip(("user", "assistant"), pair, strict=True)]


def thought(sample: Sample) -> str:
    """A short thought that leads to the true answer, for supervised training with thinking: how many of each label, where the one object
    lies, how many lines the page has.
    """
    truth = sample.truth
    if truth.text is not None:
        return f"{len(truth.text.splitlines())} lines"
    if sample.task == "grounding" and len(truth) == 1:
        column, row = np.minimum(centres(truth.needed_boxes())[0] * 3 / [sample.width, sample.height], 2).astype(int)
        return f"{sample.query} on the {('top', 'middle', 'bottom')[row]} {('left', 'middle', 'right')[column]}"
    return ", ".join(f"{count} {label}" for label, count in sorted(Counter(truth.labels).items())) or "no " + sample.query


class Picked(Sequence[Sample]):
    """Some of the samples, in an order of its own, each read when it is asked for."""

    def __init__(self, samples: Sequence[Sample], picks: np.ndarray) -> None:
        self.samples, self.picks = samples, picks

    def __len__(self) -> int:
        return len(self.picks)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Picked": ...
    def __getitem__(self, index: int | slice) -> "Sample | Picked":
        return Picked(self.samples, self.picks[index]) if isinstance(index, slice) else self.samples[int(self.picks[index])]


def drawn(samples: Sequence[Sample], probabilities: np.ndarray, seed: int) -> Sequence[Sample]:
    """As many samples as there are, drawn by `probabilities` (S,); untouched when those are all equal."""
    if np.allclose(probabilities, probabilities[0]):
        return samples
    return Picked(samples, np.random.default_rng(seed).choice(len(samples), size=len(samples), p=probabilities))


def processor_frame(processor: Any) -> Callable[[Sample], Frame]:
    """A function from a sample to its frame: the size to which this processor resizes its image."""
    return lambda sample: frame_by_processor(processor, sample.width, sample.height)


def usable(
    samples: Iterable[Sample], name: str, frame: Callable[[Sample], Frame]
) -> Iterator[Sample]:
    """Passes the samples on. Raises BadData at their end, naming the data `name`, when an image is
    not there, or has sides that the processor refuses, so that `frame` raises.
    """
    number, missing, refused = 0, Counted(), Counted()
    for sample in samples:
        number += 1
        if not sample.image_path.is_file():
            missing.add(f"{sample.image_path} of {sample.id}")
        try:
            frame(sample)
        except BadData as problem:
            refused.add(f"{sample.image_path} of {sample.id}: {problem}")
        yield sample
    if missing.count:
        found = f"{missing.count} of {number} images are not there"
        raise BadData(f"{name}: {found}, the first is {missing.first}")
    if refused.count:
        found = f"{refused.count} of {number} images have sides that the model cannot see"
        raise BadData(f"{name}: {found}, the first is {refused.first}")


@dataclass
class Counted:
    """How many faults of one kind there are, and the first in words."""

    count: int = 0
    first: str = ""

    def add(self, fault: str) -> None:
        self.count += 1
        self.first = self.first or fault


def tasks_for(samples: Iterable[Sample], **settings: Any) -> dict[str, Task]:
    """The tasks that the samples name, with these settings (`RewardSettings`).

    Raises BadData for a sample without a reward (an unknown task, a bare count), and for a setting
    that none of the tasks has.
    """
    names, counted, number = set[str](), 0, 0
    for sample in samples:
        number += 1
        names.add(sample.task)
        counted += sample.truth.count is not None
    if counted:
        raise BadData(f"data: {counted} of {number} samples hold a bare count, without places, so no answer earns a reward: evaluate with them")
    return RewardSettings(**settings).tasks_named(names)
