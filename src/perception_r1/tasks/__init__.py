"""The book of tasks, one chapter each."""

from collections.abc import Mapping

from ..dialects import Dialect, dialect_named
from ..primitives.numbers import number_in
from ..records import BadData
from .counting import Counting
from .detection import Detection
from .grounding import Grounding
from .ocr import Ocr
from .task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Grounding, Counting, Detection, Ocr)}


def make_task(
    name: str,
    *,
    dialect: str | Dialect = "qwen2-vl",
    thinking: bool = False,
    matching: str = "hungarian",
    iou_shape: str = "iou",
    weights: Mapping[str, float] | None = None,
) -> Task:
    """The task called `name` with its settings. Raises BadData naming what is not known and what is.

    >>> make_task("grounding", dialect="qwen3-vl").TERMS
    {'format': (0.0, 1.0), 'iou': (0.0, 1.0)}
    """
    if name not in TASKS:
        raise BadData(f"task {name!r} is not known: expected one of {', '.join(TASKS)}")
    spoken = dialect_named(dialect) if isinstance(dialect, str) else dialect
    kind = TASKS[name]
    return kind(
        dialect=spoken, thinking=thinking, matching=matching, iou_shape=iou_shape,
        weights=weights or {},
    )  # fmt: skip


def parse_weights(text: str) -> dict[str, float]:
    """Weights of reward terms from `name=number,…`, as recipes and the command line write them. Raises BadData.

    >>> parse_weights("iou=1, format=0.5")
    {'iou': 1.0, 'format': 0.5}
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        name, _, value = part.partition("=")
        weight = number_in(value)
        if weight is None:
            raise BadData(f"weights {text!r}: expected name=number,…, as iou=1,format=0")
        if name.strip() in found:
            raise BadData(f"weights {text!r}: {name.strip()} is there twice, expected once")
        found[name.strip()] = weight
    return found


__all__ = ["TASKS", "Task", "make_task", "parse_weights"]
