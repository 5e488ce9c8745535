"""Runs of training: they survive a kill bit for bit, keep what they promise, and refuse what is wrong before the first step."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOConfig, SFTConfig

from perception_r1 import recipes
from perception_r1.policy import tiny
from perception_r1.records import BadData, Frame, Sample, Score, Truth
from perception_r1.tasks import TASKS, make_task
from perception_r1.training import grpo, sft
from perception_r1.training.checkpoints import MARKER, newest_complete
from perception_r1.training.dataset import ROWS, conversation_dataset, drawn, packed, processor_frame, prompt_dataset, unpacked
from perception_r1.training.recipe import load_recipe
from perception_r1.training.reward import group_figures, keep_before, write_parquet

OCR_RUN = [
    *("--task", "ocr", "--data", "scenes:ocr?n=24&seed=3", "--max_completion_length", "8", "--per_device_train_batch_size", "8"),
    *("--num_generations", "4", "--max_steps", "6", "--save_steps", "2", "--logging_steps", "1", "--learning_rate", "1e-3"),
    *("--save_total_limit", "9"),
]
"""An untrained policy writes random text, whose edit distances differ: rewards that vary, so weights that move."""


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.save_untrained(folder)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def settings(untrained: str, output: Path, *more: str) -> list[str]:
    return ["--model", untrained, *OCR_RUN, "--eval_data", "", "--output_dir", str(output), *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def uninterrupted(untrained: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grpo.run("quickstart", settings(untrained, tmp_path_factory.mktemp("runs") / "whole"))


def test_training_moves_the_weights_and_keeps_every_rollout(untrained: str, uninterrupted: Path) -> None:
    start, end = weights(Path(untrained)), weights(uninterrupted)
    assert any(not torch.equal(start[name], end[name]) for name in start)
    import pyarrow.parquet as pq

    rollouts = pq.read_table(uninterrupted / "rollouts.parquet").to_pylist()
    assert len(rollouts) == 6 * 8
    assert [row["step"] for row in rollouts] == sorted(row["step"] for row in rollouts)
    assert all(np.isclose(row["total"], sum(json.loads(row["terms"]).values())) for row in rollouts)


def test_every_log_holds_each_term_the_failures_and_what_is_constant(uninterrupted: Path) -> None:
    history = json.loads((uninterrupted / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    for row in history:
        assert {"reward", "kl", "parse_failure_rate", "constant/reward"} <= row.keys()
        assert {f"{kind}/{term}" for kind in ("terms", "constant") for term in ("format", "edit")} <= row.keys()
        assert row["reward"] == pytest.approx(row["terms/format"] + row["terms/edit"], abs=1e-6)


def run_in_a_process(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})


def test_a_run_killed_and_resumed_ends_with_the_same_weights_bit_for_bit(untrained: str, uninterrupted: Path, tmp_path: Path) -> None:
    words = settings(untrained, tmp_path / "run")
    process = run_in_a_process(f"from perception_r1.training.grpo import run; run('quickstart', {words!r})")
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "checkpoint-2" / MARKER).exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint in five minutes"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    grpo.run("quickstart", [*words, "--resume", "true"])
    assert_same_weights(uninterrupted, tmp_path / "run")
    kept = [(tmp_path / "run" / "rollouts-0.jsonl").read_text(), (uninterrupted / "rollouts-0.jsonl").read_text()]
    assert kept[0] == kept[1]


def test_a_kill_in_the_middle_of_a_checkpoint_falls_back_to_the_one_before(untrained: str, uninterrupted: Path, tmp_path: Path) -> None:
    words = settings(untrained, tmp_path / "run")
    die = "lambda self, folder: os.kill(os.getpid(), signal.SIGKILL) if self.state.global_step == 4 else save(self, folder)"
    code = f"import os, signal, transformers; save = transformers.Trainer._save_rng_state; transformers.Trainer._save_rng_state = {die}\n"
    process = run_in_a_process(code + f"from perception_r1.training.grpo import run; run('quickstart', {words!r})")
    assert process.wait(timeout=300) == -signal.SIGKILL
    assert (tmp_path / "run" / "checkpoint-4" / "model.safetensors").exists()
    assert newest_complete(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-2")
    grpo.run("quickstart", [*words, "--resume", "true"])
    assert_same_weights(uninterrupted, tmp_path / "run")


def test_sft_killed_and_resumed_ends_with_the_same_weights(untrained: str, tmp_path: Path) -> None:
    common = ["--model", untrained, "--data", "scenes:detection+grounding?n=24&seed=5", "--per_device_train_batch_size", "4", "--bf16", "false"]
    common += ["--dataloader_num_workers", "0", "--max_steps", "4", "--save_steps", "2", "--save_total_limit", "9", "--logging_steps", "1"]
    whole = sft.run("tiny-base", [*common, "--output_dir", str(tmp_path / "whole")])
    part = sft.run("tiny-base", [*common, "--output_dir", str(tmp_path / "part")])
    (part / "checkpoint-4" / MARKER).unlink()
    (part / "checkpoint-4" / "model.safetensors").write_bytes(b"cut off")
    sft.run("tiny-base", [*common, "--output_dir", str(part), "--resume", "true"])
    assert_same_weights(whole, part)
    history = json.loads((whole / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_run_folder_is_not_overwritten(untrained: str, uninterrupted: Path) -> None:
    with pytest.raises(BadData, match="go on with --resume true"):
        grpo.run("quickstart", settings(untrained, uninterrupted))


def test_lora_is_trained_and_merged_into_a_checkpoint_that_loads_by_itself(untrained: str, tmp_path: Path) -> None:
    lora = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    output = grpo.run("quickstart", settings(untrained, tmp_path / "lora", *lora, "--max_steps", "2"))
    start, end = weights(Path(untrained)), weights(output)
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert start.keys() == end.keys()
    assert moved
    assert all("q_proj" in name or "v_proj" in name for name in moved)
    assert (output / "adapter" / "adapter_model.safetensors").is_file()


def test_before_and_after_are_reported_on_the_same_samples(untrained: str, tmp_path: Path) -> None:
    held_out = ["--eval_data", "scenes:ocr?n=15&seed=9&split=test", "--max_steps", "2", "--eval_batch_size", "8"]
    output = grpo.run("quickstart", [*settings(untrained, tmp_path / "run"), *held_out])
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["metrics"].keys() == metrics["before"].keys() == metrics["paired"].keys()
    for name, change in metrics["paired"].items():
        assert change["value"] == pytest.approx(metrics["metrics"][name]["value"] - metrics["before"][name]["value"])
    ids = [[json.loads(line)["id"] for line in (output / when / "answers.jsonl").read_text().splitlines()] for when in ("before", "after")]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 15
    assert (output / "report.html").read_text().count("data:image/png") == 12


# --- recipes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["grounding", "counting", "detection", "ocr"])
def test_the_papers_settings_are_the_named_recipes_defaults(name: str) -> None:
    ours, args, _ = load_recipe(name, ["--use_cpu", "true", "--bf16", "false"], GRPOConfig)
    assert ours.task == name
    assert ours.model == ("Qwen/Qwen2.5-VL-3B-Instruct" if name == "detection" else "Qwen/Qwen2-VL-2B-Instruct")
    assert ours.matching == "hungarian"
    assert not ours.thinking
    assert ours.term_weights() == dict.fromkeys(TASKS[name].TERMS, 1.0)
    assert ours.max_pixels == 1_000_000
    paper = {"learning_rate": 1e-6, "num_generations": 8, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "beta": 0.04}
    paper |= {"max_completion_length": 2048, "temperature": 1.0, "num_train_epochs": 1, "loss_type": "grpo", "num_iterations": 1}
    assert {key: getattr(args, key) for key in paper} == paper
    assert args.scale_rewards in ("group", True)


def test_every_recipe_that_comes_with_the_package_parses() -> None:
    for name in recipes.names():
        config = GRPOConfig if "num_generations" in recipes.read(name) else SFTConfig
        ours, args, _ = load_recipe(name, ["--use_cpu", "true", "--bf16", "false"], config)
        assert ours.data
        assert args.output_dir.startswith("runs/")


def test_a_key_after_the_recipe_overrides_it() -> None:
    words = ["--matching", "greedy", "--weights", "format=0", "--beta", "0.5", "--num-generations", "4"]
    ours, args, _ = load_recipe("quickstart", words, GRPOConfig)
    assert (ours.matching, ours.term_weights(), args.beta, args.num_generations) == ("greedy", {"format": 0.0}, 0.5, 4)


@pytest.mark.parametrize(
    ("recipe", "words", "message"),
    [
        ("nonsense", [], "recipe 'nonsense' is not known.*quickstart"),
        ("quickstart", ["--nun_generations", "4"], "key 'nun_generations' is not known: did you mean num_generations"),
        ("quickstart", ["--weights", "distance=x"], "weights.*expected name=number"),
        ("quickstart", ["--learning_rate", "fast"], "learning_rate"),
        ("quickstart", ["--num_generations", "7"], "num_generations|divisible"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(recipe: str, words: list[str], message: str) -> None:
    with pytest.raises(BadData, match=message):
        load_recipe(recipe, words, GRPOConfig)


def test_a_recipe_file_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: tiny\ndata: x.jsonl\ncolour: red\n")
    with pytest.raises(BadData, match="key 'colour' is not known"):
        load_recipe(str(tmp_path / "mine.yaml"), [], GRPOConfig)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "juggling"], "is not known|is for ocr, expected juggling"),
        (["--dialect", "klingon"], "dialect 'klingon' is not known"),
        (["--weights", "iou=1"], "ocr has no term iou: expected format, edit"),
        (["--matching", "random"], "matching 'random' is not known"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--save_total_limit", "1"], "expected at least 2"),
    ],
)
def test_wrong_settings_are_refused_before_any_step(untrained: str, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises((BadData, OSError), match=message):
        grpo.run("quickstart", settings(untrained, tmp_path / "run", *words))
    assert not list((tmp_path / "run").glob("rollouts*"))


def test_a_missing_image_is_refused_before_any_step(untrained: str, tmp_path: Path) -> None:
    row = {"id": "a", "task": "ocr", "image": "gone.png", "width": 60, "height": 40, "query": "", "truth": {"text": "x"}}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(BadData, match="1 of 1 images are not there, the first is .*gone.png of a"):
        grpo.run("quickstart", settings(untrained, tmp_path / "run", "--data", str(tmp_path / "data.jsonl")))


def test_a_model_folder_without_a_processor_is_refused(untrained: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((Path(untrained) / name).read_bytes())
    with pytest.raises(BadData, match="has no processor"):
        grpo.run("quickstart", settings(str(folder), tmp_path / "run"))


def test_an_output_that_cannot_be_written_is_an_error_of_its_own(untrained: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadData, match="expected a folder, found a file"):
        grpo.run("quickstart", settings(untrained, tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        grpo.run("quickstart", settings(untrained, tmp_path / "file" / "below"))


# --- datasets and rewards --------------------------------------------------------------------------------------------
def some_sample(tmp_path: Path, task: str = "grounding") -> Sample:
    from PIL import Image

    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    truth = Truth(boxes=np.array([[3.0, 4.0, 30.0, 35.0]]), labels=("cat",))
    return Sample(id="a", task=task, image="a.png", width=60, height=40, query="cat", truth=truth, root=tmp_path)


def test_a_sample_survives_its_dataset_row(tmp_path: Path) -> None:
    sample = some_sample(tmp_path)
    back = unpacked(packed(sample))
    assert (back.id, back.task, back.query, back.image_path) == (sample.id, sample.task, sample.query, sample.image_path)
    assert np.array_equal(back.truth.boxes, sample.truth.boxes)


def test_the_prompt_of_training_is_the_prompt_of_evaluation(tmp_path: Path) -> None:
    sample, task = some_sample(tmp_path), make_task("grounding")
    row = prompt_dataset([sample], {"grounding": task})[0]
    assert row["prompt"] == [{"role": "user", "content": task.prompt(sample)}]
    assert row["images"][0].size == (60, 40)


def test_rows_on_disk_are_the_rows_in_memory(tmp_path: Path) -> None:
    samples, tasks = [replace(some_sample(tmp_path), id=str(k)) for k in range(ROWS + 7)], {"grounding": make_task("grounding")}
    mapped, held = prompt_dataset(samples, tasks, tmp_path / "rows.arrow"), prompt_dataset(samples, tasks)
    assert [Path(file["filename"]) for file in mapped.cache_files] == [tmp_path / "rows.arrow"]
    assert not held.cache_files
    assert mapped.with_format(None)[:] == held.with_format(None)[:]
    assert mapped[ROWS]["images"][0].size == (60, 40)
    assert mapped.select([ROWS + 6, 0])["sample"] == [packed(samples[ROWS + 6]), packed(samples[0])]


def test_weighted_samples_are_read_where_they_lie_and_drawn_by_weight(tmp_path: Path) -> None:
    samples = [replace(some_sample(tmp_path), id=str(k)) for k in range(4)]
    assert drawn(samples, np.full(4, 0.25), seed=0) is samples
    picked = drawn(samples * 100, np.tile([0.7, 0.1, 0.1, 0.1], 100) / 100, seed=0)
    assert len(picked) == 400
    assert 0.6 < np.mean([sample.id == "0" for sample in picked]) < 0.8
    assert [sample.id for sample in picked[5:8]] == [picked[k].id for k in (5, 6, 7)]


def test_rollouts_of_all_processes_are_gathered_by_step(tmp_path: Path) -> None:
    row = {"id": "a", "task": "ocr", "completion": "x\u2028y", "total": 1.5, "problem": None, "terms": {"edit": 0.5}}
    for rank, steps in enumerate(([0, 0, 1, 3], [0, 1, 2])):
        text = "".join(json.dumps(row | {"step": step, "id": f"{rank}"}, ensure_ascii=False) + "\n" for step in steps)
        (tmp_path / f"rollouts-{rank}.jsonl").write_text(text)
    assert write_parquet(list(tmp_path.glob("rollouts-*.jsonl")), tmp_path / "rollouts.parquet") == 7
    found = pq.read_table(tmp_path / "rollouts.parquet").to_pylist()
    assert [(it["step"], it["id"]) for it in found] == [(0, "0"), (0, "0"), (0, "1"), (1, "0"), (1, "1"), (2, "1"), (3, "0")]
    assert found[0] == row | {"step": 0, "id": "0", "terms": '{"edit": 0.5}'}


def test_questions_about_one_image_make_one_conversation(tmp_path: Path) -> None:
    sample, tasks = some_sample(tmp_path), {"grounding": make_task("grounding")}
    frame = Frame(width=60, height=40, seen_width=60, seen_height=40)
    rows = conversation_dataset([sample] * 5, tasks, lambda _: frame, turns=2)
    assert [len(row["messages"]) for row in rows] == [4, 4, 2]
    assert rows[0]["messages"][1]["content"] == tasks["grounding"].write(sample, frame)


def test_the_frame_of_training_is_what_the_processor_makes(untrained: str) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(untrained)
    frame = processor_frame(processor)
    for width, height in ((60, 40), (640, 480), (33, 300), (2000, 500)):
        sample = Sample(id="a", task="grounding", image="a", width=width, height=height, query="cat", truth=Truth(boxes=np.zeros((0, 4))))
        _, rows, columns = processor.image_processor(images=Image.new("RGB", (width, height)), return_tensors="pt")["image_grid_thw"][0].tolist()
        assert (frame(sample).seen_width, frame(sample).seen_height) == (columns * tiny.PATCH, rows * tiny.PATCH)


def test_group_figures_say_which_term_does_not_vary(tmp_path: Path) -> None:
    sample = some_sample(tmp_path)
    other = Sample(**{**sample.__dict__, "id": "b"})
    malformed = Score(terms={"format": 0.0, "iou": 0.0}, problem="x")
    scores = [Score(terms={"format": 1.0, "iou": 0.2}), Score(terms={"format": 1.0, "iou": 0.6}), malformed, malformed]
    figures = group_figures([sample, sample, other, other], scores)
    assert figures == pytest.approx(
        {"parse_failure_rate": 0.5, "constant/reward": 0.5, "terms/format": 0.5, "constant/format": 1.0, "terms/iou": 0.2, "constant/iou": 0.5}
    )


def test_rollouts_of_steps_to_be_made_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rollouts-0.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3, "cut')
    keep_before(path, 2)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
