"""Runs a study's runs, one after the other, each once: train, measure, keep the result. What was stopped goes on where it was."""

import json
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from ..data.mixture import load_data
from ..data.samples import replacing, write_samples
from ..evaluation.asking import check_images, load_backend
from ..evaluation.metrics import check_installed
from ..evaluation.per_sample import read_per_sample, statistics_of_rows
from ..evaluation.probe import ProbeSettings, log10_mean_factorial, objects_of, probe, sampled_groups
from ..evaluation.run import evaluate, main_metric
from ..policy import SETTINGS_FILE
from ..records import BadData, Sample
from ..tasks import make_task
from .grid import LIMITS, Run, Step, hash_of

RESULT = "result.json"
ERROR = "error.txt"
TRAINING = "training.json"


def folder_of(run: Run, root: Path) -> Path:
    """Where a run lies, whichever studies share it."""
    return root / "runs" / run.key


def result_of(run: Run, root: Path) -> dict[str, Any] | None:
    """What a run gave, or None while it has not ended."""
    path = folder_of(run, root) / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def check(runs: Sequence[Run]) -> None:
    """Raises BadData, before anything is trained, for data or packages that a run would miss hours later."""
    for data, task in dict.fromkeys((step.settings["data"], run.measurement["task"]) for run in runs for step in run.steps):
        check_images(load_data(data, task))
    for data, task in dict.fromkeys((run.measurement["eval_data"], run.measurement["task"]) for run in runs):
        check_images(load_data(data, task))
        check_installed(make_task(task))


