"""Which detection is right, by COCO's rules, image by image: what average precision is made of.

Letters beside those of CONTRIBUTING: `T` IoU thresholds, `A` size classes (all, small, medium,
large), `K` categories, `Q` pairs of a detection and a truth that overlap enough.
"""

from dataclasses import dataclass

import numpy as np

from .coco_tables import AREAS, CocoTables

THRESHOLDS = np.linspace(0.5, 0.95, 10)
MOST = 100
"""Detections of a category in an image that count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Matched:
    """The detections that count, by image, category and falling score."""

    image_N: np.ndarray
    category_N: np.ndarray
    """From 1, as in the tables."""
    score_N: np.ndarray
    rank_N: np.ndarray
    """Place among the detections of its category in its image, from 0."""
    right_TAN: np.ndarray
    """Matched with a truth that counts."""
    counted_TAN: np.ndarray
    """Right or wrong; False for what is left out: of another size, or on a crowd."""
    truths_AK: np.ndarray
    """How many truths count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pairs:
    """Overlapping pairs, by rank and number of the detection, then IoU, then the truth's number."""

    found_Q: np.ndarray
    true_Q: np.ndarray
    iou_Q: np.ndarray


def match(tables: CocoTables) -> Matched:
    """Every detection matched, at every threshold and for every size class, as COCO's API does.

    In falling score each takes the free truth of its category with the greatest IoU, one that
    counts before one that does not; a crowd is never used up.
    """
    group_M = _group(tables.true_M8[:, 0], tables.true_M8[:, 1], tables)
    true_M8 = tables.true_M8[np.argsort(group_M, kind="stable")]
    found_N7, rank_N = _by_score(tables)
    crowd_M = true_M8[:, 7] > 0
    ignored_AM = _outside(true_M8[:, 6]) | crowd_M
    truth_TAN = _match(_pairs(true_M8, found_N7, rank_N, tables), rank_N, ignored_AM, crowd_M)
    left_out_TAN = _left_out(truth_TAN, ignored_AM, _outside(found_N7[:, 3] * found_N7[:, 4]))
    return Matched(
        image_N=found_N7[:, 0].astype(int),
        category_N=found_N7[:, 6].astype(int),
        score_N=found_N7[:, 5],
        rank_N=rank_N,
        right_TAN=(truth_TAN >= 0) & ~left_out_TAN,
        counted_TAN=~left_out_TAN,
        truths_AK=_count(true_M8[:, 1], ~ignored_AM, len(tables.names)),
    )


def _group(image: np.ndarray, category: np.ndarray, tables: CocoTables) -> np.ndarray:
    """A number for every image and category: only what has the same one can match."""
    return (image * (len(tables.names) + 1) + category).astype(np.int64)


def _by_score(tables: CocoTables) -> tuple[np.ndarray, np.ndarray]:
    """The detections that count, by image, category and falling score; and their ranks."""
    group_N = _group(tables.found_N7[:, 0], tables.found_N7[:, 6], tables)
    order = np.lexsort((-tables.found_N7[:, 5], group_N))
    group_N = group_N[order]
    rank_N = np.arange(len(order)) - np.searchsorted(group_N, group_N)
    return tables.found_N7[order[rank_N < MOST]], rank_N[rank_N < MOST]


def _outside(area: np.ndarray) -> np.ndarray:
    """Which areas are outside of each size class: bool (A, areas)."""
    return (area < AREAS[:, :1]) | (area > AREAS[:, 1:])


def _count(category_M: np.ndarray, counts_AM: np.ndarray, categories: int) -> np.ndarray:
    """How many of the truths count, by size class and category: (A, K)."""
    chosen = (category_M[counts_M].astype(int) for counts_M in counts_AM)
    return np.stack([np.bincount(some, minlength=categories + 1)[1:] for some in chosen])


