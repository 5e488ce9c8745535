"""Visual counting: detect, then count; the count is the number of boxes, and the centres are the points.

    user       Output all the bounding boxes of the bird
    Qwen2-VL   (259,427),(466,591)(298,172),(497,315)
    reward     format + distance = S / max(N, M)

S is the greatest sum, over one-to-one pairs of N predictions and M truths, of φ = max(0, 1 − d / r): d is the distance of
the centres; r is half the diagonal of the true box, or 5 % of the image's diagonal when the truth is a point. Where the
truth is a bare count, the number of boxes is measured and no reward is defined (docs/decisions/0007).
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ..primitives.matching import total_and_hits
from ..records import Answer, Frame, Sample, Truth
from .task import BoxTask, canonical_order, centre_values, true_objects


class Counting(BoxTask):
    name: ClassVar[str] = "counting"
    TERMS: ClassVar = {"format": (0.0, 1.0), "distance": (0.0, 1.0)}
    MAIN_METRIC: ClassVar[str] = "distance_score"
    LOWER_IS_BETTER: ClassVar = frozenset({"count_mae", "count_rmse"})
    TESTED: ClassVar = ("distance_score", "count_acc")
    RATES: ClassVar = frozenset({"count_acc", "count_within1"})
    BOUNDED: ClassVar = {"distance_score": ()}

    def question(self, sample: Sample) -> str:
        return f"Output all the bounding boxes of the {sample.query}"

    def terms(self, answer: Answer, truth: Truth, frame: Frame) -> dict[str, float]:
        image_diagonal = float(np.hypot(frame.width, frame.height))
        return {"format": float(answer.exact), "distance": distance_score(answer, truth, image_diagonal, self.matching)}

    @staticmethod
    def pair_values(answer: Answer, truth: Truth, size: tuple[int, int]) -> np.ndarray:
        return centre_values(answer.boxes, truth, float(np.hypot(*size)))

    def measure(self, answer: Answer | None, sample: Sample) -> dict[str, float]:
        truth = true_objects(sample)
        error = float(answer.count - len(truth) if answer else max(len(truth), 1))  # malformed: as far off as nothing, and never right
        found = {"count_acc": float(answer is not None and error == 0), "count_within1": float(answer is not None and abs(error) <= 1)}
        found |= {"count_mae": abs(error), "squared": error**2}
        if truth.count is not None:  # it says how many there are, and not where
            return found
        return found | {"distance_score": distance_score(answer, truth, float(np.hypot(sample.width, sample.height)), "hungarian") if answer else 0.0}

    def metrics(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        plain = {name: means[name] for name in ("count_acc", "count_within1", "count_mae", "distance_score") if name in means}
        return plain | {"count_rmse": np.sqrt(means["squared"])}


def distance_score(answer: Answer, truth: Truth, image_diagonal: float, matching: str) -> float:
    """S / max(N, M) in [0, 1]; 1 when there is nothing and nothing was predicted. Distances in pixels."""
    if not answer.count and not len(truth):
        return 1.0
    boxes_N4 = answer.boxes if matching == "sequential" else answer.boxes[canonical_order(answer)]
    total, _ = total_and_hits(centre_values(boxes_N4, truth, image_diagonal), matching)
    return total / max(answer.count, len(truth))
