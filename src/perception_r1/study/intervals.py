"""95 % intervals of a figure that has two sources of chance: the seeds of the training and the held-out scenes.

A few seeds say little about how much seeds matter, and a bootstrap over three of them would hide that. So the two are kept apart:
the mean over K seeds gets Student's interval (t with K − 1 degrees of freedom), and the scenes a bootstrap, in which every seed and
every arm is measured on the same resampled scenes. Half the width is the root of the sum of both squares. What chance makes of one
scene under one seed is in both, so the intervals are a little too wide rather than too narrow.
Each side by itself, since those of a rate's interval (Wilson's) differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from ..evaluation.intervals import around, bounded_interval, normal_interval, resample_counts
from ..evaluation.metrics import limits, metrics_of_means, rates
from ..tasks import Task

RESAMPLES = 1000
CONFIDENCE = 0.975
"""Quantile that leaves 2.5 % on either side."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """One figure, by seed: as measured (K,), and on resampled scenes (K, R)."""

    by_seed_K: np.ndarray
    drawn_KR: np.ndarray
    scenes: int
    limits: tuple[float, float]
    """The least and greatest value that it can have."""
    rate: bool = False
    """A share of the scenes."""

    @property
    def value(self) -> float:
        return float(self.by_seed_K.mean())

    def interval(self) -> tuple[float, float]:
        """The 95 % interval; with one seed it holds the chance of the scenes alone."""
        low, high = self._over_scenes()
        seeds, value = self._over_seeds(), self.value
        low, high = value - np.hypot(seeds, value - low), value + np.hypot(seeds, high - value)
        low, high = around(value, float(low), float(high), self.limits)
        return low, high

    def _over_scenes(self) -> Sequence[float]:
        drawn_R = self.drawn_KR.mean(0)
        if self.rate:
            return bounded_interval(self.value, drawn_R, samples=self.scenes, carrying=self.scenes)
        edges = normal_interval(self.value, drawn_R, size=self.scenes, limits=self.limits)
        return edges or self.limits

    def _over_seeds(self) -> float:
        """Half of Student's interval of the mean; 0 for one seed, which says nothing of others."""
        count = len(self.by_seed_K)
        if count == 1:
            return 0.0
        return float(stdtrit(count - 1, CONFIDENCE) * self.by_seed_K.std(ddof=1) / np.sqrt(count))

    def minus(self, other: "Figure") -> "Figure":
        """The difference, seed by seed and on the same scenes; a figure of one seed (a base) stands for all seeds of the other."""
        return Figure(
            by_seed_K=self.by_seed_K - other.by_seed_K,
            drawn_KR=self.drawn_KR - other.drawn_KR,
            scenes=self.scenes,
            limits=(self.limits[0] - other.limits[1], self.limits[1] - other.limits[0]),
        )


def metric_figure(
    task: Task, statistics: Sequence[Mapping[str, Sequence[float]]], name: str
) -> Figure:
    """A metric from what was measured on the same S scenes under each of K seeds: a mapping a seed, name → (S,)."""
    found = []
    for stats in statistics:
        table_SN = np.array(list(stats.values()), dtype=np.float64).T
        counted = resample_counts(len(table_SN), seed=0, resamples=RESAMPLES)
        sums = [table_SN.sum(0, keepdims=True), *(counts_RS @ table_SN for counts_RS in counted)]
        drawn_RN = np.concatenate(sums) / len(table_SN)  # row 0: the scenes as they are
        found.append(
            np.asarray(
                metrics_of_means(task, dict(zip(stats, drawn_RN.T, strict=True)))[name],
                dtype=np.float64,
            )
        )
    values = np.stack(found)
    scenes = len(next(iter(statistics[0].values())))
    kind = {"limits": limits(task, name), "rate": name in rates(task)}
    return Figure(by_seed_K=values[:, 0], drawn_KR=values[:, 1:], scenes=scenes, **kind)


def mean_figure(values_KS: Sequence[Sequence[float]], limits: tuple[float, float]) -> Figure:
    """The mean over scenes, under each seed, of a value between `limits`."""
    table_KS = np.asarray(values_KS, dtype=np.float64)
    scenes = table_KS.shape[1]
    counted = resample_counts(scenes, seed=0, resamples=RESAMPLES)
    drawn_KR = np.concatenate([table_KS @ counts_RS.T for counts_RS in counted], axis=1) / scenes
    return Figure(by_seed_K=table_KS.mean(1), drawn_KR=drawn_KR, scenes=scenes, limits=limits)
