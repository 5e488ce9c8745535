"""Where the bundled policy's grounding is lost: does its box fit an object at all, and is it the object that the phrase names?

    python benchmarks/grounding_errors.py

Prints, by the number of objects in a held-out scene: questions, mean IoU with the named object, mean IoU with the nearest object,
and the share of answers nearest to the named one, beside what choosing an object at random would give (one over the objects).
"""

from collections import defaultdict

import numpy as np

from perception_r1.data.scenes import scenes
from perception_r1.evaluation.backends import TransformersBackend
from perception_r1.evaluation.metrics import read_answers
from perception_r1.primitives.boxes import pairwise_iou
from perception_r1.tasks import make_task

SCENES = 300


def main() -> None:
    backend = TransformersBackend("tiny", device="cpu")
    task = make_task("grounding", dialect=backend.dialect)
    asked = []
    for image, samples in scenes(["detection", "grounding"], n=SCENES, seed=11, split="test"):
        (every,) = (sample.truth.needed_boxes() for sample in samples if sample.task == "detection")
        asked += [(image, sample, every) for sample in samples if sample.task == "grounding"]
    replies = backend.generate([task.prompt(sample) for _, sample, _ in asked], [image for image, _, _ in asked], max_new_tokens=64, batch_size=100)
    answers = read_answers(task, [reply.completion for reply in replies], [reply.frame for reply in replies])
    found = defaultdict(list)
    for (_, sample, every_M4), answer in zip(asked, answers, strict=True):
        iou_M = pairwise_iou(answer.boxes, every_M4)[0] if answer and len(answer.boxes) else np.zeros(len(every_M4))
        named = int(np.flatnonzero((every_M4 == sample.truth.needed_boxes()[0]).all(1))[0])
        row = (iou_M[named], iou_M.max(), float(iou_M.any() and iou_M.argmax() == named), 1 / len(every_M4))
        found[f"{len(every_M4)}"].append(row)
        found["all"].append(row)
    print("objects  questions  IoU named  IoU nearest  named chosen  by chance")
    for count in sorted(found):
        print(f"{count:>7}  {len(found[count]):9}  " + "  ".join(f"{value:11.2f}" for value in np.mean(found[count], axis=0)))


if __name__ == "__main__":
    main()
