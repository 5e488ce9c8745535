"""Referring expressions: every published layout gives the same samples, a pickle runs nothing, no convention is guessed, nothing is lost silently."""

import io
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perception_r1.data.check import check_file, check_samples
from perception_r1.data.mixture import load_data
from perception_r1.data.refcoco import read_plain_pickle, refcoco_samples
from perception_r1.data.references import RefOptions
from perception_r1.data.samples import Skipped, open_image, read_samples, write_samples
from perception_r1.data.written_boxes import BOXES, in_pixels
from perception_r1.dialects import frame_of
from perception_r1.records import BadData
from perception_r1.tasks import make_task

PIECE = "Please provide the bounding box coordinate of the region this sentence describes: "


# --- the refer layout, field by field as published -------------------------------------------------------------------
def sentence(number: int, text: str) -> dict[str, Any]:
    return {"tokens": text.split(), "raw": text.upper(), "sent_id": number, "sent": text}


def reference(number: int, ann: int, image: int, split: str, *texts: str) -> dict[str, Any]:
    sentences = [sentence(10 * number + k, text) for k, text in enumerate(texts)]
    name = f"COCO_train2014_{image:012}_{ann}.jpg"  # with the object's number: no image is called so
    ids = [entry["sent_id"] for entry in sentences]
    return {
        "sent_ids": ids, "file_name": name, "ann_id": ann, "ref_id": number, "image_id": image, "split": split, "sentences": sentences,
        "category_id": 1,
    }  # fmt: skip


REFERENCES = [
    reference(0, 501, 7, "train", "the lady with the blue shirt", "lady with back to us", "blue shirt"),
    reference(1, 502, 7, "val", "café sign"),
    reference(2, 503, 8, "testA", "left kid"),
    reference(3, 504, 8, "testB", "zebra on the right"),
]
BOXES_OF = {501: [10.5, 20.25, 30.0, 40.5], 502: [0, 0, 100, 80], 503: [1, 2, 3, 4], 504: [99.0, 79.0, 1.004, 1.003]}


