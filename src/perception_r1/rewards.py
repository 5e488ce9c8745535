"""From settings to what a completion earns: the one way that training, `score`, `probe`, the demo
and other trainers take.

Data may be of several tasks. A weight is for the tasks that have its term, `iou_shape` for
grounding.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

from .dialects import Dialect
from .records import BadData
from .tasks import TASKS, Task, make_task
from .tasks.grounding import Grounding


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """How completions are read and what they earn, whatever the task. Raises BadData for a name
    that is not known.
    """

    dialect: str | Dialect = "qwen2-vl"
    thinking: bool = False
    matching: str = "hungarian"
    iou_shape: str = "iou"
    """What grounding makes of the IoU: one of `grounding.IOU_SHAPES`."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """By reward term, 1 where not given; a term that only some tasks have is for those."""

    def __post_init__(self) -> None:
        if not isinstance(self.thinking, bool):
            raise BadData(f"thinking: found {self.thinking!r:.40}, expected true or false")
        for name in ("dialect", "matching", "iou_shape"):
            value = getattr(self, name)
            if not isinstance(value, str | Dialect):
                raise BadData(f"{name}: found {value!r:.40}, expected a name")
        _check_weights(self.weights)
        _ = self.tasks

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Every task with these settings, by name."""
        made = {}
        for name, kind in TASKS.items():
            weights = {term: weight for term, weight in self.weights.items() if term in kind.all_terms()}
            made[name] = make_task(
                name, dialect=self.dialect, thinking=self.thinking, matching=self.matching,
                iou_shape=self.iou_shape, weights=weights,
            )  # fmt: skip
        return made

    def tasks_named(self, names: Iterable[str]) -> dict[str, Task]:
        """The tasks of some data. Raises BadData for one that is not known, and as `check_used`."""
        wanted = sorted(set(names))
        if unknown := [name for name in wanted if name not in TASKS]:
            raise BadData(f"task {unknown[0]!r} is not known: expected one of {', '.join(TASKS)}")
        self.check_used(wanted)
        return {name: self.tasks[name] for name in wanted}

    def check_used(self, names: Iterable[str]) -> None:
        """Raises BadData for a setting that none of the named tasks has: it would change
        nothing.
        """
        kinds = [TASKS[name] for name in sorted(set(names))]
        terms = list(dict.fromkeys(term for kind in kinds for term in kind.all_terms()))
        said = " and ".join(kind.name for kind in kinds)
        if unused := [term for term in self.weights if term not in terms]:
            have = "has" if len(kinds) == 1 else "have"
            expected = f"expected {', '.join(terms)}"
            raise BadData(f"weights: {said} {have} no term {unused[0]}: {expected}")
        if self.iou_shape != "iou" and not any(issubclass(kind, Grounding) for kind in kinds):
            found = f"found it for samples of {said}"
            raise BadData(f"iou_shape {self.iou_shape!r} is for grounding, {found}: leave it out")

    def about(self) -> dict[str, Any]:
        """What decides a reward besides how answers are read, as JSON."""
        weights = {term: float(weight) for term, weight in self.weights.items()}
        return {"matching": self.matching, "iou_shape": self.iou_shape, "weights": weights}


def _check_weights(weights: Any) -> None:
    if not isinstance(weights, Mapping):
        raise BadData(f"weights: found {weights!r:.60}, expected a mapping from term to number")
    terms = {term for task in TASKS.values() for term in task.all_terms()}
    for term, weight in weights.items():
        if term not in terms:
            expected = ", ".join(sorted(terms))
            raise BadData(f"weights: no task has the term {term!r}: expected {expected}")
        number = isinstance(weight, Real) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or float(weight) < 0:
            raise BadData(
                f"weights: {term} is {weight!r:.40}: expected a finite number of at least 0"
            )
