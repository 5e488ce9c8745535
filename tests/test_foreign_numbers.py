"""Numbers in somebody else's file are what they say, or an error that names file, entry and field.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.test_coco import CATEGORIES, note, written
from tests.test_refcoco import BOXES_OF, REFERENCES, instances, refer, rows_file

from perception_r1.data.coco import coco_image, coco_samples
from perception_r1.data.numbers import EXACT, Unread, flag, four, identity, number, whole
from perception_r1.data.pixmo import pixmo_samples
from perception_r1.data.refcoco import refcoco_samples
from perception_r1.data.references import RefOptions
from perception_r1.data.samples import Skipped, read_samples, write_samples
from perception_r1.evaluation.predictions import read_coco_results
from perception_r1.records import BadData, Sample, Truth

NO_NUMBERS = [
    None, True, False, "", " 3", "3 ", "+3", "03", "1_000", "1,5", ".5", "5.", "0x10", "٣", "yes", "nan", "NaN", "Infinity", "1e400",
    float("nan"), float("inf"), -float("inf"), 10**400, [], [3], {}, b"3",
]  # fmt: skip
NO_WHOLES = [
    *(value for value in NO_NUMBERS if value != 10**400),
    1.5,
    "1.5",
    float(EXACT),
    "1e300",
]
NO_IDS = [
    None,
    True,
    False,
    "",
    "  ",
    1.5,
    float("nan"),
    float("inf"),
    float(EXACT),
    -float(EXACT),
    f"{EXACT}.0",
    [],
    {},
    "\ud83d",
]


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**15), 10**15))
def test_a_number_as_text_is_the_number(value: float) -> None:
    assert number(json.dumps(value)) == number(value) == value


@given(st.integers(-(10**25), 10**25))
def test_an_id_is_one_id_however_it_is_written(value: int) -> None:
    written = [value, str(value)] + ([float(value), f"{value}.0"] if abs(value) < EXACT else [])
    assert {identity(each) for each in written} == {value}
    assert whole(str(value)) == value


@given(st.text(min_size=1))
def test_another_text_is_the_id_that_it_is(text: str) -> None:
    if any(letter.isalpha() for letter in text) and not any(
        "\ud800" <= letter <= "\udfff" for letter in text
    ):
        assert identity(text) == text


@pytest.mark.parametrize("text", ["007", "1e5", "-", "1.5", "12e400", "9" * 40])
def test_a_text_that_only_resembles_a_number_stays_a_text(text: str) -> None:
    assert identity(text) == text


@pytest.mark.parametrize(
    "read, values", [(number, NO_NUMBERS), (whole, NO_WHOLES), (identity, NO_IDS)]
)
def test_what_says_no_number_is_refused(read: Callable[[Any], Any], values: list[Any]) -> None:
    for value in values:
        with pytest.raises(Unread):
            read(value)


def test_a_flag_is_nothing_but_yes_or_no() -> None:
    assert [flag(value) for value in (0, 1, 0.0, 1.0, "0", "1", "0.0", True, False)] == [
        False,
        True,
    ] * 2 + [False, True, False, True, False]
    for value in (2, -1, 0.5, "2", "yes", "true", "", None, [], float("nan")):
        with pytest.raises(Unread, match="0 or 1"):
            flag(value)


@pytest.mark.parametrize(
    "value",
    [
        "1234",
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, 3, True],
        [1, 2, 3, None],
        {"a": 1, "b": 2, "c": 3, "d": 4},
        None,
    ],
)
def test_a_box_is_a_list_of_four_numbers(value: Any) -> None:
    with pytest.raises(Unread, match="four"):
        four(value)


# --- COCO ------------------------------------------------------------------------------------------------------------
def as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_text(item) for item in value]
    return str(value) if isinstance(value, int | float) else value


def as_float(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_float(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_float(item) for item in value]
    return float(value) if isinstance(value, int) else value


def told(samples: list[Sample]) -> list[Any]:
    return [
        (
            s.id,
            s.width,
            s.height,
            s.query,
            s.truth.needed_boxes().tolist(),
            s.truth.labels,
            s.crowd,
            s.area,
            s.categories,
        )
        for s in samples
    ]


@pytest.mark.parametrize("task", ["detection", "counting"])
@pytest.mark.parametrize("change", [as_text, as_float])
@pytest.mark.parametrize("part", ["images", "annotations", "categories", "all"])
def test_a_file_that_writes_its_numbers_otherwise_is_the_same_data_set(
    part: str,
    change: Callable[[Any], Any],
    task: str,
    data_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = data_folder("coco_val206")
    content = json.loads((folder / "instances.json").read_text())
    parts = ("images", "annotations", "categories") if part == "all" else (part,)
    for name in parts:
        kept = [
            {
                key: value
                for key, value in entry.items()
                if key not in ("segmentation", "license", "name")
            }
            for entry in content[name]
        ]
        names = [{"name": entry["name"]} if "name" in entry else {} for entry in content[name]]
        content[name] = [change(entry) | named for entry, named in zip(kept, names, strict=True)]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    right, found = (
        coco_samples(root, task, images=folder / "images") for root in (folder, tmp_path)
    )
    assert told(found.samples) == told(right.samples)
    assert found.report == right.report


def test_no_object_of_a_file_of_texts_is_a_crowd(tmp_path: Path) -> None:
    root = written(
        tmp_path, note(1, 1, [1, 1, 5, 5], iscrowd="0"), note(1, 2, [9, 9, 5, 5], iscrowd="1")
    )
    found = coco_samples(root)
    assert found.samples[0].crowd == (False, True)
    assert found.report["crowd"] == 1
    assert [len(sample.truth) for sample in coco_samples(root, "counting").samples] == [1]


BAD_NOTES: dict[str, tuple[str, Any, str]] = {
    "crowd yes": ("iscrowd", "yes", "0 or 1"),
    "crowd two": ("iscrowd", 2, "0 or 1"),
    "crowd of a list": ("iscrowd", [], "0 or 1"),
    "area of words": ("area", "large", "a number of square pixels of at least 0"),
    "area below nothing": ("area", -5, "a number of square pixels of at least 0"),
    "area NaN": ("area", float("nan"), "a number of square pixels of at least 0"),
    "area true": ("area", True, "a number of square pixels of at least 0"),
    "a true coordinate": ("bbox", [True, 1, 5, 5], "four numbers"),
    "no end": ("bbox", [1, 1, 5, float("inf")], "four finite numbers"),
    "a text of four": ("bbox", "1234", "four numbers"),
    "underscores": ("bbox", ["1_0", 1, 5, 5], "four numbers"),
    "image half": ("image_id", 1.5, "a whole number or a text"),
    "image true": ("image_id", True, "a whole number or a text"),
    "image of nobody": ("image_id", "one", "the id of one of the file's 2 image entries (1, 2)"),
    "category half": ("category_id", 1.5, "a whole number or a text"),
    "category true": ("category_id", True, "a whole number or a text"),
    "no category": ("category_id", None, "a whole number or a text"),
    "category of nobody": (
        "category_id",
        "77",
        "the id of one of the file's 3 category entries (1, 2, 3)",
    ),
}


@pytest.mark.parametrize("field, value, expected", BAD_NOTES.values(), ids=BAD_NOTES)
def test_a_bad_number_names_file_annotation_image_and_field(
    field: str, value: Any, expected: str, tmp_path: Path
) -> None:
    bad = note(1, 1, [1, 1, 5, 5], id=70) | {field: value}
    root = written(tmp_path, note(1, 1, [1, 1, 5, 5], id=69), bad, note(2, 2, [3, 3, 5, 5], id=71))
    with pytest.raises(BadData) as caught:
        coco_samples(root)
    said = str(caught.value)
    of = "" if field == "image_id" else " of image 1"
    assert f"instances.json: annotation 70: found {field} " in said
    assert f"{of}, expected {expected}" in said
    assert "\n" not in said
    skipped = Skipped()
    found = coco_samples(root, skipped=skipped)
    assert skipped.count == 1
    assert "annotation 70" in skipped.problems[0]
    assert [len(sample.truth) for sample in found.samples] == [1, 1]


BAD_IMAGES = {
    "half a pixel": {"width": 99.5}, "words": {"height": "tall"}, "true": {"width": True}, "none": {"height": 0}, "below": {"width": -5},
    "no end": {"width": float("inf")}, "nothing": {"height": None}, "an id of half": {"id": 1.5}, "an id that is true": {"id": True},
    "a float that is many ids": {"id": 1e16}, "no id": {"id": None}, "no file": {"file_name": None}, "a number for a file": {"file_name": 7},
}  # fmt: skip


@pytest.mark.parametrize("change", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_number_of_an_image_names_file_image_and_field(
    change: dict[str, Any], tmp_path: Path
) -> None:
    image = {"id": 1, "file_name": "1.jpg", "width": 100, "height": 80} | change
    with pytest.raises(
        BadData, match=rf"instances\.json: image .*found {next(iter(change))} .*expected"
    ):
        coco_samples(written(tmp_path, images=[image], categories=CATEGORIES))


def test_one_id_written_in_two_ways_is_there_twice(tmp_path: Path) -> None:
    image = {"file_name": "1.jpg", "width": 100, "height": 80}
    with pytest.raises(BadData, match="found the image id 42 twice"):
        coco_samples(written(tmp_path, images=[image | {"id": 42}, image | {"id": "42"}]))
    with pytest.raises(BadData, match="found the category id 3 twice"):
        coco_samples(
            written(tmp_path, categories=[{"id": 3, "name": "a"}, {"id": 3.0, "name": "b"}])
        )


def test_a_list_named_twice_is_an_error(tmp_path: Path) -> None:
    file = written(tmp_path, note(1, 1, [1, 1, 5, 5])) / "instances.json"
    file.write_text(file.read_text()[:-1] + ', "annotations": []}')
    with pytest.raises(BadData, match="'annotations' is there twice"):
        coco_samples(tmp_path)


# --- COCO results ----------------------------------------------------------------------------------------------------
ROW = {"image_id": 42, "category_id": 18, "bbox": [10, 10, 40, 50], "score": 0.236}


def detections(folder: Path, *rows: dict[str, Any]) -> Any:
    sample = Sample(
        id="coco-42", task="detection", image="a.jpg", width=100, height=100, query="",
        truth=Truth(boxes=[[10, 10, 50, 60]], labels=("dog",)),
    )  # fmt: skip
    (folder / "results.json").write_text(json.dumps(rows))
    return read_coco_results(folder / "results.json", [sample])


@pytest.mark.parametrize(
    "changes",
    [as_text(ROW), as_float(ROW), {"image_id": 42.0}, {"category_id": "18"}, {"score": "0.236"}],
    ids=str,
)
def test_a_result_is_what_it_says(changes: dict[str, Any], tmp_path: Path) -> None:
    written, answers = detections(tmp_path, ROW | changes)
    assert list(written) == ["coco-42"]
    assert answers["coco-42"].boxes.tolist() == [[10, 10, 50, 60]]
    assert answers["coco-42"].labels == ("dog",)
    assert answers["coco-42"].scores.tolist() == [0.236]


BAD_RESULTS: dict[str, tuple[str, Any]] = {
    "true score": ("score", True), "words": ("score", "high"), "no end": ("score", "1e400"), "huge": ("score", 10**400),
    "NaN": ("score", float("nan")),
    "true category": ("category_id", True), "half a category": ("category_id", 18.5), "unknown category": ("category_id", "dog"),
    "true image": ("image_id", True), "half an image": ("image_id", 42.5), "many images": ("image_id", 2.0**60), "unknown image": ("image_id", "042"),
    "true side": ("bbox", [1, 1, True, 4]), "words for a side": ("bbox", [1, 1, "wide", 4]), "negative as text": ("bbox", [1, 1, "-1", 4]),
}  # fmt: skip


@pytest.mark.parametrize("field, value", BAD_RESULTS.values(), ids=BAD_RESULTS)
def test_a_bad_result_names_file_row_and_field(field: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=rf"results\.json: row 1: found {field} ") as caught:
        detections(tmp_path, ROW, ROW | {field: value})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "name, source, image",
    [
        ("coco-42", "coco", 42),
        ("a-b-42", "a-b", 42),
        ("42", None, 42),
        ("coco-7", None, 7),
        ("x-7", None, "x-7"),
    ],
)
def test_the_image_of_a_sample_is_its_id_without_the_source(
    name: str, source: str | None, image: int | str
) -> None:
    sample = Sample(
        id=name,
        task="ocr",
        image="a",
        width=1,
        height=1,
        query="",
        truth=Truth(text="a"),
        source=source,
    )
    assert coco_image(sample) == image


# --- referring expressions -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change", [as_text, as_float])
def test_the_refer_layout_takes_numbers_as_they_are_written(
    change: Callable[[Any], Any], tmp_path: Path
) -> None:
    right = refcoco_samples(refer(tmp_path / "a" / "refcoco"), RefOptions(split="all")).samples
    parts = {
        part: [change(entry) for entry in instances()[part]] for part in ("images", "annotations")
    }
    found = refcoco_samples(
        refer(tmp_path / "b" / "refcoco", **parts), RefOptions(split="all")
    ).samples
    assert [(s.id, s.query, s.truth.needed_boxes().tolist()) for s in found] == [
        (s.id, s.query, s.truth.needed_boxes().tolist()) for s in right
    ]


def test_an_object_without_a_box_is_never_an_expression_that_nothing_matches(
    tmp_path: Path,
) -> None:
    notes = [
        entry | {"bbox": None} if entry["id"] == 501 else entry
        for entry in instances()["annotations"]
    ]
    with pytest.raises(
        BadData,
        match=r"instances\.json: annotation 501: found bbox nothing of image 7, expected four numbers",
    ):
        refcoco_samples(refer(tmp_path, annotations=notes), RefOptions(split="all"))
    assert len(BOXES_OF) == len(REFERENCES)


def row(**changes: Any) -> dict[str, Any]:
    return {
        "image": "a.jpg",
        "sent": "red car",
        "bbox": [20, 30, 80, 80],
        "width": 200,
        "height": 100,
    } | changes


def test_a_row_takes_numbers_as_they_are_written(tmp_path: Path) -> None:
    file = rows_file(
        tmp_path,
        row(bbox=["20", "30", "80.0", "8e1"], width="200", height=100.0, number=7.0),
        name="v.jsonl",
    )
    (sample,) = refcoco_samples(file, RefOptions(boxes="xyxy", columns={"id": "number"})).samples
    np.testing.assert_array_equal(sample.truth.needed_boxes(), [[20, 30, 80, 80]])
    assert sample.id == "v-7"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"width": "100"}, "found 100x100, expected the 200x100 pixels"),
        ({"height": 50.0}, "found 200x50, expected the 200x100 pixels"),
        ({"height": None, "width": 300}, "found 300x100, expected the 200x100 pixels"),
        ({"width": "wide"}, "found width 'wide'"),
        ({"height": True}, "found height True"),
        ({"bbox": ["1_0", 30, 80, 80]}, "expected four numbers"),
        ({"bbox": [True, 30, 80, 80]}, "expected four numbers"),
        ({"bbox": {"10": 1, "20": 2, "80": 3, "90": 4}}, "expected four numbers"),
        ({"bbox": [0.1, 0.3, 0.4, 0.8]}, "expected pixels: these are numbers from 0 to 1"),
    ],
)
def test_a_bad_number_of_a_row_is_named(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(BadData, match=r"v\.jsonl:1: ") as caught:
        refcoco_samples(
            rows_file(tmp_path, row(**changes), name="v.jsonl"), RefOptions(boxes="xyxy")
        )
    assert words in str(caught.value)


@pytest.mark.parametrize("value", [None, True, 1.5, "", 2.0**60])
def test_a_bad_id_of_a_row_is_named(value: Any, tmp_path: Path) -> None:
    with pytest.raises(
        BadData, match=r"v\.jsonl:1: found number .*expected a whole number or a text"
    ):
        refcoco_samples(
            rows_file(tmp_path, row(number=value), name="v.jsonl"),
            RefOptions(boxes="xyxy", columns={"id": "number"}),
        )


# --- PixMo-Count -----------------------------------------------------------------------------------------------------
def counted(folder: Path, **changes: Any) -> Any:
    """The samples of a JSONL file with one row of PixMo-Count, with these fields."""
    import hashlib

    (folder / "images").mkdir()
    Image.new("RGB", (300, 240)).save(folder / "a.png")
    data = (folder / "a.png").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    (folder / "images" / f"{digest}.png").write_bytes(data)
    fields = {
        "image_url": "http://x/a.png",
        "image_sha256": digest,
        "label": "birds",
        "count": 2,
        "points": {"x": [1, 20], "y": [2, 30]},
    } | changes
    (folder / "rows.jsonl").write_text(json.dumps(fields) + "\n")
    return pixmo_samples(folder / "rows.jsonl", folder / "images")


def test_counts_and_points_are_what_they_say(tmp_path: Path) -> None:
    (sample,) = counted(tmp_path, count="2", points={"x": ["1", 20.0], "y": [2, "3e1"]}).samples
    assert np.asarray(sample.truth.points).tolist() == [[1, 2], [20, 30]]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"count": True}, "field count: found True"),
        ({"count": 2.5}, "field count: found 2.5"),
        ({"count": "two"}, "field count: found 'two'"),
        ({"points": {"x": [True, 20], "y": [2, 30]}}, "field points"),
        ({"points": {"x": ["1_0", 20], "y": [2, 30]}}, "field points"),
    ],
)
def test_a_bad_count_or_point_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=words):
        counted(tmp_path, **changes)


def test_an_id_of_a_size_that_no_float_holds_is_kept(tmp_path: Path) -> None:
    image = {"id": EXACT + 1, "file_name": "1.jpg", "width": 100, "height": 80}
    (sample,) = coco_samples(
        written(tmp_path, note(EXACT + 1, 1, [1, 1, 5, 5]), images=[image])
    ).samples
    assert sample.id == f"coco-{EXACT + 1}"
    assert write_samples([sample], tmp_path / "s.jsonl") == 1


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(
    part=st.sampled_from(["images", "annotations", "categories"]),
    field=st.sampled_from(["id", "image_id", "category_id", "bbox", "iscrowd", "area", "width"]),
    other=st.sampled_from(["height", "file_name", "name", "supercategory"]),
    values=st.tuples(anything, anything),
    skip=st.booleans(),
)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_stands_in_a_field_is_read_or_one_line(
    part: str, field: str, other: str, values: Any, skip: bool, tmp_path: Path
) -> None:
    written(tmp_path, note(1, 1, [1, 1, 5, 5], id=1), note(2, 2, [1, 1, 5, 5], id=2))
    content = json.loads((tmp_path / "instances.json").read_text())
    content[part][0] |= {field: values[0], other: values[1]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    try:
        samples = coco_samples(tmp_path, images=".", skipped=Skipped() if skip else None).samples
    except BadData as problem:
        said = str(problem)
    else:
        said = ""
        write_samples(samples, tmp_path / "s.jsonl")
        assert len(list(read_samples(tmp_path / "s.jsonl"))) == len(samples)
    assert "\n" not in said
    assert len(said) < 900