def instances(size: tuple[int, int] = (100, 80)) -> dict[str, Any]:
    stated = {"license": 1, "coco_url": "", "date_captured": "2013-11-14 16:28:13", "flickr_url": "", "width": size[0], "height": size[1]}
    images = [stated | {"id": number, "file_name": f"COCO_train2014_{number:012}.jpg"} for number in (7, 8)]
    where = {reference["ann_id"]: reference["image_id"] for reference in REFERENCES}
    shape = {"segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], "iscrowd": 0, "category_id": 1}
    notes = [shape | {"id": ann, "image_id": where[ann], "bbox": box, "area": box[2] * box[3]} for ann, box in BOXES_OF.items()]
    categories = [{"supercategory": "person", "id": 1, "name": "person"}]
    return {"info": {}, "images": images, "licenses": [], "annotations": notes, "categories": categories, "type": "instances"}


def as_python_2(value: Any) -> bytes:
    """A pickle of protocol 0 as Python 2 wrote the published files: texts are byte strings."""

    def write(value: Any) -> bytes:
        if isinstance(value, dict):
            return b"(d" + b"".join(write(key) + write(item) + b"s" for key, item in value.items())
        if isinstance(value, list):
            return b"(l" + b"".join(write(item) + b"a" for item in value)
        return b"I%d\n" % value if isinstance(value, int) else b"S" + repr(value.encode())[1:].encode() + b"\n"

    return write(value) + b"."


WRITERS: dict[str, Callable[[Any], bytes]] = {"python 2": as_python_2} | {
    f"protocol {number}": lambda value, number=number: pickle.dumps(value, protocol=number) for number in (0, 2, 4, 5)
}


def refer(root: Path, references: Any = None, by: str = "unc", writer: Callable[[Any], bytes] = as_python_2, **changes: Any) -> Path:
    """A folder in the refer layout, with its two images of 100x80 pixels in images/."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number in (7, 8):
        Image.new("RGB", (100, 80)).save(root / "images" / f"COCO_train2014_{number:012}.jpg")
    (root / f"refs({by}).p").write_bytes(writer(REFERENCES if references is None else references))
    (root / "instances.json").write_text(json.dumps(instances() | changes))
    return root


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_every_sentence_becomes_a_sample_with_the_box_of_its_object(writer: Callable[[Any], bytes], tmp_path: Path) -> None:
    found = refcoco_samples(refer(tmp_path / "refcoco", writer=writer), RefOptions(split="all"))
    told = [(text["sent"], ref["ann_id"], ref["split"]) for ref in REFERENCES for text in ref["sentences"]]
    assert [(s.query, s.source) for s in found.samples] == [(text, f"refcoco/{split}") for text, _, split in told]
    for sample, (text, ann, _) in zip(found.samples, told, strict=True):
        x, y, width, height = BOXES_OF[ann]
        np.testing.assert_allclose(sample.truth.needed_boxes(), [[x, y, min(x + width, 100), min(y + height, 80)]])
        assert sample.truth.labels == (text,)
        assert sample.task == "grounding"
        assert open_image(sample).size == (sample.width, sample.height) == (100, 80)
    assert dict(found.report) == {"expressions": 6, "no_target": 0, "clipped": 1, "images": 2, "missing_images": 0}
    assert check_samples(found.samples).problems.problems == []


def test_a_split_is_kept_apart_and_must_be_named(tmp_path: Path) -> None:
    root = refer(tmp_path / "refcoco+")
    with pytest.raises(BadData, match="found the splits train, val: name one with --split"):
        refcoco_samples(root)
    by_split = {split: {s.id for s in refcoco_samples(root, RefOptions(split=split)).samples} for split in ("train", "val", "testA", "testB")}
    assert {split: len(ids) for split, ids in by_split.items()} == {"train": 3, "val": 1, "testA": 1, "testB": 1}
    assert set.union(*by_split.values()) == {s.id for s in refcoco_samples(root, RefOptions(split="all")).samples}
    with pytest.raises(BadData, match=r"no sample of split 'test'; splits that are there: train \(1\), val \(1\), testA"):
        refcoco_samples(root, RefOptions(split="test"))
    assert len(refcoco_samples(refer(tmp_path / "one", REFERENCES[:1])).samples) == 3


def test_whose_split_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    root = refer(refer(tmp_path, by="google"), REFERENCES[:1], by="unc")
    for by in ((), ("google", "unc"), ("umd",)):
        with pytest.raises(BadData, match="found the splits of google, unc, expected one of them to be named: --by google"):
            refcoco_samples(root, RefOptions(by=by))
    assert len(refcoco_samples(root, RefOptions(by=("umd", "unc"))).samples) == 3


@pytest.mark.parametrize("place", ["images", "train2014", "images/train2014", "../images/mscoco/images/train2014", "../train2014"])
def test_images_are_found_where_they_are_usually_put(place: str, tmp_path: Path) -> None:
    root = refer(tmp_path / "data" / "refcoco")
    moved = root / place
    moved.parent.mkdir(parents=True, exist_ok=True)
    (root / "images").rename(root / "old")
    moved.parent.mkdir(parents=True, exist_ok=True)
    (root / "old").rename(moved)
    assert {s.image_path.resolve().parent for s in refcoco_samples(root, RefOptions(split="all")).samples} == {moved.resolve()}


def test_the_same_picture_under_its_name_of_2017_is_found(tmp_path: Path) -> None:
    root = refer(tmp_path / "refcoco")
    (tmp_path / "train2017").mkdir()
    for path in (root / "images").iterdir():
        path.rename(tmp_path / "train2017" / path.name.removeprefix("COCO_train2014_"))
    found = refcoco_samples(root, RefOptions(split="all", images=(tmp_path / "train2017",))).samples
    assert {s.image for s in found} == {"000000000007.jpg", "000000000008.jpg"}


def test_a_missing_image_is_an_error_with_its_number_or_left_out_and_counted(tmp_path: Path) -> None:
    root = refer(tmp_path)
    (root / "images" / "COCO_train2014_000000000007.jpg").unlink()
    with pytest.raises(BadData, match=r"4 of 6 expressions have no image: 1 images were not found in .*COCO_train2014_000000000007\.jpg.*--images"):
        refcoco_samples(root, RefOptions(split="all"))
    skipped = Skipped()
    found = refcoco_samples(root, RefOptions(split="all"), skipped=skipped)
    assert [s.query for s in found.samples] == ["left kid", "zebra on the right"]
    assert dict(skipped.reasons) == {"missing_image": 4}
    assert found.report["expressions"] == 6
    assert found.report["missing_images"] == 1
    with pytest.raises(BadData, match="left out: missing_image 3"):
        refcoco_samples(root, RefOptions(split="train"), skipped=Skipped())
    with pytest.raises(BadData, match="found no such folder, expected the folder of the images"):
        refcoco_samples(root, RefOptions(images=(root / "none",)))


# --- hostile and broken pickles --------------------------------------------------------------------------------------
class Reduced:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(protocol: int, tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", tmp_path / "refs(unc).p"
    data = pickle.dumps([Reduced(os.mkdir, str(marker))], protocol=protocol)
    file.write_bytes(data)
    with pytest.raises(BadData, match="expected lists, dicts, texts and numbers alone"):
        read_plain_pickle(file)
    assert not marker.exists()
    pickle.loads(data)  # the oracle: elsewhere it does run
    assert marker.exists()


HOSTILE = {
    "INST": b"(S'ran'\niposix\nmkdir\n.",
    "OBJ": b"(cposix\nmkdir\nS'ran'\no.",
    "eval": b"cbuiltins\neval\n(S'1'\ntR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93\x8c\x03ran\x85R.",
    "extension registry": b"\x80\x02\x82\x01.",
    "persistent id": b"P1\n.",
    "a class alone": pickle.dumps(OrderedDict),
    "an ordered dict": pickle.dumps(OrderedDict(a=1)),
    "an array": pickle.dumps(np.zeros(3)),
    "a set of protocol 2": pickle.dumps({1}, protocol=2),
}
BROKEN_PICKLES = {
    "nothing": b"",
    "words": b"refs",
    "half": as_python_2(REFERENCES)[:200],
    "calls a number": b"I1\n(tR.",
    "state of a list": b"](K\x01b.",
    "memo of nothing": b"g7\n.",
    "no UTF-8": b"S'\\xff'\n.",
    "a dict": as_python_2({"a": 1}),
    "a number": b"I1\n.",
    "an endless list": b"]q\x00h\x00a.",
    "deep": b"]" * 50_000 + b"a" * 49_999 + b".",
}


@pytest.mark.parametrize("data", (HOSTILE | BROKEN_PICKLES).values(), ids=HOSTILE | BROKEN_PICKLES)
def test_a_hostile_or_broken_pickle_is_one_line(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = refer(tmp_path / "refcoco", writer=lambda _: data)
    with pytest.raises(BadData, match=r"refs\(unc\)\.p.*expected") as caught:
        refcoco_samples(root)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "ran").exists()


def broken(**changes: Any) -> list[dict[str, Any]]:
    return [REFERENCES[0] | changes]


BROKEN_REFERENCES: dict[str, tuple[Any, str]] = {
    "no such object": (broken(ann_id=9), "(ref_id 0): found ann_id 9 of image 7, expected the id of an annotation"),
    "several objects": (broken(ann_id=[501, 502]), "found ann_id [501, 502] of image 7"),
    "another image": (broken(image_id=8), "its object lies in image 7"),
    "no sentences": ([{k: v for k, v in REFERENCES[0].items() if k != "sentences"}], "found sentences nothing of image 7, expected a list"),
    "no split": (broken(split=None), "found split nothing of image 7"),
    "split is a list": (broken(split=["val"]), "found split ['val'] of image 7"),
    "a number": ([7], "reference 1: found 7, expected a JSON object"),
    "sentence without text": (broken(sentences=[{"sent_id": 1}]), "sentence 1: found sent nothing"),
    "a blank sentence": (broken(sentences=[sentence(1, " ")]), "field query: found ' '"),
    "a sentence that is a number": (broken(sentences=[{"sent_id": 1, "sent": 5}]), "field query: found 5"),
    "the same sentence id": (broken(sentences=[sentence(1, "a"), sentence(1, "b")]), "is there twice"),
    "nothing": ([], "found no sample"),
}


@pytest.mark.parametrize("references, words", BROKEN_REFERENCES.values(), ids=BROKEN_REFERENCES)
def test_a_broken_reference_is_named(references: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="expected") as caught:
        refcoco_samples(refer(tmp_path, references, writer=WRITERS["protocol 2"]))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_instances_are_named(tmp_path: Path) -> None:
    whole = instances()
    for part, entry, words in (("images", {"id": 1}, "file_name"), ("annotations", {"id": 1}, "image_id"), ("annotations", 7, "found 7")):
        with pytest.raises(BadData, match=rf"instances\.json: .*{words}.*expected"):
            refcoco_samples(refer(tmp_path, **{part: [*whole[part], entry]}))
    for part in ("images", "annotations"):
        with pytest.raises(BadData, match="twice"):
            refcoco_samples(refer(tmp_path, **{part: [*whole[part], whole[part][0]]}))
    (tmp_path / "instances.json").unlink()
    with pytest.raises(BadData, match=r"instances\.json: found no such file"):
        refcoco_samples(tmp_path)


def test_the_refer_layout_takes_no_declaration_of_rows(tmp_path: Path) -> None:
    for options in (RefOptions(boxes="xyxy"), RefOptions(form="pr1"), RefOptions(template="{}"), RefOptions(columns={"text": "raw"})):
        with pytest.raises(BadData, match="found the refer layout, which says itself how it is written"):
            refcoco_samples(refer(tmp_path), options)


# --- rows ------------------------------------------------------------------------------------------------------------
def rows_file(folder: Path, *rows: Any, name: str = "refcoco_val.json") -> Path:
    """A file of rows, beside an image a.jpg of 200x100 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (200, 100)).save(folder / "a.jpg")
    path = folder / name
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def conversation(**changes: Any) -> dict[str, Any]:
    row = {"dataset": "refcoco", "text_type": "caption", "height": 100, "width": 200, "normal_caption": "red car", "image": "a.jpg"}
    row |= {"problem": f"{PIECE}red car.", "solution": [20.5, 30, 80.25, 90], "normalized_solution": [102, 300, 401, 900]}
    return row | changes


