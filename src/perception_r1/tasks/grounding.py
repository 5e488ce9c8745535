"""Visual grounding: one phrase, one box.

    user       Output the bounding box of the woman holding a child in the image.
    Qwen2-VL   <|object_ref_start|>the woman holding a child<|object_ref_end|><|box_start|>(157,459),(208,622)<|box_end|>
    reward     format (1: exactly that structure) + iou (intersection over union with the true box)

A phrase may name nothing in the image; then the written empty answer (`none`, or `[]` in the JSON families) is right.
`iou_shape` changes what the reward makes of the IoU, for comparison: its square (as in the paper's code), (1 + GIoU) / 2, or 1 from 0.5 on.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from ..primitives.boxes import pairwise_giou, pairwise_iou
from ..records import Answer, BadData, Frame, Malformed, Sample, Truth
from .task import BoxTask

THRESHOLDS = (0.5, 0.75, 0.95)
IOU_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "iou": pairwise_iou,
    "squared": lambda a_N4, b_M4: pairwise_iou(a_N4, b_M4) ** 2,
    "giou": lambda a_N4, b_M4: (1 + pairwise_giou(a_N4, b_M4)) / 2,
    "thresholded": lambda a_N4, b_M4: (pairwise_iou(a_N4, b_M4) >= 0.5) * 1.0,
}
"""What a predicted and the true box are worth, (N, M) in [0, 1]; 1 for the true box in each."""


class Grounding(BoxTask):
    name: ClassVar[str] = "grounding"
    TERMS: ClassVar = {"format": (0.0, 1.0), "iou": (0.0, 1.0)}
    MAIN_METRIC: ClassVar[str] = "mean_iou"
    TESTED: ClassVar = ("mean_iou", "acc@0.5")
    RATES: ClassVar = frozenset({f"acc@{threshold}" for threshold in THRESHOLDS})
    BOUNDED: ClassVar = {"acc@avg": (), "mean_iou": ()}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iou_shape not in IOU_SHAPES:
            raise BadData(f"iou_shape {self.iou_shape!r} is not known: expected one of {', '.join(IOU_SHAPES)}")

    def question(self, sample: Sample) -> str:
        return f"Output the bounding box of the {sample.query} in the image."

    def snapped(self, sample: Sample, frame: Frame) -> Truth:
        if sample.truth.boxes is None or len(sample.truth) > 1:
            raise BadData(f"sample {sample.id}: grounding needs one true box, or none, found {len(sample.truth)} objects")
        return super().snapped(sample, frame)

    def read_answer(self, text: str, frame: Frame) -> Answer:
        answer = super().read_answer(text, frame)
        if answer.count > 1:
            raise Malformed(f"expected one box, found {answer.count}")
        return answer

    def terms(self, answer: Answer, truth: Truth, frame: Frame) -> dict[str, float]:
        return {"format": float(answer.exact), "iou": iou_with_truth(answer, truth, self.iou_shape)}

    def measure(self, answer: Answer | None, sample: Sample) -> dict[str, float]:
        iou = iou_with_truth(answer, sample.truth) if answer else 0.0
        return {"mean_iou": iou} | {f"acc@{threshold}": float(iou >= threshold) for threshold in THRESHOLDS}

    def metrics(self, means: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        accuracy = {f"acc@{threshold}": means[f"acc@{threshold}"] for threshold in THRESHOLDS}
        return accuracy | {"acc@avg": np.mean(list(accuracy.values()), axis=0), "mean_iou": means["mean_iou"]}


def iou_with_truth(answer: Answer, truth: Truth, shape: str = "iou") -> float:
    """IoU, or another of IOU_SHAPES, of the one predicted and the one true box; 1 when both say that nothing is there, 0 when only one does."""
    if not len(truth):
        return float(answer.count == 0)
    return float(IOU_SHAPES[shape](answer.boxes, truth.needed_boxes()).sum()) if len(answer.boxes) else 0.0
