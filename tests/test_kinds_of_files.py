"""Training takes a step on a sample file of each kind of published data, and on all four at once, logged by task."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.published import publish

from perception_r1.data.coco import coco_samples
from perception_r1.data.pages import page_samples
from perception_r1.data.pixmo import pixmo_samples
from perception_r1.data.refcoco import refcoco_samples
from perception_r1.data.references import RefOptions
from perception_r1.data.samples import read_samples, write_samples
from perception_r1.evaluation.probe import ProbeSettings, probe
from perception_r1.policy import tiny
from perception_r1.tasks import TASKS, make_task
from perception_r1.training import grpo

KINDS = {"refcoco": "grounding", "coco": "detection", "pixmo": "counting", "pages": "ocr"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of four samples of each kind, as its reader made it, and an untrained policy."""
    folder = tmp_path_factory.mktemp("kinds")
    publish(folder / "data")
    made = {
        "refcoco": refcoco_samples(folder / "data" / "refcoco", RefOptions(by=("unc",), split="all")).samples,
        "coco": coco_samples(folder / "data" / "coco").samples,
        "pixmo": pixmo_samples(folder / "data" / "pixmo", folder / "data" / "pixmo" / "images").samples,
        "pages": page_samples(folder / "data" / "pages").samples,
    }
    for name, samples in made.items():
        assert write_samples(samples[1:5], folder / f"{name}.jsonl") == 4
    tiny.save_untrained(folder / "tiny")
    return folder


def train(recipe: str, data: str, place: Path, output: Path, **more: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One step of the recipe on `data`, or more; its rollouts and its logs."""
    given = {"model": place / "tiny", "data": data, "eval_data": "", "output_dir": output, "use_cpu": "true", "max_steps": 1, "save_steps": 1}
    given |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 4, "max_completion_length": 6}
    given |= {"logging_steps": 1, "max_pixels": 4096, "bf16": "false", "gradient_checkpointing": "false"} | more
    grpo.run(recipe, [word for name, value in given.items() for word in (f"--{name}", str(value))])
    steps = int(given["max_steps"])
    rollouts = [json.loads(line) for line in (output / "rollouts-0.jsonl").read_text().splitlines()]
    history = json.loads((output / f"checkpoint-{steps}" / "trainer_state.json").read_text())["log_history"]
    return rollouts, [row for row in history if "loss" in row]


@pytest.mark.parametrize("kind", KINDS)
def test_training_takes_a_step_on_each_kind_of_file(kind: str, place: Path, tmp_path: Path) -> None:
    task = make_task(KINDS[kind])
    rollouts, logs = train(task.name, str(place / f"{kind}.jsonl"), place, tmp_path / "run")
    asked = {sample.id for sample in read_samples(place / f"{kind}.jsonl")}
    assert len(rollouts) == 4
    assert {row["id"] for row in rollouts} <= asked
    assert {row["task"] for row in rollouts} == {task.name}
    least, greatest = task.bounds()
    for row in rollouts:
        assert set(row["terms"]) == set(task.TERMS)
        assert least <= row["total"] <= greatest
    assert len(logs) == 1
    assert np.isfinite([logs[0]["loss"], logs[0]["grad_norm"], logs[0]["reward"]]).all()
    assert {f"terms/{term}" for term in task.TERMS} <= logs[0].keys()


def test_a_mixture_of_four_tasks_is_drawn_by_weight_and_logged_by_task(place: Path, tmp_path: Path) -> None:
    data = ",".join(f"{place / kind}.jsonl:{weight}" for kind, weight in (("refcoco", 1), ("coco", 1), ("pixmo", 5), ("pages", 1)))
    (tmp_path / "mixture.yaml").write_text("beta: 0.0\nreport_to: none\nmodel: tiny\ndata: none\n")
    rollouts, logs = train(str(tmp_path / "mixture.yaml"), data, place, tmp_path / "run", max_steps=16, save_steps=16, seed=1)
    groups = [rollouts[k : k + 4] for k in range(0, 64, 4)]
    tasks = [group[0]["task"] for group in groups]
    assert len(rollouts) == 64
    assert set(tasks) == set(TASKS)
    assert Counter(tasks).most_common(1)[0][0] == "counting"
    for step, (group, log) in enumerate(zip(groups, logs, strict=True)):
        task = group[0]["task"]
        assert {row["step"] for row in group} == {step}
        assert len({row["id"] for row in group}) == 1
        for term in make_task(task).TERMS:
            assert log[f"{task}/terms/{term}"] == pytest.approx(np.mean([row["terms"][term] for row in group]), abs=1e-6)
        logged = {name for name in log if "terms/" in name or "parse_failure_rate" in name}
        assert {name.partition("/")[0] for name in logged} == {task}  # no figure that mixes tasks, even where a batch holds one


def test_the_recipe_of_a_detection_curriculum_runs_from_the_probe_to_its_report(place: Path, tmp_path: Path) -> None:
    data, difficulty = tmp_path / "coco.jsonl", tmp_path / "difficulty.jsonl"
    write_samples(coco_samples(place / "data" / "coco").samples[:12], data)
    settings = ProbeSettings(num_generations=2, max_new_tokens=4)
    probe(str(data), model=place / "tiny", settings=settings, save_difficulty=difficulty, device="cpu")
    given = {"per_device_train_batch_size": 16, "num_generations": 16, "max_steps": 3, "save_steps": 3, "difficulty": difficulty}
    rollouts, logs = train("detection-curriculum", str(data), place, tmp_path / "run", **given)
    groups = [[row["id"] for row in rollouts if row["step"] == step] for step in range(3)]
    assert [len(ids) // len(set(ids)) for ids in groups] == [4, 8, 16]
    assert [log["step"] for log in logs] == [1, 2, 3]
    assert (tmp_path / "run" / "report.html").is_file()