WRITTEN = {"xywh": [20, 30, 60, 50], "xyxy": [20, 30, 80, 80], "xyxy1000": [100, 300, 400, 800], "xyxy1": [0.1, 0.3, 0.4, 0.8]}


@pytest.mark.parametrize("boxes", BOXES)
def test_a_declared_box_is_the_same_box_however_it_is_written(boxes: str, tmp_path: Path) -> None:
    for value in (WRITTEN[boxes], json.dumps(WRITTEN[boxes]), tuple(WRITTEN[boxes])):
        file = rows_file(tmp_path, {"image": "a.jpg", "sent": "red car", "bbox": value, "width": 200, "height": 100}, name="v.jsonl")
        (sample,) = refcoco_samples(file, RefOptions(boxes=boxes)).samples
        np.testing.assert_allclose(sample.truth.needed_boxes(), [[20, 30, 80, 80]])
        assert (sample.query, sample.source, sample.id) == ("red car", "v", "v-1")


def test_a_way_of_writing_boxes_is_never_guessed(tmp_path: Path) -> None:
    file = rows_file(tmp_path, {"image": "a.jpg", "sent": "red car", "bbox": [20, 30, 80, 80]})
    with pytest.raises(BadData, match="nobody says how the boxes are written, and it is not guessed: name it with --boxes"):
        refcoco_samples(file)
    with pytest.raises(BadData, match="nobody says how the boxes are written"):
        refcoco_samples(rows_file(tmp_path, conversation()), RefOptions(form="pr1"))


