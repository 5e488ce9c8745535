"""Metrics with 95 % bootstrap intervals from per-sample statistics; COCO average precision through hotcoco.

A task says what is measured on one sample (`Task.measure`) and how metrics follow from the means (`Task.metrics`); this
room only averages, resamples the samples and adds the rates that every task reports.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..records import Answer, BadData, Frame, Malformed, Sample
from ..tasks import Task
from ..tasks.detection import COCO_NAMES

Statistics = Mapping[str, np.ndarray]
"""What was measured, by name: one float64 array (S,) each, in the order of the samples."""

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
CONFIDENCE = (2.5, 97.5)
"""Percentiles of the bootstrap distribution that make a 95 % interval."""
CELLS = 4_000_000
"""Weights (resamples × samples) held in memory at a time: 32 MB."""


def read_answers(task: Task, completions: Sequence[str], frames: Sequence[Frame]) -> list[Answer | None]:
    """The answer in each completion, None where it is malformed."""

    def read(completion: str, frame: Frame) -> Answer | None:
        try:
            return task.read(completion, frame)
        except Malformed:
            return None

    return [read(completion, frame) for completion, frame in zip(completions, frames, strict=True)]


def statistics(task: Task, samples: Sequence[Sample], answers: Sequence[Answer | None], finishes: Sequence[str]) -> dict[str, np.ndarray]:
    """Per-sample statistics (S,): the task's own and, 0 or 1, `parse_failure_rate` and `truncated_rate`.

    `finishes` holds "stop" or "length" for each sample. Raises BadData when there is no sample or the counts differ.
    """
    if not samples:
        raise BadData("nothing to measure: expected at least one sample, found none")
    if not len(samples) == len(answers) == len(finishes):
        raise BadData(f"expected one answer and one finish for each of {len(samples)} samples, found {len(answers)} and {len(finishes)}")
    rows = [_measure(task, sample, answer, finish) for sample, answer, finish in zip(samples, answers, finishes, strict=True)]
    if other := next((sample for sample, row in zip(samples, rows, strict=True) if row.keys() != rows[0].keys()), None):
        first = f"{samples[0].id} by its {samples[0].truth.kind} and {other.id} by its {other.truth.kind}"
        raise BadData(f"samples cannot be measured together, {first}: split the file by what its truths hold")
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def _measure(task: Task, sample: Sample, answer: Answer | None, finish: str) -> dict[str, float]:
    always = {"parse_failure_rate": float(answer is None), "truncated_rate": float(finish == "length")}
    if task.name != "detection":
        return task.measure(answer, sample) | always
    known = {_plain(name) for name in sample.categories or COCO_NAMES}
    labels = answer.labels if answer else ()
    unknown = {"named": float(len(labels)), "unknown": float(sum(_plain(label) not in known for label in labels))}
    return task.measure(answer, sample) | always | unknown


def _metrics(task: Task, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    own = dict(means)
    always = {name: own.pop(name) for name in ("parse_failure_rate", "truncated_rate")}
    if "unknown" in own:
        named, unknown = own.pop("named"), own.pop("unknown")
        always["unknown_label_rate"] = np.divide(unknown, named, out=np.zeros_like(named), where=named > 0)
    return task.metrics(own) | always


def resample_weights(count: int, *, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Bootstrap weights over `count` samples in blocks (R, S) whose rows sum to 1; R over all blocks is `resamples`."""
    random = np.random.default_rng(seed)
    block = max(1, CELLS // count)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = random.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count) / count


def interval(values_R: np.ndarray) -> list[float] | None:
    """The 95 % percentile interval of bootstrap values; undefined ones (NaN) are left out, None when all are."""
    defined = values_R[np.isfinite(values_R)]
    return [float(edge) for edge in np.percentile(defined, CONFIDENCE)] if defined.size else None


def _point_and_draws(task: Task, stats: Statistics, seed: int, resamples: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    names, table_SK = list(stats), np.stack(list(stats.values()), axis=1)
    blocks = [weights_RS @ table_SK for weights_RS in resample_weights(len(table_SK), seed=seed, resamples=resamples)]
    drawn_RK = np.concatenate([table_SK.mean(0, keepdims=True), *blocks])  # row 0: the samples as they are
    values = {name: np.asarray(column, dtype=np.float64) for name, column in _metrics(task, dict(zip(names, drawn_RK.T, strict=True))).items()}
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
    answers: Sequence[Answer | None],
    finishes: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 1000,
    ap_resamples: int | None = 100,
) -> dict[str, dict[str, Any]]:
    """Metrics of the answers to `samples`, ready for metrics.json; a malformed answer (None) counts as wrong everywhere.

    Detection adds COCO's twelve figures with `ap_resamples` for their intervals; None leaves them out (no hotcoco needed).
    A figure without any truth to compute it from (AP of small objects where there are none) has the value None.
    """
    found = bootstrap(task, statistics(task, samples, answers, finishes), seed=seed, resamples=resamples)
    if task.name != "detection" or ap_resamples is None:
        return found
    return coco_ap(samples, answers, seed=seed, resamples=ap_resamples) | found


# --- COCO average precision ------------------------------------------------------------------------------------------
def _plain(label: str) -> str:
    return " ".join(label.split()).casefold()


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoTables:
    """Truths and detections of S images as columns: image is the index of the sample, boxes are COCO's x, y, width, height.

    True columns: image, category, 4 box, area, crowd. Detected columns: image, 4 box, score, category (hotcoco's order).
    """

    names: tuple[str, ...]
    true_M8: np.ndarray
    found_N7: np.ndarray
    images: int

    def resampled(self, picked_S: np.ndarray) -> "CocoTables":
        """The same tables for the picked images; an image picked twice becomes two images."""
        return CocoTables(names=self.names, true_M8=_pick(self.true_M8, picked_S), found_N7=_pick(self.found_N7, picked_S), images=len(picked_S))


def _pick(rows: np.ndarray, picked_S: np.ndarray) -> np.ndarray:
    start_S = np.searchsorted(rows[:, 0], picked_S)
    sizes_S = np.searchsorted(rows[:, 0], picked_S, side="right") - start_S
    new_image = np.repeat(np.arange(len(picked_S)), sizes_S)
    within = np.arange(len(new_image)) - np.repeat(np.cumsum(sizes_S) - sizes_S, sizes_S)
    picked = rows[start_S[new_image] + within].copy()
    picked[:, 0] = new_image
    return picked


def _corner_and_size(boxes_N4: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]], axis=1)


