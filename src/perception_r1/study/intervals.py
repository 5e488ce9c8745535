"""95 % intervals of a figure that has two sources of chance: the seeds of the training and the held-out scenes.

A few seeds say little about how much seeds matter, and a bootstrap over three of them would hide that. So the two are kept apart:
the mean over K seeds gets Student's interval (t with K − 1 degrees of freedom), and the scenes a bootstrap, in which every seed and
every arm is measured on the same resampled scenes. Half the width is the root of the sum of both squares. What chance makes of one
scene under one seed is in both, so the intervals are a little too wide rather than too narrow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from ..evaluation.intervals import resample_weights
from ..evaluation.metrics import metrics_of_means
from ..tasks import Task

RESAMPLES = 1000
CONFIDENCE = 0.975
"""Quantile that leaves 2.5 % on either side."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """One figure, by seed: as measured (K,), and on resampled scenes (K, R)."""

    by_seed_K: np.ndarray
    drawn_KR: np.ndarray

    @property
    def value(self) -> float:
        return float(self.by_seed_K.mean())

    def half_width(self) -> float:
        """Half the 95 % interval; with one seed it holds the chance of the scenes alone."""
        scenes = float(ndtri(CONFIDENCE)) * float(self.drawn_KR.mean(0).std(ddof=1))
        count = len(self.by_seed_K)
        if count == 1:
            return scenes
        seeds = float(stdtrit(count - 1, CONFIDENCE) * self.by_seed_K.std(ddof=1) / np.sqrt(count))
        return float(np.hypot(seeds, scenes))

    def interval(self) -> tuple[float, float]:
        half = self.half_width()
        return self.value - half, self.value + half

    def minus(self, other: "Figure") -> "Figure":
        """The difference, seed by seed and on the same scenes; a figure of one seed (a base) stands for all seeds of the other."""
        return Figure(by_seed_K=self.by_seed_K - other.by_seed_K, drawn_KR=self.drawn_KR - other.drawn_KR)


def metric_figure(task: Task, statistics: Sequence[Mapping[str, Sequence[float]]], name: str) -> Figure:
    """A metric from what was measured on the same S scenes under each of K seeds: a mapping a seed, name → (S,)."""
    found = []
    for stats in statistics:
        table_SN = np.array(list(stats.values()), dtype=np.float64).T
        blocks = [weights_RS @ table_SN for weights_RS in resample_weights(len(table_SN), seed=0, resamples=RESAMPLES)]
        drawn_RN = np.concatenate([table_SN.mean(0, keepdims=True), *blocks])  # row 0: the scenes as they are
        found.append(np.asarray(metrics_of_means(task, dict(zip(stats, drawn_RN.T, strict=True)))[name], dtype=np.float64))
    values = np.stack(found)
    return Figure(by_seed_K=values[:, 0], drawn_KR=values[:, 1:])


def mean_figure(values_KS: Sequence[Sequence[float]]) -> Figure:
    """The mean over scenes, under each seed."""
    table_KS = np.asarray(values_KS, dtype=np.float64)
    blocks = [table_KS @ weights_RS.T for weights_RS in resample_weights(table_KS.shape[1], seed=0, resamples=RESAMPLES)]
    return Figure(by_seed_K=table_KS.mean(1), drawn_KR=np.concatenate(blocks, axis=1))