@pytest.mark.parametrize("truly, said", [("xyxy", "xywh"), ("xywh", "xyxy"), ("xyxy1000", "xyxy"), ("xyxy", "xyxy1")])
def test_a_wrong_declaration_shows(truly: str, said: str, tmp_path: Path) -> None:
    corner = {"xyxy": [120, 30, 190, 90], "xywh": [120, 30, 70, 60], "xyxy1000": [600, 300, 950, 900]}[truly]
    file = rows_file(tmp_path, {"image": "a.jpg", "sent": "red car", "bbox": corner})
    with pytest.raises(BadData, match="are the boxes written otherwise"):
        refcoco_samples(file, RefOptions(boxes=said))


@given(st.floats(0, 190), st.floats(0, 90), st.floats(1, 10), st.floats(1, 10))
def test_every_way_of_writing_a_box_says_the_same(x: float, y: float, width: float, height: float) -> None:
    written = {
        "xywh": [x, y, width, height],
        "xyxy": [x, y, x + width, y + height],
        "xyxy1000": [x * 5, y * 10, (x + width) * 5, (y + height) * 10],
        "xyxy1": [x / 200, y / 100, (x + width) / 200, (y + height) / 100],
    }
    for boxes, values in written.items():
        np.testing.assert_allclose(in_pixels(values, boxes, 200, 100), [x, y, x + width, y + height], atol=1e-9)


def test_the_conversation_form_gives_the_phrase_and_pixels(tmp_path: Path) -> None:
    (sample,) = refcoco_samples(rows_file(tmp_path, conversation()), RefOptions(form="vlm-r1")).samples
    assert sample.query == "red car"
    assert sample.truth.needed_boxes().tolist() == [[20.5, 30, 80.25, 90]]
    short = {name: conversation()[name] for name in ("image", "problem", "solution", "normalized_solution")}
    assert refcoco_samples(rows_file(tmp_path, short), RefOptions(form="vlm-r1")).samples[0].query == "red car"


def test_the_form_of_pr1_is_read_in_pixels_and_in_thousandths(tmp_path: Path) -> None:
    evaluated = rows_file(tmp_path / "e", conversation(problem="red car"))
    (sample,) = refcoco_samples(evaluated, RefOptions(form="pr1", boxes="xyxy")).samples
    assert (sample.query, sample.truth.needed_boxes().tolist()) == ("red car", [[20.5, 30, 80.25, 90]])
    trained = rows_file(tmp_path / "t", {"image": "a.jpg", "problem": "red car", "solution": "[102, 300, 401, 900]"})
    (sample,) = refcoco_samples(trained, RefOptions(form="pr1", boxes="xyxy1000")).samples
    np.testing.assert_allclose(sample.truth.needed_boxes(), [[20.4, 30, 80.2, 90]])
    with pytest.raises(BadData, match="expected the same box"):
        refcoco_samples(evaluated, RefOptions(form="pr1", boxes="xywh"))


