"""Answers from files: published COCO results through the command line, texts of pages, truth as predictions, nothing at all."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.test_metrics import pycocotools_figures
from tests.test_refcoco import MINI, REFCOCOS

from perception_r1.data.coco import coco_samples
from perception_r1.data.refcoco import RefOptions, refcoco_samples
from perception_r1.data.samples import write_samples
from perception_r1.dialects import DIALECTS
from perception_r1.evaluation.average_precision import AP_NAMES
from perception_r1.evaluation.run import evaluate
from perception_r1.records import BadData, Sample, Truth
from perception_r1.tasks.detection import COCO_NAMES
from perception_r1.tasks.task import true_objects

PUBLISHED = (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564)
"""The twelve bbox figures of val2014_fake_eval_res.txt."""
PADILLA = (0.503647, 0.696973, 0.571667, 0.593252, 0.557991, 0.489363, 0.386813, 0.593680, 0.595353, 0.654764, 0.603130, 0.553744)
"""What Padilla's test asserts for the same detections, with boxes' areas and without crowds."""
WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "transformers", "trl"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
from perception_r1.cli import main
main(sys.argv[1:])
"""


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "COLUMNS": "100"}
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)], capture_output=True, text=True, env=environment, check=False)


def figures(metrics: dict[str, Any]) -> list[float]:
    return [metrics[name]["value"] for name in AP_NAMES]


def quick(data: Path, predictions: Path, output: Path, **options: Any) -> dict[str, Any]:
    return evaluate(data=str(data), predictions=predictions, output=output, resamples=10, ap_resamples=1, **options)


# --- COCO results ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", ["published", "padilla"])
def test_published_results_give_the_published_figures_without_torch(variant: str, data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = data_folder("cocoapi_published_ap")
    truth = folder / {"published": "instances_val2014_100.json", "padilla": "padilla/sampled_gts_bbox_area.json"}[variant]
    results = folder / {"published": "instances_val2014_fakebbox100_results.json", "padilla": "padilla/cocoapi_results.json"}[variant]
    write_samples(coco_samples(folder, annotations=truth, images=".").samples, tmp_path / "data.jsonl")
    if variant == "published":
        ran = command("evaluate", "--predictions", results, "--data", tmp_path / "data.jsonl", "-o", tmp_path / "out")
        assert ran.returncode == 0, ran.stderr
    else:
        quick(tmp_path / "data.jsonl", results, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    found = figures(written["metrics"])
    np.testing.assert_array_equal(np.round(found, 3), np.round(PUBLISHED if variant == "published" else PADILLA, 3))
    content = json.loads(truth.read_text())
    expected = pycocotools_figures(content["images"], content["annotations"], content["categories"], json.loads(results.read_text()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert written["settings"]["dialect"] == "coco-results"
    assert written["notes"] == [f"1 of 100 images have no detection in {results}: nothing was found there, and they count"]
    classes, sizes = written["breakdown"]["class"], written["breakdown"]["size"]
    defined = [row["AP"] for row in classes.values() if row["AP"] is not None]
    assert np.mean(defined) == pytest.approx(found[0], abs=1e-12)
    assert [sizes[size]["AP"] for size in ("small", "medium", "large")] == pytest.approx(found[3:6], abs=1e-12)
    assert [sizes[size]["AR100"] for size in ("small", "medium", "large")] == pytest.approx(found[9:12], abs=1e-12)
    assert sum(row["n"] for row in classes.values()) == sum(not row["iscrowd"] for row in content["annotations"])


def a_detection_file(folder: Path, **fields: Any) -> Path:
    truth = Truth(boxes=[[10, 10, 50, 60]], labels=(fields.get("categories", ("dog",))[0],))  # type: ignore[arg-type]
    fields = {"task": "detection", "query": "", "truth": truth} | fields
    write_samples([Sample(id=f"coco-{k}", image="a.jpg", width=100, height=100, root=folder, **fields) for k in (42, 43)], folder / "data.jsonl")
    return folder / "data.jsonl"


ROW = {"image_id": 42, "category_id": 18, "bbox": [10, 10, 40, 50], "score": 0.9}
BAD_RESULTS = {
    "no list": ({"annotations": []}, "expected a list of"),
    "no score": ([{key: value for key, value in ROW.items() if key != "score"}], "row 0: found"),
    "unknown image": ([ROW, ROW | {"image_id": 44}], "row 1: found image_id 44, which is not among the 2 samples"),
    "unused category": ([ROW | {"category_id": 12}], "row 0: found category_id 12"),
    "category is a list": ([ROW | {"category_id": []}], "row 0: found category_id []"),
    "negative size": ([ROW | {"bbox": [1, 1, -1, 4]}], "row 0: found bbox [1, 1, -1, 4]"),
    "not finite": ([ROW | {"score": float("nan")}], "row 0: found score nan"),
}


@pytest.mark.parametrize("case", BAD_RESULTS)
def test_bad_results_are_one_line_that_names_the_row(case: str, tmp_path: Path) -> None:
    content, message = BAD_RESULTS[case]
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(BadData) as error:
        quick(a_detection_file(tmp_path), tmp_path / "results.json", tmp_path / "out")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_results_are_not_read_where_they_cannot_mean_what_was_asked(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps([ROW]))
    data = a_detection_file(tmp_path)
    with pytest.raises(BadData, match="leave --dialect out"):
        quick(data, tmp_path / "results.json", tmp_path / "out", dialect="plain")
    own = a_detection_file(tmp_path, categories=("wolf", "fox"))
    with pytest.raises(BadData, match="name the instances JSON that has them with --categories"):
        quick(own, tmp_path / "results.json", tmp_path / "out")


def test_category_ids_of_a_label_set_come_from_the_file_that_is_named(tmp_path: Path) -> None:
    data = a_detection_file(tmp_path, categories=("wolf", "fox"))
    instances = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 70, "name": "wolf"}, {"id": 9, "name": "fox"}]}
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "results.json").write_text(json.dumps([ROW | {"category_id": 70}, ROW | {"image_id": 43, "category_id": 9}]))
    ran = command("evaluate", "--predictions", tmp_path / "results.json", "--categories", tmp_path / "instances.json", "--data", data, "-o", tmp_path)
    assert ran.returncode == 0, ran.stderr
    classes = json.loads((tmp_path / "metrics.json").read_text())["breakdown"]["class"]
    assert classes["wolf"]["recall@0.5"] == 0.5
    assert classes["fox"] == {"AP": None, "AP50": None, "f1@0.5": 0.0, "precision@0.5": 0.0, "recall@0.5": 0.0, "n": 0}


