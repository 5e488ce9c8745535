"""95 % intervals of each kind of figure, and what a difference of two runs has to show.

Of which kind a figure is, its task declares (`Task.RATES`, `Task.BOUNDED`); the values that it
happens to have never decide. Why these, and what they cover: docs/decisions/0012-intervals-and-tests.md.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq

Interval = list[float] | None
"""Its two edges; None where nothing can be said."""

Z = 1.959963984540054
"""The standard normal's quantile that leaves 2.5 % above it."""
CONFIDENCE = (2.5, 97.5)
"""Percentiles of the bootstrap distribution that make a 95 % interval."""
NO_SPREAD = 1e-9
"""A standard deviation below this is the rounding of values that are all equal."""
CELLS = 4_000_000
"""Weights (resamples × samples) held in memory at a time: 32 MB."""


# --- resampling ------------------------------------------------------------------------------------------------------
def resample_counts(count: int, *, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each of `count` samples is drawn, in blocks (R, S) of `resamples` rows in all.

    Every row sums to `count`. Whole numbers keep sums of whole numbers exact: divide once.
    """
    random = np.random.default_rng(seed)
    block = max(1, CELLS // count)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = random.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        counted = np.bincount(drawn.ravel(), minlength=rows * count)
        yield counted.reshape(rows, count).astype(np.float64)


def _defined(values_R: np.ndarray) -> np.ndarray:
    return values_R[np.isfinite(values_R)]


def _spread(draws_R: np.ndarray) -> float:
    """The standard deviation of bootstrap values, 0 where they differ by rounding alone."""
    found = float(draws_R.std(ddof=1)) if draws_R.size > 1 else 0.0
    return found if found > NO_SPREAD * max(1.0, float(np.abs(draws_R).max(initial=0))) else 0.0


def around(
    value: float, low: float, high: float, limits: tuple[float, float] = (-np.inf, np.inf)
) -> list[float]:
    """The edges within `limits`; a value is always within its interval, whatever was rounded."""
    least, greatest = limits
    return [float(min(max(low, least), value)), float(max(min(high, greatest), value))]


# --- one figure ------------------------------------------------------------------------------------------------------
def wilson(value: float, size: float) -> list[float]:
    """Wilson's score interval (1927) of a share of `size` independent samples; [0, 1] of none.

    >>> [round(edge, 4) for edge in wilson(0.0, 50)], [round(edge, 4) for edge in wilson(0.5, 50)]
    ([0.0, 0.0713], [0.3664, 0.6336])
    """
    centre = size * value + Z**2 / 2
    half = Z * np.sqrt(size * value * (1 - value) + Z**2 / 4)
    low, high = (centre - half) / (size + Z**2), (centre + half) / (size + Z**2)
    return around(value, low, high, (0.0, 1.0))


def bounded_interval(
    value: float, draws_R: np.ndarray, *, samples: int, carrying: float
) -> list[float]:
    """Wilson's interval of a mean or ratio in [0, 1], by its effective number of samples.

    That is how many samples of 0 or 1 would spread like the bootstrap, which knows clusters (the
    boxes of an image) and values in between (Kott and Carr 1997; Dean and Pagano 2015). The bootstrap's
    variance of `samples` is too small by (samples − 1) / samples.
    Where nothing spreads it is `between_limits`, for the samples that are `carrying` the figure.
    """
    spread = _spread(_defined(draws_R))
    if not spread or samples < 2:
        return between_limits(value, carrying, (0.0, 1.0))
    return wilson(value, value * (1 - value) * (samples - 1) / (samples * spread**2))


def between_limits(value: float, size: float, limits: tuple[float, float]) -> list[float]:
    """The interval of a mean where all of `size` samples have one value: others may be at a limit.

    Were their share over z² / (size + z²), Wilson's edge, all of them would hardly be missed;
    what they are worth is not known beyond `limits`.

    >>> between_limits(1.0, 50, (0.0, 1.0)) == wilson(1.0, 50)
    True
    >>> [round(edge, 3) for edge in between_limits(0.0, 50, (-1.0, 1.0))]
    [-0.071, 0.071]
    """
    seen = size / (size + Z**2)
    least, greatest = limits
    return around(value, seen * value + (1 - seen) * least, seen * value + (1 - seen) * greatest)


def percentile_interval(value: float, draws_R: np.ndarray) -> Interval:
    """The bootstrap's percentiles, of a figure without limits; undefined draws (NaN) are left out.

    None where they do not spread: all samples had one value; how far off others are is unknown.
    """
    draws_R = _defined(draws_R)
    if not _spread(draws_R):
        return None
    return around(value, *np.percentile(draws_R, CONFIDENCE))


def normal_interval(
    value: float, draws_R: np.ndarray, *, size: float, limits: tuple[float, float]
) -> Interval:
    """The point ± z standard deviations of the bootstrap, within `limits`.

    For COCO's figures: resampled data repeats images, and average precision is greater on it, so
    that percentiles lie too high. None where fewer than two resamples have the figure; where all
    have the same, `between_limits` for `size` samples.
    """
    draws_R = _defined(draws_R)
    if draws_R.size < 2:
        return None
    spread = _spread(draws_R)
    if not spread:
        return between_limits(value, size, limits)
    return around(value, value - Z * spread, value + Z * spread, limits)


# --- the difference of two paired shares -----------------------------------------------------------------------------
def paired_rates_interval(before_S: np.ndarray, after_S: np.ndarray) -> list[float]:
    """Tango's score interval (1998) of a difference of shares: 0 or 1 of each sample, twice.

    >>> [round(edge, 4) for edge in paired_rates_interval(np.zeros(50), np.zeros(50))]
    [-0.0713, 0.0713]
    """
    gained, lost = int((after_S > before_S).sum()), int((after_S < before_S).sum())
    count = len(before_S)
    value = (gained - lost) / count

    def score(difference: float) -> float:
        return _tango(gained, lost, count, difference)

    low = _root(lambda at: score(at) - Z, -1.0, value) if score(-1.0) > Z else -1.0
    high = _root(lambda at: score(at) + Z, value, 1.0) if score(1.0) < -Z else 1.0
    return around(value, low, high, (-1.0, 1.0))


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    found: Any = brentq(function, low, high)  # its stub knows a second return value
    return float(found)


def _tango(gained: int, lost: int, count: int, difference: float) -> float:
    """How many standard errors the data lies above a true `difference`.

    `share` is the likeliest share of samples that were right before and wrong after: a root of
    a·share² + b·share + c.
    """
    a = 2 * count
    b = -gained - lost + (2 * count - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    share = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = count * (2 * share + difference * (1 - difference))
    distance = gained - lost - count * difference
    if variance <= 0:  # at −1 and 1 no other data is possible
        return float(np.copysign(np.inf, distance)) if distance else 0.0
    return float(distance / np.sqrt(variance))


# --- tests -----------------------------------------------------------------------------------------------------------
def swaps(count: int, *, seed: int, permutations: int) -> Iterator[np.ndarray]:
    """Which of `count` pairs to swap, in blocks (R, S) of 0 and 1; R over all blocks is `permutations`."""
    random = np.random.default_rng(seed)
    block = max(1, CELLS // count)
    for start in range(0, permutations, block):
        yield random.integers(2, size=(min(block, permutations - start), count))


def share_as_extreme(change_R: np.ndarray) -> float:
    """The two-sided p of the first change among all that swaps made (Phipson and Smyth 2010).

    >>> share_as_extreme(np.array([0.2, 0.1, -0.2, 0.0]))
    0.5
    """
    size_R = np.abs(change_R)
    least = size_R[0] * (1 - 1e-9) - 1e-12  # equal up to rounding is as extreme
    return float((size_R >= least).mean())


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
