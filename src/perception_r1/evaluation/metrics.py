"""Metrics with 95 % intervals from per-sample statistics, of tolerant and of strict reading.

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
from .intervals import (
    Interval,
    between_limits,
    bounded_interval,
    paired_rates_interval,
    percentile_interval,
    resample_counts,
    wilson,
)

Statistics = Mapping[str, np.ndarray]
"""What was measured, by name: one float64 array (S,) each, in the order of the samples."""

ALWAYS = ("parse_failure_rate", "truncated_rate", "answer_length")
"""Reported beside every figure; the length is the mean number of characters."""
ALWAYS_RATES = frozenset({"parse_failure_rate", "truncated_rate"})
ALWAYS_BOUNDED = {"unknown_label_rate": ("named",)}
"""As `Task.RATES` and `Task.BOUNDED`, of what is measured for every task."""


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


# --- intervals -------------------------------------------------------------------------------------------------------
def rates(task: Task) -> frozenset[str]:
    """The metrics that are a share of the samples: the task's own and those of ALWAYS."""
    return task.RATES | ALWAYS_RATES


def limits(task: Task, name: str) -> tuple[float, float]:
    """The least and greatest value that a metric can have, as the task declares it."""
    inside = name in rates(task) or name in task.BOUNDED or name in ALWAYS_BOUNDED
    return (0.0, 1.0) if inside else (-np.inf, np.inf)


def _carrying(task: Task, name: str, stats: Statistics) -> float:
    """How many samples a bounded metric is of: Kish's effective number, 0 where none weighs."""
    weighing = (*task.BOUNDED.get(name, ()), *ALWAYS_BOUNDED.get(name, ()))
    if not weighing:
        return float(len(next(iter(stats.values()))))
    weight_S = np.sum([stats[statistic] for statistic in weighing], axis=0)
    return float(weight_S.sum() ** 2 / (weight_S**2).sum()) if weight_S.any() else 0.0


def _column(task: Task, name: str, stats: Statistics) -> np.ndarray:
    """The statistic that a rate is the mean of."""
    column_S = stats[name]
    if not np.isin(column_S, (0, 1)).all():
        raise ValueError(
            f"{task.name}: {name} is declared to be a rate, but has values other than 0 and 1: "
            "declare it in BOUNDED"
        )
    return column_S


def _point_and_draws(task: Task, stats: Statistics, seed: int, resamples: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    names, table_SK = list(stats), np.stack(list(stats.values()), axis=1)
    count = len(table_SK)
    counted = resample_counts(count, seed=seed, resamples=resamples)
    # Row 0: every sample once. Whole numbers stay exact until they are divided, once.
    sums = [table_SK.sum(0, keepdims=True), *(counts_RS @ table_SK for counts_RS in counted)]
    values = metrics_of_means(task, dict(zip(names, (np.concatenate(sums) / count).T, strict=True)))
    return {name: column[:1] for name, column in values.items()}, {name: column[1:] for name, column in values.items()}


def bootstrap(task: Task, stats: Statistics, *, seed: int = 0, resamples: int = 1000) -> dict[str, dict[str, Any]]:
    """Every metric of `stats` as `{"value", "ci95": [low, high], "n"}`, each by its kind.

    Rates: Wilson's. What else stays within [0, 1]: Wilson's for as many samples as spread like the
    bootstrap. The rest: percentiles of the bootstrap, None where all samples are equal.
    """
    point, draws = _point_and_draws(task, stats, seed, resamples)
    count = len(next(iter(stats.values())))
    found = {}
    for name, values in point.items():
        edges = _interval(task, name, stats, float(values[0]), draws[name])
        found[name] = {"value": float(values[0]), "ci95": edges, "n": count}
    return found


def _interval(
    task: Task, name: str, stats: Statistics, value: float, draws_R: np.ndarray
) -> Interval:
    count = len(next(iter(stats.values())))
    if name in rates(task):
        return wilson(float(_column(task, name, stats).sum()) / count, count)
    if np.isfinite(limits(task, name)).all():
        carrying = _carrying(task, name, stats)
        return bounded_interval(value, draws_R, samples=count, carrying=carrying)
    return percentile_interval(value, draws_R)


def paired_difference(
    task: Task, before: Statistics, after: Statistics, *, seed: int = 0, resamples: int = 1000
) -> dict[str, dict[str, Any]]:
    """After minus before for every metric, `{"value", "ci95"}`, on the same samples in order.

    Of rates with Tango's interval; else percentiles of the bootstrap, both on the same resamples.
    """
    sizes = {len(column) for stats in (before, after) for column in stats.values()}
    if len(sizes) != 1:
        raise BadData(f"a paired difference needs the same samples twice, found {sorted(sizes)} of them")
    (point_0, draws_0), (point_1, draws_1) = (_point_and_draws(task, stats, seed, resamples) for stats in (before, after))
    found = {}
    for name in point_0:
        value = float((point_1[name] - point_0[name])[0])
        edges = _paired_interval(task, name, (before, after), value, draws_1[name] - draws_0[name])
        found[name] = {"value": value, "ci95": edges}
    return found


def _paired_interval(
    task: Task, name: str, runs: tuple[Statistics, Statistics], value: float, draws_R: np.ndarray
) -> Interval:
    if name in rates(task):
        return paired_rates_interval(*(_column(task, name, stats) for stats in runs))
    low, high = limits(task, name)
    edges = percentile_interval(value, draws_R)
    if edges is not None or not np.isfinite(high - low):
        return edges
    carrying = min(_carrying(task, name, stats) for stats in runs)
    return between_limits(value, carrying, (low - high, high - low))


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
