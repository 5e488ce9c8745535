"""Primitives against oracles that share no code with them: counted pixels, torchvision, brute force, a plain table."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perception_r1.primitives.boxes import area, centres, diagonals, pairwise_distance, pairwise_giou, pairwise_iou
from perception_r1.primitives.matching import MATCHINGS, best, greedy, hungarian, sequential, total_and_hits
from perception_r1.primitives.text import normalised_edit_distance

SIDE = 12
NO_BOXES = np.zeros((0, 4))


@st.composite
def whole_boxes(draw: st.DrawFn, most: int = 5) -> np.ndarray:
    """Boxes (N, 4) with whole corners in [0, SIDE], so that their pixels can be counted."""
    side = st.tuples(st.integers(0, SIDE), st.integers(0, SIDE)).filter(lambda pair: pair[0] != pair[1]).map(sorted)
    rows = draw(st.lists(st.tuples(side, side), max_size=most))
    return np.array([[x[0], y[0], x[1], y[1]] for x, y in rows], dtype=np.float64).reshape(-1, 4)


def pixels(box: np.ndarray) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = map(int, box)
    return set(itertools.product(range(x1, x2), range(y1, y2)))


def values(most: int = 4) -> st.SearchStrategy[np.ndarray]:
    """Pair values φ (N, M) in [0, 1] with many ties, empty sides included."""
    shapes = st.tuples(st.integers(0, most), st.integers(0, most))
    cell = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1, width=32))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=cell))


def assignments(n: int, m: int) -> list[list[tuple[int, int]]]:
    """Every one-to-one assignment of min(n, m) pairs."""
    if n <= m:
        return [list(zip(range(n), columns, strict=True)) for columns in itertools.permutations(range(m), n)]
    return [list(zip(rows, range(m), strict=True)) for rows in itertools.permutations(range(n), m)]


@given(whole_boxes(), whole_boxes())
def test_iou_is_the_share_of_counted_pixels(a_N4: np.ndarray, b_M4: np.ndarray) -> None:
    iou_NM = pairwise_iou(a_N4, b_M4)
    assert iou_NM.shape == (len(a_N4), len(b_M4))
    for (n, a), (m, b) in itertools.product(enumerate(a_N4), enumerate(b_M4)):
        assert iou_NM[n, m] == pytest.approx(len(pixels(a) & pixels(b)) / len(pixels(a) | pixels(b)), abs=1e-12)


@given(whole_boxes())
def test_a_box_has_iou_exactly_one_with_itself(boxes_N4: np.ndarray) -> None:
    assert (np.diag(pairwise_iou(boxes_N4 / 7, boxes_N4 / 7)) == 1).all()


@given(hnp.arrays(np.float64, (6, 4), elements=st.floats(0, 5000)))
def test_iou_stays_in_zero_to_one_for_any_sorted_corners(corners_N4: np.ndarray) -> None:
    boxes_N4 = np.concatenate([np.minimum(corners_N4[:, :2], corners_N4[:, 2:]), np.maximum(corners_N4[:, :2], corners_N4[:, 2:])], axis=1)
    iou_NM = pairwise_iou(boxes_N4, boxes_N4)
    assert ((iou_NM >= 0) & (iou_NM <= 1 + 1e-12)).all()


def test_iou_and_giou_equal_torchvisions() -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(0)
    low_N2 = rng.uniform(0, 500, (200, 2))
    boxes_N4 = np.concatenate([low_N2, low_N2 + rng.uniform(0.01, 400, (200, 2))], axis=1)
    a, b = torch.tensor(boxes_N4[:80]), torch.tensor(boxes_N4[80:])
    np.testing.assert_allclose(pairwise_iou(boxes_N4[:80], boxes_N4[80:]), ops.box_iou(a, b).numpy(), atol=1e-12)
    np.testing.assert_allclose(pairwise_giou(boxes_N4[:80], boxes_N4[80:]), ops.generalized_box_iou(a, b).numpy(), atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_no_boxes_give_empty_tables_of_the_right_shape(shape: tuple[int, int]) -> None:
    a, b = np.tile([0.0, 0, 1, 1], (shape[0], 1)), np.tile([0.0, 0, 1, 1], (shape[1], 1))
    assert pairwise_iou(a, b).shape == pairwise_giou(a, b).shape == shape
    assert pairwise_distance(centres(a), centres(b)).shape == shape
    assert len(area(a)) == len(diagonals(a)) == shape[0]


def test_zero_area_and_inverted_boxes_overlap_nothing() -> None:
    flat = np.array([[1.0, 1, 1, 5], [5, 5, 2, 2]])
    assert area(flat).tolist() == [0, 0]
    assert pairwise_iou(flat, np.array([[0.0, 0, 9, 9]])).tolist() == [[0], [0]]
    assert pairwise_iou(flat[:1], flat[:1]).tolist() == [[0]]


@given(values())
def test_hungarian_reaches_the_greatest_sum_over_all_assignments(value_NM: np.ndarray) -> None:
    most = max(sum(value_NM[n, m] for n, m in pairs) for pairs in assignments(*value_NM.shape))
    rows, columns = hungarian(value_NM)
    assert len(set(rows)) == len(set(columns)) == min(value_NM.shape)
    assert value_NM[rows, columns].sum() == pytest.approx(most, abs=1e-12)
    assert total_and_hits(value_NM, "hungarian")[0] == pytest.approx(most, abs=1e-12)


@given(values(), st.sampled_from([0.25, 0.5, 0.75]))
@example(np.array([[1.0, 0.5], [0.5, 0.4]]), 0.5)
def test_hits_are_the_most_over_all_assignments_not_those_of_the_greatest_sum(value_NM: np.ndarray, threshold: float) -> None:
    most = max(sum(value_NM[n, m] >= threshold for n, m in pairs) for pairs in assignments(*value_NM.shape))
    assert total_and_hits(value_NM, "hungarian", threshold)[1] == most


@given(values())
def test_greedy_takes_the_best_remaining_pair_each_time(value_NM: np.ndarray) -> None:
    rows_left, columns_left = set(range(value_NM.shape[0])), set(range(value_NM.shape[1]))
    for row, column in zip(*greedy(value_NM), strict=True):
        assert row in rows_left
        assert column in columns_left
        assert value_NM[row, column] == max(value_NM[n, m] for n in rows_left for m in columns_left)
        rows_left.remove(row)
        columns_left.remove(column)
    assert not (rows_left and columns_left)


@given(values())
def test_sequential_pairs_the_kth_with_the_kth(value_NM: np.ndarray) -> None:
    rows, columns = sequential(value_NM)
    assert rows.tolist() == columns.tolist() == list(range(min(value_NM.shape)))
    diagonal = [value_NM[k, k] for k in range(min(value_NM.shape))]
    assert total_and_hits(value_NM, "sequential") == (pytest.approx(sum(diagonal)), sum(value >= 0.5 for value in diagonal))


@given(values())
def test_best_gives_every_prediction_its_best_truth(value_NM: np.ndarray) -> None:
    rows, columns = best(value_NM)
    if value_NM.size:
        assert rows.tolist() == list(range(len(value_NM)))
        assert (value_NM[rows, columns] == value_NM.max(1)).all()
    else:
        assert not len(rows)
        assert not len(columns)


@given(values())
def test_no_matching_counts_more_hits_than_objects_or_beats_its_bound(value_NM: np.ndarray) -> None:
    for name in MATCHINGS:
        total, hits = total_and_hits(value_NM, name)
        assert 0 <= hits <= min(value_NM.shape)
        assert 0 <= total <= value_NM.shape[0]
    assert total_and_hits(value_NM, "greedy")[0] <= total_and_hits(value_NM, "hungarian")[0] + 1e-12
    assert total_and_hits(value_NM, "sequential")[0] <= total_and_hits(value_NM, "hungarian")[0] + 1e-12


def levenshtein(a: str, b: str) -> int:
    """The textbook table, a row at a time."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (left != right)))
    return row[-1]


@given(st.text(alphabet="abc é漢", max_size=12), st.text(alphabet="abc é漢", max_size=12))
def test_edit_distance_equals_the_textbook_table_over_the_longer_length(a: str, b: str) -> None:
    assert normalised_edit_distance(a, b) == pytest.approx(levenshtein(a, b) / max(len(a), len(b), 1), abs=1e-12)


def test_edit_distance_of_empty_texts() -> None:
    assert normalised_edit_distance("", "") == 0
    assert normalised_edit_distance("", "abc") == normalised_edit_distance("abc", "") == 1