def coco_tables(samples: Sequence[Sample], answers: Sequence[Answer | None], scores: Sequence[np.ndarray] | None = None) -> CocoTables:
    """Tables for COCO AP from samples with true boxes and their answers (None: malformed, no detection).

    `scores` gives each answer's confidences (N,), 1.0 unless given: ties keep the order of the samples and of the text.
    Detections whose label no sample lists are left out, as COCO does; `unknown_label_rate` counts them. So are items that
    could not be read as a box. A truth outside the label set, or without boxes, raises BadData.
    """
    names = tuple(dict.fromkeys(name for sample in samples for name in sample.categories or COCO_NAMES))
    number = {_plain(name): index + 1 for index, name in enumerate(names)}
    true_rows, found_rows = [np.zeros((0, 8))], [np.zeros((0, 7))]
    for index, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
        true_rows.append(_true_rows(index, sample, number))
        if answer is None:
            continue
        confidence_N = np.ones(len(answer.boxes)) if scores is None else scores[index]
        category_N = np.array([number.get(_plain(label), 0) for label in answer.labels], dtype=np.float64)
        rows_N7 = np.column_stack([np.full(len(answer.boxes), index), _corner_and_size(answer.boxes), confidence_N, category_N])
        found_rows.append(rows_N7[category_N > 0])
    return CocoTables(names=names, true_M8=np.concatenate(true_rows), found_N7=np.concatenate(found_rows), images=len(samples))


