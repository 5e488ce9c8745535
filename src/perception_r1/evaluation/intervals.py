"""Bootstrap weights and percentile intervals, and what two paired runs have to show before their difference is believed."""

from collections.abc import Iterator, Sequence

import numpy as np

CONFIDENCE = (2.5, 97.5)
"""Percentiles of the bootstrap distribution that make a 95 % interval."""
CELLS = 4_000_000
"""Weights (resamples × samples) held in memory at a time: 32 MB."""


def resample_weights(count: int, *, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Bootstrap weights over `count` samples in blocks (R, S) whose rows sum to 1; R over all blocks is `resamples`."""
    random = np.random.default_rng(seed)
    block = max(1, CELLS // count)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = random.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count) / count


def interval(values_R: np.ndarray) -> list[float] | None:
    """The 95 % percentile interval of bootstrap values; undefined ones (NaN) are left out, None when all are."""
    defined = values_R[np.isfinite(values_R)]
    return [float(edge) for edge in np.percentile(defined, CONFIDENCE)] if defined.size else None


def two_sided_p(values_R: np.ndarray) -> float:
    """The p-value that inverts the percentile interval: twice the share of bootstrap differences on the rarer side of 0, at most 1.

    One is added to both counts, so that p is never 0; with R resamples it is at least 2 / (R + 1).

    >>> two_sided_p(np.array([0.1, 0.2, 0.3])), two_sided_p(np.zeros(3))
    (0.5, 1.0)
    """
    defined = values_R[np.isfinite(values_R)]
    rarer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + defined.size))


def swaps(count: int, *, seed: int, permutations: int) -> Iterator[np.ndarray]:
    """Which of `count` pairs to swap, in blocks (R, S) of 0 and 1; R over all blocks is `permutations`."""
    random = np.random.default_rng(seed)
    block = max(1, CELLS // count)
    for start in range(0, permutations, block):
        yield random.integers(2, size=(min(block, permutations - start), count)).astype(np.float64)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for how many there are (Holm 1979): comparing each with 0.05 keeps the chance of any false alarm at 5 %.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return [float(value) for value in adjusted]