def conduct(runs: Sequence[Run], root: Path, *, budget: float | None = None, most: int | None = None) -> tuple[int, list[str]]:
    """Does the runs that are pending; after `budget` minutes, or `most` runs, it begins no other. Returns how many it began, and a line for
    each that failed: the others are done all the same, and the next call tries it again. A run that another process is doing is left to it.
    """
    clock, begun, failed = time.monotonic(), 0, []
    for number, run in enumerate(runs, 1):
        folder = folder_of(run, root)
        if (folder / RESULT).is_file():
            continue
        if begun == most or (budget is not None and time.monotonic() - clock >= 60 * budget):
            break
        with _claimed(folder) as mine:
            if not mine or (folder / RESULT).is_file():
                continue
            Console().print(f"[bold]run {number} of {len(runs)}[/]: {run.domain}, {run.arm}, seed {run.seed} ({folder})", soft_wrap=True)
            begun += 1
            try:
                result = execute(run, root)
            except Exception as problem:  # noqa: BLE001 - whatever it is, it must not cost the other runs
                (folder / ERROR).write_text(traceback.format_exc(), encoding="utf-8")
                failed.append(f"{run.domain}, {run.arm}, seed {run.seed}: {problem} ({folder / ERROR})")
                continue
            with replacing(folder / RESULT) as part:
                part.write_text(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
            (folder / ERROR).unlink(missing_ok=True)
    return begun, failed


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether this process, and no other on this machine, has the folder's run; a process that dies lets it go."""
    from filelock import FileLock, Timeout  # comes with torch; a table of kept runs needs neither

    folder.mkdir(parents=True, exist_ok=True)
    claim = FileLock(folder / ".claim")
    try:
        claim.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        claim.release()


def execute(run: Run, root: Path) -> dict[str, Any]:
    """Trains and measures one run; returns its result. Trainings that are in its folder already are not done again."""
    folder = folder_of(run, root)
    model, curve, seconds = run.model, [], 0.0
    for number, step in enumerate(run.steps, 1):
        output = folder / f"{number}-{step.command}"
        begun = time.process_time()
        if not (output / SETTINGS_FILE).is_file():
            _train(step, model, output, root)
        training = _tidied(output, time.process_time() - begun)
        model, curve, seconds = str(output), training["curve"], seconds + training["cpu_seconds"]
    begun = time.process_time()
    about = {"domain": run.domain, "seed": run.seed, "model": run.model, "steps": [step.asked() for step in run.steps], "curve": curve}
    result = _measure(run, model, folder)
    return about | result | {"cpu_minutes": (seconds + time.process_time() - begun) / 60}


def _train(step: Step, model: str, output: Path, root: Path) -> None:
    from ..training import grpo, sft

    recipe, settings = output.with_suffix(".yaml"), dict(step.settings)
    if settings.get("curriculum") and not settings.get("difficulty"):
        settings["difficulty"] = str(_difficulty(settings, model, root))
    if step.part:
        settings["data"] = str(_part_of(settings, step.part, output.with_suffix(".jsonl")))
    with replacing(recipe) as part:
        part.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    train = {"sft": sft.run, "grpo": grpo.run}[step.command]
    train(str(recipe), ["--model", model, "--output_dir", str(output), "--resume", "true"])


def _part_of(settings: Mapping[str, Any], part: str, path: Path) -> Path:
    """A sample file with a part of the data, as 1/2: parts of one seed have no sample in common."""
    samples = load_data(settings["data"], settings["task"])
    if np.ptp(samples.probabilities()) > 1e-12:
        raise BadData(f"data {settings['data']!r}: found weights, which an arm with part {part} cannot keep: expected files without weights")
    which, parts = map(int, part.split("/"))
    order_S = np.random.default_rng(settings["seed"]).permutation(len(samples))
    write_samples((samples[k] for k in np.array_split(order_S, parts)[which - 1]), path)
    return path


def _difficulty(settings: Mapping[str, Any], model: str, root: Path) -> Path:
    """What the model's answers to the training samples earn before the training, for its curriculum; runs that ask for the same share it."""
    limits = {key: settings[key] for key in LIMITS if settings.get(key)}
    asked = {"model": model, **{key: settings[key] for key in ("data", "task", "seed", "max_completion_length")}, **limits}
    path = root / "difficulty" / f"{hash_of(asked)}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing = ProbeSettings(num_generations=8, batch_size=128, max_new_tokens=settings["max_completion_length"], seed=settings["seed"], **limits)
        probe(settings["data"], model=model, task=settings["task"], settings=drawing, save_difficulty=path)
    return path


def _tidied(output: Path, cpu_seconds: float) -> dict[str, Any]:
    """The curve of an ended training, and what it cost the process that ended it; checkpoints, several times the policy, make way."""
    checkpoints = sorted(output.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    if checkpoints and not (output / TRAINING).is_file():  # with it, a kill came while the checkpoints were removed
        history = json.loads((checkpoints[-1] / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        with replacing(output / TRAINING) as part:
            part.write_text(json.dumps({"curve": curve_of(history), "cpu_seconds": cpu_seconds}), encoding="utf-8")
    for checkpoint in checkpoints:
        shutil.rmtree(checkpoint)
    return json.loads((output / TRAINING).read_text(encoding="utf-8"))


def curve_of(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Step, reward of the rollouts and seconds of training so far, a row a log of GRPO; TRL logs the mean seconds of a step.

    >>> curve_of([{"step": 2, "reward": 1.0, "step_time": 3.0}, {"step": 3, "reward": 1.5, "step_time": 4.0}, {"train_loss": 0.1}])
    [{'step': 2, 'reward': 1.0, 'seconds': 6.0}, {'step': 3, 'reward': 1.5, 'seconds': 10.0}]
    """
    curve, seconds, before = [], 0.0, 0
    for row in history:
        if "reward" in row:
            seconds += row["step_time"] * (row["step"] - before)
            before = row["step"]
            curve.append({"step": before, "reward": row["reward"], "seconds": seconds})
    return curve


def _measure(run: Run, model: str, folder: Path) -> dict[str, Any]:
    given = dict(run.measurement)
    data, name = given["eval_data"], given["task"]
    decoding = {key: given[key] for key in ("batch_size", "max_new_tokens", "thinking")} | run.limits
    found = evaluate(data=data, model=model, task=name, output=folder / "evaluation", **decoding)
    samples = load_data(data, name)
    stats = statistics_of_rows(read_per_sample(folder / "evaluation"))
    return {
        "task": name,
        "main_metric": main_metric(name, found["metrics"]),
        "data": found["data"],
        "versions": found["versions"],
        "metrics": found["metrics"],
        "statistics": {stat: column.tolist() for stat, column in stats.items()},
        "sampled": _sampled(run, model, samples) if given["samples"] else [],
        "bounds": make_task(name).bounds(),
        "log10_perplexity": log10_mean_factorial(Counter(objects_of(sample) for sample in samples)),
    }


def _sampled(run: Run, model: str, samples: Sequence[Sample]) -> list[float]:
    """What each held-out sample's drawn answers earn on average, with all terms and Hungarian matching, whatever the training rewarded."""
    given = run.measurement
    settings = ProbeSettings(
        num_generations=given["samples"], temperature=given["temperature"], batch_size=given["batch_size"] * given["samples"], seed=run.seed,
        max_new_tokens=given["max_new_tokens"], thinking=given["thinking"], **run.limits,
    )  # fmt: skip
    groups = sampled_groups(load_backend(model, samples, **run.limits), samples, settings)
    return [sum(score.total for score in group.scores) / len(group.scores) for group in groups]
