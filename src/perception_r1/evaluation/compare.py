"""Two runs on the same samples: paired differences with intervals and p-values, from what `evaluate` wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.mixture import load_data
from ..records import BadData, Sample
from ..tasks import Task, make_task
from .average_precision import coco_ap_difference
from .folders import read_metrics
from .intervals import holm, share_as_extreme, swaps
from .metrics import Statistics, metrics_of_means, paired_difference
from .per_sample import answer_of_row, read_per_sample, statistics_of_rows

PERMUTATIONS = 9_999


def compare_runs(
    dir_a: str | Path,
    dir_b: str | Path,
    *,
    seed: int = 0,
    resamples: int = 1000,
    permutations: int = PERMUTATIONS,
    ap_resamples: int | None = 100,
) -> dict[str, Any]:
    """What run B changes against run A: `{"task", "samples", "metrics", "tested", "notes"}`.

    `metrics` are `{name: {"a", "b", "value", "ci95", "p", "p_holm"}}`: `value` is B minus A with
    its 95 % interval; `p` is two-sided, of a permutation test that swaps the two runs on random
    samples. `tested` are the task's main metrics (`Task.TESTED`) that are there, and come first:
    their `p_holm` is adjusted for how many they are (Holm 1979). That of all others is None, and
    their `p` is not adjusted. COCO's figures are there when the data can still be loaded, else `notes` says why not;
    `ap_resamples` None leaves them out, since they take half a second a resample for 5,000 images.
    Raises BadData for runs of different tasks or data.
    """
    folders = [Path(dir_a), Path(dir_b)]
    results, rows = [read_metrics(folder) for folder in folders], [read_per_sample(folder) for folder in folders]
    _check_same(folders, results, rows)
    task = make_task(results[0]["task"])
    stats_a, stats_b, notes = _common(*(statistics_of_rows(some) for some in rows))
    changes = paired_difference(task, stats_a, stats_b, seed=seed, resamples=resamples)
    p_values = permutation_p(task, stats_a, stats_b, seed=seed, permutations=permutations)
    changes = {name: entry | {"p": p_values[name]} for name, entry in changes.items()}
    if task.name == "detection" and ap_resamples is not None:
        ap, more = _ap_changes(results[0], rows, seed, ap_resamples)
        changes, notes = ap | changes, notes + more
    adjusted = _adjusted(task, changes)
    values = [result["metrics"] for result in results]
    metrics = {}
    for name in dict.fromkeys([*adjusted, *changes]):
        sides = {"a": _value(values[0], name), "b": _value(values[1], name)}
        metrics[name] = {**sides, **changes[name], "p_holm": adjusted.get(name)}
    about = {"task": task.name, "samples": len(rows[0])}
    return {**about, "metrics": metrics, "tested": list(adjusted), "notes": notes}


def _adjusted(task: Task, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The adjusted p-values of the main metrics that are there."""
    tested = [name for name in task.TESTED or (task.MAIN_METRIC,) if name in changes]
    return dict(zip(tested, holm([changes[name]["p"] for name in tested]), strict=True))


def permutation_p(task: Task, before: Statistics, after: Statistics, *, seed: int = 0, permutations: int = PERMUTATIONS) -> dict[str, float]:
    """Two-sided p-value of every metric's paired difference, when which run an answer came from is a coin toss for each sample.

    A Monte Carlo permutation test with the observed assignment counted in, so that p is never 0 (Phipson and Smyth 2010).
    """
    names = list(before)
    first_SK, second_SK = (np.stack([stats[name] for name in names], axis=1) for stats in (before, after))
    change_SK, count = second_SK - first_SK, len(first_SK)
    blocks = [swap_RS @ change_SK / count for swap_RS in swaps(count, seed=seed, permutations=permutations)]
    moved_RK = np.concatenate([np.zeros((1, len(names))), *blocks])  # row 0: nothing swapped

    def metrics(means_RK: np.ndarray) -> dict[str, np.ndarray]:
        return metrics_of_means(task, dict(zip(names, means_RK.T, strict=True)))

    low, high = metrics(first_SK.mean(0) + moved_RK), metrics(second_SK.mean(0) - moved_RK)
    return {name: share_as_extreme(high[name] - low[name]) for name in low}


def _check_same(folders: Sequence[Path], results: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    where = f"{folders[0]} and {folders[1]}"
    for what, found in (("task", [it["task"] for it in results]), ("data hash", [it["data"].get("sha256") for it in results])):
        if found[0] != found[1]:
            raise BadData(f"{where}: found {what} {found[0]} and {found[1]}, expected the same: only runs on the same data can be paired")
    if [row["id"] for row in rows[0]] != [row["id"] for row in rows[1]]:
        raise BadData(f"{where}: found other samples in the one than in the other ({len(rows[0])} and {len(rows[1])}), expected the same in order")


def _common(stats_a: Statistics, stats_b: Statistics) -> tuple[Statistics, Statistics, list[str]]:
    names = [name for name in stats_a if name in stats_b]
    left = sorted(set(stats_a) ^ set(stats_b))
    notes = [f"not compared, measured in one run alone: {', '.join(left)}"] if left else []
    return {name: stats_a[name] for name in names}, {name: stats_b[name] for name in names}, notes


def _ap_changes(
    result: Mapping[str, Any], rows: Sequence[Sequence[Mapping[str, Any]]], seed: int, resamples: int
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    try:
        samples = _samples(str(result["data"]["path"]), rows[0])
    except BadData as problem:
        return {}, [f"COCO's figures are not compared, since the data cannot be loaded: {problem}"]
    answers = [[answer_of_row(row) for row in some] for some in rows]
    found = coco_ap_difference(samples, *answers, seed=seed, resamples=resamples)
    return {name: entry for name, entry in found.items() if entry["value"] is not None}, []


def _samples(spec: str, rows: Sequence[Mapping[str, Any]]) -> list[Sample]:
    by_id = {sample.id: sample for sample in load_data(spec, "detection")}
    if missing := next((row["id"] for row in rows if row["id"] not in by_id), None):
        raise BadData(f"{spec}: found no sample {missing!r}, expected the data of the runs")
    return [by_id[row["id"]] for row in rows]


def _value(metrics: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    return metrics[name]["value"] if name in metrics else None
