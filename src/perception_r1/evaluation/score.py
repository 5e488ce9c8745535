"""What completions earn: the reward of training, for the answers of any model; and pictures of them. Scoring opens no image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.rows import sample_from_row
from ..data.samples import open_image, read_rows, read_samples, unique
from ..endings import without_ends
from ..frames import PixelLimits, Size, Sizes, stated_size
from ..records import BadData, Frame, Malformed, Sample, Score
from ..rewards import RewardSettings
from ..tasks import TASKS, Task
from ..visualize import draw


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(RewardSettings):
    """A reward, and how large the model saw the images. Raises BadData before any file is read."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    """Limits of the resized image, in pixels, for answers that do not state the size seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.limits

    @property
    def limits(self) -> PixelLimits:
        return PixelLimits(min_pixels=self.min_pixels, max_pixels=self.max_pixels)

    def task(self, sample: Sample) -> Task:
        return self.tasks[sample.task]

    def frame(
        self, sample: Sample, seen: Size | None = None, completion: str | None = None
    ) -> Frame:
        """The frame of an answer, which may state the size seen. Raises BadData (`PixelLimits.frame`)."""
        return self.limits.frame(sample, self.task(sample).dialect, seen, completion)

    def score(self, completion: str, sample: Sample, seen: Size | None = None) -> Score:
        """The reward of one completion; end tokens behind it are none of it.

        Raises BadData on a broken truth, and where a size that matters is not known.
        """
        text = without_ends(completion)
        return self.task(sample).score(text, sample, self.frame(sample, seen, text))


def score_file(
    file: Path, settings: ScoreSettings, answers: Path | None = None, sizes: Sizes | None = None
) -> Iterator[dict[str, Any]]:
    """Yields `{"id", "total", "terms", "problem"}`, line for line, for a file whose lines hold a sample and its "completion".

    With `answers`, that file's `{"id", "completion"}` lines are scored, in their order, against the samples of `file`. Ids
    of completions may repeat (rollouts of one question). A line may state the size at which the model saw
    the image, `seen`; `sizes` counts which did. Streams. Raises BadData, naming file and line, and at the
    end for a setting that no task of the data has.
    """
    tasks: set[str] = set()
    found = False
    for where, row, sample in rows_with_samples(file, answers, tasks):
        completion, seen, found = row.get("completion"), _seen(where, row, sample), True
        if not isinstance(completion, str):
            raise BadData(f"{where}: sample {sample.id!r}: field completion: found {completion!r:.60}, expected the model's text")
        if sizes is not None:
            sizes.count(sample, settings.task(sample).dialect, without_ends(completion), seen)
        try:
            score = settings.score(completion, sample, seen)
        except BadData as problem:
            raise BadData(f"{where}: {problem}") from problem
        yield {"id": sample.id, "total": score.total, "terms": dict(score.terms), "problem": score.problem}
    if not found:
        raise BadData(f"{answers or file}: found no line, expected at least one completion")
    settings.check_used(tasks)


def _seen(where: str, row: Mapping[str, Any], sample: Sample) -> Size | None:
    return stated_size(row.get("seen"), f"{where}: sample {sample.id!r}")


def pictures(file: Path, settings: ScoreSettings, answers: Path | None = None) -> Iterator[tuple[Image.Image, str]]:
    """Yields each sample's picture, with truth and answer drawn, and a caption that says what the answer earns.

    Lines are read as by `score_file`, except that one without a completion shows its truth alone. Raises BadData.
    """
    settings.check_used(_tasks_in(file))
    for where, row, sample in rows_with_samples(file, answers):
        completion, caption, answer = row.get("completion"), f"{sample.id}: {sample.task} {sample.query}", None
        if isinstance(completion, str):
            seen, text = _seen(where, row, sample), without_ends(completion)
            try:
                frame = settings.frame(sample, seen, text)
            except BadData as problem:
                raise BadData(f"{where}: {problem}") from problem
            caption += f"\n{_worth(text, sample, settings, frame)}"
            try:
                answer = settings.task(sample).read(text, frame)
            except Malformed as problem:
                caption += f"\nmalformed: {problem}\nwritten: {completion[:400] or 'nothing'}"
        elif completion is not None:
            raise BadData(f"{where}: sample {sample.id!r}: field completion: found {completion!r:.60}, expected the model's text")
        if sample.truth.text is not None:
            caption += f"\ntruth: {sample.truth.text[:400]}" + (f"\nanswer: {answer.text[:400]}" if answer else "")
        yield draw(open_image(sample), truth=sample.truth, answer=answer, task=sample.task), caption


def _worth(completion: str, sample: Sample, settings: ScoreSettings, frame: Frame) -> str:
    if sample.truth.count is not None:
        return f"truth: {sample.truth.count} of them, without places, so that no answer earns a reward"
    score = settings.task(sample).score(completion, sample, frame)
    return f"total {score.total:.3f}: " + ", ".join(f"{name} {value:.3f}" for name, value in score.terms.items())


def _tasks_in(file: Path) -> set[str]:
    """The tasks that the rows of a sample file name. A row that is wrong is told where it is read."""
    named = [row.get("task") for _, row in read_rows(file) if isinstance(row, Mapping)]
    return {name for name in TASKS if name in named}


def rows_with_samples(
    file: Path, answers: Path | None = None, tasks: set[str] | None = None
) -> Iterator[tuple[str, Mapping[str, Any], Sample]]:
    """Yields (file and line, row, its sample) of a file of samples, or of `answers`, joined by id.

    `tasks` is filled with those of the samples, asked about or not. Raises BadData.
    """
    tasks = set() if tasks is None else tasks
    return _answered(file, tasks) if answers is None else _joined(file, answers, tasks)


def _answered(file: Path, tasks: set[str]) -> Iterator[tuple[str, Mapping[str, Any], Sample]]:
    for where, row in read_rows(file):
        if isinstance(row, BadData):
            raise row
        sample = sample_from_row(row, file.parent, where)
        tasks.add(sample.task)
        yield where, row, sample


def _joined(
    file: Path, answers: Path, tasks: set[str]
) -> Iterator[tuple[str, Mapping[str, Any], Sample]]:
    samples = {sample.id: sample for sample in unique(read_samples(file), str(file))}
    tasks.update(sample.task for sample in samples.values())
    for where, row in read_rows(answers):
        if isinstance(row, BadData):
            raise row
        if not isinstance(row, Mapping) or not isinstance(row.get("id"), str):
            raise BadData(f'{where}: found {row!r:.80}, expected {{"id": text, "completion": text}}')
        if row["id"] not in samples:
            raise BadData(f"{where}: found an answer for {row['id']!r}, expected the id of a sample in {file}")
        yield where, row, samples[row["id"]]