def test_no_text_of_a_row_is_evaluated(tmp_path: Path) -> None:
    for text in (f"__import__('os').mkdir({str(tmp_path / 'ran')!r})", "(1, 2, 30, 40)", "[1, 2, 30, 40", "[" * 100_000, '{"a": 1}', "[]", "7"):
        file = rows_file(tmp_path, {"image": "a.jpg", "problem": "red car", "solution": text})
        with pytest.raises(BadData, match="found the box .*expected four"):
            refcoco_samples(file, RefOptions(form="pr1", boxes="xyxy"))
    assert not (tmp_path / "ran").exists()


def test_nothing_matches_is_said_by_the_row_or_declared(tmp_path: Path) -> None:
    none: dict[str, Any] = {"solution": None, "normalized_solution": None}
    said = conversation(**none, categories={"empty_case": True, "hops": "2", "type": ["verb"], "occluded": False, "distractors": "3"})
    found = refcoco_samples(rows_file(tmp_path, said), RefOptions(form="vlm-r1"))
    assert found.report["no_target"] == 1
    (sample,) = found.samples
    assert len(sample.truth) == 0
    task = make_task("grounding")
    frame = frame_of(sample.width, sample.height, task.dialect)
    assert task.score(task.write(sample, frame), sample, frame).total == task.bounds()[1]
    unsaid = rows_file(tmp_path, conversation(**none))
    with pytest.raises(BadData, match="found no box, expected one; if it means that nothing matches, say so with --null-is-empty"):
        refcoco_samples(unsaid, RefOptions(form="vlm-r1"))
    assert len(refcoco_samples(unsaid, RefOptions(form="vlm-r1", null_is_empty=True)).samples[0].truth) == 0
    both = rows_file(tmp_path, conversation(categories={"empty_case": True}))
    with pytest.raises(BadData, match="found a box and empty_case true"):
        refcoco_samples(both, RefOptions(form="vlm-r1"))


def test_the_sentence_around_a_phrase_is_declared(tmp_path: Path) -> None:
    file = rows_file(tmp_path, {"image": "a.jpg", "sent": "Find the red car, please.", "bbox": [1, 2, 30, 40]})
    assert refcoco_samples(file, RefOptions(boxes="xyxy", template="Find the {}, please.")).samples[0].query == "red car"
    with pytest.raises(BadData, match="expected 'Seek {}': name the sentence with --template"):
        refcoco_samples(file, RefOptions(boxes="xyxy", template="Seek {}"))
    whole = rows_file(tmp_path, {"image": "a.jpg", "sent": "Output the bounding box of the car in the image.", "bbox": [1, 2, 30, 40]})
    with pytest.raises(BadData, match="expected the phrase alone"):
        refcoco_samples(whole, RefOptions(boxes="xyxy"))
    assert refcoco_samples(whole, RefOptions(boxes="xyxy", template="{}")).samples[0].query.startswith("Output")
    with pytest.raises(BadData, match="expected one {} in it"):
        RefOptions(template="Find it.")


def jpeg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 100), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def test_hub_shards_with_images_inside_and_several_answers(tmp_path: Path) -> None:
    """The columns of lmms-lab/RefCOCO: boxes xywh, the phrases are the answers."""

    def row(number: int, colour: str, *answers: str) -> dict[str, Any]:
        return {
            "question_id": str(number), "image": {"bytes": jpeg(colour), "path": "x.jpg"}, "question": "Please carefully observe the area",
            "answer": list(answers), "segmentation": [1.0, 2.0], "bbox": [20.0, 30.0, 60.0, 50.0], "iscrowd": 0, "file_name": "1.jpg",
        }  # fmt: skip

    root = tmp_path / "RefCOCO"
    rows_file(root, row(1, "red", "red car", "left car"), row(2, "red", "the car"), name="data/val-00000-of-00002.parquet")
    rows_file(root, row(3, "blue", "blue car"), name="data/val-00001-of-00002.parquet")
    rows_file(root, row(4, "green", "green car"), name="data/testA-00000-of-00001.parquet")
    options: dict[str, Any] = {"boxes": "xywh", "columns": {"text": "answer", "id": "question_id"}, "extract": tmp_path / "out_images"}
    with pytest.raises(BadData, match="found the splits testA, val"):
        refcoco_samples(root, RefOptions(**options))
    found = refcoco_samples(root, RefOptions(split="val", **options))
    assert [(s.id, s.query) for s in found.samples] == [
        ("RefCOCO-1-1", "red car"), ("RefCOCO-1-2", "left car"), ("RefCOCO-2-1", "the car"), ("RefCOCO-3-1", "blue car")
    ]  # fmt: skip
    assert {s.source for s in found.samples} == {"RefCOCO/val"}
    assert found.report["images"] == 2  # the same bytes are one file
    assert [s.image_path.read_bytes() for s in found.samples] == [jpeg("red")] * 3 + [jpeg("blue")]
    assert {tuple(s.truth.needed_boxes()[0]) for s in found.samples} == {(20, 30, 80, 80)}
    write_samples(found.samples, tmp_path / "out.jsonl")
    assert check_file(tmp_path / "out.jsonl").good
    with pytest.raises(BadData, match="found an image inside the row, expected a folder"):
        refcoco_samples(root, RefOptions(split="val", **(options | {"extract": None})))


