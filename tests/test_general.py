"""General benchmarks: lmms-eval is called as it wants to be, in its own environment, and its figures come back as it gave them.

The stand-in has lmms-eval's command line and writes results where, and as, version 0.7.3 does; docs/evaluation.md has the commands of a
run of lmms-eval itself.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from perception_r1.evaluation.general import run_general
from perception_r1.policy import WEIGHTS
from perception_r1.records import BadData

STAND_IN = """
import argparse, json, os, pathlib, sys
parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("model", "model_args", "tasks", "output_path", "device", "limit", "include_path", "batch_size"):
    parser.add_argument("--" + name)
parser.add_argument("--log_samples", action="store_true")
given = parser.parse_args()
assert given.log_samples
args = dict(pair.split("=") for pair in given.model_args.split(","))
if given.tasks == "no_such_task":
    print("\\x1b[32mnow\\x1b[0m | here - \\x1b[31mError during evaluation: Tasks not found: no_such_task\\x1b[0m")  # and exits with 0, as it does
    sys.exit()
print("environment", sorted(set(os.environ) & {"PYTHONPATH", "VIRTUAL_ENV"}))
row = {"average,none": 0.25, "average_stderr,none": "N/A", "exact_match,flexible-extract": 0.5}
results = {name: {"alias": name} | row for name in given.tasks.split(",")}
if "mmvet" in results:
    results["mmvet"] = {"alias": "mmvet", "gpt_eval_score,none": None}
whole = {"results": results, "group_subtasks": {}, "lmms_eval_version": "unknown@unknown", "called": vars(given), "model_args": args}
folder = pathlib.Path(given.output_path) / pathlib.Path(args["pretrained"]).name
folder.mkdir(parents=True, exist_ok=True)
number = len(list(folder.iterdir()))
(folder / f"2026112{number}_101112_results.json").write_text(json.dumps(whole))
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python that has the stand-in and nothing else."""
    package = tmp_path / "environment" / "lmms_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(STAND_IN)
    about = package.parent / "lmms_eval-0.7.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lmms_eval\nVersion: 0.7.3\n")
    program = tmp_path / "environment" / "python"
    program.write_text(f'#!/bin/sh\ncd "{package.parent}" && exec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return program


def called(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "general").rglob("*_results.json"))]


def test_its_figures_come_back_under_their_names(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path))
    output = (tmp_path / "run").resolve()
    found = run_general("mmstar, ai2d", "tiny", output, python=python, arguments="--limit 8", device="cpu")
    assert found == {name: {"average": 0.25, "exact_match,flexible-extract": 0.5} for name in ("mmstar", "ai2d")}
    assert json.loads((output / "general.json").read_text()) == found
    call = called(output)[0]
    assert call["called"]["model"] == "qwen3_vl"
    assert (call["called"]["tasks"], call["called"]["limit"], call["called"]["device"]) == ("mmstar,ai2d", "8", "cpu")
    assert call["model_args"] == {"pretrained": str(WEIGHTS), "min_pixels": "4096", "max_pixels": "4096", "device_map": "cpu"}
    assert "environment []" in (output / "general" / "log.txt").read_text()
    run = json.loads((output / "general-run.json").read_text())
    assert (run["model"], run["lmms_eval"], run["revision"][:7]) == ("tiny", "0.7.3", "sha256:")


def test_benchmarks_of_one_model_gather_and_those_of_another_do_not(python: Path, tmp_path: Path) -> None:
    output = (tmp_path / "run").resolve()
    run_general("mmstar", "tiny", output, python=python)
    assert set(run_general("ai2d", "tiny", output, python=python)) == {"mmstar", "ai2d"}
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(BadData, match="holds general figures of tiny .*: name another folder with -o"):
        run_general("mmstar", other, output, python=python)
    assert run_general("mmstar", other, (tmp_path / "second").resolve(), python=python)["mmstar"]["average"] == 0.25


def test_a_failure_that_exits_with_0_is_a_failure(python: Path, tmp_path: Path) -> None:
    output = (tmp_path / "run").resolve()
    message = r"exit code 0 and 0 files of results, expected 0 and one: Error during evaluation: Tasks not found: no_such_task: see .*log\.txt"
    with pytest.raises(BadData, match=message):
        run_general("no_such_task", "tiny", output, python=python)
    assert not (output / "general.json").exists()


def test_a_benchmark_without_a_figure_is_named(python: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="gave no figure for mmvet, only for mmstar"):
        run_general("mmstar,mmvet", "tiny", (tmp_path / "run").resolve(), python=python)


def test_without_lmms_eval_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadData, match=r"lmms-eval is not installed in .*python -m venv \.venv-general && .*pip install lmms-eval"):
        run_general("mmstar", "tiny", tmp_path / "run")
    with pytest.raises(BadData, match="found no such program, expected a Python that has lmms-eval"):
        run_general("mmstar", "tiny", tmp_path / "run", python=tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, config, message", [("m", '{"model_type": "bert"}', "found model_type 'bert'"), ("a,b", "{}", "a comma")])
def test_a_model_that_it_cannot_take_is_one_line(name: str, config: str, message: str, python: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(config)
    words = "" if "bert" in config else "--model qwen2_vl"
    with pytest.raises(BadData, match=message):
        run_general("mmstar", folder, tmp_path / "run", python=python, arguments=words)
