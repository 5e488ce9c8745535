"""PixMo-Count: every row of the published layout becomes its sample or is counted with its reason; points are the truth."""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perception_r1.data.check import check_file
from perception_r1.data.coco import coco_samples
from perception_r1.data.downloads import Link, download_images
from perception_r1.data.pixmo import REASONS, Pixmo, pixmo_links, pixmo_samples
from perception_r1.data.samples import open_image, read_samples, write_samples
from perception_r1.dialects import DIALECTS, frame_of
from perception_r1.policy import tiny
from perception_r1.records import BadData
from perception_r1.tasks import make_task
from perception_r1.training import grpo, sft

PUBLISHED = pa.schema(
    [
        ("image_url", pa.string()),
        ("image_sha256", pa.string()),
        ("count", pa.int32()),
        ("points", pa.struct([("x", pa.list_(pa.float32())), ("y", pa.list_(pa.float32()))])),
        ("label", pa.string()),
    ]
)
"""Columns and types of the Parquet files on the hub."""


def image_bytes(size: tuple[int, int] = (300, 240), colour: Any = "red", mode: str = "RGB", kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, kind, **options)
    return file.getvalue()


class Publisher:
    """Writes a PixMo-Count data set field by field: rows, and the images that their hashes mean."""

    def __init__(self, root: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self.file, self.images = root / "train-00000-of-00001.parquet", root / "images"
        self.images.mkdir(parents=True)

    def row(self, content: bytes, points: Iterable[tuple[float, float]] | None, label: str = "birds", **changes: Any) -> str:
        """Adds a row for the image `content`, and the image; returns its hash."""
        sha256 = hashlib.sha256(content).hexdigest()
        (self.images / f"{sha256}.jpg").write_bytes(content)
        placed = None if points is None else list(points)
        written = None if placed is None else {"x": [x for x, _ in placed], "y": [y for _, y in placed]}
        row = {
            "image_url": f"https://example.org/{sha256[:8]}.jpg",
            "image_sha256": sha256,
            "count": len(placed or []),
            "points": written,
            "label": label,
        }
        self.rows.append(row | changes)
        return sha256

    def read(self, **options: Any) -> Pixmo:
        pq.write_table(pa.Table.from_pylist(self.rows, schema=PUBLISHED), self.file)
        found = pixmo_samples(self.file, self.images, **options)
        assert found.report["rows"] == len(self.rows) == len(found.samples) + sum(found.report[reason] for reason in REASONS)
        return found


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "pixmo")


def test_every_field_of_a_row_arrives(publisher: Publisher, tmp_path: Path) -> None:
    sha256 = publisher.row(image_bytes((640, 480)), [(12.5, 30.25), (639.0, 0.0), (100.1, 479.9)], "wine glasses")
    found = publisher.read()
    assert found.report == {"rows": 1, "exif_rotated": 0, "hash_differs": 0} | dict.fromkeys(REASONS, 0)
    (sample,) = found.samples
    assert (sample.task, sample.query, sample.width, sample.height, sample.source) == ("counting", "wine glasses", 640, 480, "pixmo-count")
    assert sample.id == f"pixmo-{sha256[:16]}-wine glasses"
    assert sample.image_path == publisher.images / f"{sha256}.jpg"
    assert sample.truth.boxes is None
    assert sample.truth.labels == ("wine glasses",) * 3
    np.testing.assert_array_equal(np.asarray(sample.truth.points), np.array([[12.5, 30.25], [639, 0], [100.1, 479.9]], dtype=np.float32))


def test_a_file_made_from_it_passes_the_check(publisher: Publisher, tmp_path: Path) -> None:
    publisher.row(image_bytes(), [(5, 5), (295, 235)])
    publisher.row(image_bytes(colour="blue"), [])
    publisher.row(image_bytes((1, 1)), [(0.5, 0.5)])
    publisher.row(image_bytes(colour="lime"), [(0, 0), (300, 240), (0, 240), (300, 0), (0.004, 239.999), (150, 120), (150, 120)])
    for file in (tmp_path / "out" / "train.jsonl", tmp_path / "train.parquet"):
        assert write_samples(publisher.read().samples, file) == 4
        report = check_file(file)
        assert report.problems.problems == []
        assert (report.samples, report.objects) == ({"counting": 4}, {"counting": 10})


