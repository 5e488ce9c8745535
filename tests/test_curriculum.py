"""A curriculum: easy before hard by the named term, more rollouts in later stages, and yet one run that a kill does not change."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.two_processes import in_two_processes
from trl import GRPOConfig

from perception_r1.data.mixture import load_data
from perception_r1.data.samples import write_samples
from perception_r1.evaluation.probe import Group
from perception_r1.policy import tiny
from perception_r1.records import BadData, Sample, Score, Truth
from perception_r1.training import grpo
from perception_r1.training.curriculum import parse_stages, plan, read_difficulty
from perception_r1.training.recipe import RecipeArguments, load_recipe

DATA = "scenes:ocr?n=12&seed=3"
STEPS = 8
"""Of a run with the stages 4:2,8:1 on 12 samples, 8 rollouts a step: 8 samples make 4 steps of 2, then 4 samples 4 steps of 1."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """Holds an untrained policy (random text, so rewards vary) and `difficulty.jsonl`, whose terms and totals disagree."""
    folder = tmp_path_factory.mktemp("curriculum")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        tiny.save_untrained(folder / "policy")
        ids = [sample.id for sample in load_data(DATA)]
        write_difficulty(folder / "difficulty.jsonl", {name: (k * 5 % 12 / 12, k / 12) for k, name in enumerate(ids)})
        yield folder


def write_difficulty(path: Path, means: dict[str, tuple[float, float]]) -> None:
    """A file as `probe --save-difficulty` writes it, with these means of the term edit and of the total."""
    rows = []
    for name, (edit, total) in means.items():
        rest = {"best": 1.0, "spread": 0.5}
        rows.append({"id": name, "mean": total, **rest, "terms": {"format": {"mean": 1.0, **rest}, "edit": {"mean": edit, **rest}}})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def easiness(folder: Path) -> dict[str, float]:
    return {row["id"]: row["terms"]["edit"]["mean"] for row in map(json.loads, (folder / "difficulty.jsonl").read_text().splitlines())}


def words(folder: Path, output: Path, *more: str) -> list[str]:
    common = ["--model", str(folder / "policy"), "--task", "ocr", "--data", DATA, "--eval_data", "", "--output_dir", str(output)]
    common += ["--max_completion_length", "6", "--per_device_train_batch_size", "8", "--num_generations", "4", "--max_steps", "-1"]
    common += ["--num_train_epochs", "1", "--save_steps", "3", "--save_total_limit", "9", "--logging_steps", "1", "--learning_rate", "1e-3"]
    return [*common, "--lr_scheduler_type", "linear", *more]


def staged(folder: Path, output: Path, stages: str = "4:2,8:1", *more: str) -> list[str]:
    return words(folder, output, "--curriculum", "edit", "--difficulty", str(folder / "difficulty.jsonl"), "--stages", stages, *more)


def assert_same_weights(a: Path, b: Path, file: str = "model.safetensors") -> None:
    first, second = load_file(a / file), load_file(b / file)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def history(output: Path, step: int) -> list[dict[str, float]]:
    """What the last checkpoint has logged, without the times."""
    rows = json.loads((output / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]
    return [{name: value for name, value in row.items() if "time" not in name} for row in rows]


def rollouts(output: Path, rank: int = 0) -> list[dict]:
    return [json.loads(line) for line in (output / f"rollouts-{rank}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grpo.run("quickstart", staged(folder, tmp_path_factory.mktemp("runs") / "unbroken"))


# --- runs ------------------------------------------------------------------------------------------------------------
def test_samples_come_easy_to_hard_by_the_named_term_and_each_once(folder: Path, unbroken: Path) -> None:
    easy, rows = easiness(folder), rollouts(unbroken)
    by_step = [{row["id"] for row in rows if row["step"] == step} for step in range(STEPS)]
    for before, after in pairwise(by_step):
        assert min(easy[name] for name in before) >= max(easy[name] for name in after)
    assert sorted(name for ids in by_step for name in ids) == sorted(easy)


def test_a_later_stage_draws_more_rollouts_of_a_prompt_and_as_many_a_step(unbroken: Path) -> None:
    groups = [[row["id"] for row in rollouts(unbroken) if row["step"] == step] for step in range(STEPS)]
    assert [len(ids) for ids in groups] == [8] * STEPS
    assert [len(ids) // len(set(ids)) for ids in groups] == [4] * 4 + [8] * 4


def test_step_log_and_learning_rate_go_on_through_the_stages(unbroken: Path) -> None:
    rows = history(unbroken, STEPS)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["epoch"] for row in rows] == pytest.approx([step / STEPS for step in range(1, STEPS + 1)])
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3 * (1 - step / STEPS) for step in range(STEPS)])


def test_stages_that_change_nothing_end_with_the_weights_of_a_plain_run(folder: Path, tmp_path: Path) -> None:
    easy = easiness(folder)
    write_samples(sorted(load_data(DATA), key=lambda sample: -easy[sample.id]), tmp_path / "ordered.jsonl")
    plain = grpo.run("quickstart", words(folder, tmp_path / "plain", "--data", str(tmp_path / "ordered.jsonl"), "--shuffle_dataset", "false"))
    stages = grpo.run("quickstart", staged(folder, tmp_path / "stages", "4:1,4:2"))
    assert (stages / "checkpoint-2").is_dir()
    assert not (plain / "checkpoint-2").exists()
    assert_same_weights(plain, stages)
    assert history(plain, 6) == history(stages, 6)
    assert (plain / "rollouts-0.jsonl").read_text() == (stages / "rollouts-0.jsonl").read_text()


class Killed(BaseException):
    """Stands for a kill, within the process: nothing that catches errors of a run sees it."""


def kill(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize(("place", "steps"), [("within a later stage", 8), ("between stages", 4), ("after the last step", 8)])
def test_a_kill_and_a_resume_change_nothing(
    folder: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, steps: int
) -> None:
    loss = grpo.GroupSharedTrainer._compute_loss
    with monkeypatch.context() as patch:
        if place == "within a later stage":  # in its last step, which has left rollouts; checkpoint 6 is the newest
            late = lambda self, *given: kill() if self.state.global_step == 7 else loss(self, *given)  # noqa: E731
            patch.setattr(grpo.GroupSharedTrainer, "_compute_loss", late)
        else:
            patch.setattr(grpo, "release_memory" if place == "between stages" else "save_weights", kill)
        with pytest.raises(Killed):
            grpo.run("quickstart", staged(folder, tmp_path / "run"))
    assert {row["step"] for row in rollouts(tmp_path / "run")} == set(range(steps))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    grpo.run("quickstart", [*staged(folder, tmp_path / "run"), "--resume", "true"])
    assert_same_weights(unbroken, tmp_path / "run")
    assert (tmp_path / "run" / "rollouts-0.jsonl").read_text() == (unbroken / "rollouts-0.jsonl").read_text()
    assert history(tmp_path / "run", STEPS) == history(unbroken, STEPS)


def test_a_plain_run_that_had_ended_is_resumed_without_another_step(folder: Path, tmp_path: Path) -> None:
    given = words(folder, tmp_path / "run", "--max_steps", "2")
    grpo.run("quickstart", given)
    before = load_file(tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "model.safetensors").unlink()
    grpo.run("quickstart", [*given, "--resume", "true"])
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(rollouts(tmp_path / "run")) == 2 * 8


# --- plans -----------------------------------------------------------------------------------------------------------
def some_samples(count: int) -> list[Sample]:
    return [Sample(id=str(k), task="ocr", image="", width=1, height=1, query="", truth=Truth(text="x")) for k in range(count)]


def planned(tmp_path: Path, count: int, stages: str, means: list[float] | None = None, done: int = 0, **settings: object):
    """(own rows of each stage, ends, stages) of a plan, and the means by row."""
    means = means or [k * 7 % count / count for k in range(count)]
    write_difficulty(tmp_path / "d.jsonl", {str(k): (mean, 0.0) for k, mean in enumerate(means)})
    standard = {"per_device_train_batch_size": 8, "num_generations": 4, "use_cpu": True, "bf16": False, "output_dir": str(tmp_path)}
    args = GRPOConfig(**(standard | {"num_train_epochs": 1} | settings))  # type: ignore[arg-type]
    ours = RecipeArguments(model="m", data="d", curriculum="edit", difficulty=str(tmp_path / "d.jsonl"), stages=stages)
    found, own, start = plan(ours, args, some_samples(count), done), [], 0
    for stage in found:
        edges = [len(stage.order or ()) * step // stage.args.max_steps for step in (start, stage.end or 0)]
        own.append(list(stage.order or ())[slice(*edges)])
        start = stage.end or 0
    return own, [stage.end for stage in found], found


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"num_iterations": 2}, {"steps_per_generation": 4}])
def test_a_pass_has_every_sample_once_in_falling_order_of_its_mean(tmp_path: Path, settings: dict) -> None:
    means = [k * 7 % 96 / 96 for k in range(96)]
    own, ends, stages = planned(tmp_path, 96, "2:2,4:1,8:1", means, **settings)
    rows = [row for part in own for row in part]
    assert sorted(rows) == list(range(96))
    assert [means[row] for row in rows] == sorted(means, reverse=True)
    assert [len(part) for part in own] == [48, 24, 24]
    assert [stage.args.num_generations for stage in stages] == [2, 4, 8]
    assert ends == sorted(set(ends))
    assert {stage.args.max_steps for stage in stages} == {ends[-1]}


def test_samples_of_equal_mean_come_in_an_order_of_the_seed(tmp_path: Path) -> None:
    means = [float(k % 2) for k in range(32)]
    first, again, other = (planned(tmp_path, 32, "8", means, seed=seed)[0][0] for seed in (0, 0, 1))
    assert first == again != other
    assert [means[row] for row in first] == [1.0] * 16 + [0.0] * 16
    assert first[:16] != sorted(first[:16])


def test_max_steps_are_shared_as_the_samples_and_reach_the_hardest_of_each_stage(tmp_path: Path) -> None:
    means = [1 - k / 80 for k in range(80)]
    own, ends, _ = planned(tmp_path, 80, "4:3,8:1", means, max_steps=8)
    assert ends == [6, 8]
    assert own[0] == [k * 60 // 12 for k in range(12)]
    assert own[1] == [60, 70]


def test_several_passes_stay_within_their_stage(tmp_path: Path) -> None:
    means = [1 - k / 8 for k in range(8)]
    own, ends, _ = planned(tmp_path, 8, "4,8", means, num_train_epochs=3)
    assert own == [[0, 1, 2, 3] * 3, [4, 5, 6, 7] * 3]
    assert ends == [6, 18]


@pytest.mark.parametrize(("done", "left"), [(0, [4, 8]), (3, [4, 8]), (4, [8]), (7, [8]), (8, [8])])
def test_a_resumed_run_goes_on_with_the_stage_it_was_in(tmp_path: Path, done: int, left: list[int]) -> None:
    assert planned(tmp_path, 12, "4:2,8:1", done=done)[1] == left


@pytest.mark.parametrize(
    ("stages", "settings", "message"),
    [
        ("3", {}, "per_device_train_batch_size is 8: expected a multiple of 3"),
        ("4,16", {}, "per_device_train_batch_size is 8: expected a multiple of 16"),
        ("1", {}, "stages '1': expected each stage's num_generations, at least 2"),
        ("4:0", {}, "stages '4:0'"),
        ("4;8", {}, "stages '4;8'"),
        ("4,,8", {}, "stages '4,,8'"),
        ("4:1,4:1000", {}, "stage 1 has 0 samples, too few"),
        ("2:1,8:11", {}, "stage 1 has 1 samples, too few for a step of 4"),
        ("4,8", {"max_steps": 1}, "stage 1 has 6 samples, too few|stage 2 has 6 samples, too few"),
        ("4,8", {"max_steps": 7, "num_iterations": 2}, "max_steps 7: expected a multiple of 2"),
        ("4,8", {"save_only_model": True}, "save_only_model is true"),
        ("4,8", {"ignore_data_skip": True}, "ignore_data_skip is true"),
    ],
)
def test_stages_that_cannot_be_followed_are_refused(tmp_path: Path, stages: str, settings: dict, message: str) -> None:
    with pytest.raises(BadData, match=message):
        planned(tmp_path, 12, stages, **settings)


def test_a_curriculum_without_a_difficulty_file_names_the_command_that_makes_one(folder: Path, tmp_path: Path) -> None:
    remedy = "make one with perception-r1 probe --data .* --model .* --save-difficulty"
    with pytest.raises(BadData, match=f"curriculum edit: expected a difficulty file, found none: {remedy}"):
        grpo.run("quickstart", words(folder, tmp_path / "a", "--curriculum", "edit"))
    with pytest.raises(BadData, match=f"found no file gone.jsonl: {remedy}"):
        grpo.run("quickstart", words(folder, tmp_path / "b", "--curriculum", "edit", "--difficulty", "gone.jsonl"))
    with pytest.raises(BadData, match="stages is given without a curriculum"):
        grpo.run("quickstart", words(folder, tmp_path / "c", "--stages", "4,8"))


def test_what_the_probe_writes_is_what_a_curriculum_reads(tmp_path: Path) -> None:
    scores = [Score(terms={"format": 1.0, "edit": edit}) for edit in (0.25, 0.75)]
    rows = [Group(sample, scores[: k + 1], 0).difficulty() for k, sample in enumerate(some_samples(2))]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_difficulty(tmp_path / "d.jsonl", "edit") == {"0": 0.25, "1": 0.5}
    assert read_difficulty(tmp_path / "d.jsonl", "reward") == {"0": 1.25, "1": 1.5}


GOOD = '{"id": "0", "mean": 1, "terms": {"edit": {"mean": 0.5}}}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD, "1 of 2 samples are not in it, the first is 1: make it from the same data"),
        (GOOD + GOOD, "d.jsonl:2: sample '0' is there twice"),
        (GOOD + "{", "d.jsonl:2: found .*expected one JSON object"),
        ('{"id": "0"}', "d.jsonl:1: expected id, mean and terms"),
        ('{"id": "0", "terms": {"iou": {"mean": 1}}}', "no term 'edit': expected one of iou, reward"),
        ('{"id": "0", "terms": {"edit": {"mean": NaN}}}', "the mean of edit is nan, expected a finite number"),
        ('{"id": "0", "terms": {"edit": {"mean": "1"}}}', "the mean of edit is '1', expected a finite number"),
    ],
)
def test_a_wrong_difficulty_file_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "d.jsonl").write_text(text)
    ours = RecipeArguments(model="m", data="d", curriculum="edit", difficulty=str(tmp_path / "d.jsonl"))
    args = GRPOConfig(per_device_train_batch_size=8, num_generations=8, use_cpu=True, bf16=False, output_dir=str(tmp_path))
    with pytest.raises(BadData, match=message):
        plan(ours, args, some_samples(2))


def test_the_named_recipe_can_be_followed_to_its_end(tmp_path: Path) -> None:
    ours, args, _ = load_recipe("detection-curriculum", ["--use_cpu", "true", "--bf16", "false"], GRPOConfig)
    assert (ours.curriculum, [group for group, _ in parse_stages(ours.stages)]) == ("number", [4, 8, 16])
    settings = {name: getattr(args, name) for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations")}
    own, ends, _ = planned(tmp_path, 96, ours.stages, **settings)
    assert [len(part) for part in own] == [32, 32, 32]
    assert np.diff(ends, prepend=0).tolist() == [4, 8, 16]


def test_two_processes_share_the_samples_of_every_stage(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(json.dumps(staged(folder, tmp_path / "run")))
    in_two_processes("staged", tmp_path)
    easy, parts = easiness(folder), [rollouts(tmp_path / "run", rank) for rank in range(2)]
    for step, group in enumerate((4, 4, 8, 8)):  # 16 rollouts a step over both: 4 samples of 4, then 2 of 8
        ids = [[row["id"] for row in part if row["step"] == step] for part in parts]
        assert [len(own) for own in ids] == [8, 8]
        assert [len(own) // len(set(own)) for own in ids] == [group, group]
        assert not set(ids[0]) & set(ids[1])
    by_step = [{row["id"] for part in parts for row in part if row["step"] == step} for step in range(4)]
    assert sorted(name for ids in by_step for name in ids) == sorted(easy)
    for before, after in pairwise(by_step):
        assert min(easy[name] for name in before) >= max(easy[name] for name in after)
    assert [row["step"] for row in history(tmp_path / "run", 4)] == [1, 2, 3, 4]


def test_an_adapter_goes_on_through_the_stages(folder: Path, tmp_path: Path) -> None:
    lora = ("--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "--beta", "0.04")
    easy = easiness(folder)
    write_samples(sorted(load_data(DATA), key=lambda sample: -easy[sample.id]), tmp_path / "ordered.jsonl")
    plain = words(folder, tmp_path / "plain", "--data", str(tmp_path / "ordered.jsonl"), "--shuffle_dataset", "false", *lora)
    plain, stages = grpo.run("quickstart", plain), grpo.run("quickstart", staged(folder, tmp_path / "stages", "4:1,4:2", *lora))
    assert_same_weights(plain / "adapter", stages / "adapter", "adapter_model.safetensors")
    assert_same_weights(plain, stages)
    assert history(plain, 6) == history(stages, 6)
    assert max(row["kl"] for row in history(stages, 6)) > 0  # against the base, not against where a stage began


@pytest.mark.parametrize("written", ["[4, 8]", "4,8", "'4,8'"])
def test_stages_may_be_a_list_in_yaml(tmp_path: Path, written: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"model: m\ndata: d\nstages: {written}\n")
    assert load_recipe(str(tmp_path / "mine.yaml"), ["--use_cpu", "true", "--bf16", "false"], GRPOConfig)[0].stages == "4,8"
