"""The walls: scoring and data need no torch, and `--help` answers at once."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "perception_r1"
MAY_IMPORT_TORCH = (
    *("training", "policy", "demo"),
    *("evaluation.backends", "evaluation.checkpoint", "evaluation.gpu", "evaluation.merging", "evaluation.stored_tensors"),
    *("evaluation.vision_windows", "evaluation.vllm_backend"),
)

BLOCKED = """
import importlib, pkgutil, sys
for name in ("torch", "torchvision", "transformers", "trl"):
    sys.modules[name] = None
import perception_r1
free = lambda name: not any(f"{name}.".startswith(f"perception_r1.{room}.") for room in sys.argv[1:])
def walk(package):
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if free(info.name) and not info.name.endswith("__main__"):
            module = importlib.import_module(info.name)
            print(info.name)
            if info.ispkg:
                walk(module)
walk(perception_r1)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_every_core_module_imports_with_torch_blocked() -> None:
    run = python("-c", BLOCKED, *MAY_IMPORT_TORCH)
    assert run.returncode == 0, run.stderr
    imported = set(run.stdout.split())
    assert {"perception_r1.dialects", "perception_r1.records", "perception_r1.primitives.boxes", "perception_r1.tasks.detection"} <= imported
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE.rglob("*.py")}
    allowed = tuple(f"perception_r1.{room}" for room in MAY_IMPORT_TORCH)
    expected = {name for name in names if not f"{name}.".startswith(tuple(f"{room}." for room in allowed)) and not name.endswith("__main__")}
    assert imported == expected - {"perception_r1"}


def test_the_block_of_torch_does_block() -> None:
    run = python("-c", "import sys; sys.modules['torch'] = None\nimport torch")
    assert run.returncode == 1
    assert "torch" in run.stderr


@pytest.mark.skipif(importlib.util.find_spec("perception_r1.cli") is None, reason="the command line is not there yet")
def test_help_answers_in_half_a_second() -> None:
    """Processor time, the best of three: what the command needs, without what else the machine was doing."""
    seconds = []
    for _ in range(3):
        before = os.times()
        run = python("-m", "perception_r1.cli", "--help")
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert run.returncode == 0, run.stderr
        assert "Usage" in run.stdout
    assert min(seconds) < 0.5
