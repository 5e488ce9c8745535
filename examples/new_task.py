"""A new task in one class: pointing. docs/task.md explains it line by line.

    python examples/new_task.py

Draws scenes, asks the new question of them, checks the file, scores three answers and evaluates a file of answers.
"""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np

from perception_r1.data.check import check_file
from perception_r1.data.rows import KINDS
from perception_r1.data.samples import write_samples
from perception_r1.data.scenes import scene_samples
from perception_r1.dialects import frame_of
from perception_r1.evaluation.run import evaluate
from perception_r1.primitives.boxes import centres
from perception_r1.records import Answer, BadData, Frame, Malformed, Sample, Truth
from perception_r1.tasks import TASKS, make_task
from perception_r1.tasks.task import BoxTask, true_objects


class Pointing(BoxTask):
    """Point to any one object of a kind.

    user       Point to a bird.
    Qwen2-VL   <|object_ref_start|>bird<|object_ref_end|><|box_start|>(412,300),(440,330)<|box_end|>
    reward     format (1: one box and nothing else) + inside (1: the centre of that box lies in a true box)
    """

    name: ClassVar[str] = "pointing"
    TERMS: ClassVar = {"format": (0.0, 1.0), "inside": (0.0, 1.0)}
    MAIN_METRIC: ClassVar[str] = "hit_rate"

    def question(self, sample: Sample) -> str:
        return f"Point to a {sample.query}."

    def snapped(self, sample: Sample, frame: Frame) -> Truth:
        if sample.truth.boxes is None:
            raise BadData(f"sample {sample.id}: pointing needs boxes as its truth")
        return super().snapped(sample, frame)

    def write_truth(self, sample: Sample, frame: Frame) -> str:
        truth = true_objects(sample)
        return self.dialect.write(truth.boxes[:1], truth.labels[:1], frame)

    def read_answer(self, text: str, frame: Frame) -> Answer:
        answer = super().read_answer(text, frame)
        if answer.count > 1:
            raise Malformed(f"expected one box, found {answer.count}")
        return answer

    def terms(self, answer: Answer, truth: Truth, frame: Frame) -> dict[str, float]:
        return {"format": float(answer.exact), "inside": inside(answer, truth)}

    @staticmethod
    def pair_values(answer: Answer, truth: Truth, size: tuple[int, int]) -> np.ndarray:
        return centres_inside(answer, truth)

    def measure(self, answer: Answer | None, sample: Sample) -> dict[str, float]:
        return {"hit_rate": inside(answer, true_objects(sample)) if answer else 0.0}


def inside(answer: Answer, truth: Truth) -> float:
    """1 when the centre of the one predicted box lies in a true box, or both say that nothing is there; else 0."""
    if not len(truth) or not len(answer.boxes):
        return float(len(truth) == answer.count == 0)
    return float(centres_inside(answer, truth).max())


def centres_inside(answer: Answer, truth: Truth) -> np.ndarray:
    """1 where the centre of one of N predicted boxes lies in one of M true ones, else 0: (N, M)."""
    point_N12 = centres(answer.boxes)[:, None]
    left_M2, right_M2 = truth.boxes[:, :2], truth.boxes[:, 2:]
    return ((left_M2 <= point_N12) & (point_N12 <= right_M2)).all(2) * 1.0


TASKS["pointing"] = Pointing
KINDS["pointing"] = ("boxes",)


def main() -> None:
    with TemporaryDirectory() as place:
        folder = Path(place)
        counted = scene_samples("counting", folder=folder / "images", n=30, seed=0, max_count=4)
        samples = [replace(sample, task="pointing") for sample in counted]
        write_samples(samples, folder / "pointing.jsonl")
        report = check_file(folder / "pointing.jsonl")
        print(f"checked {report.samples['pointing']} samples: {report.problems.count} problems")

        task = make_task("pointing", dialect="qwen2-vl")
        sample = next(sample for sample in samples if len(sample.truth) > 1)
        frame = frame_of(sample.width, sample.height, task.dialect)
        print(task.prompt(sample))
        for name, completion in {"truth": task.write(sample, frame), "nothing": "none", "prose": "Over there."}.items():
            score = task.score(completion, sample, frame)
            print(f"{name}: total {score.total:g}, {dict(score.terms)}, problem {score.problem}")

        lines = folder / "answers.jsonl"
        lines.write_text("".join(f'{{"id": "{sample.id}", "completion": "none"}}\n' for sample in samples))
        evaluate(data=str(folder / "pointing.jsonl"), predictions=lines, output=folder / "evaluation")


if __name__ == "__main__":
    main()
