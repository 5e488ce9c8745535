"""Metrics with 95 % bootstrap intervals from per-sample statistics, with tolerant and with strict reading of the answers.

A task says what is measured on one sample (`Task.measure`) and how metrics follow from the means (`Task.metrics`); this
room only averages, resamples the samples and adds the rates that every task reports.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..records import Answer, BadData, Frame, Malformed, Sample
from ..tasks import Task
from ..tasks.detection import COCO_NAMES
from ..tasks.task import plain_name
from ..tasks.words import check_installed as check_words
from .average_precision import check_hotcoco, coco_ap
from .intervals import interval, resample_weights

Statistics = Mapping[str, np.ndarray]
"""What was measured, by name: one float64 array (S,) each, in the order of the samples."""

ALWAYS = ("parse_failure_rate", "truncated_rate", "answer_length")
"""Reported beside every figure; the length is the mean number of characters."""


class Reading(NamedTuple):
    """What was read from one completion: the answer or, where it is None, the problem; how it ended and how long it is."""

    answer: Answer | None
    problem: str | None = None
    finish: str = "stop"
    """"stop" or "length"."""
    length: int = 0
    """In characters."""


def check_installed(task: Task) -> None:
    """Raises BadData where a package that the task's metrics need is not installed: before a model answers, not after."""
    if task.name == "detection":
        check_hotcoco()
    if task.name == "ocr":
        check_words()


def read_completion(task: Task, completion: str, finish: str, frame: Frame) -> Reading:
    """The reading of one completion. Never raises on model text."""
    try:
        return Reading(task.read(completion, frame), None, finish, len(completion))
    except Malformed as malformed:
        return Reading(None, str(malformed), finish, len(completion))


def read_answers(task: Task, completions: Sequence[str], frames: Sequence[Frame]) -> list[Answer | None]:
    """The answer in each completion, None where it is malformed."""
    return [read_completion(task, completion, "stop", frame).answer for completion, frame in zip(completions, frames, strict=True)]


def strictly(readings: Sequence[Reading]) -> list[Reading]:
    """The same readings when an answer that is not exactly the demanded structure counts as malformed."""
    problem = "expected exactly the demanded structure, found more or less than that"
    return [reading if reading.answer is None or reading.answer.exact else reading._replace(answer=None, problem=problem) for reading in readings]


def statistics(task: Task, samples: Sequence[Sample], readings: Sequence[Reading]) -> dict[str, np.ndarray]:
    """Per-sample statistics (S,): the task's own and those of ALWAYS.

    Raises BadData when there is no sample, the counts differ, or truths of several kinds cannot be measured together.
    """
    if not samples:
        raise BadData("nothing to measure: expected at least one sample, found none")
    if len(samples) != len(readings):
        raise BadData(f"expected one answer for each of {len(samples)} samples, found {len(readings)}")
    rows = [_measure(task, sample, reading) for sample, reading in zip(samples, readings, strict=True)]
    if other := next((sample for sample, row in zip(samples, rows, strict=True) if row.keys() != rows[0].keys()), None):
        first = f"{samples[0].id} by its {samples[0].truth.kind} and {other.id} by its {other.truth.kind}"
        raise BadData(f"samples cannot be measured together, {first}: split the file by what its truths hold")
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def strict_statistics(task: Task, samples: Sequence[Sample], readings: Sequence[Reading], stats: Statistics) -> Statistics:
    """The statistics of `strictly(readings)`, from those of the readings; only what changes is measured again."""
    found = {name: column.copy() for name, column in stats.items()}
    for index, (tolerant, strict) in enumerate(zip(readings, strictly(readings), strict=True)):
        if strict is not tolerant:
            row = _measure(task, samples[index], strict)
            for name, column in found.items():
                column[index] = row[name]
    return found


def _measure(task: Task, sample: Sample, reading: Reading) -> dict[str, float]:
    answer = reading.answer
    always = dict(zip(ALWAYS, (float(answer is None), float(reading.finish == "length"), float(reading.length)), strict=True))
    if task.name != "detection":
        return task.measure(answer, sample) | always
    known = {plain_name(name) for name in sample.categories or COCO_NAMES}
    labels = answer.labels if answer else ()
    unknown = {"named": float(len(labels)), "unknown": float(sum(plain_name(label) not in known for label in labels))}
    return task.measure(answer, sample) | always | unknown


def metrics_of_means(task: Task, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every metric from the means of the statistics, elementwise: for the samples as they are, for resamples, or for each sample alone."""
    own = dict(means)
    always = {name: own.pop(name) for name in ALWAYS}
    if "unknown" in own:
        named, unknown = own.pop("named"), own.pop("unknown")
        always["unknown_label_rate"] = np.divide(unknown, named, out=np.zeros_like(named), where=named > 0)
    return task.metrics(own) | always


def _point_and_draws(task: Task, stats: Statistics, seed: int, resamples: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    names, table_SK = list(stats), np.stack(list(stats.values()), axis=1)
    blocks = [weights_RS @ table_SK for weights_RS in resample_weights(len(table_SK), seed=seed, resamples=resamples)]
    drawn_RK = np.concatenate([table_SK.mean(0, keepdims=True), *blocks])  # row 0: the samples as they are
    values = metrics_of_means(task, dict(zip(names, drawn_RK.T, strict=True)))
    return {name: column[:1] for name, column in values.items()}, {name: column[1:] for name, column in values.items()}


def bootstrap(task: Task, stats: Statistics, *, seed: int = 0, resamples: int = 1000) -> dict[str, dict[str, Any]]:
    """Every metric of `stats` as `{"value", "ci95": [low, high], "n"}`: percentile bootstrap over samples."""
    point, draws = _point_and_draws(task, stats, seed, resamples)
    count = len(next(iter(stats.values())))
    return {name: {"value": float(point[name][0]), "ci95": interval(draws[name]), "n": count} for name in point}


def paired_difference(
    task: Task, before: Statistics, after: Statistics, *, seed: int = 0, resamples: int = 1000
) -> dict[str, dict[str, Any]]:
    """After minus before for every metric, `{"value", "ci95"}`, both on the same resamples of the same samples, in order."""
    sizes = {len(column) for stats in (before, after) for column in stats.values()}
    if len(sizes) != 1:
        raise BadData(f"a paired difference needs the same samples twice, found {sorted(sizes)} of them")
    (point_0, draws_0), (point_1, draws_1) = (_point_and_draws(task, stats, seed, resamples) for stats in (before, after))
    return {name: {"value": float((point_1[name] - point_0[name])[0]), "ci95": interval(draws_1[name] - draws_0[name])} for name in point_0}


def summarise(
    task: Task,
    samples: Sequence[Sample],
    readings: Sequence[Reading],
    stats: Statistics | None = None,
    *,
    seed: int = 0,
    resamples: int = 1000,
    ap_resamples: int | None = 100,
) -> dict[str, dict[str, Any]]:
    """Metrics of the answers to `samples`, ready for metrics.json; a malformed answer (None) counts as wrong everywhere.

    `stats` are the statistics of the readings, when they are known already. Detection adds COCO's twelve figures with
    `ap_resamples` for their intervals; None leaves them out (no hotcoco needed).
    A figure without any truth to compute it from (AP of small objects where there are none) has the value None.
    """
    found = bootstrap(task, statistics(task, samples, readings) if stats is None else stats, seed=seed, resamples=resamples)
    if task.name != "detection" or ap_resamples is None:
        return found
    return coco_ap(samples, [reading.answer for reading in readings], seed=seed, resamples=ap_resamples) | found
