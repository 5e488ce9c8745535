"""Whether a sample file can be trusted: ids unique, images open with the stated size, every truth worth full marks in every dialect.

A bare count earns nothing, since it has no places: of it, every dialect must be able to list as many boxes, and count them right.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from ..dialects import DIALECTS, frame_of
from ..records import BadData, Sample
from ..tasks import Task, make_task
from .samples import Skipped, open_image, read_samples

_task = cache(make_task)


@dataclass
class CheckReport:
    """What a check found: samples by task, and problems, counted, with the first ones in words."""

    samples: Counter[str] = field(default_factory=Counter)
    objects: Counter[str] = field(default_factory=Counter)
    """True boxes, points or counted objects by task."""
    counted: int = 0
    """Samples whose truth is a bare count."""
    problems: Skipped = field(default_factory=Skipped)

    @property
    def good(self) -> bool:
        return not self.problems.count


def check_file(path: Path | str, *, dialects: Sequence[str] = tuple(DIALECTS), images: bool = True) -> CheckReport:
    """Checks a sample file from its rows to its pictures. A bad row is a problem of the report; an unreadable file raises BadData."""
    problems = Skipped()
    return check_samples(read_samples(path, skipped=problems), dialects=dialects, images=images, problems=problems)


def check_samples(
    samples: Iterable[Sample], *, dialects: Sequence[str] = tuple(DIALECTS), images: bool = True, problems: Skipped | None = None
) -> CheckReport:
    """Checks samples; `images=False` opens none. Problems are added to `problems` where given."""
    report = CheckReport(problems=problems or Skipped())
    seen: set[str] = set()
    for sample in samples:
        report.samples[sample.task] += 1
        report.objects[sample.task] += len(sample.truth)
        report.counted += sample.truth.count is not None
        if sample.id in seen:
            report.problems.add(f"sample {sample.id!r} is there twice, expected every id once")
        seen.add(sample.id)
        for problem in _problems(sample, dialects, images):
            report.problems.add(problem)
    return report


def _problems(sample: Sample, dialects: Sequence[str], images: bool) -> list[str]:
    found = []
    try:
        if images:
            open_image(sample)
    except BadData as problem:
        found.append(str(problem))
    for name in dialects:
        try:
            if fault := _fault(_task(sample.task, dialect=name), sample):
                found.append(f"sample {sample.id!r}: {fault}")
        except BadData as problem:
            found.append(f"sample {sample.id!r} in dialect {name}: {problem}")
    return found


def _fault(task: Task, sample: Sample) -> str | None:
    if sample.truth.count is not None:
        return None if counts_right(task, sample) else f"{sample.truth.count} boxes written in dialect {task.dialect.name} are not counted as so many"
    lost = marks_lost(task, sample)
    return f"its truth written in dialect {task.dialect.name} earns {lost:g} less than full marks" if lost else None


def marks_lost(task: Task, sample: Sample) -> float:
    """By how much the written truth falls short of the greatest total; 0 when it earns that. Raises BadData."""
    frame = frame_of(sample.width, sample.height, task.dialect, seen=sample.seen)
    total, greatest = task.score(task.write(sample, frame), sample, frame).total, task.bounds()[1]
    return 0.0 if math.isclose(total, greatest) else greatest - total


def counts_right(task: Task, sample: Sample) -> bool:
    """Whether an answer of as many boxes as the sample's truth counts is measured as the right count. Raises BadData."""
    frame, number = frame_of(sample.width, sample.height, task.dialect, seen=sample.seen), len(sample.truth)
    whole = np.tile([0.0, 0, sample.width, sample.height], (number, 1))
    answer = task.read(task.dialect.write(whole, (sample.query,) * number, frame), frame)
    return task.measure(answer, sample)["count_acc"] == 1
