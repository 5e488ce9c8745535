"""Small data sets in the layouts that their publishers ship, side by side below one root as docs/data.md lays them out."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tests.test_coco import CATEGORIES, note
from tests.test_pixmo import PUBLISHED, Publisher, image_bytes
from tests.test_refcoco import refer


def publish_refcoco(root: Path) -> None:
    """RefCOCO, RefCOCO+ and RefCOCOg, three expressions of train each, and the images of COCO's train2014."""
    for name, by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        refer(root / name, by=by)
    (root / "refcoco" / "refs(google).p").write_bytes(b"not to be read")
    (root / "train2014").mkdir()
    for number in (7, 8):
        Image.new("RGB", (100, 80), "olive").save(root / "train2014" / f"COCO_train2014_{number:012}.jpg")


def publish_pages(root: Path, count: int = 7) -> None:
    """Images with a text beside each."""
    (root / "pages").mkdir(parents=True)
    for k in range(count):
        Image.new("L", (60, 40), 30 * k % 256).save(root / "pages" / f"{k}.png")
        (root / "pages" / f"{k}.txt").write_text(f"page {k}\n第{k}页", encoding="utf-8")


def publish_pixmo(root: Path, count: int = 12) -> Publisher:
    """PixMo-Count with its images in place; the publisher, for more rows before `write_pixmo`."""
    publisher = Publisher(root / "pixmo")
    for k in range(count):
        publisher.row(image_bytes((80, 60), (20 * k, 90, 200)), [(10 + i, 50) for i in range(k % 4)], ("birds", "cups")[k % 2])
    write_pixmo(publisher)
    return publisher


def write_pixmo(publisher: Publisher) -> None:
    pq.write_table(pa.Table.from_pylist(publisher.rows, schema=PUBLISHED), publisher.file)


def publish_coco(root: Path, count: int = 120) -> None:
    """COCO's train2017: an image, most with an object or two, of foxes, owls and elks."""
    (root / "coco" / "annotations").mkdir(parents=True)
    (root / "coco" / "train2017").mkdir()
    pictures = [{"id": k, "file_name": f"{k:012}.jpg", "width": 50, "height": 40} for k in range(count)]
    for picture in pictures:
        Image.new("RGB", (50, 40), (picture["id"], 0, 99)).save(root / "coco" / "train2017" / picture["file_name"])
    notes = [note(k, 1 + i, [5.5 * i, 3, 9, 20.25], id=9 * k + i) for k in range(count) for i in range(k % 3)]
    content = {"images": pictures, "annotations": notes, "categories": CATEGORIES}
    (root / "coco" / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def publish(root: Path) -> Publisher:
    """All four."""
    publish_refcoco(root)
    publish_pages(root)
    publish_coco(root)
    return publish_pixmo(root)
