"""The check of a sample file: real data passes in all six dialects, and each fault that a file can have is found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perception_r1.data.check import check_file, check_samples, marks_lost
from perception_r1.data.coco import coco_samples
from perception_r1.data.mixture import load_data
from perception_r1.data.samples import write_samples
from perception_r1.dialects import DIALECTS
from perception_r1.records import BadData, Sample, Truth
from perception_r1.tasks import make_task
from perception_r1.tasks.counting import Counting


def sample(folder: Path, **changes: object) -> Sample:
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    truth = Truth(boxes=np.array([[1.0, 2, 30, 40]]), labels=("dog",))
    good = Sample(id="7", task="grounding", image="a.png", width=64, height=48, query="dog", truth=truth, root=folder)
    return replace(good, **changes)


def test_every_truth_of_coco_earns_full_marks_in_every_dialect(data_folder: Callable[[str], Path]) -> None:
    for task, count in (("detection", 206), ("counting", 706)):
        report = check_samples(coco_samples(data_folder("coco_val206"), task).samples, images=False)
        assert report.problems.problems == []
        assert report.samples == {task: count}


def test_every_scene_of_every_task_passes(tmp_path: Path) -> None:
    for task in ("grounding", "counting", "detection", "ocr"):
        report = check_samples(load_data(f"scenes:{task}?n=25&seed=5", cache=tmp_path))
        assert report.problems.problems == []
        assert report.good


FAULTS = {
    "missing image": ({"image": "none.png"}, "none.png: found no such file"),
    "wrong size": ({"width": 65}, "found 64x48 pixels, expected the 65x48"),
    "two boxes for grounding": ({"truth": Truth(boxes=np.array([[1.0, 2, 30, 40]] * 2), labels=("a", "b"))}, "grounding needs one true box"),
    "a label with the dialect's own punctuation": (
        {"truth": Truth(boxes=np.array([[1.0, 2, 30, 40]]), labels=("<|box_start|>",))},
        "in dialect qwen2-vl: labels ['<|box_start|>'] cannot be written",
    ),
    "an aspect ratio that Qwen refuses": ({"width": 64_000, "image": "none.png"}, "refuse an aspect ratio over 200"),
}


@pytest.mark.parametrize("changes, words", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_found(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    report = check_samples([sample(tmp_path, **changes)])
    assert not report.good
    assert any(words in problem for problem in report.problems.problems)


def test_an_id_that_is_there_twice_is_found_once(tmp_path: Path) -> None:
    report = check_samples([sample(tmp_path)] * 2)
    assert report.problems.problems == ["sample '7' is there twice, expected every id once"]


def test_a_truth_that_earns_less_than_full_marks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = sample(tmp_path, task="counting")
    task = make_task("counting", dialect="plain")
    assert marks_lost(task, counted) == 0
    monkeypatch.setattr(Counting, "write_truth", lambda *_: "[0, 0, 64, 48]")
    assert 0 < marks_lost(task, counted) < 1
    report = check_samples([counted], dialects=["plain"])
    assert "written in dialect plain earns" in report.problems.problems[0]


def test_a_file_is_checked_past_its_bad_rows(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    write_samples([sample(tmp_path)], file)
    file.write_text(file.read_text() + "{\n" + file.read_text().replace('"7"', '"8"').replace("a.png", "none.png"))
    report = check_file(file)
    assert report.samples == {"grounding": 2}
    assert report.problems.count == 2
    assert f"{file}:2" in report.problems.problems[0]
    assert "none.png" in report.problems.problems[1]
    with pytest.raises(BadData, match="no such file"):
        check_file(tmp_path / "none.jsonl")


def test_the_dialects_checked_are_all_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("perception_r1.data.check.marks_lost", lambda task, _: seen.append(task.dialect.name) or 0.0)
    check_samples([sample(tmp_path)])
    assert seen == list(DIALECTS)
