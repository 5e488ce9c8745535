"""`per_sample.jsonl`: what each sample was answered and what that is worth, a line a sample in the order of the data.

    {"id": "coco-42", "measures": {"hits@0.5": 1.0, "f1@0.5": 0.4, …}, "problem": null, "exact": true, "answer": {"boxes": [[…]], "labels": […]}}
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.samples import json_line, read_rows, replacing
from ..records import Answer, BadData, Sample
from ..tasks import Task
from .metrics import Reading, Statistics, metrics_of_means

FILE = "per_sample.jsonl"


def per_sample_rows(task: Task, samples: Sequence[Sample], readings: Sequence[Reading], stats: Statistics) -> Iterator[dict[str, Any]]:
    """A row a sample: `measures` are its statistics (their means give every metric) and the metrics of this sample alone.

    `problem` says why an answer could not be read, else null; `exact` whether it was exactly the demanded structure;
    `answer` its boxes in original pixels, where there are any to have.
    """
    columns = {**stats, **metrics_of_means(task, stats)}
    for index, (sample, reading) in enumerate(zip(samples, readings, strict=True)):
        row = {"id": sample.id, "measures": {name: float(column[index]) for name, column in columns.items()}, "problem": reading.problem}
        answer = reading.answer
        row["exact"] = answer is not None and answer.exact
        yield row if sample.truth.text is not None else row | {"answer": answer and _boxes(answer)}


def _boxes(answer: Answer) -> dict[str, Any]:
    written: dict[str, Any] = {"boxes": answer.boxes.tolist(), "labels": list(answer.labels), "bad": answer.bad}
    return written if answer.scores is None else written | {"scores": answer.scores.tolist()}


def write_per_sample(rows: Iterator[Mapping[str, Any]], folder: Path) -> None:
    """Writes `folder`/per_sample.jsonl, whole or not at all."""
    with replacing(folder / FILE) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(map(json_line, rows))


def read_per_sample(folder: Path) -> list[dict[str, Any]]:
    """The rows of `folder`/per_sample.jsonl. Raises BadData where there are none that `evaluate` wrote."""
    path = folder / FILE
    if not path.is_file():
        raise BadData(f"{folder}: found no {FILE}, expected the folder of a run: make one with `perception-r1 evaluate … -o {folder}`")
    rows: list[Any] = [row for _, row in read_rows(path)]
    if not rows or not all(isinstance(row, dict) and {"id", "measures"} <= row.keys() for row in rows):
        raise BadData(f'{path}: expected lines of {{"id", "measures", "problem"}}, as `perception-r1 evaluate` writes them')
    return rows


def statistics_of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The columns of `measures` (S,) that every row has."""
    names = [name for name in rows[0]["measures"] if all(name in row["measures"] for row in rows)]
    return {name: np.array([row["measures"][name] for row in rows], dtype=np.float64) for name in names}


def answer_of_row(row: Mapping[str, Any]) -> Answer | None:
    """The boxes that a row states, None where the answer could not be read."""
    found = row.get("answer")
    if found is None:
        return None
    scores = None if "scores" not in found else np.array(found["scores"], dtype=np.float64)
    boxes_N4 = np.array(found["boxes"], dtype=np.float64).reshape(-1, 4)
    return Answer(boxes=boxes_N4, labels=tuple(found["labels"]), scores=scores, bad=found.get("bad", 0), exact=bool(row.get("exact", True)))
