"""Odd input in each published layout: kinds of images, one pixel, 20,000 pixels, letters beyond ASCII, an empty box, no image, an id twice."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.test_coco import CATEGORIES, note
from tests.test_pages import conversation
from tests.test_pixmo import Publisher
from tests.test_refcoco import reference

from perception_r1.data.check import check_file
from perception_r1.data.coco import coco_samples
from perception_r1.data.pages import page_samples
from perception_r1.data.refcoco import refcoco_samples
from perception_r1.data.samples import Skipped, open_image, read_samples, write_samples
from perception_r1.records import BadData, Sample

SIZES = {"cmyk.jpg": (60, 40), "grey 16.png": (60, 40), "gedreht ö.jpg": (60, 40), "全景.png": (20_000, 300), "one.png": (1, 1)}
"""Images by name, with their size as stored; the turned one is 40 x 60 on a screen."""
LAYOUTS: dict[str, Callable[[Path], list[Sample]]] = {}


def odd_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    Image.new("CMYK", (60, 40)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((40, 60), 40_000, np.uint16)).save(folder / "grey 16.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(folder / "gedreht ö.jpg", exif=exif)
    Image.new("L", (20_000, 300)).save(folder / "全景.png")
    Image.new("RGB", (1, 1)).save(folder / "one.png")


def layout(function: Callable[[Path], list[Sample]]) -> Callable[[Path], list[Sample]]:
    LAYOUTS[function.__name__] = function
    return function


def last_pixel(name: str) -> list[int]:
    """The box xywh of the last pixel of an image."""
    return [SIZES[name][0] - 1, SIZES[name][1] - 1, 1, 1]


def stated() -> list[dict[str, Any]]:
    """COCO's entries of the images."""
    return [{"id": k, "file_name": name, "width": SIZES[name][0], "height": SIZES[name][1]} for k, name in enumerate(SIZES)]


def write_refer(root: Path, references: list[dict[str, Any]], boxes: list[list[float]]) -> None:
    notes = [note(reference["image_id"], 1, box, id=reference["ann_id"]) for reference, box in zip(references, boxes, strict=True)]
    (root / "instances.json").write_text(json.dumps({"images": stated(), "annotations": notes, "categories": CATEGORIES}))
    (root / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))


@layout
def refer(root: Path) -> list[Sample]:
    odd_images(root / "images")
    write_refer(root, [reference(k, k, k, "val", f"das {name} 左") for k, name in enumerate(SIZES)], [last_pixel(name) for name in SIZES])
    return refcoco_samples(root).samples


@layout
def coco(root: Path) -> list[Sample]:
    odd_images(root / "images")
    notes = [note(k, 1, last_pixel(name)) for k, name in enumerate(SIZES)]
    (root / "instances.json").write_text(json.dumps({"images": stated(), "annotations": notes, "categories": CATEGORIES}))
    return coco_samples(root).samples


@layout
def pixmo(root: Path) -> list[Sample]:
    odd_images(root / "images")
    publisher = Publisher(root / "pixmo é")
    for name, (width, height) in SIZES.items():
        publisher.row((root / "images" / name).read_bytes(), [(width - 0.5, height - 0.5)], "鸟")
    return publisher.read().samples


@layout
def fox(root: Path) -> list[Sample]:
    odd_images(root / "cn_pdf_png")
    (root / "cn_page_ocr.json").write_text(json.dumps([conversation(name, f"第{name}页") for name in SIZES], ensure_ascii=False), encoding="utf-8")
    return page_samples(root / "cn_page_ocr.json", images=root / "cn_pdf_png").samples


@pytest.mark.parametrize("made", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_takes_odd_images_as_they_are_stored(made: Callable[[Path], list[Sample]], tmp_path: Path) -> None:
    samples = made(tmp_path / "Bücher и 写真")
    assert [(sample.width, sample.height) for sample in samples] == list(SIZES.values())
    for sample in samples:
        image = open_image(sample)
        assert (image.mode, image.size) == ("RGB", (sample.width, sample.height))
        if sample.truth.boxes is not None:
            assert sample.truth.boxes.tolist() == [[sample.width - 1, sample.height - 1, sample.width, sample.height]]
        if sample.truth.points is not None:
            assert sample.truth.points.tolist() == [[sample.width - 0.5, sample.height - 0.5]]
    file = tmp_path / "ausgabe é" / "样本.jsonl"
    write_samples(samples, file)
    assert check_file(file).problems.problems == []
    assert [sample.image_path.resolve() for sample in read_samples(file)] == [sample.image_path.resolve() for sample in samples]


def test_an_empty_box_in_the_refer_layout_is_an_error_or_left_out_and_counted(tmp_path: Path) -> None:
    odd_images(tmp_path / "images")
    write_refer(tmp_path, [reference(0, 0, 0, "val", "ship"), reference(1, 1, 1, "val", "car")], [[5, 5, 0, 9], [5, 5, 9, 9]])
    with pytest.raises(BadData, match="expected a box with an area"):
        refcoco_samples(tmp_path)
    skipped = Skipped()
    assert [sample.query for sample in refcoco_samples(tmp_path, skipped=skipped).samples] == ["car"]
    assert dict(skipped.reasons) == {"zero_area": 1}


def test_an_image_of_coco_that_is_missing_or_listed_twice_is_named(tmp_path: Path) -> None:
    coco(tmp_path / "coco")
    samples = coco_samples(tmp_path / "coco").samples
    write_samples([*samples, samples[0]], tmp_path / "coco" / "s.jsonl")
    (tmp_path / "coco" / "images" / "one.png").unlink()
    problems = check_file(tmp_path / "coco" / "s.jsonl").problems.problems
    assert len(problems) == 2
    assert "one.png: found no such file" in problems[0]
    assert "is there twice, expected every id once" in problems[1]
