"""The four tasks: the paper's prompts, what an answer measures against the raw truth, thinking, crowds, points, settings."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception_r1.dialects import DIALECTS, frame_of
from perception_r1.primitives.boxes import pairwise_iou
from perception_r1.records import Answer, BadData, Sample, Score, Truth
from perception_r1.tasks import TASKS, Task, make_task
from perception_r1.tasks.detection import COCO_NAMES
from perception_r1.tasks.grounding import IOU_SHAPES, Grounding
from perception_r1.tasks.words import meteor_name

DOG, CAT, CROWD = [100.0, 100, 200, 200], [300.0, 100, 500, 300], [0.0, 0, 640, 90]
THINK = " Think first, between <think> and </think>, then give the answer between <answer> and </answer>."


def sample_of(task: str, truth: Truth | None = None, **more: object) -> Sample:
    known = Truth(boxes=np.array([DOG]), labels=("dog",)) if truth is None else truth
    return Sample(**{"id": "s1", "task": task, "image": "a.jpg", "width": 640, "height": 480, "query": "left dog", "truth": known, **more})


def boxes_truth(*boxes: list[float], labels: tuple[str, ...] = ()) -> Truth:
    return Truth(boxes=np.array(boxes).reshape(-1, 4), labels=labels or ("dog",) * len(boxes))


def score(task: Task, completion: str, sample: Sample) -> Score:
    return task.score(completion, sample, frame_of(sample.width, sample.height, task.dialect))


def answer(*boxes: list[float], labels: tuple[str, ...] = (), bad: int = 0) -> Answer:
    return Answer(boxes=np.array(boxes, dtype=float).reshape(-1, 4), labels=labels or ("dog",) * len(boxes), bad=bad)


# --- prompts, word for word as in the paper -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("task", "prompt"),
    [
        ("grounding", "Output the bounding box of the left dog in the image."),
        ("counting", "Output all the bounding boxes of the left dog"),
        ("ocr", "OCR this image."),
        ("detection", f"Please output bbox coordinates and names of {', '.join(COCO_NAMES)}."),
    ],
)
def test_the_prompt_is_the_papers_and_thinking_only_adds_to_it(task: str, prompt: str) -> None:
    for family in DIALECTS:
        assert make_task(task, dialect=family).prompt(sample_of(task)) == prompt
        assert make_task(task, dialect=family, thinking=True).prompt(sample_of(task)) == prompt + THINK


def test_detection_lists_cocos_eighty_names_in_the_order_of_the_official_annotations(data_folder) -> None:
    annotations = json.loads((data_folder("coco_val206") / "instances.json").read_text())
    official = [category["name"] for category in sorted(annotations["categories"], key=lambda category: category["id"])]
    assert list(COCO_NAMES) == official
    assert len(set(COCO_NAMES)) == 80


def test_detection_lists_a_samples_own_categories() -> None:
    sample = sample_of("detection", categories=("circle", "blue square"))
    assert make_task("detection").prompt(sample) == "Please output bbox coordinates and names of circle, blue square."


# --- settings -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "segmentation"}, "'segmentation' is not known.*grounding, counting, detection, ocr"),
        ({"name": "ocr", "dialect": "klingon"}, "'klingon' is not known.*plain"),
        ({"name": "counting", "matching": "magic"}, "'magic' is not known.*hungarian, greedy, sequential, best"),
        ({"name": "counting", "weights": {"iou": 1.0}}, "counting has no term iou: expected format, distance"),
        ({"name": "grounding", "weights": {"iou": -1.0}}, "iou is -1.0: expected a finite number of at least 0"),
        ({"name": "grounding", "weights": {"iou": float("nan")}}, "iou is nan"),
    ],
)
def test_a_setting_that_is_not_known_is_an_error_that_says_what_is(settings: dict, words: str) -> None:
    with pytest.raises(BadData, match=words):
        make_task(**settings)


@pytest.mark.parametrize("name", TASKS)
def test_bounds_are_the_weighted_sums_of_the_terms_limits(name: str) -> None:
    assert make_task(name).bounds() == {"grounding": (0, 2), "counting": (0, 2), "detection": (-1, 4), "ocr": (0, 2)}[name]
    assert make_task(name, weights={"format": 0.5}).bounds()[1] == make_task(name).bounds()[1] - 0.5


# --- real truths earn full marks --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", DIALECTS)
def test_the_written_truth_of_every_real_coco_image_earns_full_marks(data_folder, family: str) -> None:
    annotations = json.loads((data_folder("coco_val206") / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    task = make_task("detection", dialect=family)
    for image in annotations["images"]:
        objects = [item for item in annotations["annotations"] if item["image_id"] == image["id"]]
        rows = [[x, y, x + w, y + h] for x, y, w, h in (item["bbox"] for item in objects)]
        truth = Truth(boxes=np.array(rows).reshape(-1, 4), labels=tuple(names[item["category_id"]] for item in objects))
        sample = Sample(
            id=str(image["id"]), task="detection", image="", width=image["width"], height=image["height"], query="", truth=truth,
            crowd=tuple(bool(item["iscrowd"]) for item in objects),
        )  # fmt: skip
        frame = frame_of(sample.width, sample.height, task.dialect)
        assert task.score(task.write(sample, frame), sample, frame).total == 4


# --- measure: one answer against the raw truth ------------------------------------------------------------------------------
def test_grounding_measures_iou_and_accuracy_at_three_thresholds() -> None:
    task, sample = make_task("grounding"), sample_of("grounding")
    assert task.measure(answer([100.0, 100, 200, 180]), sample) == pytest.approx({"mean_iou": 0.8, "acc@0.5": 1, "acc@0.75": 1, "acc@0.95": 0})
    assert task.measure(answer(DOG), sample) == {"mean_iou": 1, "acc@0.5": 1, "acc@0.75": 1, "acc@0.95": 1}
    assert task.measure(answer(CAT), sample) == {"mean_iou": 0, "acc@0.5": 0, "acc@0.75": 0, "acc@0.95": 0}


def test_grounding_of_a_phrase_that_names_nothing_is_right_only_when_the_answer_is_empty() -> None:
    task, sample = make_task("grounding"), sample_of("grounding", boxes_truth())
    assert task.measure(answer(), sample)["acc@0.95"] == 1
    assert task.measure(answer(DOG), sample)["acc@0.5"] == 0
    assert task.measure(None, sample)["mean_iou"] == 0


def test_counting_measures_the_count_with_bad_items_in_it() -> None:
    task, sample = make_task("counting"), sample_of("counting", boxes_truth(DOG, CAT))
    names = ("count_acc", "count_within1", "count_mae", "squared", "distance_score")
    assert task.measure(answer(CAT, DOG), sample) == dict(zip(names, (1, 1, 0, 0, 1), strict=True))
    assert task.measure(answer(CAT), sample) == dict(zip(names, (0, 1, 1, 1, 0.5), strict=True))
    assert task.measure(answer(CAT, DOG, bad=3), sample) == dict(zip(names, (0, 0, 3, 9, 0.4), strict=True))


def test_detection_measures_predicted_true_and_hits() -> None:
    task, sample = make_task("detection"), sample_of("detection", boxes_truth(DOG, CAT, labels=("dog", "cat")))
    near = [100.0, 100, 200, 160]  # IoU 0.6
    assert task.measure(answer(near, CAT, CAT, labels=("dog", "cat", "dog")), sample) == {"predicted": 3, "true": 2, "hits@0.5": 2, "hits@0.75": 1}


def test_labels_are_equal_up_to_case_and_white_space_and_no_further() -> None:
    task, sample = make_task("detection", dialect="plain"), sample_of("detection", boxes_truth(DOG, labels=("traffic light",)))
    for label, hit in (("Traffic  LIGHT", 1), ("traffic-light", 0), ("traffic", 0), ("traffic lights", 0), ("", 0)):
        assert score(task, f"{label}: [100, 100, 200, 200]", sample).terms["class"] == hit


def test_ocr_measures_the_normalised_edit_distance() -> None:
    task, sample = make_task("ocr"), sample_of("ocr", Truth(text="kitten\n"))
    assert task.measure(Answer(text="sitting"), sample)["edit_distance"] == pytest.approx(3 / 7)
    assert task.measure(Answer(text="kitten"), sample)["edit_distance"] == 0


@pytest.mark.parametrize(("name", "truth"), [("grounding", None), ("counting", None), ("detection", None), ("ocr", Truth(text="page"))])
def test_a_malformed_answer_is_measured_as_wrong_not_left_out(name: str, truth: Truth | None) -> None:
    expected = {
        "grounding": {"mean_iou": 0, "acc@0.5": 0, "acc@0.75": 0, "acc@0.95": 0},
        "counting": {"count_acc": 0, "count_within1": 0, "count_mae": 1, "squared": 1, "distance_score": 0},
        "detection": {"predicted": 0, "true": 1, "hits@0.5": 0, "hits@0.75": 0},
        "ocr": {"edit_distance": 1, "characters": 4, "words": 1, "character_edits": 4, "word_edits": 1}
        | dict.fromkeys(("f1", "precision", "recall", "bleu", meteor_name()), 0),
    }
    assert make_task(name).measure(None, sample_of(name, truth)) == expected[name]


def test_a_malformed_answer_to_an_empty_scene_is_not_a_right_count() -> None:
    measured = make_task("counting").measure(None, sample_of("counting", boxes_truth()))
    assert (measured["count_acc"], measured["count_mae"]) == (0, 1)


def test_metrics_of_the_means() -> None:
    grounding = {"mean_iou": np.array(0.7), "acc@0.5": np.array(0.9), "acc@0.75": np.array(0.6), "acc@0.95": np.array(0.3)}
    assert make_task("grounding").metrics(grounding)["acc@avg"] == pytest.approx(0.6)
    counting = {name: np.array(value) for name, value in (("count_acc", 0.5), ("count_mae", 1.0), ("squared", 4.0), ("distance_score", 0.8))}
    assert make_task("counting").metrics(counting)["count_rmse"] == 2
    detection = {name: np.array(value) for name, value in (("predicted", 3.0), ("true", 2.0), ("hits@0.5", 2.0), ("hits@0.75", 1.0))}
    at_half, at_three_quarters = {"f1": 0.8, "precision": 2 / 3, "recall": 1}, {"f1": 0.4, "precision": 1 / 3, "recall": 0.5}
    expected = {f"{name}@{at}": value for at, some in ((0.5, at_half), (0.75, at_three_quarters)) for name, value in some.items()}
    assert make_task("detection").metrics(detection) == pytest.approx(expected)
    nothing = dict.fromkeys(detection, np.array(0.0))
    assert make_task("detection").metrics(nothing) == dict.fromkeys(expected, 1)


@pytest.mark.parametrize("name", TASKS)
def test_the_main_metric_and_those_where_lower_is_better_are_among_the_metrics(name: str) -> None:
    task = make_task(name)
    truth = Truth(text="page") if name == "ocr" else None
    means = {key: np.array(value) for key, value in task.measure(None, sample_of(name, truth)).items()}
    assert {task.MAIN_METRIC, *task.LOWER_IS_BETTER} <= set(task.metrics(means))


def test_the_reward_is_given_on_the_dialects_grid_and_the_metric_on_the_raw_truth() -> None:
    sample = sample_of("grounding", boxes_truth([100.3, 100.3, 112.4, 112.4]))
    task = make_task("grounding", dialect="plain")
    frame = frame_of(640, 480, task.dialect)
    written = task.write(sample, frame)
    assert task.score(written, sample, frame).terms["iou"] == 1
    assert task.measure(task.read(written, frame), sample)["mean_iou"] == pytest.approx(
        pairwise_iou(np.array([[100.0, 100, 112, 112]]), sample.truth.boxes)[0, 0]
    )


# --- thinking ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["grounding", "counting", "detection", "ocr"])
def test_with_thinking_the_format_is_a_thought_then_an_answer(name: str) -> None:
    task, truth = make_task(name, dialect="qwen2.5-vl", thinking=True), Truth(text="A page.") if name == "ocr" else None
    sample = sample_of(name, truth)
    frame = frame_of(640, 480, task.dialect)
    written = task.write(sample, frame, thought="The dog is left.")
    assert written.startswith("<think>The dog is left.</think><answer>")
    assert task.score(written, sample, frame).total == task.bounds()[1]
    assert task.score(f"\n{written.replace('</think>', '</think>' + chr(10))}\n", sample, frame).total == task.bounds()[1]
    for inexact in (
        f"So: {written}",
        f"{written} Done.",
        written.replace("</think>", "</think>so"),
        written.removeprefix("<think>The dog is left.</think>"),
    ):
        assert task.score(inexact, sample, frame).total == task.bounds()[1] - 1
    bare = make_task(name, dialect="qwen2.5-vl").write(sample, frame)
    for malformed in (
        bare,
        f"<think>{bare}</think>",
        f"<think>{written}",
        f"<think><think></think><answer>{bare}</answer>",
        f"<think></think><answer>{bare}",
    ):
        assert task.score(malformed, sample, frame).problem is not None


def test_boxes_in_a_thought_are_not_part_of_the_answer() -> None:
    task, sample = make_task("counting", dialect="plain", thinking=True), sample_of("counting")
    frame = frame_of(640, 480, task.dialect)
    read = task.read("<think>dog: [0, 0, 9, 9]\ndog: [5, 5, 50, 50]</think><answer>dog: [100, 100, 200, 200]</answer>", frame)
    assert (read.boxes.tolist(), read.exact) == ([DOG], True)
    assert task.score("<think>dog: [100, 100, 200, 200]</think><answer>none</answer>", sample, frame).terms["distance"] == 0


def test_a_truth_that_holds_a_tag_cannot_be_taught_with_thinking() -> None:
    sample = sample_of("ocr", Truth(text="Use </answer> to stop."))
    frame = frame_of(640, 480, DIALECTS["qwen2-vl"])
    assert make_task("ocr").write(sample, frame) == "Use </answer> to stop."
    with pytest.raises(BadData, match="s1.*</answer>"):
        make_task("ocr", thinking=True).write(sample, frame)


# --- crowds, points, truths of the wrong kind -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["counting", "detection"])
def test_crowd_regions_are_left_out_of_the_truth_and_of_what_is_written(name: str) -> None:
    task = make_task(name, dialect="plain")
    sample = sample_of(name, boxes_truth(DOG, CROWD, CAT), crowd=(False, True, False))
    frame = frame_of(640, 480, task.dialect)
    assert task.write(sample, frame) == "dog: [100, 100, 200, 200]\ndog: [300, 100, 500, 300]"
    assert task.score(task.write(sample, frame), sample, frame).total == task.bounds()[1]
    only_crowd = sample_of(name, boxes_truth(CROWD), crowd=(True,))
    assert task.score("none", only_crowd, frame).total == task.bounds()[1]
    measured = task.measure(answer(DOG, CAT), sample)
    assert measured.get("count_acc", measured.get("hits@0.75", 0) / 2) == 1


def test_points_are_written_as_small_boxes_of_which_only_the_centre_scores() -> None:
    task = make_task("counting", dialect="plain")
    sample = sample_of("counting", Truth(points=np.array([[320.0, 240], [0, 0], [640, 480], [1, 479.5]]), labels=("dog",) * 4))
    frame = frame_of(640, 480, task.dialect)
    read = task.read(task.write(sample, frame), frame)
    assert read.boxes[0].tolist() == [314, 235, 326, 245]
    assert task.score(task.write(sample, frame), sample, frame).total == 2
    one = sample_of("counting", Truth(points=np.array([[320.0, 240]]), labels=("dog",)))
    huge, off = (task.score(text, one, frame).terms["distance"] for text in ("dog: [0, 0, 640, 480]", "dog: [330, 240, 350, 240.5]"))
    assert huge == 1
    assert off == pytest.approx(1 - np.hypot(20, 0.25) / 40)


@pytest.mark.parametrize("name", TASKS)
def test_a_truth_of_the_wrong_kind_is_an_error_that_names_the_sample(name: str) -> None:
    wrong = Truth(text="page") if name != "ocr" else None
    task = make_task(name)
    with pytest.raises(BadData, match="s1"):
        score(task, "anything", sample_of(name, wrong))
    with pytest.raises(BadData, match="s1"):
        task.write(sample_of(name, wrong), frame_of(640, 480, task.dialect))


# --- shapes of the IoU -----------------------------------------------------------------------------------------------
def shaped(shape: str, box: tuple[int, int, int, int]) -> float:
    """What grounding's term makes of a box on a square image of 1,000 pixels whose true box is (200, 200, 400, 400)."""
    task, truth = Grounding(iou_shape=shape), Truth(boxes=[[200, 200, 400, 400]], labels=("dog",))
    sample = Sample(id="1", task="grounding", image="", width=1000, height=1000, query="dog", truth=truth)
    x1, y1, x2, y2 = box
    return task.score(f"dog({x1},{y1}),({x2},{y2})", sample, frame_of(1000, 1000, task.dialect)).terms["iou"]