def test_per_cent_is_of_each_side(publisher: Publisher) -> None:
    publisher.row(image_bytes((400, 200)), [(0, 0), (100, 100), (25, 50)])
    points_M2 = publisher.read(unit="percent").samples[0].truth.points
    assert np.asarray(points_M2).tolist() == [[0, 0], [400, 200], [100, 100]]


def test_a_unit_is_declared_and_a_wrong_one_does_not_pass_unseen(publisher: Publisher) -> None:
    for k in range(10):
        publisher.row(image_bytes((640, 480), (25 * k, 0, 0)), [(k, 90 - k), (95, 50), (30, 7)])
    with pytest.raises(BadData, match=r"every point within 100 pixels .* say unit=percent"):
        publisher.read()
    assert len(publisher.read(unit="percent").samples) == 10
    publisher.row(image_bytes((640, 480), "white"), [(95, 50), (101, 7)])
    assert len(publisher.read().samples) == 11
    assert publisher.read(unit="percent").report["outside"] == 1
    with pytest.raises(BadData, match="found unit 'permille', expected one of pixels, percent"):
        publisher.read(unit="permille")


def test_points_as_a_list_of_pairs_are_the_same_points(publisher: Publisher, tmp_path: Path) -> None:
    publisher.row(image_bytes(), [(10, 20), (30, 40)])
    first = publisher.read().samples[0].truth.points
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(publisher.rows[0] | {"points": [{"x": 10, "y": 20}, {"x": 30, "y": 40}]}))
    np.testing.assert_array_equal(np.asarray(pixmo_samples(file, publisher.images).samples[0].truth.points), np.asarray(first))


def test_no_objects_is_a_truth_of_its_own(publisher: Publisher) -> None:
    publisher.row(image_bytes(), [])
    publisher.row(image_bytes(colour="blue"), None)
    for sample in publisher.read().samples:
        assert np.asarray(sample.truth.points).shape == (0, 2)
        task = make_task("counting")
        frame = frame_of(sample.width, sample.height, task.dialect)
        assert task.score(task.write(sample, frame), sample, frame).total == 2
        assert task.score("(1,1),(9,9)", sample, frame).terms["distance"] == 0


LEFT_OUT: dict[str, tuple[dict[str, Any], str, str]] = {
    "no points, as in validation and test": ({"points": None, "count": 3}, "no_points", "found count 3 and no points"),
    "fields of points empty": ({"points": {"x": None, "y": None}, "count": 3}, "no_points", "found count 3 and no points"),
    "more points than the count": ({"count": 1}, "count_differs", "found count 1 and 2 points"),
    "fewer points than the count": ({"count": 3}, "count_differs", "found count 3 and 2 points"),
    "count zero with points": ({"count": 0}, "count_differs", "found count 0 and 2 points"),
    "no count": ({"count": None}, "bad_row", "field count: found None"),
    "negative count": ({"count": -1}, "bad_row", "field count: found -1"),
    "no label": ({"label": None}, "bad_row", "field label: found None"),
    "blank label": ({"label": " "}, "bad_row", "field label: found ' '"),
    "no hash": ({"image_sha256": None}, "bad_row", "field image_sha256: found None"),
    "a path for a hash": ({"image_sha256": "../../secret"}, "bad_row", "expected 64 hexadecimal digits"),
    "no address": ({"image_url": None}, "bad_row", "field image_url: found None"),
    "x without y": ({"points": {"x": [1, 2], "y": [1]}}, "bad_row", "field points"),
    "NaN": ({"points": {"x": [1, float("nan")], "y": [1, 1]}}, "bad_row", "field points"),
    "null among numbers": ({"points": {"x": [1, None], "y": [1, 1]}}, "bad_row", "field points"),
    "no image": ({"image_sha256": "0" * 64}, "no_image", "found no image named 0000"),
    "right of the image": ({"points": {"x": [1, 300.5], "y": [1, 1]}}, "outside", "found point [300.5, 1.0] in pixels, expected it inside"),
    "above the image": ({"points": {"x": [1, 2], "y": [1, -1]}}, "outside", "found point [2.0, -1.0]"),
}  # fmt: skip


