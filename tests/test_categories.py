"""Categories of a COCO file: no root, one name each, names that are names; images are listed by a
file that fits; sets have names.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.test_coco import note, written

from perception_r1.cli import main
from perception_r1.data.coco import coco_samples
from perception_r1.data.mixture import load_data
from perception_r1.data.samples import Skipped, read_samples, write_samples
from perception_r1.evaluation.predictions import read_coco_results
from perception_r1.records import BadData

BOX = [10, 10, 20, 20]
ROOT = {"id": 0, "name": "animals", "supercategory": "none"}
EXPORT = [
    ROOT,
    {"id": 1, "name": "cat", "supercategory": "animals"},
    {"id": 2, "name": "dog", "supercategory": "animals"},
]


def test_a_root_is_no_class_and_no_count_of_zero(tmp_path: Path) -> None:
    root = written(tmp_path, note(1, 1, BOX), note(2, 2, BOX), categories=EXPORT)
    found = coco_samples(root)
    assert {sample.categories for sample in found.samples} == {("cat", "dog")}
    assert found.report["root_categories"] == 1
    (said,) = found.problems
    assert (
        "category 0 'animals' owns no annotation and is the supercategory of 'cat' and 1 more: left out"
        in said
    )
    counted = coco_samples(root, "counting", absent=5).samples
    assert sorted((sample.id, sample.query, len(sample.truth)) for sample in counted) == [
        ("coco-1-1", "cat", 1), ("coco-1-2", "dog", 0), ("coco-2-1", "cat", 0), ("coco-2-2", "dog", 1)
    ]  # fmt: skip


def test_a_root_that_is_called_as_its_class_is_left_out(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "helmet", "supercategory": "none"},
        {"id": 1, "name": "helmet", "supercategory": "helmet"},
    ]
    found = coco_samples(written(tmp_path, note(1, 1, BOX), categories=categories))
    assert found.samples[0].categories == ("helmet",)
    assert found.report["root_categories"] == 1


NO_ROOTS: dict[str, list[dict[str, Any]]] = {
    "owns an annotation": [
        {"id": 1, "name": "vehicle"},
        {"id": 2, "name": "car", "supercategory": "vehicle"},
    ],
    "its own supercategory": [
        {"id": 1, "name": "person", "supercategory": "person"},
        {"id": 3, "name": "dog", "supercategory": "animal"},
    ],
    "supercategory of none": [
        {"id": 1, "name": "cat", "supercategory": "animal"},
        {"id": 3, "name": "owl", "supercategory": "animal"},
    ],
    "null": [{"id": 1, "name": "cat", "supercategory": None}, {"id": 3, "name": "owl"}],
}


@pytest.mark.parametrize("categories", NO_ROOTS.values(), ids=NO_ROOTS)
def test_a_category_that_is_no_root_stays(categories: list[dict[str, Any]], tmp_path: Path) -> None:
    found = coco_samples(written(tmp_path, note(1, 1, BOX), categories=categories))
    assert found.samples[0].categories == tuple(category["name"] for category in categories)
    assert "root_categories" not in found.report
    assert found.problems == ()


def test_a_class_without_annotations_among_the_listed_images_is_no_root(tmp_path: Path) -> None:
    root = written(tmp_path, note(1, 0, BOX), note(2, 1, BOX), categories=EXPORT)
    (tmp_path / "ids.txt").write_text("2\n")
    assert coco_samples(root, ids=tmp_path / "ids.txt").samples[0].categories == (
        "animals",
        "cat",
        "dog",
    )


SAME = [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 7, "name": " Cat"}]


def test_two_categories_of_one_name_are_named_and_joined_when_asked(tmp_path: Path) -> None:
    root = written(
        tmp_path, note(1, 1, BOX), note(1, 7, [40, 40, 9, 9]), note(2, 4, BOX), categories=SAME
    )
    with pytest.raises(
        BadData,
        match=r"instances\.json: categories 1 'cat' and 7 ' Cat': found one name twice, .*--merge-names",
    ):
        coco_samples(root)
    found = coco_samples(root, merge_names=True)
    assert [sample.truth.labels for sample in found.samples] == [("cat", "cat"), ("dog",)]
    assert found.samples[0].categories == ("cat", "dog")
    assert found.report["merged_categories"] == 1
    assert "categories 1 'cat' and 7 ' Cat' are one" in found.problems[0]
    counted = {
        sample.id: len(sample.truth)
        for sample in coco_samples(root, "counting", absent=1, merge_names=True).samples
    }
    assert counted == {"coco-1-1": 2, "coco-1-4": 0, "coco-2-1": 0, "coco-2-4": 1}


@pytest.mark.parametrize("name", [None, "", "  ", 7, True, ["cat"], "\ud83d"])
def test_a_category_without_a_name_is_named(name: Any, tmp_path: Path) -> None:
    with pytest.raises(
        BadData,
        match=r"instances\.json: category 5: found name .*expected a text that is not blank",
    ):
        coco_samples(
            written(tmp_path, categories=[{"id": 1, "name": "cat"}, {"id": 5, "name": name}])
        )


def test_a_file_without_categories_never_means_those_of_coco(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="found no category"):
        coco_samples(written(tmp_path, categories=[]))


def test_ids_that_are_texts_are_ids(tmp_path: Path) -> None:
    images = [
        {"id": name, "file_name": f"{k}.jpg", "width": 100, "height": 80}
        for k, name in enumerate(("a", "b"), 1)
    ]
    categories = [{"id": "k9", "name": "dog"}, {"id": 3, "name": "cat"}]
    root = written(tmp_path, note("b", "k9", BOX), images=images, categories=categories)  # type: ignore[arg-type]
    found = coco_samples(root)
    assert [(sample.id, sample.truth.labels) for sample in found.samples] == [
        ("coco-a", ()),
        ("coco-b", ("dog",)),
    ]
    assert found.samples[0].categories == ("cat", "dog")
    with pytest.raises(
        BadData,
        match=r"found image_id 'c', expected the id of one of the file's 2 image entries \('a', 'b'\)",
    ):
        coco_samples(written(tmp_path, note("c", 3, BOX), images=images, categories=categories))  # type: ignore[arg-type]


# --- lists of images -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, text, words",
    [
        ("l.json", "{", "l.json: found no JSON"),
        ("l.json", '{"images": []}', "l.json: found {'images': []}, expected a list"),
        ("l.json", "[1, true]", "l.json: found True, expected a whole number"),
        ("l.json", "[1.5]", "l.json: found 1.5, expected a whole number"),
        ("l.json", "[null]", "l.json: found nothing, expected a whole number"),
        ("l.json", '[{"id": 1}]', "l.json: found {'id': 1}, expected a whole number"),
        ("l.txt", "\x00\xff", "l.txt: found no text"),
        ("l.txt", "7\n", "l.txt: 1 of 1 entries name no image"),
        ("l.txt", "a.jpg\n", "l.txt: found 'a.jpg', which 2 images are called"),
    ],
)
def test_a_wrong_list_of_images_is_blamed_itself(
    name: str, text: str, words: str, tmp_path: Path
) -> None:
    images = [{"id": k, "file_name": f"{k}/a.jpg", "width": 100, "height": 80} for k in (1, 2)]
    root = written(tmp_path, images=images)
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(BadData) as caught:
        coco_samples(root, images=".", ids=tmp_path / name)
    assert words in str(caught.value)
    assert "instances.json" not in str(caught.value)


@pytest.mark.parametrize("text", ["[2.0]", '["2"]', '["2.0"]', "[2]"])
def test_a_list_may_write_an_id_in_any_way(text: str, tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(text)
    assert [
        sample.id for sample in coco_samples(written(tmp_path), ids=tmp_path / "l.json").samples
    ] == ["coco-2"]


# --- names of sets ---------------------------------------------------------------------------------------------------
def test_a_set_has_its_own_name_and_can_be_mixed_and_evaluated(tmp_path: Path) -> None:
    roots = [
        written(tmp_path / name, note(1, 1, BOX), note(2, 2, BOX))
        for name in ("a", "b")
        if not (tmp_path / name).mkdir()
    ]
    for name, root in zip("ab", roots, strict=True):
        with pytest.raises(SystemExit) as left:
            main(
                [
                    "data",
                    "coco",
                    str(root),
                    "--name",
                    f"zoo-{name}",
                    "-o",
                    str(tmp_path / f"{name}.jsonl"),
                ]
            )
        assert not left.value.code
    mixed = load_data(f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}")
    assert [(sample.id, sample.source) for sample in mixed] == [
        ("zoo-a-1", "zoo-a"), ("zoo-a-2", "zoo-a"), ("zoo-b-1", "zoo-b"), ("zoo-b-2", "zoo-b")
    ]  # fmt: skip
    (tmp_path / "results.json").write_text(
        json.dumps([{"image_id": 2, "category_id": 3, "bbox": BOX, "score": 0.5}])
    )
    samples = list(read_samples(tmp_path / "a.jsonl"))
    _, answers = read_coco_results(tmp_path / "results.json", samples, roots[0] / "instances.json")
    assert [len(answers[sample.id].boxes) for sample in samples] == [0, 1]
    assert [sample.id for sample in load_data(f"coco:{roots[0]}?name=zoo&merge_names=true")] == [
        "zoo-1",
        "zoo-2",
    ]
    with pytest.raises(BadData, match="found name ' ', expected what ids and source begin with"):
        coco_samples(roots[0], name=" ")


def test_nothing_of_a_good_file_is_said_or_left_out(tmp_path: Path) -> None:
    skipped = Skipped()
    found = coco_samples(written(tmp_path, note(1, 1, BOX)), skipped=skipped, merge_names=True)
    assert (skipped.count, found.problems) == (0, ())
    assert set(found.report) == {"images", "annotations", "crowd", "zero_area", "uncountable"}
    assert write_samples(found.samples, tmp_path / "s.jsonl") == 2
