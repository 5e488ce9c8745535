"""What intervals cover, kind by kind, in simulations; and that a value lies within its own, whatever the data."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.optimize import minimize_scalar
from tests.ap_scenes import random_tables

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
    ALWAYS,
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

Random = np.random.Generator
Stats = dict[str, np.ndarray]


def completed(count: int, **columns: np.ndarray) -> Stats:
    """These statistics, and none of the answers malformed or cut off."""
    rest = {name: np.zeros(count) for name in ALWAYS if name not in columns}
    return {name: np.asarray(column, dtype=float) for name, column in columns.items()} | rest


def grounding(iou_S: np.ndarray, **columns: np.ndarray) -> Stats:
    accuracy = {f"acc@{at}": iou_S >= at for at in (0.5, 0.75, 0.95)}
    return completed(len(iou_S), mean_iou=iou_S, **accuracy, **columns)


def counting(error_S: np.ndarray) -> Stats:
    near = {"count_acc": error_S == 0, "count_within1": error_S <= 1}
    return completed(
        len(error_S), **near, count_mae=error_S, squared=error_S**2, distance_score=error_S == 0
    )


def detection(random: Random, count: int, recall: float) -> Stats:
    """Images with 1 + Poisson(4) objects, of which some images have all found and others few: boxes are clustered."""
    true_S = 1 + random.poisson(4, count)
    hits_S = random.binomial(true_S, random.beta(3 * recall, 3 * (1 - recall), count))
    columns = {
        "true": true_S,
        "hits@0.5": hits_S,
        "hits@0.75": hits_S // 2,
        "predicted": hits_S + random.poisson(1, count),
    }
    return completed(count, **columns)


def ocr(distance_S: np.ndarray) -> Stats:
    names = ("edit_distance", "f1", "precision", "recall", "bleu", "meteor")
    length_S = np.full(len(distance_S), 100.0)
    edits = {
        "character_edits": distance_S * 100,
        "word_edits": distance_S * 50,
        "characters": length_S,
        "words": length_S,
    }
    return completed(len(distance_S), **dict.fromkeys(names, distance_S), **edits)


# --- coverage --------------------------------------------------------------------------------------------------------
COVERED: dict[str, tuple[str, str, float, Callable[[Random], Stats]]] = {
    "a rare right answer": ("grounding", "acc@0.5", 0.02, lambda r: grounding((r.random(50) < 0.02) * 1.0)),
    "a rate near 1": ("grounding", "acc@0.95", 0.98, lambda r: grounding((r.random(50) < 0.98) * 1.0)),
    "a rate of a half": ("counting", "count_acc", 0.5, lambda r: counting((r.random(20) < 0.5) * 2.0)),
    "rare malformed answers": (
        "grounding", "parse_failure_rate", 0.02,
        lambda r: grounding(r.random(50), parse_failure_rate=r.random(50) < 0.02),
    ),
    "cut off answers": (
        "grounding", "truncated_rate", 0.05, lambda r: grounding(r.random(30), truncated_rate=r.random(30) < 0.05),
    ),
    "a mean": ("grounding", "mean_iou", 2 / 3, lambda r: grounding(r.beta(4, 2, 50))),
    "a mean of 0 or 1": ("counting", "distance_score", 0.96, lambda r: counting((r.random(50) > 0.96) * 2.0)),
    "an average accuracy": ("grounding", "acc@avg", (0.5 + 0.25 + 0.05) / 3, lambda r: grounding(r.random(50))),
    "a distance near 0": ("ocr", "edit_distance", 0.03 / 1.03, lambda r: ocr(r.beta(0.3, 10 * 0.97, 100))),
    "a ratio of clustered boxes": ("detection", "recall@0.5", 0.7, lambda r: detection(r, 50, 0.7)),
    "a ratio near 1": ("detection", "recall@0.5", 0.98, lambda r: detection(r, 50, 0.98)),
    "a ratio without limits": ("ocr", "cer", 2 / 3, lambda r: ocr(r.beta(4, 2, 50))),
    "an error": ("counting", "count_mae", 1.5, lambda r: counting(r.poisson(1.5, 50) * 1.0)),
    "a root of squares": ("counting", "count_rmse", np.sqrt(1.5 + 2.25), lambda r: counting(r.poisson(1.5, 100) * 1.0)),
    "a length": ("grounding", "answer_length", 60.0, lambda r: grounding(r.random(50), answer_length=r.poisson(60, 50))),
}  # fmt: skip
"""Task, metric, its true value, and how a data set is drawn."""


@pytest.mark.parametrize("kind", COVERED)
def test_a_95_percent_interval_holds_the_true_value_in_about_95_of_100_data_sets(kind: str) -> None:
    name, metric, truth, draw = COVERED[kind]
    random, task, inside = np.random.default_rng(11), make_task(name), 0
    for simulation in range(400):
        low, high = bootstrap(task, draw(random), seed=simulation, resamples=200)[metric]["ci95"]
        inside += low <= truth <= high
    assert 0.90 <= inside / 400 <= 0.99, inside


def paired_rates(random: Random, gained: float, lost: float, count: int) -> tuple[Stats, Stats]:
    chance_S = random.random(count)
    before_S = np.where(
        chance_S < gained,
        0.0,
        np.where(chance_S < gained + lost, 1.0, random.integers(2, size=count)),
    )
    after_S = np.where(chance_S < gained, 1.0, np.where(chance_S < gained + lost, 0.0, before_S))
    return grounding(before_S), grounding(after_S)


@pytest.mark.parametrize(
    ("gained", "lost", "count"),
    [(0.02, 0.0, 50), (0.05, 0.02, 50), (0.3, 0.1, 30), (0.9, 0.05, 50)],
)
def test_the_interval_of_a_paired_difference_of_rates_covers_it(
    gained: float, lost: float, count: int
) -> None:
    random, task, inside = np.random.default_rng(12), make_task("grounding"), 0
    for simulation in range(400):
        runs = paired_rates(random, gained, lost, count)
        low, high = paired_difference(task, *runs, seed=simulation, resamples=2)["acc@0.5"]["ci95"]
        inside += low <= gained - lost <= high
    assert inside >= 0.92 * 400, inside


def test_the_interval_of_a_paired_difference_of_means_covers_it() -> None:
    random, task, inside = np.random.default_rng(13), make_task("grounding"), 0
    for simulation in range(400):
        before_S = random.beta(4, 2, 50)
        after_S = before_S + (1 - before_S) * random.beta(1, 3, 50)  # a quarter of what was missing
        runs = grounding(before_S), grounding(after_S)
        low, high = paired_difference(task, *runs, seed=simulation, resamples=200)["mean_iou"][
            "ci95"
        ]
        inside += low <= (1 - 4 / 6) / 4 <= high
    assert 0.90 <= inside / 400 <= 0.99, inside


def test_the_interval_of_average_precision_covers_that_expected_of_as_many_images() -> None:
    random, images = np.random.default_rng(14), 25
    expected = np.mean([ap.average_precision(random_tables(random, images))[0] for _ in range(400)])
    normal, percentile = 0, 0
    for simulation in range(100):
        value_12, draws_R12 = ap._ap_and_draws(random_tables(random, images), simulation, 30)
        low, high = normal_interval(
            value_12[0], draws_R12[:, 0], size=images, limits=(0.0, 1.0)
        ) or (1.0, 0.0)
        normal += low <= expected <= high
        low, high = np.percentile(draws_R12[:, 0], [2.5, 97.5])
        percentile += low <= expected <= high
    assert 88 <= normal <= 100, normal
    assert percentile < normal


def test_a_studys_interval_of_a_rate_near_0_covers_it() -> None:
    random, task, inside = np.random.default_rng(15), make_task("counting"), 0
    for _ in range(200):
        stats = counting((random.random(50) > 0.02) * 2.0)
        low, high = metric_figure(task, [stats], "count_acc").interval()  # type: ignore[arg-type]
        inside += low <= 0.02 <= high
    assert inside >= 0.9 * 200, inside


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
