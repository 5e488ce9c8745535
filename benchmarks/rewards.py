"""Rewards a second on COCO detection answers: ours, COCO mAP of each rollout, and IoU in Python loops with scipy's assignment.

    PERCEPTION_R1_DATA=FOLDER python benchmarks/rewards.py --step-seconds 60 --rollouts-a-step 128

Answers are the real annotations of coco_val206 written as Qwen2.5-VL writes them, boxes jittered, some left out, some doubled, a few labels
wrong. Pictures with few objects are joined in pairs and more, up to 60 objects, so that the long answers are there too. Each side
gets the completion's text and gives a number. They are timed in turns on the same answers, by processor time on one core; medians, ratio last.

The alternatives are written as their authors define them, and asserted to agree with ours where they can be compared:
`COCO mAP`: one pycocotools evaluation a rollout, AP over IoU 0.50:0.95 and the picture's classes (IoU must equal ours, a perfect answer's AP be 1);
`Python loops`: one IoU a pair in Python, scipy's assignment on it (its total must equal ours).
`ours, as trained`: what the trainer calls, from token ids to rewards, with every rollout logged (needs torch and transformers).
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment

from perception_r1.data.coco import coco_samples
from perception_r1.dialects import frame_of
from perception_r1.primitives.boxes import pairwise_iou
from perception_r1.records import Frame, Sample, Truth
from perception_r1.tasks import Task, make_task
from perception_r1.tasks.detection import COCO_NAMES
from perception_r1.tasks.task import true_objects

DATA = Path(os.environ.get("PERCEPTION_R1_DATA") or Path(__file__).parents[2] / "shared" / "data")
SIZES = ((1, 5), (6, 15), (16, 30), (31, 60))
"""Objects in a picture, least and most of each row."""
IMAGES, ROLLOUTS = 110_000, 8


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One completion, with what it is scored against. `truth` is on the dialect's grid, as the reward has it."""

    completion: str
    sample: Sample
    frame: Frame
    truth: Truth


def joined(samples: Sequence[Sample], least: int, most: int, rng: np.random.Generator) -> Sample | None:
    """A picture with `least` to `most` objects: those of one or more pictures, fitted into the size of the first. None when it did not work out."""
    first = samples[int(rng.integers(len(samples)))]
    boxes, labels = [], []
    for other in (first, *(samples[int(at)] for at in rng.integers(len(samples), size=20))):
        truth = true_objects(other)
        if len(labels) + len(truth) <= most:
            boxes.append(truth.needed_boxes() * np.tile([first.width / other.width, first.height / other.height], 2))
            labels += truth.labels
        if len(labels) >= least:
            truth = Truth(boxes=np.concatenate(boxes), labels=tuple(labels))
            return Sample(id=first.id, task="detection", image=first.image, width=first.width, height=first.height, query="", truth=truth)
    return None


def answer(task: Task, sample: Sample, frame: Frame, rng: np.random.Generator) -> str:
    """A completion as a policy halfway there would write it."""
    boxes_M4, labels = sample.truth.needed_boxes(), np.array(sample.truth.labels, dtype=object)
    picks = rng.choice(len(boxes_M4), size=max(1, round(len(boxes_M4) * rng.uniform(0.6, 1.1))), replace=True)
    sides_N2 = np.maximum(boxes_M4[picks, 2:] - boxes_M4[picks, :2], 4)
    boxes_N4 = boxes_M4[picks] + np.tile(sides_N2, 2) * rng.normal(0, 0.1, (len(picks), 4))
    size_4 = np.tile([sample.width, sample.height], 2)
    boxes_N4 = np.clip(boxes_N4, 0, size_4)
    boxes_N4[:, 2:] = np.minimum(np.maximum(boxes_N4[:, 2:], boxes_N4[:, :2] + 2), size_4[:2])
    boxes_N4[:, :2] = np.minimum(boxes_N4[:, :2], boxes_N4[:, 2:] - 1)
    wrong = rng.random(len(picks)) < 0.1
    named = [str(rng.choice(COCO_NAMES)) if bad else str(label) for bad, label in zip(wrong, labels[picks], strict=True)]
    return task.dialect.write(boxes_N4, named, frame)


def draw(task: Any, samples: Sequence[Sample], size: tuple[int, int], number: int, rng: np.random.Generator) -> list[Rollout]:
    """`number` rollouts, ROLLOUTS a picture."""
    found: list[Rollout] = []
    while len(found) < number:
        sample = joined(samples, *size, rng)
        if sample is None:
            continue
        frame = frame_of(sample.width, sample.height, task.dialect)
        truth = task.snapped(sample, frame)
        found += [Rollout(completion=answer(task, sample, frame, rng), sample=sample, frame=frame, truth=truth) for _ in range(ROLLOUTS)]
    return found[:number]


