"""What completions earn: the reward of training, for the answers of any model; and pictures of them. Scoring opens no image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.rows import sample_from_row
from ..data.samples import open_image, read_rows, read_samples, unique
from ..dialects import frame_of
from ..records import BadData, Frame, Malformed, Sample, Score
from ..tasks import TASKS, Task, make_task
from ..visualize import draw


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How completions are read and what they earn, whatever the task. Unknown names raise BadData here, before any file is read."""

    dialect: str = "qwen2-vl"
    thinking: bool = False
    matching: str = "hungarian"
    weights: Mapping[str, float] = field(default_factory=dict)
    """By reward term; a term that only some tasks have is for those."""
    min_pixels: int = 3136
    max_pixels: int = 1_000_000
    """Limits of the resized image, in pixels, for samples that do not say what size the model saw."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise BadData(f"found min_pixels {self.min_pixels} and max_pixels {self.max_pixels}, expected 1 <= min <= max")
        terms = {term for task in TASKS.values() for term in task.TERMS}
        if unknown := sorted(set(self.weights) - terms):
            raise BadData(f"weights: no task has the term {unknown[0]!r}: expected {', '.join(sorted(terms))}")
        _ = self.tasks

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Every task with these settings, by name."""
        made = {}
        for name, kind in TASKS.items():
            weights = {term: weight for term, weight in self.weights.items() if term in kind.TERMS}
            made[name] = make_task(name, dialect=self.dialect, thinking=self.thinking, matching=self.matching, weights=weights)
        return made

    def frame(self, sample: Sample) -> Frame:
        return frame_of(
            sample.width, sample.height, self.tasks[sample.task].dialect, seen=sample.seen, min_pixels=self.min_pixels, max_pixels=self.max_pixels
        )

    def score(self, completion: str, sample: Sample) -> Score:
        """The reward of one completion. Raises BadData on a broken truth only."""
        return self.tasks[sample.task].score(completion, sample, self.frame(sample))


def score_file(file: Path, settings: ScoreSettings, answers: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yields `{"id", "total", "terms", "problem"}`, line for line, for a file whose lines hold a sample and its "completion".

    With `answers`, that file's `{"id", "completion"}` lines are scored, in their order, against the samples of `file`. Ids
    of completions may repeat (rollouts of one question). Streams. Raises BadData, naming file and line.
    """
    found = False
    for where, row, sample in rows_with_samples(file, answers):
        completion, found = row.get("completion"), True
        if not isinstance(completion, str):
            raise BadData(f"{where}: sample {sample.id!r}: field completion: found {completion!r:.60}, expected the model's text")
        try:
            score = settings.score(completion, sample)
        except BadData as problem:
            raise BadData(f"{where}: {problem}") from problem
        yield {"id": sample.id, "total": score.total, "terms": dict(score.terms), "problem": score.problem}
    if not found:
        raise BadData(f"{answers or file}: found no line, expected at least one completion")


def pictures(file: Path, settings: ScoreSettings, answers: Path | None = None) -> Iterator[tuple[Image.Image, str]]:
    """Yields each sample's picture, with truth and answer drawn, and a caption that says what the answer earns.

    Lines are read as by `score_file`, except that one without a completion shows its truth alone. Raises BadData.
    """
    for where, row, sample in rows_with_samples(file, answers):
        completion, caption, answer = row.get("completion"), f"{sample.id}: {sample.task} {sample.query}", None
        if isinstance(completion, str):
            caption += f"\n{_worth(completion, sample, settings)}"
            try:
                answer = settings.tasks[sample.task].read(completion, settings.frame(sample))
            except Malformed as problem:
                caption += f"\nmalformed: {problem}\nwritten: {completion[:400] or 'nothing'}"
        elif completion is not None:
            raise BadData(f"{where}: sample {sample.id!r}: field completion: found {completion!r:.60}, expected the model's text")
        if sample.truth.text is not None:
            caption += f"\ntruth: {sample.truth.text[:400]}" + (f"\nanswer: {answer.text[:400]}" if answer else "")
        yield draw(open_image(sample), truth=sample.truth, answer=answer, task=sample.task), caption


def _worth(completion: str, sample: Sample, settings: ScoreSettings) -> str:
    if sample.truth.count is not None:
        return f"truth: {sample.truth.count} of them, without places, so that no answer earns a reward"
    score = settings.score(completion, sample)
    return f"total {score.total:.3f}: " + ", ".join(f"{name} {value:.3f}" for name, value in score.terms.items())


def rows_with_samples(file: Path, answers: Path | None = None) -> Iterator[tuple[str, Mapping[str, Any], Sample]]:
    """Yields (file and line, row, its sample) of a file of samples, or of `answers`, joined with `file` by id. Raises BadData."""
    return _answered(file) if answers is None else _joined(file, answers)


def _answered(file: Path) -> Iterator[tuple[str, Mapping[str, Any], Sample]]:
    for where, row in read_rows(file):
        if isinstance(row, BadData):
            raise row
        yield where, row, sample_from_row(row, file.parent, where)


def _joined(file: Path, answers: Path) -> Iterator[tuple[str, Mapping[str, Any], Sample]]:
    samples = {sample.id: sample for sample in unique(read_samples(file), str(file))}
    for where, row in read_rows(answers):
        if isinstance(row, BadData):
            raise row
        if not isinstance(row, Mapping) or not isinstance(row.get("id"), str):
            raise BadData(f'{where}: found {row!r:.80}, expected {{"id": text, "completion": text}}')
        if row["id"] not in samples:
            raise BadData(f"{where}: found an answer for {row['id']!r}, expected the id of a sample in {file}")
        yield where, row, samples[row["id"]]