def _true_rows(index: int, sample: Sample, number: Mapping[str, int]) -> np.ndarray:
    truth = sample.truth
    if truth.boxes is None:
        raise BadData(f"sample {sample.id}: average precision needs true boxes: measure points with the counting task")
    if unlisted := [label for label in truth.labels if _plain(label) not in number]:
        raise BadData(f"sample {sample.id}: label {unlisted[0]!r} is not one of its categories: list it in the sample's `categories`")
    boxes_M4, category_M = _corner_and_size(truth.boxes), [number[_plain(label)] for label in truth.labels]
    area_M = boxes_M4[:, 2] * boxes_M4[:, 3] if sample.area is None else np.array(sample.area, dtype=np.float64)
    crowd_M = np.zeros(len(truth)) if sample.crowd is None else np.array(sample.crowd, dtype=np.float64)
    return np.column_stack([np.full(len(truth), index), category_M, boxes_M4, area_M, crowd_M])


def _hotcoco() -> Any:
    try:
        import hotcoco
    except ImportError as missing:
        raise BadData("hotcoco is not installed: pip install 'perception-r1[eval]'") from missing
    return hotcoco


def average_precision(tables: CocoTables) -> np.ndarray:
    """COCO's twelve figures (12,), in the order of AP_NAMES; NaN where there is no truth to compute one from."""
    hotcoco = _hotcoco()
    true_M8 = tables.true_M8
    truth = hotcoco.COCO.from_arrays(
        [{"id": image, "width": 1, "height": 1} for image in range(tables.images)],
        [{"id": index + 1, "name": name} for index, name in enumerate(tables.names)],
        true_M8[:, 0].astype(np.int64),
        true_M8[:, 1].astype(np.int64),
        np.ascontiguousarray(true_M8[:, 2:6]),
        area=np.ascontiguousarray(true_M8[:, 6]),
        iscrowd=true_M8[:, 7].astype(np.int64),
    )
    evaluation = hotcoco.COCOeval(truth, truth.load_res(np.ascontiguousarray(tables.found_N7)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summary_lines()
    stats = np.asarray(evaluation.stats, dtype=np.float64)
    return np.where(stats < 0, np.nan, stats)


def _ap_and_draws(tables: CocoTables, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    picks = (np.sort(random.integers(tables.images, size=tables.images)) for _ in range(resamples))
    draws_R12 = np.array([average_precision(tables.resampled(picked_S)) for picked_S in picks])
    return average_precision(tables), draws_R12.reshape(resamples, len(AP_NAMES))


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def coco_ap(
    samples: Sequence[Sample],
    answers: Sequence[Answer | None],
    *,
    scores: Sequence[np.ndarray] | None = None,
    seed: int = 0,
    resamples: int = 100,
) -> dict[str, dict[str, Any]]:
    """COCO's twelve figures as `{"value", "ci95", "n"}`, with a bootstrap over images. Every image counts, answered or not."""
    value, draws_R12 = _ap_and_draws(coco_tables(samples, answers, scores), seed, resamples)
    return {name: {"value": _defined(value[k]), "ci95": interval(draws_R12[:, k]), "n": len(samples)} for k, name in enumerate(AP_NAMES)}


def coco_ap_difference(
    samples: Sequence[Sample], before: Sequence[Answer | None], after: Sequence[Answer | None], *, seed: int = 0, resamples: int = 100
) -> dict[str, dict[str, Any]]:
    """After minus before for COCO's twelve figures, `{"value", "ci95"}`, both on the same resamples of the images."""
    (value_0, draws_0), (value_1, draws_1) = (_ap_and_draws(coco_tables(samples, answers), seed, resamples) for answers in (before, after))
    return {name: {"value": _defined(value_1[k] - value_0[k]), "ci95": interval(draws_1[:, k] - draws_0[:, k])} for k, name in enumerate(AP_NAMES)}
