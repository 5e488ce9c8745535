"""One row of a sample file ↔ one `Sample`, with every field checked. DESIGN.md's sample file contract is this module.

A row that breaks it is a `BadData` of one line that names file, line, id, field, what was found and what was expected.
"""

import os
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..dialects import MOST_ITEMS
from ..records import TRUTHS, BadData, Sample, Truth
from ..tasks import TASKS, Task
from ..tasks.detection import COCO_NAMES

EDGE = 0.01
"""A true box may stick out of its image by this many pixels: what rounding to COCO's two decimals can do."""

LARGEST = 1e9
"""Numbers beyond this are no pixel coordinates, sizes or areas of any image."""

KINDS = {"grounding": ("boxes",), "counting": ("boxes", "points", "count"), "detection": ("boxes",), "ocr": ("text",)}
"""What a truth may hold, by task."""

Row = Mapping[str, Any]


class _Fields:
    """The fields of one row; knows where it stands, so that every complaint can say so."""

    def __init__(self, row: Row, where: str) -> None:
        self.row, self.where = row, where

    def fail(self, field: str, found: str, expected: str) -> NoReturn:
        name = self.row.get("id")
        sample = f" sample {name!r:.60}:" if isinstance(name, str) else ""
        raise BadData(f"{self.where}:{sample} field {field}: found {found}, expected {expected}")

    def take(self, field: str, right: Callable[[Any], bool], expected: str, *, default: object = ...) -> Any:
        """The value of a field that `right` accepts; `default`, when there is one, for an absent or null field."""
        value = self.row.get(field)
        if value is None and default is not ...:
            return default
        if not right(value):
            self.fail(field, _short(value), expected)
        return value


def _short(found: object) -> str:
    text = "nothing" if found is None else repr(found)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_string(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)  # half a character: no file can hold it


def _is_text(value: Any) -> bool:
    return _is_string(value) and bool(value.strip())


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST  # NaN fails both comparisons


