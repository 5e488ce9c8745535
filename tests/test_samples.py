"""Sample files: what is written is read back, every broken row is named, images come as they are stored, weights are probabilities."""

import json
import math
import resource
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perception_r1.data.mixture import load_data
from perception_r1.data.rows import KINDS, sample_from_row
from perception_r1.data.samples import Skipped, as_rgb, open_image, read_samples, write_samples
from perception_r1.data.subsets import parse_count, subset
from perception_r1.records import Answer, BadData, Frame, Sample, Truth
from perception_r1.tasks import TASKS
from perception_r1.tasks.task import BoxTask

ROW: dict[str, Any] = {"id": "7", "task": "grounding", "image": "a.png", "width": 64, "height": 48, "query": "dog"}
ROW |= {"truth": {"boxes": [[1, 2, 30, 40]]}}
BOX = {"boxes": [[1, 2, 30, 40]], "labels": ["dog"]}
TWO = {"boxes": [[1, 2, 30, 40], [3, 4, 50, 44]], "labels": ["dog", "cat"]}
DETECTION = {"task": "detection", "query": "", "truth": TWO}
COUNTING = {"task": "counting"}


def file_of(folder: Path, *rows: dict[str, Any] | str, name: str = "s.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def states_the_same(a: Sample, b: Sample) -> bool:
    plain = all(getattr(a, f.name) == getattr(b, f.name) for f in fields(Sample) if f.name not in ("truth", "root", "image"))
    objects = all(np.array_equal(getattr(a.truth, kind), getattr(b.truth, kind)) for kind in ("boxes", "points"))
    others = all(getattr(a.truth, kind) == getattr(b.truth, kind) for kind in ("labels", "text", "count"))
    return plain and objects and others and a.image_path.resolve() == b.image_path.resolve()


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
spans = st.tuples(st.integers(0, 97), st.floats(0.5, 2)).map(lambda span: (float(span[0]), span[0] + span[1]))
boxes = st.tuples(spans, spans).map(lambda s: [s[0][0], s[1][0], s[0][1], s[1][1]])


@st.composite
def samples(draw: Callable[..., Any], root: Path = Path("pictures")) -> Sample:
    task = draw(st.sampled_from(["grounding", "counting", "points", "count", "detection", "ocr"]))
    objects = draw(st.lists(boxes, max_size=1 if task == "grounding" else 4))
    names = draw(st.lists(words, min_size=len(objects), max_size=len(objects)))
    truth = Truth(boxes=np.array(objects), labels=tuple(names))
    if task == "points":
        task, truth = "counting", Truth(points=np.array(objects).reshape(-1, 4)[:, :2], labels=tuple(names))
    if task == "ocr":
        truth = Truth(text=draw(words))
    if task == "count":
        task, truth = "counting", Truth(count=len(objects))
    flags = st.none() | st.tuples(*[st.booleans()] * len(truth.labels))
    areas = st.none() | st.tuples(*[st.floats(0, 1e6)] * len(truth.labels))
    return Sample(
        id=draw(words), task=task, image="a.png", width=100, height=100, query=draw(words), truth=truth, source=draw(st.none() | words),
        categories=tuple(dict.fromkeys([*names, "dog"])) if task == "detection" else None, seen=draw(st.none() | st.just((56, 84))),
        crowd=draw(flags), area=draw(areas), root=root,
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@given(made=st.lists(samples(), min_size=1, max_size=3))
def test_what_is_written_is_read_back_wherever_the_file_lies(made: list[Sample], suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("written") / f"s{suffix}"
    assert write_samples(made, file) == len(made)
    read = list(read_samples(file))
    assert len(read) == len(made)
    assert all(map(states_the_same, made, read))
    assert not Path(read[0].image).is_absolute()


def test_absent_labels_are_the_query_and_other_columns_are_left_alone(tmp_path: Path) -> None:
    (sample,) = read_samples(file_of(tmp_path, ROW | {"completion": "…", "note": 1}))
    assert sample.truth.labels == ("dog",)
    assert sample.image_path == tmp_path / "a.png"


BAD_ROWS = {
    "no id": ({"id": None}, "field id: found nothing, expected"),
    "number as id": ({"id": 7}, "field id: found 7"),
    "half a character": ({"id": "a\ud800"}, "field id"),
    "unknown task": ({"task": "segmentation"}, "field task: found 'segmentation', expected one of grounding, counting, detection, ocr"),
    "no image": ({"image": ""}, "field image: found ''"),
    "width zero": ({"width": 0}, "field width: found 0, expected the image's size"),
    "negative height": ({"height": -3}, "field height: found -3"),
    "fractional width": ({"width": 64.5}, "field width: found 64.5"),
    "true as width": ({"width": True}, "field width: found True"),
    "no query": ({"query": None}, "field query: found nothing, expected the phrase"),
    "blank query": ({"query": " "}, "field query"),
    "missing truth": ({"truth": None}, "field truth: found nothing, expected an object with boxes"),
    "truth is a list": ({"truth": [[1, 2, 3, 4]]}, "field truth: found [[1, 2, 3, 4]]"),
    "empty truth": ({"truth": {}}, "field truth: found {}"),
    "two truths": ({"truth": BOX | {"points": [[1, 2]]}}, "field truth: found boxes and points"),
    "points for grounding": ({"truth": {"points": [[1, 2]]}}, "field truth: found points, expected an object with boxes, as grounding needs"),
    "text for counting": (COUNTING | {"truth": {"text": "a"}}, "expected an object with boxes or points or count, as counting needs"),
    "a count for detection": (DETECTION | {"truth": {"count": 2}}, "found count, expected an object with boxes, as detection needs"),
    "a count and points": (COUNTING | {"truth": {"count": 1, "points": [[1, 2]]}}, "field truth: found points and count"),
    "a negative count": (COUNTING | {"truth": {"count": -1}}, "field truth.count: found -1, expected a whole number from 0 to 10,000"),
    "half an object": (COUNTING | {"truth": {"count": 2.5}}, "field truth.count: found 2.5"),
    "true as a count": (COUNTING | {"truth": {"count": True}}, "field truth.count: found True"),
    "a count with names": (COUNTING | {"truth": {"count": 1, "labels": ["dog"]}}, "field truth.labels: found ['dog'], expected none"),
    "crowds of a count": (COUNTING | {"truth": {"count": 1}, "crowd": [True]}, "field crowd: found [True], expected 0 values"),
    "boxes for ocr": ({"task": "ocr"}, "expected an object with text, as ocr needs"),
    "blank page": ({"task": "ocr", "truth": {"text": " \n"}}, "field truth.text"),
    "boxes are a number": ({"truth": {"boxes": 4}}, "field truth.boxes: found 4, expected a list"),
    "three numbers": ({"truth": {"boxes": [[1, 2, 3]]}}, "field truth.boxes[0]: found [1, 2, 3], expected [x1, y1, x2, y2], finite"),
    "NaN": ({"truth": {"boxes": [[1, 2, float("nan"), 4]]}}, "field truth.boxes[0]: found [1, 2, nan, 4], expected [x1, y1, x2, y2], finite"),
    "infinity": ({"truth": {"boxes": [[1, 2, float("inf"), 4]]}}, "finite numbers"),
    "400 digits": ({"truth": {"boxes": [[1, 2, 10**400, 4]]}}, "finite numbers"),
    "words as numbers": ({"truth": {"boxes": [["1", "2", "3", "4"]]}}, "finite numbers"),
    "inverted box": ({"truth": {"boxes": [[30, 2, 1, 40]]}}, "expected x1 < x2 and y1 < y2"),
    "flat box": ({"truth": {"boxes": [[1, 2, 30, 2]]}}, "expected x1 < x2 and y1 < y2"),
    "box outside": ({"truth": {"boxes": [[1, 2, 65, 40]]}}, "found [1, 2, 65, 40], expected [x1, y1, x2, y2] inside its image of 64x48 pixels"),
    "box left of the image": ({"truth": {"boxes": [[-1, 2, 5, 40]]}}, "inside its image"),
    "point outside": (COUNTING | {"truth": {"points": [[1, 49]]}}, "field truth.points[0]: found [1, 49], expected [x, y] inside its image"),
    "two boxes for grounding": ({"truth": TWO}, "field truth.boxes: found 2 boxes, expected one box"),
    "a label short": (COUNTING | {"truth": TWO | {"labels": ["dog"]}}, "field truth.labels: found ['dog'], expected 2 names"),
    "no labels for detection": (DETECTION | {"truth": {"boxes": [[1, 2, 30, 40]]}}, "field truth.labels: found nothing, expected 1 names"),
    "label not listed": (DETECTION | {"categories": ["dog"]}, "field truth.labels[1]: found 'cat', expected one of the sample's `categories`"),
    "label not one of COCO's": (DETECTION | {"truth": BOX | {"labels": ["wolf"]}}, "found 'wolf'"),
    "a category twice": (DETECTION | {"categories": ["dog", "cat", "dog"]}, "field categories"),
    "no category": (DETECTION | {"categories": []}, "field categories: found []"),
    "crowd too long": (DETECTION | {"crowd": [True]}, "field crowd: found [True], expected 2 values"),
    "crowd not yes or no": (DETECTION | {"crowd": [0.5, 0]}, "field crowd"),
    "negative area": (DETECTION | {"area": [1, -2]}, "field area: found [1, -2]"),
    "seen is one number": ({"seen": [64]}, "field seen: found [64], expected [width, height]"),
    "seen zero": ({"seen": [0, 28]}, "field seen"),
}  # fmt: skip


@pytest.mark.parametrize("change, words", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_by_file_line_id_field_found_and_expected(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = file_of(tmp_path, ROW, ROW | {"id": "8"} | change)
    with pytest.raises(BadData) as caught:
        list(read_samples(file))
    message = str(caught.value)
    assert message.startswith(f"{file}:2:")
    assert words in message
    assert "expected" in message
    assert "\n" not in message
    assert "id" in change or "'8'" in message


@pytest.mark.parametrize("line", ["{", "[1]", "7", '{"id": ', "[" * 100_000, "\x00", '{"id": "a"} {"id": "b"}'])
def test_a_line_that_is_no_json_object_is_named(line: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"s\.jsonl:2: .*expected one JSON object"):
        list(read_samples(file_of(tmp_path, ROW, line)))


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_bytes(b'{"id": "\xff\xfe"}\n')
    with pytest.raises(BadData, match=r"s\.jsonl:1: "):
        list(read_samples(tmp_path / "s.jsonl"))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_an_empty_file_is_an_error(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"s{suffix}"
    write_samples([], file)
    with pytest.raises(BadData, match="found no sample, expected at least one"):
        list(read_samples(file))


def test_a_file_of_nothing_but_bad_rows_says_what_is_wrong_with_the_first(tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(BadData, match=r"expected at least one, 1 bad row, the first: .*instances\.json:1: field id: found nothing"):
        list(read_samples(tmp_path / "instances.json", skipped=Skipped()))


def test_a_missing_file_a_folder_and_a_false_parquet_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text("no parquet")
    for path, words in ((tmp_path / "none.jsonl", "no such file"), (tmp_path, "a folder"), (tmp_path / "p.parquet", "expected a Parquet file")):
        with pytest.raises(BadData, match=words):
            list(read_samples(path))


def test_skipped_rows_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    file = file_of(tmp_path, ROW, "{", ROW | {"width": 0}, "", ROW | {"id": "last"})
    skipped = Skipped()
    assert [sample.id for sample in read_samples(file, skipped=skipped)] == ["7", "last"]
    assert skipped.count == 2
    assert [problem.split(": ")[0] for problem in skipped.problems] == [f"{file}:2", f"{file}:3"]


def test_reading_streams(tmp_path: Path) -> None:
    assert next(read_samples(file_of(tmp_path, ROW, "{"))).id == "7"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    file = file_of(tmp_path, ROW)
    before = file.read_bytes()
    (good,) = read_samples(file)

    def breaks() -> Iterator[Sample]:
        yield good
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(breaks(), file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_disk_that_fills_up_names_the_file_and_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    (sample,) = read_samples(file_of(tmp_path, ROW))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="too large|No space"):
            write_samples((replace(sample, id=f"{k * 7919:x}" * 9) for k in range(5000)), tmp_path / f"big{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


def picture(folder: Path, image: Image.Image, name: str = "a.png", **options: Any) -> Sample:
    image.save(folder / name, **options)
    width, height = image.size
    truth = Truth(boxes=np.zeros((0, 4)))
    return Sample(id="7", task="grounding", image=name, width=width, height=height, query="dog", truth=truth, root=folder)


def flat(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (6, 4), colour)


def palette() -> Image.Image:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    return image


GREY16 = Image.fromarray(np.full((4, 6), 40_000, dtype=np.uint16))
PICTURES = {
    "RGB": (flat("RGB", (1, 2, 3)), "a.png", {}, (1, 2, 3)),
    "grey": (flat("L", 77), "a.png", {}, (77, 77, 77)),
    "one bit": (flat("1", 1), "a.png", {}, (255, 255, 255)),
    "one bit TIFF": (flat("1", 0), "a.tif", {}, (0, 0, 0)),
    "half transparent black": (flat("RGBA", (0, 0, 0, 128)), "a.png", {}, (127, 127, 127)),
    "transparent": (flat("RGBA", (10, 20, 30, 0)), "a.png", {}, (255, 255, 255)),
    "grey with alpha": (flat("LA", (0, 0)), "a.png", {}, (255, 255, 255)),
    "palette": (palette(), "a.png", {}, (200, 100, 50)),
    "palette with a transparent colour": (palette(), "a.png", {"transparency": 1}, (255, 255, 255)),
    "a transparent colour": (flat("RGB", (1, 2, 3)), "a.png", {"transparency": (1, 2, 3)}, (255, 255, 255)),
    "16 bits": (GREY16, "a.png", {}, (156, 156, 156)),
    "16 bits TIFF": (GREY16, "a.tif", {}, (156, 156, 156)),
    "CMYK": (flat("CMYK", (0, 255, 255, 0)), "a.tif", {}, (255, 0, 0)),
}


@pytest.mark.parametrize("image, name, options, colour", PICTURES.values(), ids=PICTURES)
def test_images_of_every_mode_come_as_rgb(image: Image.Image, name: str, options: dict[str, Any], colour: tuple[int, ...], tmp_path: Path) -> None:
    opened = open_image(picture(tmp_path, image, name, **options))
    assert (opened.mode, opened.size) == ("RGB", (6, 4))
    assert np.abs(np.asarray(opened).astype(int) - colour).max() <= 1


def test_an_exif_rotation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    half = Image.fromarray(np.repeat(np.array([[255, 255, 255, 0, 0, 0]], dtype=np.uint8), 4, axis=0))
    opened = open_image(picture(tmp_path, half, "a.jpg", exif=exif, quality=95))
    assert opened.size == (6, 4)
    assert np.asarray(opened)[:, 0].min() > 200 > 50 > np.asarray(opened)[:, -1].max()


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good = picture(tmp_path, flat("RGB", (1, 2, 3)))
    (tmp_path / "text.png").write_text("no image")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8))
    picture(tmp_path, noise, "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:3000])
    picture(tmp_path, flat("F", 0.5), "float.tif")
    cases = {
        "none.png": (good, "found no such file, expected the image of sample '7'"),
        "text.png": (good, "found no readable image"),
        "half.png": (replace(good, width=60, height=80), "found no readable image"),
        "float.tif": (good, "pixels of mode F"),
        "a.png": (replace(good, width=4, height=6), "found 6x4 pixels, expected the 4x6 of sample '7'"),
        "": (good, "found no readable image"),
    }
    for name, (sample, expected) in cases.items():
        with pytest.raises(BadData, match=expected) as caught:
            open_image(replace(sample, image=name))
        assert str(tmp_path / name) in str(caught.value)


def test_pixels_of_unknown_range_are_refused() -> None:
    with pytest.raises(BadData, match="mode I"):
        as_rgb(Image.new("I", (2, 2), 70_000))


def test_weights_are_shares_of_the_draws(tmp_path: Path) -> None:
    a = file_of(tmp_path, *(ROW | {"id": f"a{k}"} for k in range(3)), name="a.jsonl")
    b = file_of(tmp_path, ROW, name="b.jsonl")
    mixture = load_data(f"{a}:1,{b}:3", "grounding")
    assert [sample.id for sample in mixture] == ["a0", "a1", "a2", "7"]
    assert mixture.probabilities() == pytest.approx([1 / 12] * 3 + [3 / 4])
    assert mixture[-1].id == "7"
    assert [sample.id for sample in mixture[1:3]] == ["a1", "a2"]
    assert load_data(f"{a},{b}").probabilities() == pytest.approx([1 / 4] * 4)
    with pytest.raises(IndexError):
        mixture[4]


def test_a_file_is_read_when_it_is_asked_and_never_held(tmp_path: Path) -> None:
    rows = [json.dumps(ROW | {"id": f"ü{k}", "query": "x" * (k % 7 + 1)}) for k in range(2000)]
    file = file_of(tmp_path, *[row + "\n" * (k % 3 == 0) for k, row in enumerate(rows)])
    tracemalloc.start()
    try:
        found = load_data(str(file))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 60 * len(rows)  # a sample takes some 2,000 bytes
    read = list(read_samples(file))
    assert all(map(states_the_same, found, read))
    assert len(found) == len(read) == 2000
    for index in (0, 7, 1999, -1, -2000):
        assert states_the_same(found[index], read[index])
    for part in (slice(3, 9), slice(None, 4), slice(9, 2, -3), slice(-3, None), slice(5, 5)):
        assert [sample.id for sample in found[part]] == [sample.id for sample in read[part]]


def test_a_shorthand_draws_scenes_and_keeps_its_options(tmp_path: Path) -> None:
    found = load_data("scenes:counting?n=4&seed=3&min_count=2&max_count=2", "counting", cache=tmp_path)
    assert [len(sample.truth) for sample in found] == [2] * 4
    assert open_image(found[0]).size == (found[0].width, found[0].height)
    again = load_data("scenes:counting?n=4&seed=3&min_count=2&max_count=2", cache=tmp_path)
    assert all(map(states_the_same, found, again))


BAD_SPECS = {
    "none.jsonl": "found no such file",
    "a.jsonl:0": "found weight 0, expected a finite number above 0",
    "a.jsonl:inf": "found weight inf",
    "a.jsonl:nan": "found weight nan",
    "a.jsonl:2,b.jsonl": "found weights on 1 of 2 files",
    "a.jsonl,a.jsonl": "sample '7' is there twice",
    "scenes:nothing?n=2": "task 'nothing' is not known",
    "scenes:counting?n=many": "option n: found 'many', expected a whole number",
    "scenes:counting?number=2": "option 'number' is not known",
    "scenes:counting?split=all": "split 'all' is not known",
    "coco:none": "found no such folder",
    "coco:none?task=ocr": "found task 'ocr', expected detection or counting",
}


@pytest.mark.parametrize("spec, words", BAD_SPECS.items(), ids=BAD_SPECS)
def test_a_bad_spec_is_named(spec: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file_of(tmp_path, ROW, name="a.jsonl")
    file_of(tmp_path, ROW | {"id": "b"}, name="b.jsonl")
    with pytest.raises(BadData, match=words):
        load_data(spec, cache=tmp_path)


def test_a_sample_of_another_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="sample '7' is for grounding, expected counting"):
        load_data(str(file_of(tmp_path, ROW)), "counting")


def numbered(*strata: tuple[str, str, int]) -> list[Sample]:
    """Samples of (source, label, how many), mixed."""
    point = Truth(points=np.array([[1.0, 2.0]]), labels=("dog",))
    made = [
        Sample(id=f"{source}-{label}-{k}", task="counting", image="a.png", width=9, height=9, query=label, truth=point, source=source)
        for source, label, count in strata
        for k in range(count)
    ]
    return [made[k] for k in np.random.default_rng(3).permutation(len(made))]


strata = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(1, 12)), min_size=1, max_size=6, unique_by=lambda s: s[:2])


@given(strata, st.floats(0, 1), st.integers(0, 5))
def test_a_subset_has_its_number_and_every_stratum_its_share(strata: list[tuple[str, str, int]], share: float, seed: int) -> None:
    every = numbered(*strata)
    number = max(1, round(share * len(every)))
    chosen = subset(every, number, seed)
    assert len(chosen) == len({s.id for s in chosen}) == number
    assert [s.id for s in chosen] == [s.id for s in every if s in chosen]  # in the old order
    assert [s.id for s in subset(every, number, seed)] == [s.id for s in chosen]
    for source, label, count in strata:
        taken = sum((s.source, s.query) == (source, label) for s in chosen)
        assert math.floor(count * number / len(every)) <= taken <= math.ceil(count * number / len(every))


def test_every_sample_is_as_likely_as_any_other_to_be_in_a_subset() -> None:
    every, seeds = numbered(("a", "x", 1), ("a", "y", 2), ("b", "x", 7)), 3000
    times = Counter(s.id for seed in range(seeds) for s in subset(every, 3, seed))
    np.testing.assert_allclose([times[s.id] / seeds for s in every], 0.3, atol=0.04)  # 4.8 standard deviations


def test_free_phrases_are_no_strata_but_sources_are() -> None:
    boxed = Truth(boxes=np.array([[1, 2, 3, 4]]), labels=("dog",))
    every = [replace(s, task="grounding", truth=boxed) for s in numbered(("a", "x", 5), ("b", "y", 15))]
    phrased = [replace(s, query=f"phrase {k}") for k, s in enumerate(every)]
    assert Counter(s.source for s in subset(phrased, 8)) == {"a": 2, "b": 6}
    assert [s.id for s in subset(phrased, 8)] == [s.id for s in subset(every, 8)]


def test_a_subset_of_more_than_there_is_is_an_error() -> None:
    every = numbered(("a", "x", 4))
    assert subset(every, 4, 1) == every
    for number in (5, 0, -1):
        with pytest.raises(BadData, match=f"found 4 samples, expected at least the {number} asked for"):
            subset(every, number)


@pytest.mark.parametrize("text", ["", "k", "5x", "0", "0k", "-5", "1.5", "0.0001k", "1e3", "٣", "5 k k", "1.2.3k", "nan", "."])
def test_a_number_of_samples_that_is_none_is_named(text: str) -> None:
    with pytest.raises(BadData, match="expected a whole number of at least 1, as 500 or 5k"):
        parse_count(text)


# --- tasks of one's own ----------------------------------------------------------------------------------------------
class Pointing(BoxTask):
    """A task of one's own that says nothing of queries but asks with one."""

    name: ClassVar[str] = "pointing"
    TERMS: ClassVar = {"format": (0.0, 1.0)}

    def question(self, sample: Sample) -> str:
        return f"Point to a {sample.query.strip().upper()}."

    def terms(self, answer: Answer, truth: Truth, frame: Frame) -> dict[str, float]:
        return {}

    def measure(self, answer: Answer | None, sample: Sample) -> dict[str, float]:
        return {}


class Describing(Pointing):
    """A query may say where to look, and need not."""

    name: ClassVar[str] = "describing"

    def needs_query(self) -> bool:
        return False


class Tagging(Pointing):
    """A question without a query."""

    name: ClassVar[str] = "tagging"

    def question(self, sample: Sample) -> str:
        return "Tag it."


@pytest.mark.parametrize("query", [None, "", "  "])
@pytest.mark.parametrize("own", [Pointing, Describing, Tagging])
def test_a_task_of_ones_own_needs_a_query_where_its_question_does(own: type[BoxTask], query: str | None, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(TASKS, own.name, own)
    row = ROW | {"task": own.name, "query": query}
    with pytest.raises(BadData, match=f"task '{own.name}': found no entry in KINDS"):
        sample_from_row(row | {"query": "dog"}, tmp_path, "s.jsonl:1")
    monkeypatch.setitem(KINDS, own.name, ("boxes",))
    assert sample_from_row(row | {"query": "dog"}, tmp_path, "s.jsonl:1").query == "dog"
    if own is Pointing:
        with pytest.raises(BadData, match=r"s\.jsonl:1: sample '7': field query: found .*expected the phrase"):
            sample_from_row(row, tmp_path, "s.jsonl:1")
    else:
        assert sample_from_row(row, tmp_path, "s.jsonl:1").query == (query or "")


def test_the_tasks_of_the_book_need_a_query_or_not() -> None:
    assert {name: task().needs_query() for name, task in TASKS.items() if name in BOOK} == BOOK


BOOK = {"grounding": True, "counting": True, "detection": False, "ocr": False}
