"""The same metrics over parts of the data: by class and size, by true count, by language.

Rates have intervals, other figures are points.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..primitives.boxes import area
from ..primitives.text import has_chinese
from ..records import Answer, Sample, Truth
from ..tasks import Task
from ..tasks.task import plain_name, true_objects
from .average_precision import ap_by_class_and_size
from .coco_tables import SIZES
from .intervals import wilson
from .metrics import Reading, Statistics, metrics_of_means, rates

Parts = dict[str, Mapping[str, Any]]
"""Part → metric → value (None: nothing to compute it from), and `n`, its samples or true objects.

`ci95` holds the 95 % intervals of those metrics that are shares of the part's samples, by name.
"""

COUNTS = {**{str(number): number for number in range(11)}, "11-20": 20, "21+": float("inf")}
"""Parts by true count, each with the greatest count that belongs to it."""


def breakdown(task: Task, samples: Sequence[Sample], readings: Sequence[Reading], stats: Statistics) -> dict[str, Parts]:
    """What metrics.json calls `breakdown`; empty for a task without parts. `stats` are the statistics of the readings."""
    if task.name == "detection":
        return _by_class_and_size(task, samples, [reading.answer for reading in readings])
    if task.name not in _PARTS:
        return {}
    name, part_of, order = _PARTS[task.name]
    return {name: _by_part(task, [part_of(sample) for sample in samples], order, stats)}


def _by_part(task: Task, parts_S: Sequence[str], order: Sequence[str], stats: Statistics) -> Parts:
    found: Parts = {}
    for part in order:
        inside_S = np.array([name == part for name in parts_S])
        if inside_S.any():
            found[part] = _part(task, {name: column[inside_S] for name, column in stats.items()})
    return found


def _part(task: Task, stats: Statistics) -> dict[str, Any]:
    means = {name: column.mean(keepdims=True) for name, column in stats.items()}
    values = {name: float(value[0]) for name, value in metrics_of_means(task, means).items()}
    count = len(next(iter(stats.values())))
    edges = {name: wilson(value, count) for name, value in values.items() if name in rates(task)}
    return {**values, "n": count, "ci95": edges}


def _count(sample: Sample) -> str:
    number = len(true_objects(sample))
    return next(name for name, greatest in COUNTS.items() if number <= greatest)


def _language(sample: Sample) -> str:
    return "zh" if has_chinese(str(sample.truth.text)) else "en"


def _size(sample: Sample) -> str:
    if not len(sample.truth):
        return "nothing"
    area_M = area(sample.truth.needed_boxes()) if sample.area is None else np.array(sample.area)
    return SIZES[int(np.digitize(area_M[0], [32**2, 96**2]))]


_PARTS: Mapping[str, tuple[str, Callable[[Sample], str], Sequence[str]]] = {
    "grounding": ("size", _size, (*SIZES, "nothing")),
    "counting": ("count", _count, tuple(COUNTS)),
    "ocr": ("language", _language, ("en", "zh")),
}


# --- detection -------------------------------------------------------------------------------------------------------
def _by_class_and_size(task: Task, samples: Sequence[Sample], answers: Sequence[Answer | None]) -> dict[str, Parts]:
    classes, sizes = ap_by_class_and_size(samples, answers)
    sums: dict[str, dict[str, float]] = {plain_name(name): {} for name in classes}
    for sample, answer in zip(samples, answers, strict=True):
        for label in {plain_name(name) for name in (*sample.truth.labels, *(answer.labels if answer else ()))} & sums.keys():
            measured = task.measure(answer and _answer_of(answer, label), _sample_of(sample, label))
            sums[label] = {name: sums[label].get(name, 0.0) + value for name, value in measured.items()}
    for name, row in classes.items():
        total = sums[plain_name(name)]
        found = task.metrics({key: np.array([value]) for key, value in total.items()}) if total else {}
        classes[name] = {"AP": row["AP"], "AP50": row["AP50"]} | _at_half(found) | {"n": row["n"]}
    return {"class": classes, "size": sizes}


def _at_half(found: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    return {name: float(found[name][0]) if found else None for name in ("f1@0.5", "precision@0.5", "recall@0.5")}


def _kept(labels: Sequence[str], label: str) -> np.ndarray:
    return np.array([plain_name(name) == label for name in labels], dtype=bool)


def _answer_of(answer: Answer, label: str) -> Answer:
    kept_N = _kept(answer.labels, label)
    return Answer(boxes=answer.boxes[kept_N], labels=tuple(name for name, kept in zip(answer.labels, kept_N, strict=True) if kept))


def _sample_of(sample: Sample, label: str) -> Sample:
    truth = true_objects(sample)
    kept_M = _kept(truth.labels, label)
    labels = tuple(name for name, kept in zip(truth.labels, kept_M, strict=True) if kept)
    return replace(sample, truth=Truth(boxes=truth.needed_boxes()[kept_M], labels=labels), crowd=None, area=None)
