"""Samples as the Hugging Face datasets that TRL's trainers read: text in Arrow, images opened when a row is used."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..data.rows import sample_from_row, sample_to_row
from ..data.samples import open_image
from ..dialects import Dialect, frame_of, smart_resize
from ..records import BadData, Frame, Sample
from ..tasks import TASKS, Task


def packed(sample: Sample) -> str:
    """A sample as one JSON text, with an absolute image path: what a dataset row carries to the reward."""
    return json.dumps(sample_to_row(sample, Path("/")), ensure_ascii=False)


@lru_cache(maxsize=4096)
def unpacked(text: str) -> Sample:
    """The sample in a dataset row."""
    return sample_from_row(json.loads(text), Path("/"), "dataset row")


def _opened(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """A batch with its images. A group's rows are one sample: its image is opened once."""
    packs = [pack[0] if isinstance(pack, list) else pack for pack in batch["sample"]]
    images = {pack: open_image(unpacked(pack)) for pack in dict.fromkeys(packs)}
    return {**batch, "images": [[images[pack]] for pack in packs]}


def _lazily(rows: Iterable[dict[str, Any]]) -> Dataset:
    dataset = Dataset.from_list(list(rows))
    dataset.set_transform(_opened)
    return dataset


def prompt_dataset(samples: Sequence[Sample], tasks: Mapping[str, Task]) -> Dataset:
    """Rows for GRPO: `prompt` (the conversation up to the answer), `images` (one picture), `sample` (packed)."""
    return _lazily({"prompt": [{"role": "user", "content": tasks[sample.task].prompt(sample)}], "sample": packed(sample)} for sample in samples)


def conversation_dataset(samples: Sequence[Sample], tasks: Mapping[str, Task], frame: Callable[[Sample], Frame], turns: int) -> Dataset:
    """Rows for SFT: `messages`, up to `turns` questions about one image with their true answers, and `images`."""
    conversations: list[list[Sample]] = []
    for sample in samples:
        if conversations and len(conversations[-1]) < turns and conversations[-1][0].image_path == sample.image_path:
            conversations[-1].append(sample)
        else:
            conversations.append([sample])
    return _lazily({"messages": _messages(group, tasks, frame), "sample": [packed(group[0])]} for group in conversations)


def _messages(group: Sequence[Sample], tasks: Mapping[str, Task], frame: Callable[[Sample], Frame]) -> list[dict[str, str]]:
    said = [(tasks[sample.task].prompt(sample), tasks[sample.task].write(sample, frame(sample))) for sample in group]
    return [{"role": role, "content": text} for pair in said for role, text in zip(("user", "assistant"), pair, strict=True)]


def drawn(samples: Sequence[Sample], probabilities: np.ndarray, seed: int) -> list[Sample]:
    """As many samples as there are, drawn by `probabilities` (S,); untouched when those are all equal."""
    if np.allclose(probabilities, probabilities[0]):
        return list(samples)
    picks = np.random.default_rng(seed).choice(len(samples), size=len(samples), p=probabilities)
    return [samples[int(pick)] for pick in picks]


def processor_frame(processor: Any, dialect: Dialect) -> Callable[[Sample], Frame]:
    """A function from a sample to its frame: the size to which this processor resizes its image."""
    images = processor.image_processor
    if not hasattr(images, "merge_size"):
        return lambda sample: frame_of(sample.width, sample.height, dialect, seen=(sample.width, sample.height))
    limits = {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}
    factor = images.patch_size * images.merge_size

    def frame(sample: Sample) -> Frame:
        return frame_of(sample.width, sample.height, dialect, seen=smart_resize(sample.width, sample.height, factor=factor, **limits))

    return frame


def tasks_for(samples: Sequence[Sample], **settings: Any) -> dict[str, Task]:
    """The tasks that the samples name, each with these settings."""
    names = sorted({sample.task for sample in samples})
    if unknown := [name for name in names if name not in TASKS]:
        raise BadData(f"task {unknown[0]!r} is not known: expected one of {', '.join(TASKS)}")
    return {name: TASKS[name](**settings) for name in names}
