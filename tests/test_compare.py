"""Intervals that cover, p-values against scipy's, and two runs compared from their folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from perception_r1.data.samples import write_samples
from perception_r1.evaluation.compare import compare_runs, permutation_p
from perception_r1.evaluation.intervals import holm, paired_rates_interval
from perception_r1.evaluation.metrics import bootstrap
from perception_r1.evaluation.run import evaluate
from perception_r1.records import BadData, Sample, Truth
from perception_r1.tasks import make_task

RATES = ("parse_failure_rate", "truncated_rate", "answer_length")


def grounding_stats(iou_S: np.ndarray) -> dict[str, np.ndarray]:
    accuracy = {f"acc@{at}": (iou_S >= at).astype(float) for at in (0.5, 0.75, 0.95)}
    return {"mean_iou": iou_S, **accuracy, **{name: np.zeros(len(iou_S)) for name in RATES}}


def detection_stats(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Images with 1 + Poisson(3) objects; an object is found with a chance of 0.7, and there are Poisson(1) false boxes."""
    true = 1 + random.poisson(3, count)
    hits = random.binomial(true, 0.7)
    columns = {"true": true, "hits@0.5": hits, "hits@0.75": hits // 2, "predicted": hits + random.poisson(1, count)}
    return {**{name: column.astype(float) for name, column in columns.items()}, **{name: np.zeros(count) for name in RATES}}


# --- intervals -------------------------------------------------------------------------------------------------------
def test_95_percent_intervals_cover_the_truth_in_93_to_97_of_100_simulations() -> None:
    """A mean, a proportion and a ratio of sums, 2,000 data sets of 200 samples each; the true values are known."""
    random, inside = np.random.default_rng(0), {"mean_iou": 0, "acc@0.75": 0, "f1@0.5": 0}
    truths = {"mean_iou": 4 / 6, "acc@0.75": 1 - float(scipy_stats.beta(4, 2).cdf(0.75)), "f1@0.5": 2 * 2.8 / (4 + 2.8 + 1)}
    for simulation in range(2000):
        options = {"seed": simulation, "resamples": 500}
        found = bootstrap(make_task("grounding"), grounding_stats(random.beta(4, 2, 200)), **options)
        found |= bootstrap(make_task("detection"), detection_stats(random, 200), **options)
        for name, truth in truths.items():
            low, high = found[name]["ci95"]
            inside[name] += low <= truth <= high
    assert all(1860 <= count <= 1940 for count in inside.values()), inside


# --- p-values --------------------------------------------------------------------------------------------------------
def test_the_permutation_test_is_scipys_exact_one() -> None:
    random = np.random.default_rng(2)
    before, after = random.random(10), random.random(10) * 0.8 + 0.3
    options = {"permutation_type": "samples", "vectorized": True}
    expected = scipy_stats.permutation_test((after, before), lambda a, b, axis: np.mean(a - b, axis=axis), **options)
    found = permutation_p(make_task("grounding"), grounding_stats(before), grounding_stats(after))
    assert 0.001 < expected.pvalue < 0.5
    assert found["mean_iou"] == pytest.approx(expected.pvalue, abs=0.012)


def test_for_right_and_wrong_answers_it_is_mcnemars_exact_test() -> None:
    before, after = np.r_[np.ones(60), np.zeros(14), np.ones(5)], np.r_[np.ones(60), np.ones(14), np.zeros(5)]
    expected = scipy_stats.binomtest(5, 19, 0.5).pvalue
    assert permutation_p(make_task("grounding"), grounding_stats(before), grounding_stats(after))["acc@0.5"] == pytest.approx(expected, abs=0.012)


def test_two_equal_runs_differ_in_nothing() -> None:
    same = grounding_stats(np.random.default_rng(3).random(30))
    assert set(permutation_p(make_task("grounding"), same, same, permutations=99).values()) == {1.0}


def test_under_no_difference_five_of_a_hundred_p_values_are_below_five_percent() -> None:
    random, low = np.random.default_rng(4), 0
    for simulation in range(400):
        runs = (detection_stats(random, 60), detection_stats(random, 60))
        low += permutation_p(make_task("detection"), *runs, seed=simulation, permutations=199)["f1@0.5"] <= 0.05
    assert 9 <= low <= 33  # the binomial's middle 99.8 %


def test_holm_is_the_least_level_at_which_the_step_down_test_rejects() -> None:
    p_values = [0.04, 0.001, 0.02, 0.3, 0.012]

    def rejected(level: float) -> set[int]:
        found: set[int] = set()
        for rank, index in enumerate(np.argsort(p_values)):
            if p_values[index] * (len(p_values) - rank) > level:
                break
            found.add(int(index))
        return found

    for index, adjusted in enumerate(holm(p_values)):
        assert index in rejected(adjusted + 1e-12)
        assert index not in rejected(adjusted - 1e-9)


# --- two folders -----------------------------------------------------------------------------------------------------
def run(folder: Path, name: str, shift: float, task: str = "grounding", count: int = 24) -> Path:
    """A run on `count` samples whose answers miss the true box by up to `shift` pixels."""
    random, samples, lines = np.random.default_rng(5), [], []
    for index in range(count):
        x, y = random.uniform(0, 50, 2)
        truth = Truth(boxes=np.array([[x, y, x + 40, y + 30]]), labels=("dog",))
        samples.append(Sample(id=f"s{index}", task=task, image="a.png", width=100, height=100, query="dog", truth=truth, root=folder))
        moved = (truth.needed_boxes() + random.uniform(0, shift)).clip(0, 100).tolist()[0]
        lines.append({"id": f"s{index}", "completion": f"dog: {moved}"})
    write_samples(samples, folder / f"{task}.jsonl")
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options: dict[str, Any] = {"dialect": "plain", "resamples": 20, "ap_resamples": 2}
    evaluate(data=str(folder / f"{task}.jsonl"), predictions=folder / f"{name}.jsonl", output=folder / name, **options)
    return folder / name


def test_a_better_run_is_found_better_and_its_figures_are_those_of_the_runs(tmp_path: Path) -> None:
    worse, better = run(tmp_path, "worse", 20), run(tmp_path, "better", 6)
    found = compare_runs(worse, better)
    assert (found["task"], found["samples"], found["notes"]) == ("grounding", 24, [])
    change = found["metrics"]["mean_iou"]
    assert change["value"] == pytest.approx(change["b"] - change["a"])
    assert 0 < change["ci95"][0] <= change["value"] <= change["ci95"][1]
    assert change["p"] < 0.001
    assert change["p"] <= change["p_holm"] < 0.05
    unchanged = {"a": 0, "b": 0, "value": 0, "ci95": paired_rates_interval(np.zeros(24), np.zeros(24)), "p": 1, "p_holm": None}
    assert found["metrics"]["parse_failure_rate"] == unchanged
    written = json.loads((better / "metrics.json").read_text())["metrics"]
    assert {name: entry["b"] for name, entry in found["metrics"].items()} == {name: entry["value"] for name, entry in written.items()}


def test_detection_is_compared_by_average_precision_too_while_the_data_is_there(tmp_path: Path) -> None:
    worse, better = run(tmp_path, "worse", 20, "detection"), run(tmp_path, "better", 6, "detection")
    found = compare_runs(worse, better, ap_resamples=20)["metrics"]
    assert found["AP"]["value"] == pytest.approx(found["AP"]["b"] - found["AP"]["a"])
    assert found["AP"]["ci95"][0] > 0
    assert found["AP"]["p"] == pytest.approx(1 / 500)
    assert found["AP"]["p_holm"] <= 2 / 500
    (tmp_path / "detection.jsonl").unlink()
    found = compare_runs(worse, better)
    assert "AP" not in found["metrics"]
    assert found["notes"][0].startswith("COCO's figures are not compared, since the data cannot be loaded: ")


def test_only_the_main_metrics_are_adjusted_for_each_other_and_come_first(tmp_path: Path) -> None:
    """Holm over AP and f1@0.5, not over lengths, constants and twelve figures of the same thing."""
    worse, better = run(tmp_path, "worse", 20, "detection"), run(tmp_path, "better", 6, "detection")
    found = compare_runs(worse, better, ap_resamples=5)
    assert found["tested"] == list(found["metrics"])[:2] == ["f1@0.5", "AP"]
    adjusted = {name: entry["p_holm"] for name, entry in found["metrics"].items() if entry["p_holm"] is not None}
    raw = [found["metrics"][name]["p"] for name in found["tested"]]
    assert adjusted == dict(zip(found["tested"], holm(raw), strict=True))
    assert found["metrics"]["answer_length"]["p"] <= 1
    (tmp_path / "detection.jsonl").unlink()
    assert compare_runs(worse, better)["tested"] == ["f1@0.5"]
    better = run(tmp_path, "better", 6)
    assert compare_runs(run(tmp_path, "worse", 20), better)["tested"] == ["mean_iou", "acc@0.5"]


def test_runs_on_other_data_or_tasks_are_refused(tmp_path: Path) -> None:
    one, other, task = run(tmp_path, "one", 6), run(tmp_path, "other", 6, count=23), run(tmp_path, "task", 6, "detection")
    with pytest.raises(BadData, match="found data hash"):
        compare_runs(one, other)
    with pytest.raises(BadData, match="found task grounding and detection"):
        compare_runs(one, task)
    with pytest.raises(BadData, match=r"found no metrics\.json"):
        compare_runs(one, tmp_path / "nothing")
    shutil.copytree(one, tmp_path / "shorter")
    lines = (one / "per_sample.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "shorter" / "per_sample.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(BadData, match="found other samples"):
        compare_runs(one, tmp_path / "shorter")


# --- what a run writes for the report --------------------------------------------------------------------------------
def test_lines_a_sample_are_in_order_and_say_what_was_wrong(tmp_path: Path) -> None:
    folder = run(tmp_path, "one", 6, "detection", count=3)
    lines = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    lines[0]["completion"], lines[2]["completion"] = "no idea", f"{lines[2]['completion']}\nThat is all."
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = evaluate(data=str(tmp_path / "detection.jsonl"), predictions=tmp_path / "one.jsonl", output=folder, dialect="plain", resamples=20)
    rows = [json.loads(line) for line in (folder / "per_sample.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["s0", "s1", "s2"]
    assert rows[0]["problem"].startswith("expected boxes as plain writes them, found 'no idea'")
    assert rows[0]["answer"] is None
    assert [row["problem"] for row in rows[1:]] == [None, None]
    assert [row["exact"] for row in rows] == [False, True, False]
    assert [row["measures"]["f1@0.5"] for row in rows] == [0, 1, 1]
    assert found["metrics"]["recall@0.5"]["value"] == pytest.approx(2 / 3)
    assert found["strict"]["recall@0.5"]["value"] == pytest.approx(1 / 3)
    assert found["strict"]["parse_failure_rate"]["value"] == pytest.approx(2 / 3)
    assert set(found["strict"]) == set(found["metrics"])
    assert found["breakdown"]["class"]["dog"]["recall@0.5"] == pytest.approx(2 / 3)
    assert found["breakdown"]["class"]["dog"]["n"] == 3
    assert found["breakdown"]["class"]["cat"]["AP"] is None
    assert [found["breakdown"]["size"][size]["n"] for size in ("small", "medium", "large")] == [0, 3, 0]


def test_counts_are_broken_down_by_the_true_count(tmp_path: Path) -> None:
    samples, lines = [], []
    for index, (true, said) in enumerate([(0, 0), (2, 2), (2, 5), (15, 15), (40, 41)]):
        samples.append(Sample(id=f"s{index}", task="counting", image="a.png", width=100, height=100, query="bird", truth=Truth(count=true)))
        text = "".join(f"({k},{k}),({k + 9},{k + 9})" for k in range(said)) or "none"
        lines.append(json.dumps({"id": f"s{index}", "completion": text}) + "\n")
    write_samples(samples, tmp_path / "data.jsonl")
    (tmp_path / "a.jsonl").write_text("".join(lines))
    found = evaluate(data=str(tmp_path / "data.jsonl"), predictions=tmp_path / "a.jsonl", output=tmp_path / "out", resamples=20)
    parts = found["breakdown"]["count"]
    assert {name: (part["count_acc"], part["n"]) for name, part in parts.items()} == {"0": (1, 1), "2": (0.5, 2), "11-20": (1, 1), "21+": (0, 1)}
    assert parts["21+"]["count_within1"] == 1
    assert sum(part["n"] for part in parts.values()) == found["data"]["samples"]
