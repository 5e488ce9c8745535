"""Metrics: the bootstrap against a plain loop, COCO AP against pycocotools and the published figures, malformed answers."""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perception_r1.dialects import frame_of
from perception_r1.evaluation import intervals
from perception_r1.evaluation.average_precision import _ap_and_draws, coco_ap, coco_ap_difference
from perception_r1.evaluation.coco_tables import AP_NAMES, coco_tables
from perception_r1.evaluation.metrics import (
    ALWAYS,
    Reading,
    bootstrap,
    limits,
    paired_difference,
    rates,
    read_answers,
    statistics,
    summarise,
)
from perception_r1.records import Answer, BadData, Sample, Truth
from perception_r1.tasks import TASKS, make_task

DATA = Path(os.environ.get("PERCEPTION_R1_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
ODD_CASES = {
    "plain": {},
    "crowds": {"crowd": 0.6},
    "no_area": {"flat": 0.3},
    "over_100_of_a_class": {"found": 160, "images": 3, "classes": 1},
    "mostly_no_truth": {"empty": 0.9},
    "nothing_found": {"found": 0},
    "one_image": {"images": 1},
}


def shared_data(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path.name} is not here: set PERCEPTION_R1_DATA to the folder of test data")
    return path




def readings(answers: Sequence[Answer | None], finish: str = "stop") -> list[Reading]:
    return [Reading(answer, finish=finish) for answer in answers]


def a_sample(task: str, boxes: object = ((10, 10, 50, 60),), label: str = "dog", **fields: object) -> Sample:
    truth = Truth(text="a page of text") if task == "ocr" else Truth(boxes=np.array(boxes, dtype=float), labels=(label,) * len(boxes))
    return Sample(**({"id": "s", "task": task, "image": "a.png", "width": 100, "height": 100, "query": label, "truth": truth} | fields))


def random_answers(task: str, count: int, seed: int) -> tuple[list[Sample], list[Answer | None]]:
    """Samples with 1 to 4 true boxes (grounding: 1), and answers that are near them, far, or malformed."""
    random = np.random.default_rng(seed)
    samples, answers = [], []
    for index in range(count):
        boxes = random.uniform(0, 50, (1 if task == "grounding" else random.integers(1, 5), 4))
        boxes[:, 2:] += boxes[:, :2] + 1
        samples.append(a_sample(task, boxes, id=str(index)))
        near = boxes + random.normal(0, 3, boxes.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        answers.append(None if random.random() < 0.2 else Answer(boxes=near, labels=("dog",) * len(near)))
    return samples, answers


@pytest.mark.parametrize("name", ["grounding", "counting", "detection"])
def test_the_bootstrap_agrees_with_a_loop_over_resampled_samples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "CELLS", 40 * 7)  # several blocks, the last one short
    task, (samples, answers) = make_task(name), random_answers(name, 40, seed=1)
    given = [Reading(answer, finish="length" if index % 7 == 0 else "stop", length=index) for index, answer in enumerate(answers)]
    stats = statistics(task, samples, given)
    found = summarise(task, samples, given, seed=5, resamples=30, ap_resamples=None)
    random, draws = np.random.default_rng(5), []
    for start in range(0, 30, 7):
        for picked in random.integers(40, size=(min(7, 30 - start), 40)):
            again = statistics(task, [samples[i] for i in picked], [given[i] for i in picked])
            draws.append({metric: entry["value"] for metric, entry in bootstrap(task, again, resamples=1).items()})
    assert len(stats["truncated_rate"]) == 40
    for metric, entry in found.items():
        drawn, value = np.array([draw[metric] for draw in draws]), entry["value"]
        if metric in rates(task):
            expected = intervals.wilson(value, 40)
        elif limits(task, metric) == (0.0, 1.0):
            weight = stats["named"] if metric == "unknown_label_rate" else np.ones(40)
            carrying = float(weight.sum() ** 2 / (weight**2).sum())
            expected = intervals.bounded_interval(value, drawn, samples=40, carrying=carrying)
        else:
            expected = np.percentile(drawn, [2.5, 97.5])
        np.testing.assert_allclose(entry["ci95"], expected, rtol=0, atol=1e-12, err_msg=metric)


def test_a_mean_and_its_interval_are_what_the_textbook_says() -> None:
    samples, answers = random_answers("grounding", 400, seed=2)
    task = make_task("grounding")
    values = np.array([task.measure(answer, sample)["mean_iou"] for answer, sample in zip(answers, samples, strict=True)])
    entry = summarise(task, samples, readings(answers), resamples=4000)["mean_iou"]
    error = 1.96 * values.std() / np.sqrt(400)
    assert entry["value"] == pytest.approx(values.mean(), abs=1e-12)
    np.testing.assert_allclose(entry["ci95"], [values.mean() - error, values.mean() + error], atol=0.15 * error)
    assert entry["n"] == 400


@pytest.mark.parametrize("name", TASKS)
def test_no_metric_is_absent_when_every_answer_is_malformed(name: str) -> None:
    task, samples = make_task(name), [a_sample(name)] * 3
    right = Answer(text="a page of text") if name == "ocr" else Answer(boxes=samples[0].truth.boxes, labels=("dog",))
    best, worst = (summarise(task, samples, readings([answer] * 3), resamples=10, ap_resamples=2) for answer in (right, None))
    assert list(worst) == list(best)
    assert worst["parse_failure_rate"]["value"] == 1
    assert best["parse_failure_rate"]["value"] == 0
    assert task.MAIN_METRIC in worst
    for metric in task.LOWER_IS_BETTER:
        assert worst[metric]["value"] > best[metric]["value"] == 0
    for metric in set(worst) - task.LOWER_IS_BETTER - {*ALWAYS, "unknown_label_rate"}:
        assert worst[metric]["value"] in (0, None)
        least = 1 - 0.5 / 4**3 if metric.startswith("meteor") else 1  # METEOR's definition: a page of four words in one piece
        assert best[metric]["value"] in (least, None)


def test_truncated_rate_counts_finishes_of_length() -> None:
    found = summarise(make_task("ocr"), [a_sample("ocr")] * 4, readings([None] * 3) + readings([None], "length"), resamples=5)
    assert found["truncated_rate"]["value"] == 0.25


def test_unknown_label_rate_is_the_share_of_boxes_whose_class_was_not_asked_for() -> None:
    sample = a_sample("detection", categories=("dog", "cat"))
    answer = Answer(boxes=np.array([[1, 1, 9, 9], [1, 1, 9, 9.0]]), labels=("Dog", "unicorn"))
    found = summarise(make_task("detection"), [sample, sample], readings([answer, None]), resamples=5, ap_resamples=None)
    assert found["unknown_label_rate"]["value"] == 0.5


def test_a_paired_difference_is_the_difference_on_the_same_resamples() -> None:
    task, (samples, before) = make_task("grounding"), random_answers("grounding", 60, seed=3)
    after = [Answer(boxes=sample.truth.boxes, labels=("dog",)) for sample in samples]
    stats_0, stats_1 = (statistics(task, samples, readings(answers)) for answers in (before, after))
    found = paired_difference(task, stats_0, stats_1, seed=4, resamples=200)["mean_iou"]
    gain = stats_1["mean_iou"] - stats_0["mean_iou"]
    picks = np.random.default_rng(4).integers(60, size=(200, 60))
    assert found["value"] == pytest.approx(gain.mean())
    np.testing.assert_allclose(found["ci95"], np.percentile(gain[picks].mean(1), [2.5, 97.5]), atol=1e-12)
    nothing = paired_difference(task, stats_0, stats_0, resamples=20)["acc@avg"]
    assert nothing == {"value": 0.0, "ci95": intervals.between_limits(0.0, 60, (-1.0, 1.0))}


def test_different_samples_cannot_be_paired() -> None:
    task = make_task("ocr")
    one, two = (statistics(task, [a_sample("ocr")] * n, readings([None] * n)) for n in (1, 2))
    with pytest.raises(BadData, match="same samples"):
        paired_difference(task, one, two)


def test_no_sample_is_an_error_and_not_a_nan() -> None:
    with pytest.raises(BadData, match="at least one sample"):
        summarise(make_task("ocr"), [], [])


# --- COCO average precision -------------------------------------------------------------------------------------------
def pycocotools_figures(images: list[dict], annotations: list[dict], categories: list[dict], detections: list[dict]) -> np.ndarray:
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = coco.COCO(), coco.COCO()
        truth.dataset = {"images": images, "annotations": annotations, "categories": categories}
        truth.createIndex()
        found.dataset = {"images": images, "annotations": [], "categories": categories}
        found.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections) if detections else found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.where(evaluation.stats < 0, np.nan, evaluation.stats)


def odd_scenes(random, images=6, classes=3, found=8, crowd=0.2, flat=0.0, empty=0.3, tie="ones") -> tuple[list[Sample], list[Answer | None], list]:
    """Scenes with what makes evaluators differ; zero-area boxes are only possible among predictions."""
    samples, answers, scores = [], [], []
    for index in range(images):
        size = 0 if random.random() < empty else random.integers(1, 6)
        low, sides = random.integers(0, 120, (size, 2)), random.integers(4, 80, (size, 2)) * random.choice([0.2, 1, 1.5], (size, 1))
        boxes = np.concatenate([low, low + sides], axis=1).astype(float)
        labels = tuple(f"c{k}" for k in random.integers(classes, size=size))
        area = tuple((sides.prod(1) * random.choice([1, 0.5], size)).tolist())
        fields = {"categories": tuple(f"c{k}" for k in range(classes)), "area": area, "crowd": tuple((random.random(size) < crowd).tolist())}
        samples.append(a_sample("detection", boxes, id=str(index), truth=Truth(boxes=boxes, labels=labels), **fields))
        count = random.integers(0, found + 1) if found < 100 else found
        low = random.integers(0, 120, (count, 2)).astype(float)
        guesses, names = np.concatenate([low, low + random.integers(1, 80, (count, 2))], axis=1), random.integers(classes, size=count)
        for row in range(count if size else 0):
            if random.random() < 0.6:
                copied = random.integers(size)
                guesses[row], names[row] = boxes[copied] + random.integers(-2, 3, 4), int(labels[copied][1:])
        guesses[:, 2:] = np.where(random.random((count, 1)) < flat, guesses[:, :2], np.maximum(guesses[:, 2:], guesses[:, :2] + 1))
        answers.append(None if random.random() < 0.1 else Answer(boxes=guesses, labels=tuple(f"c{k}" for k in names)))
        scores.append({"ones": np.ones(count), "few": random.choice([0.2, 0.5, 0.9], count), "free": random.random(count)}[tie])
    return samples, answers, scores


def scored(answers: Sequence[Answer | None], scores: Sequence[np.ndarray]) -> list[Answer | None]:
    return [answer and replace(answer, scores=confidence) for answer, confidence in zip(answers, scores, strict=True)]


def as_coco(samples: list[Sample], answers: list[Answer | None], scores: list) -> tuple[list[dict], list[dict], list[dict], list[dict]]:
    annotations, detections = [], []
    for image, (sample, answer, confidence) in enumerate(zip(samples, answers, scores, strict=True), start=7):
        for box, label, area, crowd in zip(sample.truth.boxes, sample.truth.labels, sample.area, sample.crowd, strict=True):
            x, y, right, bottom = box.tolist()
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label[1:]) + 3, "bbox": [x, y, right - x, bottom - y]}
            annotations.append(entry | {"area": area, "iscrowd": int(crowd)})
        for row, box in enumerate(answer.boxes if answer else []):
            x, y, right, bottom = box.tolist()
            entry = {"image_id": image, "category_id": int(answer.labels[row][1:]) + 3, "bbox": [x, y, right - x, bottom - y]}
            detections.append(entry | {"score": float(confidence[row])})
    images = [{"id": image + 7, "width": 200, "height": 200} for image in range(len(samples))]
    return images, annotations, [{"id": k + 3, "name": f"c{k}"} for k in range(len(samples[0].categories))], detections


