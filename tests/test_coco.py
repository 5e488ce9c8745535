"""COCO instances: nothing is lost on the way, crowds are never counted, and every ambiguity is an error with its remedy."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception_r1.data.coco import coco_samples
from perception_r1.data.instances import Pieces
from perception_r1.data.samples import open_image
from perception_r1.records import BadData
from perception_r1.tasks.detection import COCO_NAMES
from perception_r1.tasks.task import true_objects

CATEGORIES = [{"id": 3, "name": "fox"}, {"id": 1, "name": "owl"}, {"id": 2, "name": "elk"}]


def note(image: int, category: int, bbox: list[float], **fields: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox, **fields}


def written(root: Path, *annotations: dict[str, Any], count: int = 2, file: str = "instances.json", **changes: Any) -> Path:
    """A small COCO data set below `root`: images 1, 2, … of 100x80 pixels in images/."""
    pictures = [{"id": k, "file_name": f"{k}.jpg", "width": 100, "height": 80} for k in range(1, count + 1)]
    (root / "images").mkdir(exist_ok=True)
    for picture in pictures:
        (root / "images" / picture["file_name"]).touch()
    content = {"images": pictures, "annotations": list(annotations), "categories": CATEGORIES} | changes
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def oracle(data_folder: Callable[[str], Path]) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(data_folder("coco_val206") / "instances.json"))


def test_detection_holds_every_official_annotation(data_folder: Callable[[str], Path], oracle: Any) -> None:
    found = coco_samples(data_folder("coco_val206"))
    assert dict(found.report) == {"images": 206, "annotations": 1786, "crowd": 21, "zero_area": 0, "uncountable": 21}
    assert len(found.samples) == 206
    for sample in found.samples:
        notes = oracle.loadAnns(oracle.getAnnIds(imgIds=[int(sample.id.removeprefix("coco-"))], iscrowd=None))
        xywh_M4 = np.array([entry["bbox"] for entry in notes]).reshape(-1, 4)
        assert sample.truth.boxes is not None
        np.testing.assert_allclose(sample.truth.boxes[:, :2], xywh_M4[:, :2], atol=1e-9)
        np.testing.assert_allclose(sample.truth.boxes[:, 2:] - sample.truth.boxes[:, :2], xywh_M4[:, 2:], atol=0.01)
        assert sample.truth.labels == tuple(oracle.cats[entry["category_id"]]["name"] for entry in notes)
        assert sample.crowd == tuple(bool(entry["iscrowd"]) for entry in notes)
        assert sample.area == tuple(entry["area"] for entry in notes)
        assert sample.categories is None


def test_counting_agrees_with_pycocotools_on_every_pair(data_folder: Callable[[str], Path], oracle: Any) -> None:
    samples = {sample.id: sample for sample in coco_samples(data_folder("coco_val206"), "counting", absent=3).samples}
    number_of = {entry["name"]: number for number, entry in oracle.cats.items()}
    present = {f"coco-{entry['image_id']}-{entry['category_id']}" for entry in oracle.anns.values()}
    crowded = {f"coco-{entry['image_id']}-{entry['category_id']}" for entry in oracle.anns.values() if entry["iscrowd"]}
    assert present - crowded <= set(samples)
    assert not crowded & set(samples)
    assert len(set(samples) - present) == 3 * 206
    for sample in samples.values():
        image = int(sample.id.split("-")[1])
        assert len(sample.truth) == len(oracle.getAnnIds(imgIds=[image], catIds=[number_of[sample.query]]))
        assert set(sample.truth.labels) <= {sample.query}


def test_every_image_opens_with_the_stated_size(data_folder: Callable[[str], Path]) -> None:
    for sample in coco_samples(data_folder("coco_val206")).samples[:20]:
        assert open_image(sample).size == (sample.width, sample.height)


def test_the_names_of_coco_are_its_official_ones(oracle: Any) -> None:
    assert tuple(oracle.cats[number]["name"] for number in sorted(oracle.cats)) == COCO_NAMES


def test_boxes_become_xyxy_and_are_clipped_to_the_image(tmp_path: Path) -> None:
    root = written(tmp_path, note(1, 2, [-2, 10, 20, 30]), note(1, 2, [90, 70, 10.4, 10.7], area=50.5))
    first, second = coco_samples(root).samples
    assert first.truth.boxes is not None
    assert first.truth.boxes.tolist() == [[0, 10, 18, 40], [90, 70, 100, 80]]
    assert first.area == (600, 50.5)
    assert first.categories == ("owl", "elk", "fox")
    assert len(second.truth) == 0


def test_a_crowd_is_kept_with_its_flag_for_detection_and_left_out_of_counting(tmp_path: Path) -> None:
    root = written(tmp_path, note(1, 1, [0, 0, 50, 50], iscrowd=1), note(1, 1, [0, 0, 5, 5]), note(1, 2, [9, 9, 5, 5]), note(2, 1, [1, 1, 5, 5]))
    sample = coco_samples(root).samples[0]
    assert sample.crowd == (True, False, False)
    assert len(true_objects(sample)) == 2
    counting = coco_samples(root, "counting", absent=3)
    assert counting.report["uncountable"] == 1
    counted = {(sample.id, sample.query): len(sample.truth) for sample in counting.samples}
    assert counted == {("coco-1-2", "elk"): 1, ("coco-1-3", "fox"): 0, ("coco-2-1", "owl"): 1, ("coco-2-2", "elk"): 0, ("coco-2-3", "fox"): 0}


@pytest.mark.parametrize("bbox", [[5, 5, 0, 9], [5, 5, 9, 0], [100, 5, 2, 9], [-2, 5, 2, 9], [5, 80, 9, 1.5]])
def test_a_box_without_area_is_counted_and_its_pair_is_not_trusted(bbox: list[float], tmp_path: Path) -> None:
    root = written(tmp_path, note(1, 1, bbox), note(1, 1, [1, 1, 5, 5]), note(2, 1, [1, 1, 5, 5]))
    detection = coco_samples(root)
    assert detection.report["zero_area"] == 1
    assert [len(sample.truth) for sample in detection.samples] == [1, 1]
    assert [sample.id for sample in coco_samples(root, "counting").samples] == ["coco-2-1"]


def test_absent_categories_are_the_same_for_the_same_seed_only(tmp_path: Path) -> None:
    root = written(tmp_path, note(1, 1, [1, 1, 5, 5]), count=40)
    drawn = [[sample.id for sample in coco_samples(root, "counting", absent=1, seed=seed).samples] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_several_annotation_files_need_a_split(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        written(tmp_path, file=f"annotations/instances_{split}.json")
    with pytest.raises(BadData, match=r"instances_train2017\.json, annotations/instances_val2017\.json; expected one .*split=val2017"):
        coco_samples(tmp_path)
    assert len(coco_samples(tmp_path, split="val2017").samples) == 2
    assert len(coco_samples(tmp_path, annotations="annotations/instances_train2017.json").samples) == 2
    with pytest.raises(BadData, match=r"instances_val2017\.json; expected one instances_test2017\.json: leave split out"):
        coco_samples(tmp_path, split="test2017")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match="found annotation files: none; expected one"):
        coco_samples(tmp_path / "empty")


def test_images_are_found_where_coco_puts_them_and_an_ambiguity_is_named(tmp_path: Path) -> None:
    root = written(tmp_path, file="annotations/instances_val2017.json")
    (root / "images").rename(root / "val2017")
    assert coco_samples(root).samples[0].image_path == root / "val2017" / "1.jpg"
    (root / "1.jpg").touch()
    with pytest.raises(BadData, match="expected one folder of images: name it with images=FOLDER"):
        coco_samples(root)
    assert coco_samples(root, images="val2017").samples[0].image_path == root / "val2017" / "1.jpg"
    (root / "1.jpg").unlink()
    (root / "val2017" / "1.jpg").unlink()
    with pytest.raises(BadData, match=r"looked for 1\.jpg, found it in none of"):
        coco_samples(root)


BROKEN = {
    "category not listed": ({"annotations": [note(1, 9, [1, 1, 5, 5])]}, "number 1: found category_id 9 of image 1, expected the id of one of"),
    "image not listed": ({"annotations": [note(9, 1, [1, 1, 5, 5])]}, "annotation number 1: found image_id 9, expected the id of one of"),
    "no bbox": ({"annotations": [{"id": 7, "image_id": 1, "category_id": 1}]}, "annotation 7: found bbox nothing of image 1"),
    "three numbers": ({"annotations": [note(1, 1, [1, 1, 5])]}, "found bbox [1, 1, 5] of image 1, expected four numbers"),
    "NaN": ({"annotations": [note(1, 1, [1, 1, float("nan"), 5])]}, "found bbox [1, 1, nan, 5] of image 1, expected four finite numbers"),
    "words": ({"annotations": [note(1, 1, ["a", 1, 5, 5])]}, "found bbox ['a', 1, 5, 5] of image 1, expected four numbers"),
    "annotation is a number": ({"annotations": [7]}, "annotation number 1: found 7, expected a JSON object"),
    "no width": ({"images": [{"id": 1, "file_name": "1.jpg"}]}, "image 1: found width nothing"),
    "zero width": ({"images": [{"id": 1, "file_name": "1.jpg", "width": 0, "height": 5}]}, "image 1: found width 0"),
    "image twice": ({"images": [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}] * 2}, "twice"),
    "category twice": ({"categories": [{"id": 1, "name": "owl"}, {"id": 2, "name": "owl"}]}, "twice"),
    "no images": ({"images": []}, "found no image"),
    "no categories": ({"categories": None}, "expected COCO's instances JSON with the lists"),
}


@pytest.mark.parametrize("changes, words", BROKEN.values(), ids=BROKEN)
def test_a_broken_annotation_file_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="expected") as caught:
        coco_samples(written(tmp_path, **changes))
    assert words in str(caught.value)
    assert "instances.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000])
def test_what_is_no_instances_file_is_named(text: str, tmp_path: Path) -> None:
    (written(tmp_path) / "instances.json").write_text(text)
    with pytest.raises(BadData, match="expected COCO's instances JSON"):
        coco_samples(tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def in_pieces(text: str, piece: int) -> dict[str, Any]:
    return {name: None if entries is None else list(entries) for name, entries in Pieces(io.StringIO(text), piece).lists()}


@given(
    content=st.dictionaries(st.text(max_size=3), values, max_size=4), piece=st.integers(1, 9), ascii_only=st.booleans(), indent=st.none() | st.just(1)
)
def test_json_read_in_pieces_of_any_size_is_what_json_reads_at_once(content: dict, piece: int, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(content, ensure_ascii=ascii_only, indent=indent)
    assert in_pieces(text, piece) == {name: value if isinstance(value, list) else None for name, value in content.items()}


@given(
    content=st.dictionaries(st.text(max_size=3), values, max_size=3),
    at=st.integers(0, 60),
    other=st.sampled_from(["", ",", "}", "]", '"', "[", "7", "x"]),
)
def test_what_json_refuses_is_refused_in_pieces_too(content: dict, at: int, other: str) -> None:
    text = json.dumps(content)
    text = text[:at] + other + text[at + 1 :]
    try:
        right = json.loads(text)
    except ValueError:
        right = None
    if isinstance(right, dict):
        assert set(in_pieces(text, 3)) == set(right)
    else:
        with pytest.raises(ValueError):
            in_pieces(text, 3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_an_annotation_file_may_have_any_encoding_of_json(encoding: str, tmp_path: Path) -> None:
    file = written(tmp_path, categories=[{"id": 1, "name": "Füchsin 狐"}]) / "instances.json"
    file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False), encoding=encoding)
    assert coco_samples(tmp_path).samples[0].categories == ("Füchsin 狐",)


def test_a_data_set_of_crowds_alone_has_nothing_to_count(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no category whose objects can be counted"):
        coco_samples(written(tmp_path, note(1, 1, [0, 0, 50, 50], iscrowd=1)), "counting")


LISTS = {
    "ids.txt": "3\n1\n\n 7 \n",
    "ids.json": "[3, 1, 7]",
    "names.txt": "3.jpg\n1.jpg\n7.jpg",
    "names.json": '["1.jpg", "7.jpg", "3.jpg"]',
    "paths.txt": "/data/coco/images/3.jpg\nimages/1.jpg\n./7.jpg\n",
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("task", ["detection", "counting"])
def test_a_list_of_images_takes_those_and_no_other_in_the_files_order(task: str, name: str, tmp_path: Path) -> None:
    root = written(tmp_path, *(note(k, 1 + k % 3, [k, k, 5, 5]) for k in range(1, 11)), count=10)
    (tmp_path / name).write_text(LISTS[name])
    every, listed = coco_samples(root, task), coco_samples(root, task, ids=tmp_path / name)
    assert [sample.id for sample in listed.samples] == [every.samples[k - 1].id for k in (1, 3, 7)]
    assert listed.report == {"images": 3, "annotations": 3, "crowd": 0, "zero_area": 0, "uncountable": 0, "not_listed": 7}


BAD_LISTS = {
    "an image of another set": ("1\n99\n98\n", "2 of 3 entries name no image of the data set, the first '99'"),
    "an image twice": ("1\n2\n1.jpg\n", "found image '1' twice"),
    "nothing": ("\n", r"found \[\], expected a list of ids or file names"),
}


@pytest.mark.parametrize("text, words", BAD_LISTS.values(), ids=BAD_LISTS)
def test_a_list_that_does_not_fit_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(BadData, match=words):
        coco_samples(written(tmp_path), ids=tmp_path / "list.txt")


def test_a_list_that_cannot_be_read_is_named_and_an_unknown_image_of_an_annotation_still_is(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="none.txt: found no such file"):
        coco_samples(written(tmp_path), ids=tmp_path / "none.txt")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(BadData, match="a.json: found {}, expected a list"):
        coco_samples(tmp_path, ids=tmp_path / "a.json")
    (tmp_path / "a.txt").write_text("1")
    with pytest.raises(BadData, match="annotation number 1: found image_id 55"):
        coco_samples(written(tmp_path, note(55, 1, [1, 1, 5, 5])), ids=tmp_path / "a.txt")
