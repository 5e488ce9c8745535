"""A folder in which the commands of the documents find what they name: data in its published layouts, models, servers' names."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tests.published import publish, publish_coco
from tests.test_pages import CHINESE, ENGLISH, pdf, picture, text_page, written
from tests.test_pages import conversation as page_conversation
from tests.test_pixmo import PUBLISHED, Publisher, image_bytes
from tests.test_refcoco import REFERENCES, jpeg, rows_file
from tests.test_refcoco import conversation as expression

from perception_r1.data.samples import write_samples
from perception_r1.data.scenes import scene_samples

MODELS = ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-4B-Instruct")
"""Every real model that a document names."""
TRAINED = ("runs/quickstart", "runs/counting")
"""Trained policies that a document takes for granted, where it does not make them."""


def lay_out(place: Path, policy: Path, data: Path, *, trained: tuple[str, ...] = TRAINED) -> None:
    """Fills `place`: every model is the small random `policy`; `data` is the folder of real test data."""
    for name in MODELS:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(policy)
    for name in trained:
        shutil.copytree(policy, place / name)  # evaluations go into it
    publish(place / "data")
    _coco(place)
    _pixmo(place / "pixmo")
    _hub(place)
    _pages(place)
    _samples(place / "data")
    (place.parent / "shared").mkdir(exist_ok=True)
    shared = place.parent / "shared" / "data"
    if data.is_dir() and not shared.exists():
        shared.symlink_to(data)


def _coco(place: Path) -> None:
    publish_coco(place)
    instances = place / "coco" / "annotations" / "instances_train2017.json"
    (instances.parent / "instances_val2017.json").write_text(instances.read_text())
    (place / "coco" / "val2017").symlink_to("train2017")
    Image.new("RGB", (200, 100)).save(place / "coco" / "a.jpg")


def _pixmo(root: Path) -> None:
    publisher = Publisher(root)
    for k in range(8):
        content = image_bytes((80, 60), (20 * k, 90, 200))
        publisher.row(content, [(10 + i, 50) for i in range(1 + k % 4)], "birds")
    (root / "data").mkdir()
    _shard(root / "data" / "train-00000-of-00001.parquet", publisher.rows)
    counted = [row | {"points": None} for row in publisher.rows]
    for split in ("validation", "test"):
        _shard(root / "data" / f"{split}-00000-of-00001.parquet", counted)


def _shard(path: Path, rows: list[dict]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=PUBLISHED), path)


def _hub(place: Path) -> None:
    """RefCOCO as two hubs have it, as rows of VLM-R1, of RefCOCOS and of Qwen-VL."""
    inside = {"bytes": jpeg("red"), "path": "x.jpg"}
    row = {"question_id": "1", "image": inside, "answer": ["red car"], "bbox": [20.0, 30, 60, 50]}
    rows_file(place / "RefCOCO", *[row] * 1, name="data/val-00000-of-00004.parquet")
    sentences = [
        {
            **{key: value for key, value in one.items() if key != "image_id"},
            "bbox": [1.0, 2, 30, 40],
        }
        | {"image_path": "coco/train2014/COCO_train2014_000000000007.jpg"}
        for one in REFERENCES
    ]
    rows_file(place / "refcoco_hub", *sentences, name="test-00000-of-00001.parquet")
    rows_file(place / "rec_jsons_processed", expression(), name="refcoco_val.json")
    nothing = {"solution": None, "normalized_solution": None, "categories": {"empty_case": True}}
    rows = [expression(), expression(image="b.jpg", **nothing)]
    Image.new("RGB", (200, 100)).save(place / "coco" / "b.jpg")
    rows_file(place, *rows, name="refcocos_test.json")
    sent = {"image": "a.jpg", "sent": "red car", "bbox": [20, 30, 80, 80]}
    rows_file(place / "qwen_vl", sent, name="refcoco_testA.jsonl")


def _pages(place: Path) -> None:
    fox = place / "fox" / "focus_benchmark_test"
    for name, text in (("en", ENGLISH), ("cn", CHINESE)):
        picture(fox / f"{name}_pdf_png" / f"{name}_1.png")
        entries = [page_conversation(f"{name}_1.png", text)]
        (fox / f"{name}_page_ocr.json").write_text(json.dumps(entries), encoding="utf-8")
    for k in range(3):
        picture(place / "scans" / f"{k}.png")
        (place / "scans" / f"{k}.gt.txt").write_text(f"page {k}", encoding="utf-8")
    contents = (text_page(ENGLISH), text_page("Another page."), text_page("A third one."))
    written(place / "papers" / "a.pdf", pdf(*contents))


def _samples(folder: Path) -> None:
    """Sample files that a document takes as made."""
    made = {
        "train": "counting",
        "val": "counting",
        "detection": "detection",
        "grounding": "grounding",
    }
    for name, task in made.items():
        samples = scene_samples(task, folder=folder / "scenes", n=8, seed=3)
        write_samples(samples[:8], folder / f"{name}.jsonl")
