"""Every script of examples/ runs from another folder, without torch, and prints what its documentation says."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from perception_r1.data import load_data
from perception_r1.dialects import frame_of
from perception_r1.tasks import make_task
from perception_r1.visualize import MATCHED

ROOT = Path(__file__).parents[1]
TORCH_FREE = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    def run(script: str, *words: object) -> str:
        command = [sys.executable, "-W", "error", "-c", TORCH_FREE, str(ROOT / "examples" / script), *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUTF8": "1", "COLUMNS": "100"}
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


def test_no_faulty_answer_is_worth_as_much_as_the_good_one(run: Callable[..., str]) -> None:
    lines = run("score_answers.py").splitlines()
    assert lines[0] == "Please output bbox coordinates and names of dog, person."
    totals = {line.split(" total ")[0].strip(): float(line.split(" total ")[1].split()[0]) for line in lines[1:]}
    assert len(totals) == 7
    truth, good = totals.pop("the truth"), totals.pop("a good answer")
    assert truth == 4.0 > good > max(totals.values())
    assert min(totals, key=totals.__getitem__) == "no boxes"
    assert totals["no boxes"] == -1.0


def test_a_new_task_is_checked_scored_and_measured_by_what_is_there(run: Callable[..., str]) -> None:
    printed = run("new_task.py")
    assert "checked 30 samples: 0 problems" in printed
    assert re.search(r"^Point to a \w+( \w+)?\.$", printed, re.MULTILINE)
    totals = dict(re.findall(r"^(truth|nothing|prose): total (\S+),", printed, re.MULTILINE))
    assert totals == {"truth": "2", "nothing": "1", "prose": "0"}
    assert "problem expected boxes as qwen2-vl writes them, found 'Over there.'" in printed
    rates = {name: float(value) for name, value in re.findall(r"│ (\w+) +│ (\d\.\d+) │", printed)}
    assert set(rates) == {"hit_rate", "parse_failure_rate", "truncated_rate", "answer_length"}
    assert 0 < rates["hit_rate"] < 0.5  # "none" is right only where nothing of the kind is there
    assert rates["parse_failure_rate"] == 0


def test_drawn_scenes_pass_the_check_and_are_shown(run: Callable[..., str], tmp_path: Path) -> None:
    printed = run("draw_scenes.py", tmp_path / "scenes")
    written = int(re.findall(r"wrote (\d+) samples", printed)[0])
    by_task = {task: int(count) for task, count in re.findall(r"^(\w+): (\d+) samples", printed, re.MULTILINE)}
    assert by_task["counting"] == by_task["detection"] == 12
    assert by_task["grounding"] > 0
    assert sum(by_task.values()) == written == len((tmp_path / "scenes" / "samples.jsonl").read_text().splitlines())
    assert "problems: 0" in printed
    assert len(list((tmp_path / "scenes" / "images").glob("*.png"))) == 12
    assert (tmp_path / "scenes" / "pictures.html").read_text(encoding="utf-8").count("<figure>") == written


def test_every_example_is_run_here() -> None:
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert scripts == set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))


def test_before_and_after_shows_held_out_pictures_in_two_rows(run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = "scenes:counting?n=6&split=test&min_count=1&max_count=3"
    samples, task = load_data(data), make_task("counting", dialect="qwen3-vl")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "perception_r1.json").write_text(json.dumps({"task": "counting", "dialect": "qwen3-vl", "thinking": False}))
    for when, write in (("before", lambda sample: "no boxes"), ("after", lambda sample: task.write(sample, frame_of(128, 128, task.dialect)))):
        (folder / when).mkdir()
        rows = [json.dumps({"id": sample.id, "completion": write(sample), "finish": "stop"}) for sample in samples]
        (folder / when / "answers.jsonl").write_text("\n".join(rows) + "\n")
    printed = run("before_and_after.py", folder, "--data", data, "--columns", 3, "-o", tmp_path / "sheet.png")
    assert "3 of 6 held-out samples" in printed
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"), dtype=int)
    matched = np.abs(sheet - np.array(ImageColor.getrgb(MATCHED))).sum(-1) < 30
    assert not matched[: len(sheet) // 2 - 30].any()  # malformed: only the truth is drawn
    assert matched[len(sheet) // 2 :].any()
