"""Average precision where two runs swap images: the same as hotcoco's on the swapped answers, and a test that is a test."""

from dataclasses import replace

import numpy as np
import pytest
from tests.ap_scenes import random_answers, random_truths
from tests.test_metrics import ODD_CASES, as_coco, odd_scenes, pycocotools_figures, scored

from perception_r1.evaluation import ap_swaps
from perception_r1.evaluation.ap_matching import match
from perception_r1.evaluation.ap_swaps import figures_of_mixtures, swapped_p
from perception_r1.evaluation.average_precision import average_precision
from perception_r1.evaluation.coco_tables import AP_NAMES, CocoTables, coco_tables


def mixed(first: CocoTables, second: CocoTables, second_S: np.ndarray) -> CocoTables:
    """The detections of the second run on the images where `second_S` is 1, those of the first elsewhere."""
    chosen = [
        run.found_N7[second_S[run.found_N7[:, 0].astype(int)] == which]
        for which, run in enumerate((first, second))
    ]
    found_N7 = np.concatenate(chosen)
    return replace(first, found_N7=found_N7[np.argsort(found_N7[:, 0], kind="stable")])


@pytest.mark.parametrize("tie", ["ones", "few", "free"])
@pytest.mark.parametrize("case", ODD_CASES)
def test_figures_of_mixtures_are_those_of_hotcoco(case: str, tie: str) -> None:
    random = np.random.default_rng(21)
    for _ in range(4):
        samples, answers, scores = odd_scenes(random, tie=tie, **ODD_CASES[case])
        order = random.permutation(
            len(samples)
        )  # another run: the answers and scores of other images
        others = [answers[place] for place in order], [scores[place] for place in order]
        first, second = (coco_tables(samples, scored(*run)) for run in ((answers, scores), others))
        second_RS = random.integers(2, size=(6, len(samples)))
        second_RS[0], second_RS[1] = 0, 1
        found = figures_of_mixtures(match(first), match(second), second_RS)
        for row, second_S in enumerate(second_RS):
            values = [found[name][row] for name in AP_NAMES]
            expected = average_precision(mixed(first, second, second_S))
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12, err_msg=case)


def test_they_are_those_of_pycocotools_too() -> None:
    random = np.random.default_rng(22)
    for tie in ("ones", "few", "free"):
        samples, answers, scores = odd_scenes(random, images=12, tie=tie)
        matched = match(coco_tables(samples, scored(answers, scores)))
        found = figures_of_mixtures(matched, matched, np.zeros((1, 12), dtype=int))
        expected = pycocotools_figures(*as_coco(samples, answers, scores))
        np.testing.assert_allclose(
            [found[name][0] for name in AP_NAMES], expected, rtol=0, atol=1e-12
        )


def test_of_two_truths_that_overlap_as_much_the_later_is_taken_as_in_pycocotools() -> None:
    """Twice the same truth, one of them on a crowd, and three detections of it."""
    for crowd in ((False, True), (True, False), (False, False)):
        samples, answers, _ = odd_scenes(np.random.default_rng(23), images=1, empty=0, crowd=0)
        box = np.array([[10.0, 10, 60, 50]])
        truth = replace(samples[0].truth, boxes=np.repeat(box, 2, axis=0), labels=("c0", "c0"))
        sample = replace(samples[0], truth=truth, crowd=crowd, area=(2000.0, 900.0))
        answer = replace(
            next(it for it in answers if it), boxes=np.repeat(box, 3, axis=0), labels=("c0",) * 3
        )
        matched = match(coco_tables([sample], [answer]))
        found = figures_of_mixtures(matched, matched, np.zeros((1, 1), dtype=int))
        expected = pycocotools_figures(*as_coco([sample], [answer], [np.ones(3)]))
        np.testing.assert_allclose(
            [found[name][0] for name in AP_NAMES], expected, rtol=0, atol=1e-12
        )


def test_blocks_change_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(24)
    true_M8 = random_truths(random, 30)
    first, second = (match(random_answers(random, true_M8, 30)) for _ in range(2))
    second_RS = random.integers(2, size=(50, 30))
    whole = figures_of_mixtures(first, second, second_RS)
    monkeypatch.setattr(ap_swaps, "BLOCK", 300)
    for name, expected in figures_of_mixtures(first, second, second_RS).items():
        np.testing.assert_array_equal(whole[name], expected)


def test_under_no_difference_five_of_a_hundred_p_values_of_ap_are_below_five_percent() -> None:
    random, low = np.random.default_rng(25), 0
    for simulation in range(300):
        true_M8 = random_truths(random, 20)
        runs = [random_answers(random, true_M8, 20) for _ in range(2)]
        low += (swapped_p(*runs, seed=simulation, permutations=99)["AP"] or 0.0) <= 0.05
    assert 5 <= low <= 27, low  # the binomial's middle 99.8 %


def test_a_great_difference_has_the_least_p_there_is() -> None:
    random = np.random.default_rng(26)
    true_M8 = random_truths(random, 60)
    worse, better = (random_answers(random, true_M8, 60, found) for found in (0.2, 0.9))
    assert swapped_p(worse, better, permutations=499)["AP"] == pytest.approx(1 / 500)
    assert set(swapped_p(better, better, permutations=49).values()) == {1.0}


def test_without_truths_of_a_size_there_is_no_p() -> None:
    samples, answers, _ = odd_scenes(np.random.default_rng(27), images=3, crowd=1.0, empty=0)
    assert set(swapped_p(*[coco_tables(samples, answers)] * 2, permutations=9).values()) == {None}