@pytest.mark.parametrize("tie", ["ones", "few", "free"])
@pytest.mark.parametrize("case", ODD_CASES)
def test_average_precision_agrees_with_pycocotools_on_odd_cases(case: str, tie: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        samples, answers, scores = odd_scenes(random, tie=tie, **ODD_CASES[case])
        found = coco_ap(samples, scored(answers, scores), resamples=0)
        values = [np.nan if found[name]["value"] is None else found[name]["value"] for name in AP_NAMES]
        np.testing.assert_allclose(values, pycocotools_figures(*as_coco(samples, answers, scores)), rtol=0, atol=1e-9)


def test_a_resample_is_a_data_set_in_which_a_repeated_image_is_another_image() -> None:
    samples, answers, scores = odd_scenes(np.random.default_rng(3), images=20, tie="few", empty=0)
    picked = np.sort(np.random.default_rng(9).integers(20, size=20))
    assert len(set(picked.tolist())) < 15
    _, draws_R12 = _ap_and_draws(coco_tables(samples, scored(answers, scores)), 9, 1)
    again = as_coco([samples[i] for i in picked], [answers[i] for i in picked], [scores[i] for i in picked])
    np.testing.assert_allclose(draws_R12[0], pycocotools_figures(*again), rtol=0, atol=1e-9)


def test_the_published_figures_of_the_coco_api_are_reproduced() -> None:
    truth = json.loads(shared_data("cocoapi_published_ap", "instances_val2014_100.json").read_text())
    detections = json.loads(shared_data("cocoapi_published_ap", "instances_val2014_fakebbox100_results.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    samples, answers, scores = [], [], []
    for image in sorted(truth["images"], key=lambda row: row["id"]):
        mine = [row for row in truth["annotations"] if row["image_id"] == image["id"]]
        found = [row for row in detections if row["image_id"] == image["id"]]
        corners, guesses = (np.array([[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]).reshape(-1, 4) for rows in (mine, found))
        truths = Truth(boxes=corners, labels=tuple(names[row["category_id"]] for row in mine))
        extras = {"area": tuple(row["area"] for row in mine), "crowd": tuple(bool(row["iscrowd"]) for row in mine)}
        samples.append(a_sample("detection", id=str(image["id"]), truth=truths, categories=tuple(names.values()), **extras))
        answers.append(Answer(boxes=guesses, labels=tuple(names[row["category_id"]] for row in found)))
        scores.append(np.array([row["score"] for row in found]))
    figures = coco_ap(samples, scored(answers, scores), resamples=0)
    published = (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564)
    assert [round(figures[name]["value"], 3) for name in AP_NAMES] == list(published)


def test_an_ap_difference_to_itself_is_nothing_and_to_the_truth_is_a_gain() -> None:
    samples, answers, _ = odd_scenes(np.random.default_rng(5), images=10, crowd=0, empty=0)
    right = [Answer(boxes=sample.truth.boxes, labels=sample.truth.labels) for sample in samples]
    same, gain = (coco_ap_difference(samples, answers, after, resamples=10)["AP"] for after in (answers, right))
    assert same == {"value": 0.0, "ci95": intervals.between_limits(0.0, 10, (-1.0, 1.0)), "p": 1.0}
    assert 1 / 500 <= gain["p"] < 0.02
    assert gain["value"] == pytest.approx(1 - coco_ap(samples, answers, resamples=0)["AP"]["value"])
    assert 0 < gain["ci95"][0] <= gain["value"] <= gain["ci95"][1] <= 1


def test_a_truth_outside_its_label_set_is_an_error_that_names_the_sample() -> None:
    sample = a_sample("detection", id="s7", categories=("cat",))
    with pytest.raises(BadData, match="sample s7: label 'dog'"):
        coco_ap([sample], [None])


def test_without_hotcoco_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "hotcoco", None)
    with pytest.raises(BadData, match=r"hotcoco is not installed: pip install -e '\.\[eval\]' -c constraints\.txt"):
        coco_ap([a_sample("detection")], [None])


def test_answers_of_the_written_truth_measure_as_perfect() -> None:
    task, sample = make_task("detection", dialect="qwen2.5-vl"), a_sample("detection")
    frame = frame_of(100, 100, task.dialect)
    answers = read_answers(task, [task.write(sample, frame), "gibberish"], [frame, frame])
    assert answers[1] is None
    assert task.measure(answers[0], sample)["hits@0.75"] == 1
