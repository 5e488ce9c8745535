"""The worst answers of a run: the raw text, why it was not read, and truth and prediction drawn with what matches.

Pictures need the samples, which are looked for where metrics.json says. When they are not there, or are others, the report says
so in place of pictures.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.mixture import load_data
from ..data.samples import open_image
from ..records import Answer, BadData, Sample, Truth
from ..tasks import TASKS
from ..visualize import draw, matched_pairs, picture_to_data_uri
from .folders import Run
from .page import Block, Example, Legend, Panel, Words
from .per_sample import answer_of_row, read_per_sample
from .run import about_data, main_metric

LONGEST_SIDE = 480
"""Of an embedded picture, in pixels."""
MOST_DRAWN = 300
"""Boxes of one answer, and objects of one truth, that are drawn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Failure:
    """One answer: its row of per_sample.jsonl, and the completion where the run kept it."""

    row: Mapping[str, Any]
    metric: str
    """By which it is among the worst: the task's main metric, or the run's first where that has none."""
    completion: str | None = None

    @property
    def value(self) -> float:
        """Of the metric, on this sample alone."""
        return float(self.row["measures"].get(self.metric, math.nan))


def worst(run: Run, most: int) -> list[Failure]:
    """The `most` worst answers of a run, ties in the order of the file. Half of them could not be read, or fewer, if others are there.

    Raises BadData where the run has no per_sample.jsonl.
    """
    task, rows = TASKS[run.task], read_per_sample(run.folder)
    metric = main_metric(run.task, run.metrics)
    sign = -1.0 if metric in task.LOWER_IS_BETTER else 1.0
    unread = [row for row in rows if row.get("problem") is not None]
    read = sorted((row for row in rows if row.get("problem") is None), key=lambda row: sign * float(row["measures"].get(metric, math.nan)))
    order = unread[: max(most // 2, most - len(read))]
    order += read[: most - len(order)]
    completions = _completions(run.folder / "answers.jsonl", {row["id"] for row in order})
    return [Failure(row=row, metric=metric, completion=completions.get(row["id"])) for row in order]


def _completions(path: Path, wanted: set[str]) -> dict[str, str]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as file:
        rows = (json.loads(line) for line in file if line.strip())
        return {row["id"]: row["completion"] for row in rows if row.get("id") in wanted}


def gallery(run: Run, most: int) -> list[Block]:
    """The blocks that show the worst answers of a run, or say why they cannot be shown."""
    if run.task not in TASKS:
        return [Words(text=f"No answers to show: {run.task} is not among the tasks {', '.join(TASKS)}")]
    try:
        failures = worst(run, most)
    except BadData as problem:
        return [Words(text=f"No answers to show: {problem}")]
    samples, trouble = samples_of(run)
    unread = sum(failure.row.get("problem") is not None for failure in failures)
    words = (
        f"{len(failures) - unread:,} of the worst answers by {failures[0].metric}, after {unread:,} that could not be read; {run.samples:,} in all."
    )
    blocks: list[Block] = [Words(text=words, quiet=True)]
    blocks += [Words(text=f"No pictures: {trouble}", strong=True)] if trouble else []
    blocks += [Legend()] if samples and run.task != "ocr" else []
    return [*blocks, *(_example(failure, samples.get(failure.row["id"])) for failure in failures)]


def samples_of(run: Run) -> tuple[dict[str, Sample], str | None]:
    """The samples that a run was measured on by id, or none of them and why: not there, or no longer the same."""
    try:
        samples = load_data(run.data, run.task)[: run.samples or None]
        found = about_data(run.data, samples)
    except (BadData, OSError) as problem:
        return {}, f"the samples could not be read again ({problem})"
    if found["sha256"] != run.data_key[0]:
        hashes = f"its SHA-256 is {found['sha256'][:12]}…, metrics.json has {str(run.data_key[0])[:12]}…"
        return {}, f"{run.data} is not what the run was measured on: {hashes}"
    return {sample.id: sample for sample in samples}, None


def _example(failure: Failure, sample: Sample | None) -> Block:
    row, notes = failure.row, []
    caption = f"{row['id']}: {failure.metric} {failure.value:.3f}" + (f"; {sample.query}" if sample is not None and sample.query else "")
    if row.get("problem"):
        notes.append(f"could not be read: {row['problem']}")
    text = "the run kept no completion" if failure.completion is None else failure.completion
    answer = Panel(name="answer", text=text, words="" if text else "empty")
    if sample is None:
        return Example(caption=caption, notes=notes, panels=[answer])
    try:
        panels = _pictures(sample, answer_of_row(row))
    except BadData as problem:  # an image that is gone or broken
        notes.append(f"no picture: {problem}")
        panels = []
    return Example(caption=caption, notes=notes, panels=[*panels, answer])


def _pictures(sample: Sample, answer: Answer | None) -> list[Panel]:
    image, truth = open_image(sample), sample.truth
    if truth.text is not None:
        return [Panel(name="page", picture=thumbnail(image)), Panel(name="truth", text=truth.text)]
    drawn_truth, drawn_answer = _first_objects(truth), answer and _first_boxes(answer)
    pairs = []
    if drawn_answer:
        pairs = matched_pairs(drawn_truth, drawn_answer, image.size, sample.task)
    picture = draw(image, truth=drawn_truth, answer=drawn_answer, pairs=pairs)
    return [Panel(name="truth and answer", words=verdict(answer, truth, len(pairs)), picture=thumbnail(picture))]


def thumbnail(picture: Any, longest: int = LONGEST_SIDE) -> str:
    """A picture of a bounded size as a `data:` address."""
    small = picture.copy()
    small.thumbnail((longest, longest))
    return picture_to_data_uri(small)


def _first_objects(truth: Truth) -> Truth:
    if len(truth.labels) <= MOST_DRAWN:
        return truth
    some = slice(MOST_DRAWN)
    boxes, points = (None if objects is None else objects[some] for objects in (truth.boxes, truth.points))
    return Truth(boxes=boxes, points=points, labels=truth.labels[some])


def _first_boxes(answer: Answer) -> Answer:
    return Answer(boxes=answer.boxes[:MOST_DRAWN], labels=answer.labels[:MOST_DRAWN], bad=answer.bad)


def objects(count: int) -> str:
    """A number of true objects in words.

    >>> objects(1), objects(20)
    ('1 object', '20 objects')
    """
    return f"{count} object{'' if count == 1 else 's'}"


def true_objects(truth: Truth) -> str:
    """How many objects there really are, in a sentence that nobody takes for an answer's number.

    >>> true_objects(Truth(count=20)), true_objects(Truth(count=0))
    ('there are 20 objects', 'nothing is there')
    """
    if not len(truth):
        return "nothing is there"
    return f"there {'is' if len(truth) == 1 else 'are'} {objects(len(truth))}"


def verdict(answer: Answer | None, truth: Truth, matched: int) -> str:
    """What an answer says, in words: how many boxes, and how many true objects they match."""
    if answer is None:
        return f"no readable answer; {true_objects(truth)}"
    if not answer.count:
        return f"says that nothing is there; {true_objects(truth)}"
    unreadable = f", {answer.bad} unreadable" if answer.bad else ""
    first = f" (the first {MOST_DRAWN} are drawn)" if max(len(answer.boxes), len(truth)) > MOST_DRAWN else ""
    compared = f"{matched} of {objects(len(truth))} matched"
    if truth.count is not None:
        compared = f"{objects(truth.count)} counted"
    elif not len(truth):
        compared = true_objects(truth)
    return f"{answer.count} box{'' if answer.count == 1 else 'es'}{unreadable}{first}; {compared}"