def test_hub_rows_with_a_column_of_splits_and_published_sentences(tmp_path: Path) -> None:
    """The columns of jxu124/refcoco: boxes xyxy, sentences as in the refer layout, the split in a column."""
    (tmp_path / "train2014").mkdir()
    Image.new("RGB", (100, 80)).save(tmp_path / "train2014" / "COCO_train2014_000000000007.jpg")
    rows = [
        {
            **{k: v for k, v in ref.items() if k != "image_id"},
            "image_path": "coco/train2014/COCO_train2014_000000000007.jpg",
            "bbox": [1.0, 2, 30, 40],
        }
        for ref in REFERENCES
    ]
    file = rows_file(tmp_path / "refcoco", *rows, name="test-00000-of-00001.parquet").parent
    columns = {"image": "image_path", "text": "sentences", "id": "ref_id"}
    options: dict[str, Any] = {"boxes": "xyxy", "columns": columns, "images": (tmp_path / "train2014",)}
    assert [s.query for s in refcoco_samples(file, RefOptions(split="train", **options)).samples] == [
        "the lady with the blue shirt", "lady with back to us", "blue shirt"
    ]  # fmt: skip
    assert [s.source for s in refcoco_samples(file, RefOptions(split="testA", **options)).samples] == ["refcoco/testA"]
    with pytest.raises(BadData, match=r"no sample of split 'test'; splits that are there: train \(1\), val"):
        refcoco_samples(file, RefOptions(split="test", **options))


BAD_ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no area": ({"bbox": [20, 30, 20, 80]}, "zero_area", "expected a box with an area"),
    "all zeros": ({"bbox": [0, 0, 0, 0]}, "zero_area", "expected a box with an area"),
    "inverted": ({"bbox": [80, 30, 20, 80]}, "bad_row", "the right way round"),
    "outside": ({"bbox": [20, 30, 203, 80]}, "bad_row", "expected a box inside it"),
    "NaN": ({"bbox": [float("nan"), 30, 80, 80]}, "bad_row", "expected four finite numbers"),
    "infinite": ({"bbox": [0, 30, float("inf"), 80]}, "bad_row", "expected four finite numbers"),
    "three numbers": ({"bbox": [20, 30, 80]}, "bad_row", "expected four numbers"),
    "words": ({"bbox": ["a", "b", "c", "d"]}, "bad_row", "expected four numbers"),
    "nested": ({"bbox": [[20, 30, 80, 80]]}, "bad_row", "expected four numbers"),
    "no phrase": ({"sent": " "}, "bad_row", "expected the phrase"),
    "a phrase that is a number": ({"sent": 7}, "bad_row", "expected a text, a list of texts"),
    "half a character": ({"sent": "\ud83d"}, "bad_row", "field query"),
    "no image named": ({"image": ""}, "bad_row", "expected a path, or its bytes"),
    "a missing image": ({"image": "none.jpg"}, "missing_image", "1 of 3 expressions have no image"),
    "an image that is none": ({"image": "broken.jpg"}, "unreadable", "found no readable image"),
    "another size": ({"width": 100, "height": 200}, "bad_row", "found 100x200, expected the 200x100 pixels of"),
    "no text": ({"sent": None}, "bad_row", "expected a text"),
}