def _pairs(
    true_M8: np.ndarray, found_N7: np.ndarray, rank_N: np.ndarray, tables: CocoTables
) -> _Pairs:
    group_M = _group(true_M8[:, 0], true_M8[:, 1], tables)
    group_N = _group(found_N7[:, 0], found_N7[:, 6], tables)
    first_N = np.searchsorted(group_M, group_N)
    truths_N = np.searchsorted(group_M, group_N, side="right") - first_N
    found_Q = np.repeat(np.arange(len(found_N7)), truths_N)
    true_Q = np.arange(len(found_Q)) + np.repeat(first_N - np.cumsum(truths_N) + truths_N, truths_N)
    iou_Q = _iou(found_N7[found_Q, 1:5], true_M8[true_Q, 2:6], true_M8[true_Q, 7] > 0)
    near = np.flatnonzero(iou_Q >= THRESHOLDS[0])
    found_Q, true_Q, iou_Q = found_Q[near], true_Q[near], iou_Q[near]
    order = np.lexsort((true_Q, iou_Q, found_Q, rank_N[found_Q]))
    return _Pairs(found_Q=found_Q[order], true_Q=true_Q[order], iou_Q=iou_Q[order])


def _iou(found_Q4: np.ndarray, true_Q4: np.ndarray, crowd_Q: np.ndarray) -> np.ndarray:
    """IoU of boxes as corner and size; with a crowd, the share of the detection that lies on it."""
    corner_Q2 = np.maximum(found_Q4[:, :2], true_Q4[:, :2])
    end_Q2 = np.minimum(found_Q4[:, :2] + found_Q4[:, 2:], true_Q4[:, :2] + true_Q4[:, 2:])
    common_Q = np.clip(end_Q2 - corner_Q2, 0, None).prod(axis=1)
    found_Q, true_Q = found_Q4[:, 2] * found_Q4[:, 3], true_Q4[:, 2] * true_Q4[:, 3]
    whole_Q = np.where(crowd_Q, found_Q, found_Q + true_Q - common_Q)
    return np.divide(common_Q, whole_Q, out=np.zeros_like(common_Q), where=whole_Q > 0)


def _match(
    pairs: _Pairs, rank_N: np.ndarray, ignored_AM: np.ndarray, crowd_M: np.ndarray
) -> np.ndarray:
    """The truth that each detection takes, int (T, A, N); −1 where it takes none.

    Detections of one rank are of different images or categories: none competes with another.
    """
    shape = len(THRESHOLDS), len(AREAS)
    truth_TAN = np.full((*shape, len(rank_N)), -1)
    taken_TAM = np.zeros((*shape, len(crowd_M)), dtype=bool)
    ranks_Q = rank_N[pairs.found_Q]
    for rank in np.unique(ranks_Q):
        here = slice(*np.searchsorted(ranks_Q, [rank, rank + 1]))
        found_N, chosen_TAN = _choose(pairs, here, taken_TAM, ignored_AM, crowd_M)
        truth_TAN[:, :, found_N] = chosen_TAN
        t, a, n = np.nonzero(chosen_TAN >= 0)
        taken_TAM[t, a, chosen_TAN[t, a, n]] = True
    return truth_TAN


def _choose(
    pairs: _Pairs, here: slice, taken_TAM: np.ndarray, ignored_AM: np.ndarray, crowd_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The detections among the pairs of one rank, and the truth that each takes."""
    true_Q, iou_Q = pairs.true_Q[here], pairs.iou_Q[here]
    found_N, first_N = np.unique(pairs.found_Q[here], return_index=True)
    least_T11 = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None, None]
    possible_TAQ = (~taken_TAM[:, :, true_Q] | crowd_M[true_Q]) & (iou_Q >= least_T11)
    # The last possible pair of a detection has the greatest IoU; truths that count come last.
    place_Q = np.arange(len(true_Q))
    place_TAQ = np.where(ignored_AM[:, true_Q], place_Q, place_Q + len(place_Q))
    best_TAN = np.maximum.reduceat(np.where(possible_TAQ, place_TAQ, -1), first_N, axis=-1)
    return found_N, np.where(best_TAN >= 0, true_Q[best_TAN % len(place_Q)], -1)


def _left_out(truth_TAN: np.ndarray, ignored_AM: np.ndarray, outside_AN: np.ndarray) -> np.ndarray:
    """Neither right nor wrong: on a truth that does not count, or on none and of another size."""
    if not ignored_AM.shape[1]:
        return np.broadcast_to(outside_AN, truth_TAN.shape)
    classes = np.arange(len(AREAS))[:, None]
    return np.where(truth_TAN >= 0, ignored_AM[classes, truth_TAN], outside_AN)
