"""Assignments of N predictions to M truths that make the sum of pair values φ large, and what they are worth."""

from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment

Pairs = tuple[np.ndarray, np.ndarray]
"""Row (prediction) and column (truth) indices of the matched pairs, each of shape (K,)."""


def hungarian(value_NM: np.ndarray) -> Pairs:
    """The one-to-one assignment with the greatest Σφ (Kuhn 1955; Jonker–Volgenant through scipy). K = min(N, M).

    >>> [index.tolist() for index in hungarian(np.array([[.9, .8], [.8, .1]]))]
    [[0, 1], [1, 0]]
    """
    return linear_sum_assignment(value_NM, maximize=True)


def greedy(value_NM: np.ndarray) -> Pairs:
    """The best remaining pair first, one to one. Ties go to the earlier prediction, then the earlier truth.

    >>> [index.tolist() for index in greedy(np.array([[.9, .8], [.8, .1]]))]
    [[0, 1], [0, 1]]
    """
    open_NM = np.array(value_NM, dtype=np.float64)
    rows, columns = [], []
    for _ in range(min(open_NM.shape)):
        row, column = np.unravel_index(np.argmax(open_NM), open_NM.shape)
        rows.append(row)
        columns.append(column)
        open_NM[row] = open_NM[:, column] = -np.inf
    return np.array(rows, dtype=int), np.array(columns, dtype=int)


def sequential(value_NM: np.ndarray) -> Pairs:
    """The k-th prediction with the k-th truth, in the order written: the paper's "without matching".

    >>> [index.tolist() for index in sequential(np.zeros((3, 2)))]
    [[0, 1], [0, 1]]
    """
    index = np.arange(min(value_NM.shape))
    return index, index


def best(value_NM: np.ndarray) -> Pairs:
    """Each prediction with its best truth; a truth may be used again. K = N, or 0 when there is no truth.

    To compare only: a reward under it pays for copies, as many perfect boxes as are written.

    >>> [index.tolist() for index in best(np.array([[.2, .8], [.1, .9]]))]
    [[0, 1], [1, 1]]
    """
    if not value_NM.size:
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    return np.arange(len(value_NM)), value_NM.argmax(1)


MATCHINGS: dict[str, Callable[[np.ndarray], Pairs]] = {
    "hungarian": hungarian,
    "greedy": greedy,
    "sequential": sequential,
    "best": best,
}


def total_and_hits(value_NM: np.ndarray, matching: str, threshold: float = 0.5) -> tuple[float, int]:
    """S and H of DESIGN.md: the assignment's Σφ, and its number of pairs with φ ≥ `threshold`, at most min(N, M).

    With `hungarian`, H is the most such pairs that ANY one-to-one assignment has, not those of the one that maximises S.

    >>> total_and_hits(np.array([[1., .5], [.6, 0.]]), "hungarian")
    (1.1, 2)
    """
    match = MATCHINGS[matching]
    rows, columns = match(value_NM)
    hit_NM = value_NM >= threshold
    hits = hit_NM[match(hit_NM.astype(float))] if matching == "hungarian" else hit_NM[rows, columns]
    return float(np.sort(value_NM[rows, columns]).sum()), min(int(hits.sum()), *value_NM.shape)
