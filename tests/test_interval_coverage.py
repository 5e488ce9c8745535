"""What intervals cover, kind by kind, in simulations."""

from collections.abc import Callable

import numpy as np
import pytest
from tests.ap_scenes import random_answers, random_tables, random_truths
from tests.drawn_statistics import Random, Stats, counting, detection, grounding, ocr

from perception_r1.evaluation import average_precision as ap
from perception_r1.evaluation.coco_tables import CocoTables
from perception_r1.evaluation.intervals import normal_interval
from perception_r1.evaluation.metrics import bootstrap, paired_difference
from perception_r1.study.intervals import metric_figure
from perception_r1.tasks import make_task

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


def two_runs(random: Random, images: int) -> tuple[CocoTables, CocoTables]:
    """A run that finds 40 % of the objects and one that finds 70 % of the same."""
    true_M8 = random_truths(random, images)
    worse, better = (random_answers(random, true_M8, images, found) for found in (0.4, 0.7))
    return worse, better


def test_the_interval_of_a_paired_difference_of_average_precision_covers_it() -> None:
    random, images, inside = np.random.default_rng(19), 25, 0
    values = [
        [ap.average_precision(run)[0] for run in two_runs(random, images)] for _ in range(300)
    ]
    expected = np.mean(np.diff(values))
    for simulation in range(80):
        runs = [ap._ap_and_draws(run, simulation, 30) for run in two_runs(random, images)]
        change, changes_R = (runs[1][which] - runs[0][which] for which in (0, 1))
        low, high = normal_interval(
            change[0], changes_R[:, 0], size=images, limits=(-1.0, 1.0)
        ) or (1.0, -1.0)
        inside += low <= expected <= high
    assert 70 <= inside <= 80, inside


def test_a_studys_interval_of_a_rate_near_0_covers_it() -> None:
    random, task, inside = np.random.default_rng(15), make_task("counting"), 0
    for _ in range(200):
        stats = counting((random.random(50) > 0.02) * 2.0)
        low, high = metric_figure(task, [stats], "count_acc").interval()  # type: ignore[arg-type]
        inside += low <= 0.02 <= high
    assert inside >= 0.9 * 200, inside