@pytest.mark.parametrize("changes, reason, words", LEFT_OUT.values(), ids=LEFT_OUT)
def test_a_row_that_cannot_be_used_is_counted_with_its_reason(changes: dict[str, Any], reason: str, words: str, publisher: Publisher) -> None:
    publisher.row(image_bytes(), [(1, 2), (3, 4)], "geese")
    publisher.row(image_bytes(colour="blue"), [(1, 2), (3, 4)])
    publisher.rows[1] |= changes
    found = publisher.read()
    assert [sample.query for sample in found.samples] == ["geese"]
    assert {name: found.report[name] for name in REASONS if found.report[name]} == {reason: 1}
    assert words in found.problems[0]
    assert "row 2" in found.problems[0]
    assert "\n" not in found.problems[0]


def test_the_same_image_and_label_again_is_counted_and_another_label_is_a_sample(publisher: Publisher) -> None:
    content = image_bytes()
    for label, points in (("birds", [(1, 2)]), ("trees", [(3, 4)]), ("birds", [(1, 2)]), ("birds", [(9, 9), (8, 8)])):
        publisher.row(content, points, label)
    found = publisher.read()
    assert [(sample.query, len(sample.truth)) for sample in found.samples] == [("birds", 1), ("trees", 1)]
    assert found.report["duplicate"] == 2
    assert len(pixmo_links(publisher.file)) == 1


def test_links_are_those_of_the_rows_that_can_become_samples(publisher: Publisher) -> None:
    wanted = publisher.row(image_bytes(), [(1, 2)])
    publisher.row(image_bytes(colour="blue"), None, count=4)
    publisher.row(image_bytes(colour="lime"), [(1, 2)], count=4)
    publisher.read()
    assert pixmo_links(publisher.file) == [Link(sha256=wanted, url=f"https://example.org/{wanted[:8]}.jpg")]


def test_an_image_is_the_one_with_the_stated_bytes_or_none(publisher: Publisher) -> None:
    wanted = publisher.row(image_bytes(), [(1, 2)])
    publisher.row(image_bytes(colour="blue"), [(1, 2)])
    (publisher.images / f"{wanted}.jpg").write_bytes(image_bytes(quality=20))
    found = publisher.read()
    assert (len(found.samples), found.report["wrong_hash"]) == (1, 1)
    assert hashlib.sha256(image_bytes(quality=20)).hexdigest() in found.problems[0]
    taken = publisher.read(check_hash=False)
    assert (len(taken.samples), taken.report["hash_differs"]) == (2, 1)
    (publisher.images / "again").mkdir()
    (publisher.images / "again" / f"{wanted.upper()}.PNG").write_bytes(image_bytes())
    found = publisher.read()
    assert found.report["wrong_hash"] == 0
    assert found.samples[0].image_path.parent.name == "again"


def test_a_placeholder_that_came_for_several_images_is_never_taken(publisher: Publisher) -> None:
    for colour in ("red", "green", "blue"):
        publisher.row(image_bytes(colour=colour), [(1, 2)])
    for row in publisher.rows[:2]:
        (publisher.images / f"{row['image_sha256']}.jpg").write_bytes(image_bytes(colour="grey"))
    found = publisher.read(check_hash=False)
    assert (len(found.samples), found.report["wrong_hash"]) == (1, 2)
    assert "the same bytes for 2 images" in found.problems[0]


@pytest.mark.parametrize("cut", [0, 10, 200, -80], ids=["empty", "ten bytes", "header only", "last rows"])
def test_a_corrupt_image_is_counted_even_when_it_was_published_so(cut: int, publisher: Publisher) -> None:
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(noise, "JPEG")
    publisher.row(noise.getvalue()[:cut], [(1, 2)])
    publisher.row(image_bytes(), [(1, 2)])
    found = publisher.read()
    assert (len(found.samples), found.report["unreadable"]) == (1, 1)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees: stored 300x240, seen 240x300
    return image_bytes(exif=exif)