@given(st.tuples(st.integers(0, 900), st.integers(0, 900), st.integers(1, 100), st.integers(1, 100)))
def test_each_shape_of_iou_is_its_formula(placed: tuple[int, int, int, int]) -> None:
    x, y, width, height = placed
    box = (x, y, x + width, y + height)
    ops = pytest.importorskip("torchvision.ops")
    torch = pytest.importorskip("torch")
    pair = torch.tensor([box], dtype=torch.float64), torch.tensor([[200, 200, 400, 400]], dtype=torch.float64)
    iou, giou = float(ops.box_iou(*pair)), float(ops.generalized_box_iou(*pair))
    expected = {"iou": iou, "squared": iou**2, "giou": (1 + giou) / 2, "thresholded": float(iou >= 0.5)}
    assert {shape: shaped(shape, box) for shape in IOU_SHAPES} == pytest.approx(expected, abs=1e-9)
    assert all(0 <= value <= 1 for value in expected.values())


@pytest.mark.parametrize("shape", IOU_SHAPES)
def test_the_true_box_earns_full_marks_in_every_shape_of_iou(shape: str) -> None:
    assert shaped(shape, (200, 200, 400, 400)) == 1
    assert shaped(shape, (600, 600, 700, 700)) < 0.5 < shaped(shape, (200, 200, 400, 390))


def test_only_giou_tells_apart_boxes_that_miss() -> None:
    far, near = (900, 200, 950, 400), (450, 200, 500, 400)
    assert {shape for shape in IOU_SHAPES if shaped(shape, near) > shaped(shape, far)} == {"giou"}


def test_a_shape_that_nobody_knows_is_refused() -> None:
    with pytest.raises(BadData, match="iou_shape 'dice' is not known: expected one of iou, squared, giou, thresholded"):
        Grounding(iou_shape="dice")
