"""Measuring before and after training: alone on the card, and no time-out for those who wait."""

import gc
import json
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from tests.two_processes import in_two_processes

from perception_r1.policy import tiny
from perception_r1.training import grpo, sft
from perception_r1.training.checkpoints import MARKER
from perception_r1.training.comparison import Comparison

SMALL = [
    *(
        "--task",
        "ocr",
        "--data",
        "scenes:ocr?n=8&seed=3",
        "--max_completion_length",
        "6",
        "--per_device_train_batch_size",
        "8",
    ),
    *(
        "--num_generations",
        "4",
        "--max_steps",
        "2",
        "--save_steps",
        "1",
        "--save_total_limit",
        "9",
        "--logging_steps",
        "1",
    ),
]
MEASURED = ["--eval_data", "scenes:ocr?n=4&seed=9&split=test", "--eval_batch_size", "4"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("policy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        tiny.save_untrained(folder / "model")
        yield str(folder / "model")


@pytest.mark.parametrize("more", [[], ["--use_peft", "true"]], ids=["whole", "lora"])
def test_policy_reference_and_optimizer_are_gone_when_the_result_is_measured(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    held: dict[str, weakref.ref] = {}
    alive: dict[str, list[str]] = {}
    save, measure = grpo.save_weights, Comparison.measure

    def watch(trainer: Any, *given: Any) -> None:
        parts = {
            "trainer": trainer,
            "policy": trainer.model,
            "reference": trainer.ref_model,
            "optimizer": trainer.optimizer,
        }
        parts |= {"weights": next(trainer.model.parameters())}
        held.update({name: weakref.ref(part) for name, part in parts.items() if part is not None})
        save(trainer, *given)

    def look(self: Comparison, when: str, model: Any) -> None:
        gc.collect()
        alive[when] = [name for name, part in held.items() if part() is not None]
        measure(self, when, model)

    monkeypatch.setattr(grpo, "save_weights", watch)
    monkeypatch.setattr(Comparison, "measure", look)
    output = grpo.run(
        "quickstart",
        ["--model", policy, *SMALL, *MEASURED, *more, "--output_dir", str(tmp_path / "run")],
    )
    assert held.keys() >= {"trainer", "policy", "optimizer", "weights"}
    assert ("reference" in held) == (not more)
    assert alive["after"] == []
    assert json.loads((output / "metrics.json").read_text())["before"].keys()


def test_who_waits_for_a_measuring_has_no_time_out(policy: str, tmp_path: Path) -> None:
    """The first process takes twice as long to measure before training as a collective may."""
    words = [
        "--model",
        policy,
        *SMALL,
        *MEASURED,
        "--per_device_train_batch_size",
        "4",
        "--ddp_timeout",
        "12",
    ]
    (tmp_path / "words.json").write_text(
        json.dumps([*words, "--output_dir", str(tmp_path / "run")])
    )
    begun = time.monotonic()
    in_two_processes("measured_slowly", tmp_path)
    assert time.monotonic() - begun >= 24
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert (tmp_path / "run" / "checkpoint-2" / MARKER).is_file()


def test_processes_that_share_an_evaluation_wait_for_the_slowest(tmp_path: Path) -> None:
    in_two_processes("waited", tmp_path)


# --- what a checkpoint holds -----------------------------------------------------------------------------------------
def test_a_checkpoint_of_a_mixture_says_how_it_is_asked(policy: str, tmp_path: Path) -> None:
    words = [
        "--task",
        "",
        "--data",
        "scenes:counting?n=4&seed=3,scenes:grounding?n=4&seed=3",
        "--weights",
        "format=0.5",
        "--thinking",
        "true",
    ]
    given = [
        "--model",
        policy,
        *SMALL[2:],
        "--eval_data",
        "",
        *words[2:],
        "--output_dir",
        str(tmp_path / "run"),
    ]
    recipe = tmp_path / "mine.yaml"
    quick = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    recipe.write_text(json.dumps({"model": policy, "data": "x", **quick}))
    output = grpo.run(str(recipe), given)
    last = json.loads((output / "perception_r1.json").read_text())
    assert last["task"] == ["counting", "grounding"]
    assert last["prompt"].keys() == {"counting", "grounding"}
    assert (last["dialect"], last["thinking"], last["weights"]) == (
        "qwen3-vl",
        True,
        {"format": 0.5},
    )
    assert (last["matching"], last["iou_shape"], last["base"]) == ("hungarian", "iou", policy)
    assert last["image"] == {"min_pixels": 4096, "max_pixels": 4096}
    for step in (1, 2):
        assert (
            json.loads((output / f"checkpoint-{step}" / "perception_r1.json").read_text()) == last
        )
        assert (output / f"checkpoint-{step}" / "processor_config.json").is_file()


@pytest.mark.parametrize(
    ("data", "task"),
    [
        ("scenes:counting?n=8", "counting"),
        ("scenes:counting+grounding?n=8", ["counting", "grounding"]),
    ],
)
def test_a_checkpoint_of_supervised_training_names_the_tasks_of_its_data(
    policy: str, tmp_path: Path, data: str, task: Any
) -> None:
    words = [
        "--model",
        policy,
        "--data",
        data,
        "--bf16",
        "false",
        "--dataloader_num_workers",
        "0",
        "--max_steps",
        "2",
        "--save_steps",
        "1",
    ]
    output = sft.run(
        "tiny-base",
        [*words, "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "run")],
    )
    for folder in (output, output / "checkpoint-1", output / "checkpoint-2"):
        settings = json.loads((folder / "perception_r1.json").read_text())
        assert settings["task"] == task
        assert "never shown" in settings["shown"]
        assert list(settings["prompt"]) == ([task] if isinstance(task, str) else task)


def test_the_settings_are_there_before_the_marker(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch, seen = Path.touch, []

    def watch(self: Path, *given: Any, **named: Any) -> None:
        if self.name == MARKER:
            seen.append((self.parent / "perception_r1.json").is_file())
        touch(self, *given, **named)

    monkeypatch.setattr(Path, "touch", watch)
    grpo.run(
        "quickstart",
        ["--model", policy, *SMALL, "--eval_data", "", "--output_dir", str(tmp_path / "run")],
    )
    assert seen == [True, True]


def test_a_resumed_run_measures_anew_where_it_is_asked_something_else(policy: str, tmp_path: Path) -> None:
    words = [*SMALL, "--model", policy, *MEASURED, "--output_dir", str(tmp_path / "run")]
    grpo.run("quickstart", [*words, "--max_steps", "1", "--save_steps", "1"])
    measured = tmp_path / "run" / "before" / "metrics.json"
    first = measured.stat().st_mtime_ns
    again = [*words, "--max_steps", "2", "--save_steps", "1", "--resume", "true"]
    grpo.run("quickstart", again)
    assert measured.stat().st_mtime_ns == first
    output = grpo.run("quickstart", [*again, "--max_steps", "3", "--eval_limit", "2"])
    assert json.loads((output / "metrics.json").read_text())["data"]["samples"] == 2
    assert json.loads(measured.read_text())["data"]["samples"] == 2