def _numbers(length: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and len(value) == length and all(map(_is_number, value))


def _list_of(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(map(right, value))


def _is_name_list(value: Any) -> bool:
    return _list_of(_is_text)(value) and 0 < len(value) == len(set(value))


def _is_seen(value: Any) -> bool:
    return _list_of(_is_size)(value) and len(value) == 2


def sample_from_row(row: object, root: Path, where: str) -> Sample:
    """The sample that a row states. `root` is the folder of its relative image path, `where` its file and line.

    Columns that the contract does not name are left alone. Absent `labels` of grounding and counting are the query's.
    Raises BadData.
    """
    if not isinstance(row, Mapping):
        raise BadData(f"{where}: found {_short(row)}, expected one JSON object a line: {{\"id\": …, \"task\": …}}")
    fields = _Fields(row, where)
    name = fields.take("id", _is_text, "a text that no other sample has")
    task = fields.take("task", lambda value: isinstance(value, str) and value in TASKS, f"one of {', '.join(TASKS)}")
    width, height = (fields.take(side, _is_size, "the image's size, a whole number of pixels of at least 1") for side in ("width", "height"))
    asks = _asks(TASKS[task])
    query = fields.take("query", _is_text if asks else _is_string, "the phrase or class that is asked for", default=... if asks else "")
    categories = fields.take("categories", _is_name_list, "a list of different names", default=None)
    truth = _truth(fields, task, width, height, query)
    if task == "detection":
        _check_names(fields, truth, tuple(categories or COCO_NAMES))
    seen = fields.take("seen", _is_seen, "[width, height] as the model saw the image", default=None)
    return Sample(
        id=name,
        task=task,
        image=fields.take("image", _is_text, "the path of the image, relative to the sample file"),
        width=width,
        height=height,
        query=query,
        truth=truth,
        source=fields.take("source", _is_string, "a text", default=None),
        categories=tuple(categories) if categories else None,
        seen=(seen[0], seen[1]) if seen else None,
        crowd=_for_each(fields, "crowd", len(truth.labels), lambda value: value in (True, False), "true or false"),
        area=_for_each(fields, "area", len(truth.labels), lambda value: _is_number(value) and value >= 0, "square pixels of at least 0"),
        root=root,
    )


@cache
def _asks(task: type[Task]) -> bool:
    return task().needs_query()


def _truth(fields: _Fields, task: str, width: int, height: int, query: str) -> Truth:
    kinds = KINDS.get(task, ())
    if not kinds:
        raise BadData(
            f"task {task!r}: found no entry in KINDS (perception_r1.data.rows), "
            "expected what its truth holds"
        )
    expected = f"an object with {' or '.join(kinds)}"
    written = fields.take("truth", lambda value: isinstance(value, Mapping), f"{expected}, as {task} needs")
    given = [kind for kind in TRUTHS if written.get(kind) is not None]
    if len(given) != 1 or given[0] not in kinds:
        fields.fail("truth", " and ".join(given) or _short(dict(written)), f"{expected}, as {task} needs")
    if given[0] == "text":
        if not _is_text(written["text"]):
            fields.fail("truth.text", _short(written["text"]), "the page's text: leave a blank page out")
        return Truth(text=written["text"])
    if given[0] == "count":
        return _count(fields, written)
    objects = written[given[0]]
    if not isinstance(objects, (list, tuple)):
        fields.fail(f"truth.{given[0]}", _short(objects), "a list, one entry for each object")
    for index, values in enumerate(objects):
        _check_place(fields, f"truth.{given[0]}[{index}]", values, given[0], width, height)
    if task == "grounding" and len(objects) > 1:
        fields.fail("truth.boxes", f"{len(objects)} boxes", "one box, or none when nothing matches")
    labels = _labels(fields, task, written.get("labels"), len(objects), query)
    return Truth(boxes=np.array(objects), labels=labels) if given[0] == "boxes" else Truth(points=np.array(objects), labels=labels)


def _count(fields: _Fields, written: Row) -> Truth:
    count = written["count"]
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MOST_ITEMS:
        fields.fail("truth.count", _short(count), f"a whole number from 0 to {MOST_ITEMS:,}, the most objects that an answer may list")
    if written.get("labels"):
        fields.fail("truth.labels", _short(written["labels"]), "none: a count names no object, the sample's query says what is counted")
    return Truth(count=count)


def _check_place(fields: _Fields, field: str, values: Any, kind: str, width: int, height: int) -> None:
    form = "[x1, y1, x2, y2]" if kind == "boxes" else "[x, y]"
    if not _numbers(4 if kind == "boxes" else 2)(values):
        fields.fail(field, _short(values), f"{form}, finite numbers, in pixels")
    if kind == "boxes" and not (values[0] < values[2] and values[1] < values[3]):
        fields.fail(field, _short(values), "x1 < x2 and y1 < y2 in [x1, y1, x2, y2]")
    if min(values) < -EDGE or max(values[0::2]) > width + EDGE or max(values[1::2]) > height + EDGE:
        fields.fail(field, _short(values), f"{form} inside its image of {width}x{height} pixels")


def _labels(fields: _Fields, task: str, labels: Any, count: int, query: str) -> tuple[str, ...]:
    if labels is None and task != "detection":
        return (query,) * count
    if isinstance(labels, (list, tuple)) and len(labels) == count and all(map(_is_text, labels)):
        return tuple(labels)
    fields.fail("truth.labels", _short(labels), f"{count} names, one for each object")


def _check_names(fields: _Fields, truth: Truth, categories: tuple[str, ...]) -> None:
    listed = set(categories)
    for index, label in enumerate(truth.labels):
        if label not in listed:
            expected = "one of the sample's `categories` (COCO's 80 when it has none): the prompt lists them"
            fields.fail(f"truth.labels[{index}]", _short(label), expected)


def _for_each(fields: _Fields, field: str, count: int, right: Callable[[Any], bool], what: str) -> tuple[Any, ...] | None:
    expected = f"{count} values, one for each object, {what}"
    values = fields.take(field, lambda value: _list_of(right)(value) and len(value) == count, expected, default=None)
    return None if values is None else tuple(map(bool if field == "crowd" else float, values))


@lru_cache(maxsize=1024)
def _way(start: str, end: str) -> str:
    return os.path.relpath(os.path.realpath(end), os.path.realpath(start))


def sample_to_row(sample: Sample, folder: Path) -> dict[str, Any]:
    """The row of a sample in a file that lies in `folder`: what `sample_from_row` reads back equal."""
    truth = sample.truth
    value = getattr(truth, truth.kind)
    written = {truth.kind: value.tolist(), "labels": list(truth.labels)} if truth.kind in ("boxes", "points") else {truth.kind: value}
    path = sample.image_path
    image = os.path.join(_way(os.path.join(os.getcwd(), folder), os.path.join(os.getcwd(), path.parent)), path.name)
    row: dict[str, Any] = {"id": sample.id, "task": sample.task, "image": Path(image).as_posix(), "width": sample.width, "height": sample.height}
    row |= {"query": sample.query, "truth": written}
    for field in ("source", "categories", "seen", "crowd", "area"):
        value = getattr(sample, field)
        if value is not None:
            row[field] = list(value) if isinstance(value, tuple) else value
    return row
