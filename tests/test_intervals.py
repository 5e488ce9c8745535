"""Intervals by other definitions, by declared kind, and with their value inside whatever the data is."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.optimize import minimize_scalar
from tests.drawn_statistics import Random, Stats, completed, counting, detection, grounding, ocr

from perception_r1.evaluation import average_precision as ap
from perception_r1.evaluation.breakdown import breakdown
from perception_r1.evaluation.intervals import (
    Z,
    between_limits,
    bounded_interval,
    normal_interval,
    paired_rates_interval,
    percentile_interval,
    wilson,
)
from perception_r1.evaluation.metrics import (
    Reading,
    bootstrap,
    limits,
    paired_difference,
    rates,
    statistics,
    strictly,
    summarise,
)
from perception_r1.records import Answer, Sample, Truth
from perception_r1.study.intervals import mean_figure, metric_figure
from perception_r1.tasks import TASKS, make_task


# --- by other definitions --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("right", "count"), [(0, 7), (3, 7), (7, 7), (1, 200), (120, 200), (0, 1)])
def test_a_rate_has_the_interval_that_scipy_calls_wilsons(right: int, count: int) -> None:
    expected = scipy_stats.binomtest(right, count).proportion_ci(method="wilson")
    column_S = np.arange(count) < right
    found = bootstrap(make_task("grounding"), grounding(column_S * 1.0), resamples=2)["acc@0.5"]
    assert found["ci95"] == pytest.approx([expected.low, expected.high], abs=1e-12)
    assert (found["value"], found["n"]) == (right / count, count)


def least_score(gained: int, lost: int, count: int, difference: float) -> float:
    """Tango's score by a search for the likeliest share of samples that lost, instead of his formula."""
    low, high = max(0.0, -difference), (1 - difference) / 2

    def surprise(share: float) -> float:
        cells = np.array([share + difference, share, 1 - 2 * share - difference])
        seen = np.array([gained, lost, count - gained - lost])
        return float(-(seen[seen > 0] * np.log(np.maximum(cells[seen > 0], 1e-300))).sum())

    share = minimize_scalar(
        surprise, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    error = np.sqrt(count * (2 * share + difference - difference**2))
    return (gained - lost - count * difference) / error


@pytest.mark.parametrize(
    ("gained", "lost", "count"), [(12, 2, 50), (3, 0, 40), (0, 5, 20), (1, 1, 30), (9, 8, 18)]
)
def test_edges_of_a_paired_difference_of_rates_lie_where_the_score_is_z(
    gained: int, lost: int, count: int
) -> None:
    before_S = np.r_[np.zeros(gained), np.ones(lost), np.ones(count - gained - lost)]
    after_S = np.r_[np.ones(gained), np.zeros(lost), np.ones(count - gained - lost)]
    low, high = paired_rates_interval(before_S, after_S)
    assert least_score(gained, lost, count, low) == pytest.approx(Z, abs=1e-3)
    assert least_score(gained, lost, count, high) == pytest.approx(-Z, abs=1e-3)


# --- which kind a figure is ------------------------------------------------------------------------------------------
WITHOUT_LIMITS = {"count_mae", "count_rmse", "cer", "wer", "answer_length"}


@pytest.mark.parametrize("name", TASKS)
def test_every_metric_is_declared_or_has_no_limits(name: str) -> None:
    task, random = make_task(name), np.random.default_rng(0)
    draws = {
        "grounding": lambda: grounding(random.random(9)),
        "counting": lambda: counting(random.poisson(1.0, 9) * 1.0),
    }
    draws |= {"detection": lambda: detection(random, 9, 0.7), "ocr": lambda: ocr(random.random(9))}
    found = set(bootstrap(task, draws[name](), resamples=2))
    inside = {metric for metric in found if limits(task, metric) == (0.0, 1.0)}
    assert found - inside == found & WITHOUT_LIMITS
    assert not rates(task) & set(task.BOUNDED)
    assert set(task.TESTED) - {"AP"} <= found
    assert task.TESTED[0] == task.MAIN_METRIC


def test_a_mean_of_equal_values_is_no_rate_and_has_the_interval_of_one_in_the_worst_case() -> None:
    task = make_task("grounding")
    ones = bootstrap(task, grounding(np.ones(50)), resamples=50)
    assert ones["mean_iou"]["ci95"] == pytest.approx(ones["acc@0.5"]["ci95"])
    assert ones["mean_iou"]["ci95"] == pytest.approx(wilson(1.0, 50))
    half = bootstrap(task, grounding(np.full(50, 0.6)), resamples=50)["mean_iou"]
    assert half["ci95"] == pytest.approx(between_limits(0.6, 50, (0.0, 1.0)))
    assert 0.55 < half["ci95"][0] < half["value"] < half["ci95"][1] < 0.65
    mixed = grounding(
        np.r_[np.ones(45), np.full(5, 0.99)]
    )  # 0/1 by its thresholds, not by its values
    assert bootstrap(task, mixed, resamples=200)["mean_iou"]["ci95"][0] > 0.99


def test_a_rate_that_is_none_is_an_error() -> None:
    with pytest.raises(
        ValueError,
        match=r"grounding: acc@0\.5 is declared to be a rate, but has values other than 0 and 1",
    ):
        bootstrap(
            make_task("grounding"),
            grounding(np.ones(4)) | {"acc@0.5": np.array([0.5, 1, 1, 0])},
            resamples=2,
        )


def test_a_ratio_of_no_boxes_says_nothing() -> None:
    """Nothing predicted: its precision could be anything. Few images with boxes: they are what counts."""
    task, zeros = make_task("detection"), np.zeros(50)
    stats = completed(
        50,
        true=np.ones(50),
        predicted=zeros,
        named=zeros,
        unknown=zeros,
        **{"hits@0.5": zeros, "hits@0.75": zeros},
    )
    found = bootstrap(task, stats, resamples=20)
    assert found["precision@0.5"]["ci95"] == found["unknown_label_rate"]["ci95"] == [0.0, 1.0]
    assert found["recall@0.5"]["ci95"] == pytest.approx(wilson(0.0, 50))
    two = stats | {
        "predicted": np.r_[3.0, 3.0, np.zeros(48)],
        "named": np.r_[3.0, 3.0, np.zeros(48)],
    }
    assert bootstrap(task, two, resamples=20)["precision@0.5"]["ci95"] == pytest.approx(
        wilson(0.0, 2)
    )


def test_what_has_no_limits_has_no_interval_where_all_samples_are_equal() -> None:
    found = bootstrap(make_task("counting"), counting(np.full(30, 2.0)), resamples=20)
    assert found["count_mae"] == {"value": 2.0, "ci95": None, "n": 30}
    assert (
        paired_difference(make_task("counting"), counting(np.ones(9)), counting(np.ones(9)))[
            "count_mae"
        ]["ci95"]
        is None
    )


# --- every interval holds its value and has a width ------------------------------------------------------------------
def odd_stats(random: Random, name: str) -> Stats:
    """Statistics that are often all equal, of few samples or many; values such as 0.1 that are not exact."""
    count = int(random.choice([1, 2, 3, 7, 30]))
    part = float(random.choice([0.0, 0.1, 0.9, 1.0]))
    value_S = np.where(
        random.random(count) < part, random.choice([0.1, 0.3, 1.0]), random.choice([0.0, 0.7])
    )
    if name == "grounding":
        return grounding(
            value_S, parse_failure_rate=random.random(count) < part / 3, answer_length=value_S * 37
        )
    if name == "counting":
        return counting(np.round(value_S * random.choice([0, 1, 3])))
    if name == "ocr":
        return ocr(value_S)
    true_S = random.integers(0, 4, count) * (random.random(count) < 0.9)
    hits_S = np.round(true_S * (value_S > 0.5))
    predicted_S = hits_S + np.round(value_S * random.choice([0, 3]))
    named = {"named": predicted_S, "unknown": np.minimum(predicted_S, random.choice([0, 1]))}
    return completed(
        count,
        true=true_S,
        predicted=predicted_S,
        **{"hits@0.5": hits_S, "hits@0.75": hits_S},
        **named,
    )


def check(metric: str, entry: dict, least: float, greatest: float) -> None:
    if entry["ci95"] is None:
        assert metric in WITHOUT_LIMITS, metric
        return
    low, high = entry["ci95"]
    assert least <= low <= entry["value"] <= high <= greatest, (metric, entry)
    assert low < high, (metric, entry)


@pytest.mark.parametrize("name", TASKS)
def test_a_value_lies_within_its_interval_which_has_a_width(name: str) -> None:
    random, task = np.random.default_rng(16), make_task(name)
    for simulation in range(300):
        before, after = odd_stats(random, name), odd_stats(random, name)
        for metric, entry in bootstrap(task, before, seed=simulation, resamples=20).items():
            check(metric, entry, *limits(task, metric))
        if len(before["answer_length"]) == len(after["answer_length"]):
            for metric, entry in paired_difference(
                task, before, after, seed=simulation, resamples=20
            ).items():
                low, high = limits(task, metric)
                check(metric, entry, low - high, high - low)


def test_the_same_run_twice_differs_by_an_interval_around_nothing() -> None:
    stats = grounding(np.full(300, 0.1))
    for metric, entry in paired_difference(
        make_task("grounding"), stats, stats, resamples=30
    ).items():
        if metric != "answer_length":
            assert entry["ci95"] == pytest.approx([-0.0126, 0.0126], abs=1e-4), metric


def test_a_perfect_or_an_empty_average_precision_has_a_width() -> None:
    random = np.random.default_rng(17)
    samples = []
    for index in range(12):
        corner_22 = random.uniform(0, 50, (2, 2))
        truth = Truth(
            boxes=np.concatenate([corner_22, corner_22 + np.array([20, 60])], axis=1),
            labels=("dog", "cat"),
        )
        fields = {
            "task": "detection",
            "image": "a.png",
            "width": 200,
            "height": 200,
            "query": "",
            "truth": truth,
        }
        samples.append(Sample(id=f"s{index}", **fields))
    right = [
        Answer(boxes=sample.truth.needed_boxes(), labels=sample.truth.labels) for sample in samples
    ]
    perfect, nothing = (
        ap.coco_ap(samples, answers, resamples=5) for answers in (right, [None] * 12)
    )
    assert perfect["AP"]["ci95"] == pytest.approx(wilson(1.0, 12))
    assert nothing["AP"]["ci95"] == pytest.approx(wilson(0.0, 12))
    assert perfect["APl"] == {"value": None, "ci95": None, "n": 12}
    same = ap.coco_ap_difference(samples, right, right, resamples=5, permutations=9)
    assert same["AP"]["ci95"] == pytest.approx(between_limits(0.0, 12, (-1.0, 1.0)))


def test_figures_of_a_study_that_do_not_vary_have_a_width() -> None:
    equal = mean_figure([[0.5] * 40, [0.5] * 40], (0.0, 4.0))
    low, high = equal.interval()
    assert 0 <= low < 0.5 < high < 1
    assert equal.minus(equal).interval() == pytest.approx(
        tuple(between_limits(0.0, 40, (-4.0, 4.0)))
    )
    perfect = metric_figure(make_task("counting"), [counting(np.zeros(40))], "count_acc")  # type: ignore[arg-type]
    assert perfect.interval() == pytest.approx(tuple(wilson(1.0, 40)))


# --- strict reading, parts of the data -------------------------------------------------------------------------------
def test_rates_of_strict_reading_and_of_parts_have_wilsons_interval_too() -> None:
    task, truth = (
        make_task("grounding"),
        Truth(boxes=np.array([[10.0, 10, 60, 60]]), labels=("dog",)),
    )
    fields = {
        "task": "grounding",
        "image": "a.png",
        "width": 100,
        "height": 100,
        "query": "dog",
        "truth": truth,
    }
    samples = [Sample(id=f"s{k}", **fields) for k in range(20)]
    exact = [
        Reading(Answer(boxes=truth.needed_boxes(), labels=("dog",), exact=k > 2)) for k in range(20)
    ]
    stats = statistics(task, samples, exact)
    strict = summarise(task, samples, strictly(exact), resamples=20)
    assert strict["acc@0.5"]["ci95"] == pytest.approx(wilson(17 / 20, 20))
    assert strict["parse_failure_rate"]["ci95"] == pytest.approx(wilson(3 / 20, 20))
    part = breakdown(task, samples, exact, stats)["size"]["medium"]
    assert part["ci95"]["acc@0.5"] == pytest.approx(wilson(1.0, 20))
    assert set(part["ci95"]) == {
        "acc@0.5",
        "acc@0.75",
        "acc@0.95",
        "parse_failure_rate",
        "truncated_rate",
    }
    assert (part["acc@0.5"], part["n"]) == (1.0, 20)


# --- pieces ----------------------------------------------------------------------------------------------------------
def test_percentiles_leave_out_what_is_undefined_and_hold_the_value() -> None:
    draws_R = np.array([np.nan, 0.2, 0.3, 0.4])
    assert percentile_interval(0.3, draws_R) == pytest.approx([0.205, 0.395])
    assert percentile_interval(0.9, draws_R) == pytest.approx([0.205, 0.9])
    assert percentile_interval(0.3, np.full(9, np.nan)) is None
    assert normal_interval(0.3, np.array([0.2, np.nan]), size=9, limits=(0, 1)) is None


def test_values_that_spread_little_have_a_narrow_interval_by_the_effective_number_of_samples() -> (
    None
):
    random = np.random.default_rng(18)
    draws_R = random.normal(0.9, 0.01, 4000)
    low, high = bounded_interval(0.9, draws_R, samples=100, carrying=100)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.01, rel=0.05)
    assert 0.9 - low > high - 0.9
