"""Boxes that cannot be right are errors, or left out and counted; where most are out it is said
what they look like.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.test_coco import note, written
from tests.test_refcoco import rows_file

from perception_r1.cli import main
from perception_r1.data.coco import coco_samples
from perception_r1.data.mixture import load_data
from perception_r1.data.recipe import Making, make_files, read_recipe
from perception_r1.data.refcoco import refcoco_samples
from perception_r1.data.references import RefOptions
from perception_r1.data.samples import LeftOut, Skipped
from perception_r1.data.written_boxes import SLACK, placed
from perception_r1.records import BadData

GOOD = [10, 10, 20, 20]
BAD = {
    "negative width": ([50, 50, -5, 5], "wrong_way_round"),
    "negative height": ([50, 50, 5, -5], "wrong_way_round"),
    "out on the left": ([-2.01, 5, 9, 9], "outside"),
    "out at the top": ([5, -2.01, 9, 9], "outside"),
    "out on the right": ([90, 5, 12.01, 9], "outside"),
    "out at the bottom": ([5, 70, 9, 12.01], "outside"),
    "beyond": ([200, 5, 9, 9], "outside"),
    "beyond on the left": ([-20, 5, 9, 9], "outside"),
    "far beyond": ([5, 5, 1e308, 1e308], "outside"),
    "shares": ([0.1, 0.2, 0.3, 0.4], "first_pixel"),
    "the whole image in shares": ([0, 0, 1, 1], "first_pixel"),
}


@pytest.mark.parametrize("box, reason", BAD.values(), ids=BAD)
@pytest.mark.parametrize("task", ["detection", "counting"])
def test_a_box_that_cannot_be_right_is_an_error_or_left_out_and_counted(
    task: str, box: list[float], reason: str, tmp_path: Path
) -> None:
    root = written(tmp_path, note(1, 1, GOOD, id=5), note(1, 1, box, id=6), note(2, 2, GOOD, id=7))
    with pytest.raises(
        BadData,
        match=r"instances\.json: annotation 6: bbox of image 1: found the box .*100x80 pixels, expected .*--skip-bad",
    ):
        coco_samples(root, task)
    skipped = Skipped()
    found = coco_samples(root, task, skipped=skipped)
    assert dict(skipped.reasons) == {reason: 1}
    assert "annotation 6" in skipped.problems[0]
    assert found.report["zero_area"] == 0
    assert found.report["uncountable"] == 1
    # detection keeps the image without that box; counting has no pair whose number is not known
    assert [len(sample.truth) for sample in found.samples] == (
        [1, 1] if task == "detection" else [1]
    )


@given(st.floats(-SLACK, 90), st.floats(-SLACK, 70), st.floats(3, 10), st.floats(3, 10))
def test_a_box_that_rounding_moved_is_clipped(
    x: float, y: float, width: float, height: float
) -> None:
    box = placed([x, y, width, height], "xywh", 100, 80)
    assert box == pytest.approx([max(x, 0), max(y, 0), min(x + width, 100), min(y + height, 80)])


@pytest.mark.parametrize("way, numbers", [("xyxy", [0.1, 0.1, 0.9, 1.0]), ("xywh", [0, 0, 1, 1])])
def test_a_box_of_one_pixel_is_believed_in_a_tiny_image_and_in_a_declared_unit(
    way: str, numbers: list[float]
) -> None:
    assert placed(numbers, way, 9, 9)
    assert placed([0.1, 0.2, 0.3, 0.4], "xyxy1", 100, 80) == pytest.approx([10, 16, 30, 32])
    with pytest.raises(LeftOut):
        placed(numbers, way, 100, 9)


# --- what most of a real file's boxes look like ----------------------------------------------------------------------
Change = Callable[[float, float, float, float, int, int], list[float]]
LIKE: dict[str, tuple[Change, str]] = {
    "twice the scale": (
        lambda x, y, w, h, W, H: [2 * x, 2 * y, 2 * w, 2 * h],
        "labels at 2.0 times the image's scale",
    ),
    "xyxy as xywh": (
        lambda x, y, w, h, W, H: [x, y, x + w, y + h],
        "x1, y1, x2, y2 (xyxy), where COCO has x, y, width, height (xywh)",
    ),
    "shares": (
        lambda x, y, w, h, W, H: [x / W, y / H, w / W, h / H],
        "shares of the image's sides, from 0 to 1",
    ),
    "shares as xyxy": (
        lambda x, y, w, h, W, H: [x / W, y / H, (x + w) / W, (y + h) / H],
        "shares of the image's sides, from 0 to 1",
    ),
    "per cent": (
        lambda x, y, w, h, W, H: [100 * x / W, 100 * y / H, 100 * w / W, 100 * h / H],
        "they look like per cent of the image's sides",
    ),
    "thousandths": (
        lambda x, y, w, h, W, H: [1000 * x / W, 1000 * y / H, 1000 * w / W, 1000 * h / H],
        "thousandths of the image's sides",
    ),
    "negative sizes": (
        lambda x, y, w, h, W, H: [x + w, y + h, -w, -h],
        "numbers with a negative width or height",
    ),
}


@pytest.fixture
def changed(
    data_folder: Callable[[str], Path], tmp_path: Path
) -> Callable[[Change], tuple[Path, int]]:
    """Writes the real annotations with other boxes; the folder, and how many there are."""

    def changed(change: Change) -> tuple[Path, int]:
        content = json.loads((data_folder("coco_val206") / "instances.json").read_text())
        sides = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        for entry in content["annotations"]:
            entry["bbox"] = change(*entry["bbox"], *sides[entry["image_id"]])
        (tmp_path / "instances.json").write_text(json.dumps(content))
        (tmp_path / "images").symlink_to(data_folder("coco_val206") / "images")
        return tmp_path, len(content["annotations"])

    return changed


@pytest.mark.parametrize("change, words", LIKE.values(), ids=LIKE)
def test_where_most_boxes_are_out_the_message_says_what_they_look_like(
    change: Change, words: str, changed: Callable[[Change], tuple[Path, int]]
) -> None:
    root, number = changed(change)
    with pytest.raises(BadData) as caught:
        coco_samples(root)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    if "per cent" not in words:
        assert f"of {number:,} annotations cannot be right" in str(caught.value)
    # and with --skip-bad it is said too, or nothing is left
    skipped = Skipped()
    try:
        said = " ".join(coco_samples(root, skipped=skipped).problems)
    except BadData as problem:
        said = str(problem)
    assert words in said


def test_where_few_boxes_are_out_nothing_is_said_of_the_others(tmp_path: Path) -> None:
    root = written(tmp_path, *(note(1, 1, GOOD) for _ in range(5)), note(1, 1, [20, 20, 100, 80]))
    with pytest.raises(BadData) as caught:
        coco_samples(root)
    assert "look like" not in str(caught.value)


def test_a_file_in_which_most_boxes_have_no_area_is_an_error(tmp_path: Path) -> None:
    root = written(
        tmp_path, note(1, 1, [5, 5, 0, 0], id=3), note(1, 1, [7, 5, 0, 0]), note(2, 1, GOOD)
    )
    with pytest.raises(BadData, match="2 of 3 boxes have no area; the first: .*annotation 3"):
        coco_samples(root)
    found = coco_samples(root, skipped=Skipped())
    assert found.report["zero_area"] == 2
    assert len(found.problems) == 2


def test_boxes_clipped_by_more_than_rounding_are_counted(tmp_path: Path) -> None:
    root = written(
        tmp_path, note(1, 1, [-1.5, 5, 9, 9]), note(1, 1, [95, 5, 5.005, 9]), note(1, 1, GOOD)
    )
    assert coco_samples(root).report["clipped"] == 1


def test_a_file_of_bad_annotations_alone_makes_no_images_without_objects(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="expected at least one that can be used"):
        coco_samples(
            written(tmp_path, note(1, 1, [500, 5, 9, 9]), note(2, 9, GOOD)), skipped=Skipped()
        )


def test_the_command_counts_and_names_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = [note(1, 1, GOOD, id=k) for k in range(4)] + [
        note(1, 1, [500, 5, 9, 9], id=8),
        note(3, 1, GOOD, id=9),
        note(1, 1, [5, 5, 0, 5], id=10),
    ]
    root = written(tmp_path, *notes)
    with pytest.raises(SystemExit) as left:
        main(["data", "coco", str(root), "-o", str(tmp_path / "a.jsonl")])
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert "2 of 7 annotations cannot be right (outside 1, orphan 1); the first: " in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a.jsonl").exists()
    with pytest.raises(SystemExit) as left:
        main(["data", "coco", str(root), "--skip-bad", "-o", str(tmp_path / "a.jsonl")])
    assert not left.value.code
    out, said = capsys.readouterr()
    assert "zero_area 1, uncountable 1, left out outside 1, left out orphan 1" in out
    for number in (8, 9, 10):
        assert f"annotation {number}:" in said


def test_a_data_recipe_leaves_bad_annotations_out_with_skip_bad(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    written(tmp_path / "coco", note(1, 1, GOOD), note(1, 1, GOOD), note(1, 1, [500, 5, 9, 9]))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        json.dumps(
            {
                "files": {
                    "all": {
                        "file": "a.jsonl",
                        "reader": "coco",
                        "from": "coco",
                        "options": {"name": "zoo"},
                    }
                }
            }
        )
    )
    making: dict[str, Any] = {"root": tmp_path, "output": tmp_path / "out"}
    with pytest.raises(BadData, match="expected a box inside it"):
        list(make_files(read_recipe(str(recipe)), Making(**making)))
    (entry,) = make_files(read_recipe(str(recipe)), Making(**making, skip_bad=True))
    assert entry["reports"]["coco"]["left out outside"] == 1
    assert len(entry["left_out_first"]) == 1
    assert entry["sources"] == {"zoo": 2}


@pytest.mark.parametrize(
    "box", [[0.1, 0.2, 0.3, 0.4], [20, 30, 19, 80], [20, 30, 203, 80], [-3, 30, 80, 80]]
)
def test_referring_expressions_obey_the_same_rule(box: list[float], tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "sent": "red car", "bbox": each} for each in ([20, 30, 80, 80], box)]
    file = rows_file(tmp_path, *rows, name="v.jsonl")
    with pytest.raises(
        BadData,
        match=r"v\.jsonl:2: found the box .*are the boxes written otherwise\? Name it with --boxes",
    ):
        refcoco_samples(file, RefOptions(boxes="xyxy"))
    skipped = Skipped()
    assert len(refcoco_samples(file, RefOptions(boxes="xyxy"), skipped=skipped).samples) == 1
    assert dict(skipped.reasons) == {"bad_row": 1}


def test_a_shorthand_leaves_bad_annotations_out_when_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = written(tmp_path, note(1, 1, GOOD), note(1, 1, GOOD), note(2, 1, [500, 5, 9, 9]))
    with pytest.raises(BadData, match="expected a box inside it"):
        load_data(f"coco:{root}")
    assert len(load_data(f"coco:{root}?skip_bad=true")) == 2
    assert "left out outside 1; the first left out: " in capsys.readouterr().err


def test_nothing_is_said_of_boxes_where_something_else_is_wrong(tmp_path: Path) -> None:
    root = written(tmp_path, *(note(1, 1, GOOD, area=-1) for _ in range(3)))
    with pytest.raises(BadData, match="3 of 3 annotations cannot be right") as caught:
        coco_samples(root)
    assert "look like" not in str(caught.value)


@pytest.mark.parametrize("again", [5, 5.0, "5"])
def test_an_annotation_id_that_is_there_twice_is_an_error_or_left_out_and_counted(again: object, tmp_path: Path) -> None:
    root = written(tmp_path, note(1, 1, GOOD, id=5), note(1, 1, [40, 40, 9, 9], id=again), note(2, 2, GOOD, id=7))
    with pytest.raises(BadData, match="found id .* of image 1, expected an id that was not there before: renumber"):
        coco_samples(root, "detection")
    skipped = Skipped()
    found = coco_samples(root, "detection", skipped=skipped)
    assert dict(skipped.reasons) == {"repeated_id": 1}
    assert sum(len(sample.truth) for sample in found.samples) == 2
    counted = coco_samples(root, "counting", skipped=Skipped())
    assert all(sample.id.split("-")[1] != "1" for sample in counted.samples)  # how many are there is not known
