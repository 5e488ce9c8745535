"""Samples and answers as the columns that COCO average precision is computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.coco import coco_image
from ..records import Answer, BadData, Sample
from ..tasks.detection import COCO_NAMES
from ..tasks.task import plain_name

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZES = ("small", "medium", "large")
"""COCO's size classes of a true object: an area below 32², below 96², and above, in square pixels."""
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
"""Least and greatest area of all objects and of each size class; COCO's figures count both edges to it."""


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
    COCO's, by their numbers, when every sample's id is one, or one after its source (`coco-42`),
    else the order of the samples. Detections whose label no sample lists are left out, as COCO
    does; `unknown_label_rate` counts them. So are items that could not be read as a box. A truth
    outside the label set, or without boxes, raises BadData.
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
    pairs = list(zip(samples, answers, strict=True))
    numbers = [str(coco_image(sample)) for sample in samples]
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