@pytest.mark.parametrize("changes, reason, words", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_or_left_out_and_counted(changes: dict[str, Any], reason: str, words: str, tmp_path: Path) -> None:
    good = {"image": "a.jpg", "sent": "red car", "bbox": [20, 30, 80, 80], "width": 200, "height": 100}
    file = rows_file(tmp_path, good, good | changes, good, name="rows.jsonl")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(BadData, match=r"rows\.jsonl(:2)?: .*expected") as caught:
        refcoco_samples(file, RefOptions(boxes="xyxy"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    skipped = Skipped()
    assert [s.id for s in refcoco_samples(file, RefOptions(boxes="xyxy"), skipped=skipped).samples] == ["rows-1", "rows-3"]
    assert dict(skipped.reasons) == {reason: 1}


def test_a_file_that_holds_no_rows_is_named(tmp_path: Path) -> None:
    cases = [
        ("v.json", "{}", "expected a list of rows"),
        ("v.json", "{", "found no JSON"),
        ("v.jsonl", "[1]\n", "expected an object"),
        ("v.jsonl", "{\n", "UTF-8"),
    ]
    for name, text, words in [
        *cases,
        ("v.jsonl", "", "found no sample"),
        ("v.json", "[]", "found no sample"),
        ("v.json", "[7]", "expected an object"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(BadData, match=words):
            refcoco_samples(tmp_path / name, RefOptions(boxes="xyxy"))
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "empty", r"found neither refs\(\*\)\.p nor"),
        (tmp_path / "none.json", "no such file"),
        (tmp_path / "none", "no such file"),
    ):
        with pytest.raises(BadData, match=words):
            refcoco_samples(path, RefOptions(boxes="xyxy"))
    file = rows_file(tmp_path, {"image": "a.jpg", "caption": "car", "bbox": [1, 2, 3, 4]})
    with pytest.raises(BadData, match="found the columns image, caption, bbox, expected 'sent': name the columns with --columns"):
        refcoco_samples(file, RefOptions(boxes="xyxy"))


def test_a_duplicate_id_is_an_error_and_several_phrases_of_a_row_are_none(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "sent": ["red car", "car"], "bbox": [20, 30, 80, 80], "id": "x"}
    options = RefOptions(boxes="xyxy", columns={"id": "id"})
    assert [s.id for s in refcoco_samples(rows_file(tmp_path, row, name="v.json"), options).samples] == ["v-x-1", "v-x-2"]
    with pytest.raises(BadData, match="sample 'v-x-1' is there twice"):
        refcoco_samples(rows_file(tmp_path, row, row, name="v.json"), options)


def test_odd_images_are_read_as_they_are_stored_and_pass_the_check(tmp_path: Path) -> None:
    folder = tmp_path / "Bücher и 写真 🖼"
    folder.mkdir()
    Image.new("CMYK", (60, 40)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((40, 60), 40_000, np.uint16)).save(folder / "grey16.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, so 40x60 on screen
    Image.new("RGB", (60, 40)).save(folder / "turned.jpg", exif=exif)
    Image.new("L", (20_000, 1_000)).save(folder / "panorama é.png")
    sizes = {"cmyk.jpg": (60, 40), "grey16.png": (60, 40), "turned.jpg": (60, 40), "panorama é.png": (20_000, 1_000)}
    rows = [{"image": name, "sent": f"der {name} 左", "bbox": box} for name, (w, h) in sizes.items() for box in ([w - 1, h - 1, w, h], [0, 0, w, h])]
    file = rows_file(folder, *rows, name="zeilen é.jsonl")
    found = refcoco_samples(file, RefOptions(boxes="xyxy"))
    assert [(s.width, s.height) for s in found.samples[::2]] == list(sizes.values())
    assert found.samples[0].truth.needed_boxes().tolist() == [[59, 39, 60, 40]]  # one pixel
    write_samples(found.samples, tmp_path / "out" / "s.jsonl")
    assert check_file(tmp_path / "out" / "s.jsonl").problems.problems == []
    assert [s.image_path.resolve() for s in read_samples(tmp_path / "out" / "s.jsonl")] == [s.image_path.resolve() for s in found.samples]
    as_shown = rows_file(folder, {"image": "turned.jpg", "sent": "a", "bbox": [1, 2, 30, 39], "width": 40, "height": 60}, name="t.jsonl")
    with pytest.raises(BadData, match="found 40x60, expected the 60x40 pixels of .*as stored, before any EXIF rotation"):
        refcoco_samples(as_shown, RefOptions(boxes="xyxy"))


def test_options_name_what_they_know() -> None:
    for changes, words in (({"form": "llava"}, "form 'llava' is not known: expected one of rows, vlm-r1, pr1"), ({"boxes": "yxyx"}, "boxes 'yxyx'")):
        with pytest.raises(BadData, match=words):
            RefOptions(**changes)
    with pytest.raises(BadData, match="column 'boxes' is not known: expected one of image, text, box, id, split, thousandths"):
        RefOptions(columns={"boxes": "xyxy"})


def test_the_shorthand_reads_the_same_samples(tmp_path: Path) -> None:
    root = refer(tmp_path / "refcoco")
    assert [s.query for s in load_data(f"refcoco:{root}?split=val&by=unc")] == ["café sign"]
    file = rows_file(tmp_path, {"image": "a.jpg", "said": "red car", "bbox": [20, 30, 60, 50]}, name="v.jsonl")
    (sample,) = load_data(f"refcoco:{file}?boxes=xywh&text=said")
    assert sample.truth.needed_boxes().tolist() == [[20, 30, 80, 80]]


# --- real input ------------------------------------------------------------------------------------------------------
REFCOCOS = {"image": "file_name", "text": "expression", "box": "bbox_xyxy"}
MINI = {"image": "file_name", "text": "expression", "box": "bbox_xywh"}


def test_fifty_real_expressions_of_refcocos(data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = data_folder("refcocos_val2017")
    images = (data_folder("coco_val206") / "images", folder / "images")
    found = refcoco_samples(folder / "refcocos_subset.json", RefOptions(boxes="xyxy", columns=REFCOCOS, images=images))
    assert dict(found.report) == {"expressions": 50, "no_target": 6, "clipped": 0, "images": 46, "missing_images": 0}
    published = json.loads((folder / "refcocos_subset.json").read_text())
    for sample, row in zip(found.samples, published, strict=True):
        assert sample.query == row["expression"]
        assert sample.truth.needed_boxes().tolist() == ([row["bbox_xyxy"]] if row["bbox_xyxy"] else [])
    write_samples(found.samples, tmp_path / "refcocos.jsonl")
    report = check_file(tmp_path / "refcocos.jsonl")
    assert report.problems.problems == []
    assert report.samples == {"grounding": 50}
    assert report.objects == {"grounding": 44}


def test_the_same_fifty_in_the_published_form_of_refcocos(data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Rebuilt field by field in the form of refcocos_test.json, with boxes in pixels and in rounded thousandths."""
    folder, shared = data_folder("refcocos_val2017"), data_folder("coco_val206").parent
    rows = []
    for row in json.loads((folder / "refcocos_subset.json").read_text()):
        box, size = row["bbox_xyxy"], (row["width"], row["height"]) * 2
        rows.append(
            {
                "dataset": "refcocos_test", "text_type": "caption", "height": row["height"], "width": row["width"],
                "normal_caption": row["expression"], "image": f"{row['image_root']}/{row['file_name']}", "problem": f"{PIECE}{row['expression']}.",
                "solution": box, "normalized_solution": box and [round(1000 * value / side) for value, side in zip(box, size, strict=True)],
                "categories": row["categories"],
            }
        )  # fmt: skip
    (tmp_path / "refcocos_test.json").write_text(json.dumps(rows))
    found = refcoco_samples(tmp_path / "refcocos_test.json", RefOptions(form="vlm-r1", images=(shared,)))
    assert (len(found.samples), found.report["no_target"]) == (50, 6)
    assert check_samples(found.samples).problems.problems == []
    rows[0]["normalized_solution"][0] += 3
    (tmp_path / "refcocos_test.json").write_text(json.dumps(rows))
    with pytest.raises(BadData, match="entry 1: .*expected the same box"):
        refcoco_samples(tmp_path / "refcocos_test.json", RefOptions(form="vlm-r1", images=(shared,)))


def test_eighteen_real_expressions_of_refcoco_agree_with_coco(data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = data_folder("refcoco_mini")
    found = refcoco_samples(folder / "refcoco_mini.json", RefOptions(boxes="xywh", columns=MINI))
    assert (len(found.samples), found.report["images"]) == (18, 8)
    for sample, row in zip(found.samples, json.loads((folder / "refcoco_mini.json").read_text()), strict=True):
        x, y, width, height = row["ann_bbox_xywh"]  # COCO's own annotation of that object
        np.testing.assert_allclose(sample.truth.needed_boxes(), [[x, y, x + width, y + height]], atol=0.03)
        assert (sample.width, sample.height) == (row["width"], row["height"])
    write_samples(found.samples, tmp_path / "refcoco.parquet")
    assert check_file(tmp_path / "refcoco.parquet").good
    with pytest.raises(BadData, match="are the boxes written otherwise"):
        refcoco_samples(folder / "refcoco_mini.json", RefOptions(boxes="xyxy", columns=MINI))


def test_what_lacks_an_image_is_counted_among_11460_real_expressions(data_folder: Callable[[str], Path]) -> None:
    file = data_folder("refcoco_mini") / "refcoco_expressions_11460.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    there = {path.name for path in (file.parent / "images").iterdir()}
    lacking = [row for row in rows if row["file_name"].removeprefix("COCO_train2014_") not in there]
    assert (len(rows), len(lacking)) == (11_460, 11_442)
    with pytest.raises(BadData, match=r"11,442 of 11,460 expressions have no image: 4,873 images were not found in .*--skip-bad"):
        refcoco_samples(file, RefOptions(boxes="xywh", columns=MINI))
    skipped = Skipped()
    found = refcoco_samples(file, RefOptions(boxes="xywh", columns=MINI), skipped=skipped)
    assert dict(skipped.reasons) == {"missing_image": len(lacking)}
    assert found.report["missing_images"] == len({row["file_name"] for row in lacking}) == 4_873
    assert len(found.samples) == 18
    assert check_samples(found.samples).good