# --- texts -----------------------------------------------------------------------------------------------------------
def a_page_file(folder: Path, texts: dict[str, str]) -> Path:
    Image.new("L", (60, 40)).save(folder / "a.png")
    fields = {"task": "ocr", "image": "a.png", "width": 60, "height": 40, "query": "", "root": folder}
    write_samples([Sample(id=name, truth=Truth(text=text), **fields) for name, text in texts.items()], folder / "pages.jsonl")
    return folder / "pages.jsonl"


def test_a_folder_of_texts_answers_page_by_page_without_torch(tmp_path: Path) -> None:
    data = a_page_file(tmp_path, {"page-a/1": "one two three four", "page-2": "第二页有五个字", "page-3": "never answered"})
    (tmp_path / "texts" / "page-a").mkdir(parents=True)
    (tmp_path / "texts" / "page-a" / "1.txt").write_text("one two three four\n")
    (tmp_path / "texts" / "page-2.txt").write_text("第二页有五个字", encoding="utf-8")
    ran = command("evaluate", "--predictions", tmp_path / "texts", "--data", data, "-o", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["metrics"]["edit_distance"]["value"] == pytest.approx(1 / 3)
    assert written["metrics"]["cer"]["value"] == pytest.approx(14 / (18 + 7 + 14))
    assert written["breakdown"]["language"]["zh"]["edit_distance"] == 0
    assert written["breakdown"]["language"]["en"]["n"] == 2
    assert written["notes"] == [f"1 of 3 samples have no answer in {tmp_path / 'texts'}: each counts as wrong"]
    (tmp_path / "texts" / "page-9.txt").write_text("whose?")
    with pytest.raises(BadData, match="found a text for 'page-9', which is not among the 3 samples"):
        quick(data, tmp_path / "texts", tmp_path / "out")


# --- truth and nothing -----------------------------------------------------------------------------------------------
def real_samples(name: str, task: str, data_folder: Callable[[str], Path]) -> list[Sample]:
    folder, pictures = data_folder(name), data_folder("coco_val206") / "images"
    if name == "coco_val206":
        return list(coco_samples(folder, task).samples)
    file, boxes, columns = ("refcocos_subset", "xyxy", REFCOCOS) if name == "refcocos_val2017" else ("refcoco_mini", "xywh", MINI)
    return list(refcoco_samples(folder / f"{file}.json", RefOptions(boxes=boxes, columns=columns, images=(pictures, folder / "images"))).samples)


def exact_texts(samples: Sequence[Sample]) -> str:
    """Answers in the plain dialect, with every decimal of the true boxes."""
    texts = []
    for sample in samples:
        truth = true_objects(sample)
        lines = [f"{label}: {json.dumps(box)}" for label, box in zip(truth.labels, truth.needed_boxes().tolist(), strict=True)]
        texts.append(json.dumps({"id": sample.id, "completion": "\n".join(lines) or "none"}) + "\n")
    return "".join(texts)


LOW = {"count_mae", "count_rmse", "parse_failure_rate", "truncated_rate", "unknown_label_rate"}
LIMITED = {"AR1", "AR10"}
"""COCO's definition allows one and ten detections an image and class: less than 1 even for the truth."""
REAL = [("coco_val206", "detection"), ("coco_val206", "counting"), ("refcocos_val2017", "grounding"), ("refcoco_mini", "grounding")]


@pytest.mark.parametrize("name, task", REAL)
def test_the_truth_as_predictions_is_perfect_on_every_metric(name: str, task: str, data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    samples = real_samples(name, task, data_folder)
    write_samples(samples, tmp_path / "data.jsonl")
    (tmp_path / "answers.jsonl").write_text(exact_texts(samples))
    found = quick(tmp_path / "data.jsonl", tmp_path / "answers.jsonl", tmp_path / "out", dialect="plain")
    assert found["notes"] == []
    assert found["strict"] == found["metrics"]
    assert len(found["metrics"]) > 6
    for metric, entry in found["metrics"].items():
        if metric not in LIMITED | {"answer_length"}:
            assert entry["value"] == pytest.approx(0 if metric in LOW else 1, abs=1e-9), metric
    if task == "detection":
        ids = dict(zip(COCO_NAMES, (n for n in range(1, 91) if n not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}), strict=True))
        rows = [
            {"image_id": int(sample.id.removeprefix("coco-")), "category_id": ids[label], "bbox": [x, y, right - x, bottom - y], "score": 1.0}
            for sample in samples
            for truth in [true_objects(sample)]
            for label, (x, y, right, bottom) in zip(truth.labels, truth.needed_boxes().tolist(), strict=True)
        ]
        (tmp_path / "results.json").write_text(json.dumps(rows))
        again = quick(tmp_path / "data.jsonl", tmp_path / "results.json", tmp_path / "again")
        assert figures(again["metrics"]) == pytest.approx(figures(found["metrics"]), abs=1e-9)
        assert again["metrics"]["f1@0.75"]["value"] == 1


@pytest.mark.parametrize("name, task", REAL)
def test_an_empty_file_is_worth_nothing_and_says_why(name: str, task: str, data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    samples = real_samples(name, task, data_folder)
    write_samples(samples, tmp_path / "data.jsonl")
    (tmp_path / "answers.jsonl").write_text("")
    (tmp_path / "results.json").write_text("[]")
    found = quick(tmp_path / "data.jsonl", tmp_path / "answers.jsonl", tmp_path / "out", dialect="plain")
    assert found["metrics"]["parse_failure_rate"]["value"] == 1
    higher = set(found["metrics"]) - LOW - {"answer_length"}
    assert {found["metrics"][metric]["value"] for metric in higher} == {0}
    of = f"{len(samples):,} of {len(samples):,}"
    assert found["notes"][0] == f"{of} samples have no answer in {tmp_path / 'answers.jsonl'}: each counts as wrong"
    if task == "detection":
        found = quick(tmp_path / "data.jsonl", tmp_path / "results.json", tmp_path / "out")
        assert {found["metrics"][metric]["value"] for metric in higher} == {0}
        assert found["notes"] == [f"{of} images have no detection in {tmp_path / 'results.json'}: nothing was found there, and they count"]


# --- every dialect at five sizes -------------------------------------------------------------------------------------
SEEN = {(640, 480): (644, 476), (3000, 2000): (1204, 812), (30, 40): (56, 84), (1000, 250): (1008, 252), (333, 777): (336, 784)}
"""Size of an image, and as Qwen2.5-VL's processor resizes it for 3,136 to 1,000,000 pixels (one it shrinks, one it enlarges): worked out by hand."""
PLACE = (0.25, 0.5, 0.75, 0.875)
"""Where the object is, as shares of the image's sides."""


def as_a_model_writes_it(dialect: str, size: tuple[int, int]) -> str:
    def on(width: float, height: float) -> list[int]:
        return [round(share * side) for share, side in zip(PLACE, (width, height) * 2, strict=True)]

    x1, y1, x2, y2 = on(1000, 1000)
    return {
        "qwen2-vl": f"<|object_ref_start|>dog<|object_ref_end|><|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>",
        "qwen2.5-vl": f'```json\n[{{"bbox_2d": {on(*SEEN[size])}, "label": "dog"}}]\n```',
        "qwen3-vl": f'[{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "label": "dog"}}]',
        "internvl": f"<ref>dog</ref><box>[[{x1}, {y1}, {x2}, {y2}]]</box>",
        "llava": "dog: [0.250, 0.500, 0.750, 0.875]",
        "plain": f"dog: {on(*size)}",
    }[dialect]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_lands_on_the_right_pixel_of_the_original_at_five_sizes(dialect: str, tmp_path: Path) -> None:
    samples, texts = [], {}
    for width, height in SEEN:
        box = [[share * side for share, side in zip(PLACE, (width, height) * 2, strict=True)]]
        texts[f"{width}x{height}"] = as_a_model_writes_it(dialect, (width, height))
        fields = {"task": "grounding", "image": "a.jpg", "query": "dog", "truth": Truth(boxes=box, labels=("dog",))}  # type: ignore[arg-type]
        samples.append(Sample(id=f"{width}x{height}", width=width, height=height, root=tmp_path, **fields))
    write_samples(samples, tmp_path / "data.jsonl")
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps({"id": name, "completion": text}) + "\n" for name, text in texts.items()))
    found = quick(tmp_path / "data.jsonl", tmp_path / "answers.jsonl", tmp_path / "out", dialect=dialect, max_pixels=1_000_000)
    assert found["strict"]["parse_failure_rate"]["value"] == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "per_sample.jsonl").read_text().splitlines()]
    for row, (width, height) in zip(rows, SEEN, strict=True):
        seen = {"qwen2.5-vl": SEEN[width, height], "plain": (width, height)}.get(dialect, (1000, 1000))
        half_a_step = np.array([width / seen[0], height / seen[1]] * 2) / 2
        expected = np.array(PLACE) * ([width, height] * 2)
        assert (np.abs(row["answer"]["boxes"][0] - expected) <= half_a_step + 1e-9).all(), row


def test_half_a_surrogate_pair_in_an_answer_is_kept_and_counts_as_any_text(tmp_path: Path) -> None:
    samples, answers = tmp_path / "samples.jsonl", tmp_path / "answers.jsonl"
    truth = {"boxes": [[10, 10, 50, 50]]}
    row = {"id": "1", "task": "grounding", "image": "1.jpg", "width": 100, "height": 80, "query": "dog", "truth": truth}
    samples.write_text(json.dumps(row) + "\n")
    line = json.dumps({"id": "1", "completion": "\ud83d dog: [0.1, 0.1, 0.5, 0.6]", "finish": "stop"})
    answers.write_text(line + "\n")
    for output in (tmp_path / "a", tmp_path / "b"):
        found = evaluate(data=str(samples), predictions=answers, output=output, dialect="llava")
        assert found["metrics"]["parse_failure_rate"]["n"] == 1
        answers = output / "answers.jsonl"
        assert json.loads(answers.read_text())["completion"] == json.loads(line)["completion"]
