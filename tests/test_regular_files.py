"""A FIFO or a device in place of a file is refused in one line wherever one is opened: nothing
waits for it.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.test_cli import ROW
from tests.test_coco import note, written
from tests.test_refcoco import refer, rows_file

from perception_r1.cli import main
from perception_r1.data.check import check_file
from perception_r1.data.coco import coco_samples
from perception_r1.data.downloads import file_sha256
from perception_r1.data.pages import page_samples
from perception_r1.data.pdf import pdf_pages
from perception_r1.data.pixmo import pixmo_samples
from perception_r1.data.refcoco import refcoco_samples
from perception_r1.data.references import RefOptions
from perception_r1.data.samples import SampleFile, image_size, open_image, read_json, read_samples
from perception_r1.evaluation.predictions import file_hash, read_predictions
from perception_r1.records import BadData


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """Fails a test that waits for a FIFO."""

    def late(*_: Any) -> None:
        raise TimeoutError("waited for what is no file")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(300)  # far longer than a busy machine takes to import torch
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fifo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a FIFO": (fifo, "a FIFO"),
    "a link to a FIFO": (lambda path: path.symlink_to(fifo(path.with_name("pipe"))), "a FIFO"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "a folder": (Path.mkdir, "a folder"),
    "nothing": (lambda path: None, "no such file"),
}


def raised(problem: Any) -> None:
    raise problem


READERS: dict[str, Callable[[Path], Any]] = {
    "an image": image_size,
    "rows": lambda path: list(read_samples(path)),
    "rows on disk": SampleFile,
    "JSON": lambda path: read_json(path, "a list"),
    "a hash": file_hash,
    "a hash of a source": file_sha256,
    "a PDF": lambda path: raised(next(pdf_pages(path))),
    "conversations": lambda path: page_samples(path, form="conversation"),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("make, words", OTHERS.values(), ids=OTHERS)
def test_what_is_no_file_is_refused_by_every_reader(
    make: Callable[[Path], Any], words: str, reader: Callable[[Path], Any], tmp_path: Path
) -> None:
    place = tmp_path / "x.png"
    make(place)
    with pytest.raises(BadData, match=words) as caught:
        reader(place)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A sample file whose second image is a FIFO."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    fifo(tmp_path / "b.png")
    rows = [ROW, ROW | {"id": "8", "image": "b.png"}]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "s.jsonl"


def test_a_check_names_it_and_goes_on(data: Path) -> None:
    report = check_file(data)
    (problem,) = report.problems.problems
    assert (
        problem
        == f"{data.parent / 'b.png'}: found no readable image but a FIFO, expected the image of sample '8'"
    )
    with pytest.raises(BadData, match="a FIFO"):
        open_image(list(read_samples(data))[1])


def commands(data: Path) -> dict[str, list[str]]:
    small = [
        "--task",
        "grounding",
        "--use_cpu",
        "true",
        "--max_steps",
        "1",
        "--output_dir",
        str(data.parent / "run"),
    ]
    return {
        "check": ["check", str(data)],
        "show": ["show", str(data), "-o", str(data.parent / "page.html")],
        "sft": ["sft", "tiny-sft", "--data", str(data), *small],
        "grpo": ["grpo", "tiny-grpo", "--data", str(data), "--eval_data", "", *small],
        "evaluate": [
            "evaluate",
            "--model",
            "tiny",
            "--data",
            str(data),
            "-o",
            str(data.parent / "out"),
        ],
        "probe": ["probe", "--model", "tiny", "--data", str(data)],
    }


@pytest.mark.parametrize("name", commands(Path("s.jsonl")))
def test_no_command_waits_for_it(name: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(commands(data)[name])
    assert left.value.code == 1
    assert "b.png" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["score"], ["check"], ["show", "-o", "x.html"]])
def test_a_sample_file_that_is_none_is_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([command[0], str(fifo(tmp_path / "s.jsonl")), *command[1:]])
    assert left.value.code == 1
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == f"error: {tmp_path / 's.jsonl'}: found a FIFO, expected a file with one JSON object a line, or .parquet"
    )


# --- data sets -------------------------------------------------------------------------------------------------------
def coco_file(folder: Path) -> Any:
    fifo(written(folder, note(1, 1, [1, 1, 5, 5])) / "instances.json")
    return coco_samples(folder)


def coco_list(folder: Path) -> Any:
    return coco_samples(written(folder), ids=fifo(folder / "ids.txt"))


def refer_instances(folder: Path) -> Any:
    fifo(refer(folder) / "instances.json")
    return refcoco_samples(folder, RefOptions(split="all"))


def refer_pickle(folder: Path) -> Any:
    fifo(refer(folder) / "refs(unc).p")
    return refcoco_samples(folder, RefOptions(split="all"))


def rows_of_json(folder: Path) -> Any:
    return refcoco_samples(fifo(folder / "v.json"), RefOptions(boxes="xyxy"))


def image_of_a_row(folder: Path) -> Any:
    file = rows_file(folder, {"image": "b.jpg", "sent": "red car", "bbox": [1, 2, 30, 40]})
    fifo(folder / "b.jpg")
    return refcoco_samples(file, RefOptions(boxes="xyxy"))


def pages(folder: Path) -> Any:
    fifo(folder / "p" / "1.png")
    (folder / "p" / "1.txt").write_text("text")
    return page_samples(folder / "p")


def texts(folder: Path) -> Any:
    fifo(folder / "p" / "1.txt")
    Image.new("L", (60, 40)).save(folder / "p" / "1.png")
    return page_samples(folder / "p")


def shards(folder: Path) -> Any:
    (folder / "images").mkdir()
    fifo(folder / "data" / "train-0.parquet")
    return pixmo_samples(folder, folder / "images")


def answers(folder: Path) -> Any:
    return read_predictions(fifo(folder / "answers.jsonl"), [])


def results(folder: Path) -> Any:
    return read_predictions(fifo(folder / "results.json"), [])


DATA_SETS = (
    coco_file,
    coco_list,
    refer_instances,
    refer_pickle,
    rows_of_json,
    image_of_a_row,
    pages,
    texts,
    shards,
    answers,
    results,
)


@pytest.mark.parametrize("read", DATA_SETS, ids=lambda read: read.__name__)
def test_no_reader_of_a_data_set_waits_for_it(read: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(BadData) as caught:
        read(tmp_path)
    assert read is image_of_a_row or "a FIFO" in str(caught.value)
    assert "\n" not in str(caught.value)
