"""COCO average precision through hotcoco: the twelve figures with intervals, and the same by class and by size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import not_installed
from ..records import Answer, BadData, Sample
from ..tasks.detection import COCO_NAMES
from ..tasks.task import plain_name
from .intervals import interval, two_sided_p

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZES = ("small", "medium", "large")
"""COCO's size classes of a true object: an area below 32², below 96², and above, in square pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CocoTables:
    """Truths and detections of S images as columns: image is its place in `coco_tables`' order, boxes are COCO's x, y, width, height.

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


def coco_tables(samples: Sequence[Sample], answers: Sequence[Answer | None]) -> CocoTables:
    """Tables for COCO AP from samples with true boxes and their answers (None: malformed, no detection).

    An answer without `scores` has 1.0 for every box. Ties keep the order of the images and of the text; that of the images is
    COCO's, by their numbers, when every sample's id is one or `coco-` and one, else the order of the samples.
    Detections whose label no sample lists are left out, as COCO does; `unknown_label_rate` counts them. So are items that
    could not be read as a box. A truth outside the label set, or without boxes, raises BadData.
    """
    names = tuple(dict.fromkeys(name for sample in samples for name in sample.categories or COCO_NAMES))
    number = {plain_name(name): index + 1 for index, name in enumerate(names)}
    category: dict[str, int] = {}
    """Of every label as it was written: most are written many times."""
    true_rows, found_rows = [np.zeros((0, 8))], [np.zeros((0, 7))]
    for index, (sample, answer) in enumerate(_in_coco_order(samples, answers)):
        true_rows.append(_true_rows(index, sample, number))
        if answer is None:
            continue
        confidence_N = np.ones(len(answer.boxes)) if answer.scores is None else answer.scores
        for label in set(answer.labels) - category.keys():
            category[label] = number.get(plain_name(label), 0)
        category_N = np.array([category[label] for label in answer.labels], dtype=np.float64)
        rows_N7 = np.column_stack([np.full(len(answer.boxes), index), _corner_and_size(answer.boxes), confidence_N, category_N])
        found_rows.append(rows_N7[category_N > 0])
    return CocoTables(names=names, true_M8=np.concatenate(true_rows), found_N7=np.concatenate(found_rows), images=len(samples))


def _in_coco_order(samples: Sequence[Sample], answers: Sequence[Answer | None]) -> list[tuple[Sample, Answer | None]]:
    pairs, numbers = list(zip(samples, answers, strict=True)), [sample.id.removeprefix("coco-") for sample in samples]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        return pairs
    return [pairs[place] for place in sorted(range(len(pairs)), key=lambda place: int(numbers[place]))]


def _true_rows(index: int, sample: Sample, number: Mapping[str, int]) -> np.ndarray:
    truth = sample.truth
    if truth.boxes is None:
        raise BadData(f"sample {sample.id}: average precision needs true boxes: measure points with the counting task")
    if unlisted := [label for label in truth.labels if plain_name(label) not in number]:
        raise BadData(f"sample {sample.id}: label {unlisted[0]!r} is not one of its categories: list it in the sample's `categories`")
    boxes_M4, category_M = _corner_and_size(truth.boxes), [number[plain_name(label)] for label in truth.labels]
    area_M = boxes_M4[:, 2] * boxes_M4[:, 3] if sample.area is None else np.array(sample.area, dtype=np.float64)
    crowd_M = np.zeros(len(truth)) if sample.crowd is None else np.array(sample.crowd, dtype=np.float64)
    return np.column_stack([np.full(len(truth), index), category_M, boxes_M4, area_M, crowd_M])


def check_hotcoco() -> Any:
    """The package hotcoco. Raises BadData where it is not installed."""
    try:
        import hotcoco
    except ImportError as missing:
        raise BadData(not_installed("hotcoco", "eval")) from missing
    return hotcoco


def _evaluated(tables: CocoTables) -> Any:
    hotcoco = check_hotcoco()
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
    return evaluation


def average_precision(tables: CocoTables) -> np.ndarray:
    """COCO's twelve figures (12,), in the order of AP_NAMES; NaN where there is no truth to compute one from."""
    stats = np.asarray(_evaluated(tables).stats, dtype=np.float64)
    return np.where(stats < 0, np.nan, stats)


def _ap_and_draws(tables: CocoTables, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    picks = (np.sort(random.integers(tables.images, size=tables.images)) for _ in range(resamples))
    draws_R12 = np.array([average_precision(tables.resampled(picked_S)) for picked_S in picks])
    return average_precision(tables), draws_R12.reshape(resamples, len(AP_NAMES))


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def coco_ap(samples: Sequence[Sample], answers: Sequence[Answer | None], *, seed: int = 0, resamples: int = 100) -> dict[str, dict[str, Any]]:
    """COCO's twelve figures as `{"value", "ci95", "n"}`, with a bootstrap over images. Every image counts, answered or not."""
    value, draws_R12 = _ap_and_draws(coco_tables(samples, answers), seed, resamples)
    return {name: {"value": _defined(value[k]), "ci95": interval(draws_R12[:, k]), "n": len(samples)} for k, name in enumerate(AP_NAMES)}


def coco_ap_difference(
    samples: Sequence[Sample], before: Sequence[Answer | None], after: Sequence[Answer | None], *, seed: int = 0, resamples: int = 100
) -> dict[str, dict[str, Any]]:
    """After minus before for COCO's twelve figures, `{"value", "ci95", "p"}`, both on the same resamples of the images.

    `p` is two-sided: twice the share of resamples on the other side of no change, the data itself counted in.
    """
    (value_0, draws_0), (value_1, draws_1) = (_ap_and_draws(coco_tables(samples, answers), seed, resamples) for answers in (before, after))
    value, draws_R12 = value_1 - value_0, draws_1 - draws_0
    return {
        name: {"value": _defined(value[k]), "ci95": interval(draws_R12[:, k]), "p": two_sided_p(draws_R12[:, k])} for k, name in enumerate(AP_NAMES)
    }


def ap_by_class_and_size(samples: Sequence[Sample], answers: Sequence[Answer | None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`{class: {"AP", "AP50", "n"}}` and `{size: {"AP", "AP50", "AR100", "n"}}`; n counts true objects without crowd regions.

    A figure without any truth to compute it from is None.
    """
    tables = coco_tables(samples, answers)
    found = _evaluated(tables).eval
    precision_TRKA, recall_TKA = found["precision"][..., -1], found["recall"][..., -1]  # at most 100 detections
    true_M8 = tables.true_M8[tables.true_M8[:, 7] == 0]
    number_K = np.bincount(true_M8[:, 1].astype(int), minlength=len(tables.names) + 1)[1:]
    size_M = np.digitize(true_M8[:, 6], [32**2, 96**2])
    classes = {
        name: {"AP": _mean(precision_TRKA[:, :, k, 0]), "AP50": _mean(precision_TRKA[0, :, k, 0]), "n": int(number_K[k])}
        for k, name in enumerate(tables.names)
    }
    sizes = {
        name: {
            "AP": _mean(precision_TRKA[..., a]), "AP50": _mean(precision_TRKA[0, ..., a]), "AR100": _mean(recall_TKA[..., a]),
            "n": int((size_M == a - 1).sum()),
        }
        for a, name in enumerate(SIZES, start=1)
    }  # fmt: skip
    return classes, sizes


def _mean(values: np.ndarray) -> float | None:
    """COCO's mean: over what is defined (not −1)."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
