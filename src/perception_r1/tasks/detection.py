"""Object detection: every object of the listed categories, with its name.

    user         Please output bbox coordinates and names of person, bicycle, car, …, toothbrush.
    Qwen2.5-VL   [{"bbox_2d": [435, 1, 616, 415], "label": "person"}, {"bbox_2d": [2, 70, 80, 210], "label": "dog"}]
    reward       format + number = 2H / (N + M) + location = S / max(N, M) + class = H / max(N, M) + missing = −(M − H) / M

φ = IoU where the labels are equal, else 0 (labels do not count when the class weight is 0: the paper's location-only row).
S is the greatest Σφ over one-to-one pairs of N predictions and M truths; H the most such pairs with φ ≥ 0.5.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..primitives.boxes import pairwise_iou
from ..primitives.matching import total_and_hits
from ..records import Answer, Frame, Sample, Truth
from .task import BoxTask, canonical_order, same_names, true_objects

THRESHOLDS = (0.5, 0.75)

COCO_NAMES = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,bird,cat,dog,"
    "horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,"
    "baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,"
    "orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)
"""The 80 categories of COCO 2017, in the order of their ids."""


class Detection(BoxTask):
    name: ClassVar[str] = "detection"
    TERMS: ClassVar = {"format": (0.0, 1.0), "number": (0.0, 1.0), "location": (0.0, 1.0), "class": (0.0, 1.0), "missing": (-1.0, 0.0)}
    MAIN_METRIC: ClassVar[str] = "f1@0.5"
    TESTED: ClassVar = ("f1@0.5", "AP")
    BOUNDED: ClassVar = {
        **{f"f1@{at}": ("predicted", "true") for at in THRESHOLDS},
        **{f"precision@{at}": ("predicted",) for at in THRESHOLDS},
        **{f"recall@{at}": ("true",) for at in THRESHOLDS},
    }

    def question(self, sample: Sample) -> str:
        return f"Please output bbox coordinates and names of {', '.join(sample.categories or COCO_NAMES)}."

    def terms(self, answer: Answer, truth: Truth, frame: Frame) -> dict[str, float]:
        form = {"format": float(answer.exact)}
        if not answer.count and not len(truth):
            return form | {"number": 1.0, "location": 1.0, "class": 1.0, "missing": 0.0}
        total, hits = self._matched(answer, truth, named=self.weight("class") > 0)
        most = max(answer.count, len(truth))
        return form | {
            "number": 2 * hits / (answer.count + len(truth)),
            "location": total / most,
            "class": hits / most,
            "missing": -(len(truth) - hits) / len(truth) if len(truth) else 0.0,
        }

    def _matched(self, answer: Answer, truth: Truth, *, named: bool, threshold: float = 0.5) -> tuple[float, int]:
        order = np.arange(len(answer.boxes)) if self.matching == "sequential" else canonical_order(answer)
        value_NM = pairwise_iou(answer.boxes[order], truth.needed_boxes())
        if named:
            value_NM = value_NM * same_names([answer.labels[n] for n in order], truth.labels)
        return total_and_hits(value_NM, self.matching, threshold)

    @staticmethod
    def pair_values(answer: Answer, truth: Truth, size: tuple[int, int]) -> np.ndarray:
        places_NM = BoxTask.pair_values(answer, truth, size)
        return places_NM * same_names(answer.labels, truth.labels)

    def measure(self, answer: Answer | None, sample: Sample) -> dict[str, float]:
        truth = true_objects(sample)
        counts = {"predicted": float(answer.count if answer else 0), "true": float(len(truth))}
        plain = Detection(dialect=self.dialect)
        return counts | {f"hits@{at}": float(plain._matched(answer, truth, named=True, threshold=at)[1]) if answer else 0.0 for at in THRESHOLDS}

    def metrics(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        predicted, true = means["predicted"], means["true"]
        found = {}
        for at in THRESHOLDS:
            hits = means[f"hits@{at}"]
            found |= {f"f1@{at}": share(2 * hits, predicted + true, predicted + true == 0)}
            found |= {f"precision@{at}": share(hits, predicted, true == 0), f"recall@{at}": share(hits, true, predicted == 0)}
        return found


def share(part: np.ndarray, whole: np.ndarray, right: np.ndarray) -> np.ndarray:
    """part / whole; where the whole is nothing, 1 if that is `right` (nothing there and nothing predicted), else 0."""
    return np.divide(part, whole, out=np.array(right, dtype=np.float64), where=whole > 0)
