"""COCO's twelve figures where two runs swap images: match once, then weighted cumulative sums.

A permutation test needs the figures of hundreds of mixtures of two runs. What a detection matches
depends on its own image alone, so each run is matched once. A mixture is then a weight, 0 or 1, of
every detection of both runs, and its precision and recall are cumulative sums of these weights by
falling score. Tests hold that hotcoco finds the same figures.

Letters beside those of CONTRIBUTING: `T` IoU thresholds, `A` size classes (all, small, medium,
large), `K` categories, `R` mixtures, `S` images, `D` detections of one category, `H` those of them
that can be right.
"""

from dataclasses import dataclass

import numpy as np

from .ap_matching import MOST, THRESHOLDS, Matched, match
from .coco_tables import AREAS, CocoTables
from .intervals import share_as_extreme, swaps

PERMUTATIONS = 499
"""The least p is then 0.002."""
BLOCK = 2**15
"""Weights (detections × mixtures) in a block: 256 KB, which a cache holds."""
RECALLS = np.linspace(0, 1, 101)
RECALLED = {
    "AR1": (0, 1),
    "AR10": (0, 10),
    "AR100": (0, MOST),
    "ARs": (1, MOST),
    "ARm": (2, MOST),
    "ARl": (3, MOST),
}
"""Size class of each average recall, and how many detections of a category in an image it takes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Union:
    """Detections of one category of both runs, in the order of COCO for any mixture."""

    image_D: np.ndarray
    second_D: np.ndarray
    """Of the second run."""
    right_TAD: np.ndarray
    counted_TAD: np.ndarray

    def weights(self, kept: np.ndarray, second_RS: np.ndarray) -> np.ndarray:
        """(D, R): 1 for those of the `kept` detections that a mixture has, else 0."""
        of_second_DR = second_RS.T[self.image_D[kept]]
        return np.where(self.second_D[kept, None], of_second_DR, 1 - of_second_DR)


def figures_of_mixtures(
    first: Matched, second: Matched, second_RS: np.ndarray
) -> dict[str, np.ndarray]:
    """COCO's twelve figures (R,) of mixtures of two runs on the same S images.

    `second_RS` is 1 where a mixture has the second run's detections of an image, else 0.
    A figure is NaN without any truth to compute it from.
    """
    precision_RTA = _average_precision(first, second, second_RS)
    found = {
        "AP": precision_RTA[:, :, 0].mean(1),
        "AP50": precision_RTA[:, 0, 0],
        "AP75": precision_RTA[:, 5, 0],
        "APs": precision_RTA[:, :, 1].mean(1),
        "APm": precision_RTA[:, :, 2].mean(1),
        "APl": precision_RTA[:, :, 3].mean(1),
    }
    for name, (a, most) in RECALLED.items():
        found[name] = _average_recall(first, second, second_RS, a, most)
    return found


def swapped_p(
    before: CocoTables, after: CocoTables, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> dict[str, float | None]:
    """Two-sided p of the change of each of the twelve figures: each image's run is a coin toss.

    The data as it is counts as one of the swaps, so the least p is 1 / (permutations + 1).
    None for a figure without any truth to compute it from.
    """
    first, second = match(before), match(after)
    blocks = swaps(before.images, seed=seed, permutations=permutations)
    swapped_RS = np.concatenate([np.zeros((1, before.images), dtype=int), *blocks])
    low = figures_of_mixtures(first, second, swapped_RS)
    high = figures_of_mixtures(first, second, 1 - swapped_RS)
    found: dict[str, float | None] = {}
    for name in low:
        change_R = high[name] - low[name]
        found[name] = share_as_extreme(change_R) if np.isfinite(change_R[0]) else None
    return found


# --- average precision -----------------------------------------------------------------------------------------------
def _average_precision(first: Matched, second: Matched, second_RS: np.ndarray) -> np.ndarray:
    """(R, T, A): the mean over the categories that have a truth."""
    sums_RTA = np.zeros((len(second_RS), len(THRESHOLDS), len(AREAS)))
    for k in np.flatnonzero(first.truths_AK.any(axis=0)):
        union = _union(first, second, int(k) + 1)
        for a in np.flatnonzero(first.truths_AK[:, k]):
            sums_RTA[:, :, a] += _of_category(union, int(a), int(first.truths_AK[a, k]), second_RS)
    return sums_RTA / _or_nan((first.truths_AK > 0).sum(axis=1))


def _or_nan(count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, count, np.nan)


def _union(first: Matched, second: Matched, category: int) -> _Union:
    n_1, n_2 = (np.flatnonzero(run.category_N == category) for run in (first, second))

    def both(one_N: np.ndarray, other_N: np.ndarray) -> np.ndarray:
        return np.concatenate([one_N[..., n_1], other_N[..., n_2]], axis=-1)

    image_D = both(first.image_N, second.image_N)
    # Of equal scores by image, as COCO; of equal images no mixture has both runs.
    order = np.lexsort((image_D, -both(first.score_N, second.score_N)))
    return _Union(
        image_D=image_D[order],
        second_D=order >= len(n_1),
        right_TAD=both(first.right_TAN, second.right_TAN)[:, :, order],
        counted_TAD=both(first.counted_TAN, second.counted_TAN)[:, :, order],
    )


def _of_category(union: _Union, a: int, truths: int, second_RS: np.ndarray) -> np.ndarray:
    """Average precision (R, T) of one category and size class, in blocks that a cache holds."""
    found_RT = np.zeros((len(second_RS), len(THRESHOLDS)))
    kept = np.flatnonzero(union.counted_TAD[:, a].any(axis=0))
    if not len(kept):
        return found_RT
    right_TD, counted_TD = union.right_TAD[:, a, kept], union.counted_TAD[:, a, kept]
    masks_UD, mask_of_T = np.unique(counted_TD, axis=0, return_inverse=True)
    gained = _recalls_gained(truths)
    rows = max(1, BLOCK // len(kept))
    for start in range(0, len(second_RS), rows):
        weight_DR = union.weights(kept, second_RS[start : start + rows])
        for u, mask_D in enumerate(masks_UD):
            counted_DR = (weight_DR * mask_D[:, None]).cumsum(axis=0)
            for t in np.flatnonzero(mask_of_T.ravel() == u):
                hit = np.flatnonzero(right_TD[t])
                area_R = _area_under_curve(weight_DR[hit], counted_DR[hit], gained)
                found_RT[start : start + rows, t] = area_R
    return found_RT


def _area_under_curve(hit_HR: np.ndarray, counted_HR: np.ndarray, gained: np.ndarray) -> np.ndarray:
    """COCO's average precision (R,): over 101 recalls, the best precision from that recall on.

    Precision is best at a hit, so only the detections that can be one are looked at.
    """
    hits_HR = hit_HR.cumsum(axis=0)
    precision_HR = hits_HR / np.maximum(counted_HR, 1)
    best_HR = np.maximum.accumulate(precision_HR[::-1], axis=0)[::-1]
    return np.einsum("hr,hr,hr->r", best_HR, gained[hits_HR], hit_HR) / len(RECALLS)


def _recalls_gained(truths: int) -> np.ndarray:
    """How many of the 101 recalls the m-th hit reaches first; the first hit reaches 0 too."""
    reached = np.searchsorted(RECALLS, np.arange(1, truths + 1) / truths, side="right")
    return np.diff(np.concatenate([[0, 0], reached]))


# --- average recall --------------------------------------------------------------------------------------------------
def _average_recall(
    first: Matched, second: Matched, second_RS: np.ndarray, a: int, most: int
) -> np.ndarray:
    """(R,): a sum over images of what each adds, so no sorting is needed."""
    images = second_RS.shape[1]
    first_S, second_S = (_recall_by_image(run, images, a, most) for run in (first, second))
    found_R = first_S.sum() + second_RS @ (second_S - first_S)
    return found_R if first.truths_AK[a].any() else np.full(len(found_R), np.nan)


def _recall_by_image(run: Matched, images: int, a: int, most: int) -> np.ndarray:
    truths_K = run.truths_AK[a]
    hits_N = run.right_TAN[:, a].sum(axis=0) * (run.rank_N < most)
    share_N = hits_N / np.maximum(truths_K, 1)[run.category_N - 1]
    whole = len(THRESHOLDS) * max(1, int((truths_K > 0).sum()))
    return np.bincount(run.image_N, share_N / whole, minlength=images)