ODD = {
    "CMYK": image_bytes(colour=(0, 200, 200, 30), mode="CMYK"),
    "grey of 16 bits": image_bytes(colour=40_000, mode="I;16", kind="PNG"),
    "palette": image_bytes(colour=3, mode="P", kind="PNG"),
    "transparent": image_bytes(colour=(0, 255, 0, 99), mode="RGBA", kind="PNG"),
    "one bit": image_bytes(colour=1, mode="1", kind="TIFF"),
    "EXIF-rotated": rotated(),
    "several frames": image_bytes(kind="GIF", save_all=True, append_images=[Image.new("RGB", (300, 240), "blue")]),
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_points_count_the_pixels_as_stored_in_every_kind_of_image(content: bytes, publisher: Publisher, tmp_path: Path) -> None:
    publisher.row(content, [(299, 10), (5, 239)])
    found = publisher.read()
    assert found.report["exif_rotated"] == (content == rotated())
    (sample,) = found.samples
    assert (sample.width, sample.height) == (300, 240) == open_image(sample).size
    assert np.asarray(sample.truth.points).tolist() == [[299, 10], [5, 239]]
    write_samples(found.samples, tmp_path / "s.jsonl")
    assert check_file(tmp_path / "s.jsonl").problems.problems == []


def test_a_panorama_of_20_000_pixels(publisher: Publisher, tmp_path: Path) -> None:
    publisher.row(image_bytes((20_000, 400)), [(19_999.5, 399.5), (0.5, 0.5), (12_345, 200)])
    write_samples(publisher.read().samples, tmp_path / "s.jsonl")
    assert check_file(tmp_path / "s.jsonl").problems.problems == []
    (sample,) = read_samples(tmp_path / "s.jsonl")
    assert np.asarray(sample.truth.points).tolist() == [[19_999.5, 399.5], [0.5, 0.5], [12_345, 200]]


def test_paths_and_labels_may_be_in_any_script(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "数据 ü é" / "图")
    publisher.row(image_bytes(), [(1, 2)], "红色的鸟")
    output = tmp_path / "ausgabe ö" / "计数.jsonl"
    write_samples(publisher.read().samples, output)
    assert check_file(output).problems.problems == []
    assert next(read_samples(output)).query == "红色的鸟"


def test_counts_alone_are_a_truth_where_the_split_has_no_points(publisher: Publisher, tmp_path: Path) -> None:
    publisher.row(image_bytes(), None, "geese", count=4)
    publisher.row(image_bytes(colour="blue"), [(1, 2), (3, 4)])
    publisher.row(image_bytes(colour="lime"), [(1, 2), (900, 4)], "geese", count=3)
    publisher.rows.append(publisher.rows[0] | {"image_sha256": "0" * 64})
    found = publisher.read(truth="count")
    assert [(sample.query, sample.truth.kind, sample.truth.count) for sample in found.samples] == [("geese", "count", 4), ("birds", "count", 2)]
    assert {name: found.report[name] for name in REASONS if found.report[name]} == {"count_differs": 1, "no_image": 1}
    assert {link.sha256 for link in pixmo_links(publisher.file, truth="count")} == {publisher.rows[k]["image_sha256"] for k in (0, 1, 3)}
    write_samples(found.samples, tmp_path / "s.jsonl")
    report = check_file(tmp_path / "s.jsonl")
    assert (report.problems.problems, report.counted, report.objects) == ([], 2, {"counting": 6})
    publisher.rows = publisher.rows[:1]
    with pytest.raises(BadData, match="no_points 1.*to evaluate counts without points, say truth=count"):
        publisher.read()
    with pytest.raises(BadData, match="found truth 'boxes', expected one of points, count"):
        publisher.read(truth="boxes")


def test_a_folder_of_shards_is_read_by_its_split(publisher: Publisher, tmp_path: Path) -> None:
    for colour in ("red", "blue", "lime"):
        publisher.row(image_bytes(colour=colour), [(1, 2)])
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name, rows in (("train-00000-of-00002", publisher.rows[:1]), ("train-00001-of-00002", publisher.rows[1:2]), ("test-0", publisher.rows[2:])):
        pq.write_table(pa.Table.from_pylist(rows, schema=PUBLISHED), tmp_path / "hub" / "data" / f"{name}.parquet")
    assert len(pixmo_samples(tmp_path / "hub", publisher.images, split="train").samples) == 2
    assert len(pixmo_links(tmp_path / "hub", split="test")) == 1
    with pytest.raises(BadData, match=r"found the splits test, train: name one with split=train"):
        pixmo_samples(tmp_path / "hub", publisher.images)
    with pytest.raises(BadData, match=r"expected <split>-\*\.parquet"):
        pixmo_samples(publisher.images, publisher.images)


def test_what_cannot_be_read_at_all_is_an_error(publisher: Publisher, tmp_path: Path) -> None:
    publisher.row(image_bytes(), [(1, 2)], image_sha256="0" * 64)
    with pytest.raises(
        BadData, match=r"found no row that can be used \(rows 1, no_image 1\), expected at least one; the first: .*example\.org"
    ) as caught:
        publisher.read()
    assert "\n" not in str(caught.value)
    with pytest.raises(BadData, match="expected the images, named <image_sha256>.<suffix>: download them first"):
        pixmo_samples(publisher.file, tmp_path / "none")
    with pytest.raises(BadData, match="found no such file"):
        pixmo_samples(tmp_path / "none.parquet", publisher.images)
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(BadData, match="field image_url: found None"):
        pixmo_samples(tmp_path / "other.parquet", publisher.images)


def test_progress_is_shown_for_both_long_loops(publisher: Publisher) -> None:
    publisher.row(image_bytes(), [(1, 2)])
    told: list[tuple[str, int | None]] = []

    def track(items: Iterable[Any], title: str, total: int | None) -> Iterator[Any]:
        told.append((title, total))
        yield from items

    publisher.read(track=track)
    assert told == [("hashing images", 1), ("reading images", 1)]


def test_downloaded_images_are_found(publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [image_bytes(), image_bytes(kind="PNG"), image_bytes(kind="WEBP")]
    by_url = {f"https://example.org/{hashlib.sha256(content).hexdigest()[:8]}.jpg": content for content in contents}
    for content in contents:
        (publisher.images / f"{publisher.row(content, [(1, 2)])}.jpg").unlink()
    with pytest.raises(BadData, match="no_image 3"):
        publisher.read()
    monkeypatch.setattr("perception_r1.data.downloads._get", lambda url, settings: by_url[url])
    assert download_images(pixmo_links(publisher.file), publisher.images).report["downloaded"] == 3
    assert len(publisher.read().samples) == 3


# --- points as truth of the counting task ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(data_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PixMo-Count file about real photographs: centres of COCO's boxes, float32 as published, and the images by hash."""
    publisher = Publisher(tmp_path_factory.mktemp("pixmo"))
    for sample in coco_samples(data_folder("coco_val206"), "counting").samples[:60]:
        boxes_M4 = sample.truth.needed_boxes()
        publisher.row(sample.image_path.read_bytes(), (boxes_M4[:, :2] + boxes_M4[:, 2:]) / 2, sample.query)
    file = publisher.file.with_name("train.jsonl")
    found = publisher.read()
    assert len(found.samples) == 60
    write_samples(found.samples, file)
    return file


def test_real_photographs_with_points_pass_the_check(real: Path) -> None:
    report = check_file(real)
    assert report.problems.problems == []
    assert report.samples == {"counting": 60}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_points_score_by_their_distance_on_real_photographs(dialect: str, real: Path) -> None:
    task = make_task("counting", dialect=dialect)
    for sample in list(read_samples(real))[::6]:
        frame = frame_of(sample.width, sample.height, task.dialect)
        points_M2 = np.asarray(task.snapped(sample, frame).points)
        text = task.write(sample, frame)
        assert task.score(text, sample, frame).total == pytest.approx(2)
        answer = task.read(text, frame)
        assert task.measure(answer, sample)["count_acc"] == 1
        np.testing.assert_allclose((answer.boxes[:, :2] + answer.boxes[:, 2:]) / 2, points_M2, atol=1e-6)
        radius = 0.05 * np.hypot(sample.width, sample.height)
        assert task.measure(answer, sample)["distance_score"] > 1 - 4 / radius  # rounding costs less than four pixels
        assert task.score("", sample, frame).total == 0


def test_both_trainings_take_a_step_with_points_as_truth(real: Path, tmp_path: Path) -> None:
    tiny.save_untrained(tmp_path / "tiny")
    small = [
        "--model",
        str(tmp_path / "tiny"),
        "--data",
        str(real),
        "--max_steps",
        "1",
        "--save_steps",
        "1",
        "--logging_steps",
        "1",
    ]
    small += ["--per_device_train_batch_size", "4", "--use_cpu", "true", "--max_pixels", "20000"]
    rollouts = ["--eval_data", "", "--num_generations", "4", "--max_completion_length", "16", "--gradient_accumulation_steps", "1"]
    output = grpo.run("counting", [*small, *rollouts, "--output_dir", str(tmp_path / "grpo")])
    rows = pq.read_table(output / "rollouts.parquet").to_pylist()
    assert len(rows) == 4
    assert {*json.loads(rows[0]["terms"])} == {"format", "distance"}
    output = sft.run("tiny-base", [*small, "--task", "counting", "--output_dir", str(tmp_path / "sft")])
    history = json.loads((output / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    assert np.isfinite([row["loss"] for row in history if "loss" in row]).all()