def read_json(rollout: Rollout) -> list[tuple[list[float], str]]:
    """The boxes, in original pixels, and labels of a completion that is right JSON: all that the alternatives understand."""
    across, down = rollout.frame.width / rollout.frame.seen_width, rollout.frame.height / rollout.frame.seen_height
    items = json.loads(rollout.completion)
    return [([x1 * across, y1 * down, x2 * across, y2 * down], item["label"]) for item in items for x1, y1, x2, y2 in [item["bbox_2d"]]]


def coco_evaluation(rollout: Rollout) -> COCOeval:
    """pycocotools' evaluation of one answer: every prediction with score 1, as a language model writes none."""
    numbers = {name: place + 1 for place, name in enumerate(COCO_NAMES)}
    truths = zip(rollout.truth.needed_boxes().tolist(), rollout.truth.labels, strict=True)
    kinds = {label: number for label, number in numbers.items() if label in rollout.truth.labels}
    items = [
        {"id": place, "image_id": 1, "category_id": numbers[label], "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
        for place, ((x1, y1, x2, y2), label) in enumerate(truths, start=1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = {"images": [{"id": 1}], "annotations": items, "categories": [{"id": number} for number in kinds.values()], "info": {}}
        truth.createIndex()
        predictions = [
            {"image_id": 1, "category_id": numbers[label], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1.0}
            for (x1, y1, x2, y2), label in read_json(rollout)
            if label in kinds
        ]
        evaluation = COCOeval(truth, truth.loadRes(predictions) if predictions else COCO(), "bbox")
        evaluation.params.imgIds, evaluation.params.catIds = [1], sorted(kinds.values())
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def coco_map(rollout: Rollout) -> float:
    return float(coco_evaluation(rollout).stats[0])


def loop_iou(a: Sequence[float], b: Sequence[float]) -> float:
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = across * down
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def loops(rollout: Rollout) -> float:
    """The reward of `docs/rewards.md`, each pair's IoU in Python, for answers that are right JSON."""
    predicted, true = read_json(rollout), list(zip(rollout.truth.needed_boxes().tolist(), rollout.truth.labels, strict=True))
    values = np.zeros((len(predicted), len(true)))
    for row, (box, label) in enumerate(predicted):
        for column, (other, name) in enumerate(true):
            if label == name:
                values[row, column] = loop_iou(box, other)
    rows, columns = linear_sum_assignment(-values)
    total = float(sum(values[row, column] for row, column in zip(rows, columns, strict=True)))
    good = (values >= 0.5).astype(float)
    rows, columns = linear_sum_assignment(-good)
    hits = float(sum(good[row, column] for row, column in zip(rows, columns, strict=True)))
    most = max(len(predicted), len(true))
    return 1 + 2 * hits / (len(predicted) + len(true)) + total / most + hits / most - (len(true) - hits) / len(true)


def assert_agreement(task: Task, rollouts: Sequence[Rollout]) -> None:
    """The loops earn what ours does; pycocotools sees the same IoU; the written truth is perfect for all of them."""
    for rollout in rollouts:
        assert abs(loops(rollout) - task.score(rollout.completion, rollout.sample, rollout.frame).total) < 1e-9
    for rollout in rollouts[:: max(1, len(rollouts) // 8)]:
        for (_, category), iou in coco_evaluation(rollout).ious.items():
            name, read = COCO_NAMES[category - 1], read_json(rollout)
            mine_N4 = np.array([box for box, label in read if label == name]).reshape(-1, 4)
            true_M4 = rollout.truth.needed_boxes()[[label == name for label in rollout.truth.labels]]
            found = np.array(iou).reshape(len(mine_N4), len(true_M4))
            assert np.allclose(found, pairwise_iou(mine_N4, true_M4), atol=1e-9)
        text = task.write(rollout.sample, rollout.frame)
        perfect = Rollout(completion=text, sample=rollout.sample, frame=rollout.frame, truth=rollout.truth)
        assert task.score(text, rollout.sample, rollout.frame).total == 4 == loops(perfect)
        assert len(rollout.truth) > 100 or abs(coco_map(perfect) - 1) < 1e-9  # COCO looks at 100 boxes at most


def trained(task: Task, rollouts: Sequence[Rollout], folder: Path) -> Callable[[Sequence[Rollout]], None] | None:
    """The trainer's own call on the ids of these completions; None where its packages or the real tokenizer are missing."""
    try:
        from transformers import AutoTokenizer

        from perception_r1.training.dataset import packed
        from perception_r1.training.reward import PerceptionReward
    except ModuleNotFoundError:
        return None
    if not (DATA / "qwen_tokenizer_config").is_dir():
        return None
    tokenizer = AutoTokenizer.from_pretrained(DATA / "qwen_tokenizer_config", tokenizer_type="qwen2")
    reward = PerceptionReward({"detection": task}, lambda sample: frame_of(sample.width, sample.height, task.dialect), tokenizer, folder / "r.jsonl")
    known = {id(rollout): (tokenizer(rollout.completion)["input_ids"], packed(rollout.sample)) for rollout in rollouts}
    state: Any = SimpleNamespace(global_step=0)

    def call(some: Sequence[Rollout]) -> None:
        for start in range(0, len(some), ROLLOUTS):
            ids, samples = zip(*(known[id(rollout)] for rollout in some[start : start + ROLLOUTS]), strict=True)
            reward(completion_ids=ids, sample=samples, trainer_state=state, log_metric=lambda *_: None)

    return call


def rates(sides: dict[str, Callable[[Sequence[Rollout]], Any]], rollouts: Sequence[Rollout], repeats: int) -> dict[str, float]:
    """Completions a second of each side: medians of `repeats` rounds in which they take turns, after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, side in sides.items():
            start = time.process_time()
            side(rollouts)
            found[name].append(len(rollouts) / (time.process_time() - start))
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def print_share(rate: float, options: argparse.Namespace) -> None:
    """What the rewards of a long training cost, and what share of its steps that is."""
    print(f"\n{IMAGES:,} images × {ROLLOUTS} rollouts: {IMAGES * ROLLOUTS / rate / 60:.1f} min of rewards in all, in one process, as trained")
    seconds = options.rollouts_a_step / rate
    told = f"a step of {options.rollouts_a_step} rollouts spends {seconds:.4f} s on rewards"
    if options.step_seconds:
        print(f"{told}: {seconds / options.step_seconds:.3%} of a step of {options.step_seconds:g} s")
    else:
        print(f"{told}: less than 1 % of any step longer than {100 * seconds:.2f} s (give yours with --step-seconds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=160, help="of each row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step-seconds", type=float, help="seconds of one of your training steps, as grpo_step.py measures them")
    parser.add_argument("--rollouts-a-step", type=int, default=ROLLOUTS)
    parser.add_argument("--json", type=Path, help="a file for every figure")
    options = parser.parse_args()
    if not (DATA / "coco_val206").is_dir():
        print(f"not run: found no coco_val206 in {DATA}: set PERCEPTION_R1_DATA to the folder that holds it")
        return
    rng, task = np.random.default_rng(0), make_task("detection", dialect="qwen2.5-vl")
    samples = [sample for sample in coco_samples(DATA / "coco_val206").samples if len(true_objects(sample))]
    rows: dict[str, dict[str, float]] = {}
    columns = ("ours", "ours, as trained", "Python loops", "COCO mAP")
    print("completions a second of processor time on one core, medians; ratio ours / theirs last")
    print(f"{'objects':<10}" + "".join(f"{name:>18}" for name in columns) + f"{'vs loops':>12}{'vs COCO mAP':>13}")
    for least, most in SIZES:
        rollouts = draw(task, samples, (least, most), options.completions, rng)
        assert_agreement(task, rollouts)
        with tempfile.TemporaryDirectory() as folder:
            sides: dict[str, Any] = {
                "ours": lambda some: [task.score(it.completion, it.sample, it.frame) for it in some],
                "Python loops": lambda some: [loops(it) for it in some],
                "COCO mAP": lambda some: [coco_map(it) for it in some],
            }
            if call := trained(task, rollouts, Path(folder)):
                sides["ours, as trained"] = call
            found = rows[f"{least}-{most}"] = rates(sides, rollouts, options.repeats)
        shown = "".join(f"{found[name]:18.0f}" if name in found else f"{'':18}" for name in columns)
        print(f"{least:>3}-{most:<6}{shown}{found['ours'] / found['Python loops']:11.1f}x{found['ours'] / found['COCO mAP']:12.1f}x", flush=True)
    slowest = min(row.get("ours, as trained", row["ours"]) for row in rows.values())
    print_share(slowest, options)
    if options.json:
        options.json.write_text(json.dumps({"settings": {**vars(options), "json": None}, "rates": rows}, indent=1))


if __name__ == "__main__":
    main()
