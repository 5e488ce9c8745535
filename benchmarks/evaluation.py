"""How long the metrics take: COCO AP beside pycocotools, its permutation test, OCR of 1,000 pages.

Prints a table: both sides of AP in one run with their largest difference, then seconds for the test
of two runs and for the pages. About a minute.
"""

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from perception_r1.evaluation.ap_swaps import swapped_p
from perception_r1.evaluation.average_precision import average_precision
from perception_r1.evaluation.coco_tables import coco_tables
from perception_r1.evaluation.metrics import Reading, bootstrap, statistics
from perception_r1.records import Answer, Sample, Truth
from perception_r1.tasks import make_task
from perception_r1.tasks.detection import COCO_NAMES
from perception_r1.tasks.words import meteor_name

IMAGES, BOXES, TRUTHS = 5000, 100, 7
"""Images, detections an image, and true objects an image (COCO's val2017 has 7.3)."""
PAGES, WORDS = 1000, 450
"""Pages, a third of them Chinese, and the words of the others; a Chinese one has twice as many characters."""


def timed(work: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """What `work` returns, and the median of its seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    return found, median(seconds)


# --- average precision -----------------------------------------------------------------------------------------------
def scenes(
    random: np.random.Generator, images: int = IMAGES, boxes: int = BOXES
) -> tuple[list[Sample], list[Answer]]:
    """Images of 640 x 480 with TRUTHS objects; half of the detections are near one of them, the others anywhere, with free scores."""
    samples, answers = [], []
    for index in range(images):
        true_M4, kind_M = boxes_anywhere(random, TRUTHS), random.integers(len(COCO_NAMES), size=TRUTHS)
        found_N4, kind_N = boxes_anywhere(random, boxes), random.integers(len(COCO_NAMES), size=boxes)
        near_N = random.integers(TRUTHS, size=boxes // 2)
        found_N4[: boxes // 2] = true_M4[near_N] + random.normal(0, 6, (boxes // 2, 4))
        kind_N[: boxes // 2] = kind_M[near_N]
        found_N4[:, 2:] = np.maximum(found_N4[:, 2:], found_N4[:, :2] + 1)
        truth = Truth(boxes=true_M4, labels=tuple(COCO_NAMES[kind] for kind in kind_M))
        samples.append(Sample(id=str(index), task="detection", image="", width=640, height=480, query="", truth=truth))
        answers.append(Answer(boxes=found_N4, labels=tuple(COCO_NAMES[kind] for kind in kind_N), scores=random.random(boxes)))
    return samples, answers


def boxes_anywhere(random: np.random.Generator, count: int) -> np.ndarray:
    low, sides = random.uniform(0, (500, 350), (count, 2)), random.lognormal(4, 0.8, (count, 2)).clip(4, 130)
    return np.concatenate([low, low + sides], axis=1)


def as_coco(samples: list[Sample], answers: list[Answer]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same as COCO's annotations and results, ready before the clock starts."""
    number = {name: index + 1 for index, name in enumerate(COCO_NAMES)}
    annotations, results = [], []
    for image, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
        assert answer.scores is not None
        for box, label in zip(xywh(sample.truth.needed_boxes()), sample.truth.labels, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": number[label], "bbox": box, "iscrowd": 0}
            annotations.append(entry | {"area": box[2] * box[3]})
        for box, label, score in zip(xywh(answer.boxes), answer.labels, answer.scores.tolist(), strict=True):
            results.append({"image_id": image, "category_id": number[label], "bbox": box, "score": score})
    categories = [{"id": index, "name": name} for name, index in number.items()]
    return {"images": [{"id": image} for image in range(len(samples))], "annotations": annotations, "categories": categories}, results


def xywh(boxes_N4: np.ndarray) -> list[list[float]]:
    return np.concatenate([boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]], axis=1).tolist()


def pycocotools_ap(content: dict[str, Any], results: list[dict[str, Any]]) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = content
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def compare_ap() -> None:
    samples, answers = scenes(np.random.default_rng(0))
    content, results = as_coco(samples, answers)
    ours, our_seconds = timed(lambda: average_precision(coco_tables(samples, answers)), 5)
    theirs, their_seconds = timed(lambda: pycocotools_ap(content, results), 1)
    print(f"COCO AP, {IMAGES:,} images x {BOXES} boxes: pycocotools {their_seconds:.1f} s (once), ours {our_seconds:.2f} s (median of 5)")
    print(f"ratio {their_seconds / our_seconds:.0f}x, AP {ours[0]:.4f}, largest difference of the twelve figures {np.abs(ours - theirs).max():.1e}")


def time_swaps() -> None:
    """Two runs with the same boxes and other scores; the figures of 499 swaps and of their mirrors."""
    random = np.random.default_rng(2)
    for images, boxes in ((206, 14), (5000, 14)):
        samples, answers = scenes(random, images, boxes)
        others = [replace(answer, scores=random.random(boxes)) for answer in answers]
        runs = coco_tables(samples, answers), coco_tables(samples, others)
        found, seconds = timed(lambda runs=runs: swapped_p(*runs), 1)
        print(f"AP's permutation test, {images:,} images x {boxes} boxes twice, 80 classes: {seconds:.1f} s")
        print(f"499 swaps, the twelve figures; p of AP {found['AP']:.3f}")


# --- pages -----------------------------------------------------------------------------------------------------------
def pages(random: np.random.Generator) -> tuple[list[Sample], list[Reading]]:
    """Pages of words drawn by Zipf's law from 20,000, and answers with 3 % of the characters wrong."""
    letters, characters = list("etaoinshrdlucmfwypvbgkjqxz"), [chr(0x4E00 + index) for index in range(3000)]
    vocabulary = ["".join(random.choice(letters, size=random.integers(2, 10))) for _ in range(20_000)]
    samples, readings = [], []
    for index in range(PAGES):
        if index % 3:
            text = " ".join(vocabulary[min(rank, 20_000) - 1] for rank in random.zipf(1.2, WORDS))
        else:
            text = "，".join("".join(characters[min(rank, 3000) - 1] for rank in random.zipf(1.2, 12)) for _ in range(WORDS // 12 * 2))
        wrong = [str(random.choice(letters)) if random.random() < 0.03 else letter for letter in text]
        samples.append(Sample(id=str(index), task="ocr", image="", width=9, height=9, query="", truth=Truth(text=text)))
        readings.append(Reading(Answer(text="".join(wrong)), length=len(wrong)))
    return samples, readings


def time_pages() -> None:
    task, (samples, readings) = make_task("ocr"), pages(np.random.default_rng(1))
    mean = np.mean([len(str(sample.truth.text)) for sample in samples])
    found, seconds = timed(lambda: bootstrap(task, statistics(task, samples, readings)), 1)
    print(f"OCR metrics of {PAGES:,} pages (mean {mean:,.0f} characters, a third Chinese), one process: {seconds:.1f} s")
    print(", ".join(f"{name} {found[name]['value']:.3f}" for name in ("edit_distance", "bleu", meteor_name(), "cer", "wer")))


if __name__ == "__main__":
    compare_ap()
    time_swaps()
    time_pages()
