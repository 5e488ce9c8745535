"""One evaluation: samples and answers in, `answers.jsonl` and `metrics.json` out. Answers come from a model or from a file."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from .. import versions as installed_versions
from ..data.mixture import load_data
from ..data.rows import sample_to_row
from ..data.samples import json_line, read_samples, replacing, unique
from ..endings import without_ends
from ..frames import PixelLimits, size_matters
from ..records import BadData, Sample
from ..tasks import TASKS, Task, make_task
from ..tasks.words import wordnet_version
from .asking import (
    Backend,
    Processes,
    Question,
    Reach,
    Reply,
    check_images,
    installed_vllm,
    load_backend,
)
from .breakdown import breakdown
from .journal import REMEDY, RUN, Journal, has_answers
from .metrics import Reading, check_installed, read_completion, statistics, strict_statistics, strictly, summarise
from .per_sample import per_sample_rows, write_per_sample
from .predictions import COCO_RESULTS, Predictions, Written, file_hash, read_predictions

Progress = Callable[[int, int], None]
"""Called with how many answers there are and how many there will be."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an evaluation depends on besides data and model; written to metrics.json as it is."""

    dialect: str
    thinking: bool
    batch_size: int
    max_new_tokens: int
    """Tokens after which a completion is cut off."""
    limit: int | None
    """Only the first so many samples; None for all."""
    min_pixels: int | None
    max_pixels: int | None
    """Limits of the resized image, in pixels; None for the processor's own."""
    seed: int
    """Of the bootstrap; decoding is greedy."""
    resamples: int
    ap_resamples: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_new_tokens", "limit", "min_pixels", "max_pixels", "resamples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadData(f"{name} is {value}: expected at least 1")


def evaluate(
    *,
    data: str | None = None,
    output: str | Path,
    model: str | Path | None = None,
    server: str | None = None,
    predictions: str | Path | None = None,
    categories: str | Path | None = None,
    task: str | None = None,
    dialect: str | None = None,
    thinking: bool | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 2048,
    limit: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
    ap_resamples: int = 100,
    device: str | None = None,
    dtype: str | None = None,
    vllm: bool = False,
    reach: Reach | None = None,
    overwrite: bool = False,
    processes: Processes | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluates a model, or a file of answers, on samples of one task; returns what it wrote to `output`/metrics.json.

    One of `model` (folder or hub id, through transformers or `vllm`), `server` (URL; `model` is then its name there, `reach` how it
    is called) and `predictions` (see `read_predictions`; without `data`, lines that also hold the sample). What is left None comes
    from the model's perception_r1.json and config, else from the package's defaults. A model's answers go to `output`/answers.jsonl
    as they come: a run that was stopped goes on, answers of another are refused unless `overwrite`. What each is worth goes to
    `output`/per_sample.jsonl. Of several `processes` each asks its share; the first returns the result, the others {}.
    Raises BadData for unusable input, OSError for an unwritable output or a server that does not answer.
    """
    settings = Settings(
        dialect=dialect or "qwen2-vl", thinking=bool(thinking), batch_size=batch_size, max_new_tokens=max_new_tokens, limit=limit,
        min_pixels=min_pixels, max_pixels=max_pixels, seed=seed, resamples=resamples, ap_resamples=ap_resamples,
    )  # fmt: skip
    if vllm:
        installed_vllm()  # before anything is read
    everything = load_samples(data, model or server, predictions, task)
    samples, folder, given = everything[:limit], Path(output), None
    check_installed(make_task(samples[0].task))
    source = about_data(data or str(predictions), samples)
    if predictions is not None:
        given = read_predictions(predictions, everything, categories)
        answered = _answers_of_file(given, samples, _declared(settings, given, dialect), folder, overwrite, on_progress)
    else:
        processes = processes or Processes()
        backend = _backend(model, server, samples, settings, vllm=vllm, reach=reach, dialect=dialect, device=device or processes.device, dtype=dtype)
        settings = replace(settings, dialect=backend.dialect.name, thinking=bool(backend.settings.get("thinking") if thinking is None else thinking))
        answered = _answers_of_model(backend, samples, source, settings, folder, overwrite, processes, on_progress)
        if processes.index:
            return {}
    readings = _read(answered.task, samples, answered.replies, given)
    result = _result(answered.task, samples, readings, answered.settings, {"data": source, "model": answered.model}, folder)
    about_sizes = [answered.note] if answered.note else []
    result["notes"] = [*(given.notes(samples) if given else ()), *about_sizes, *_doubts(result)]
    write_metrics(result, folder / "metrics.json")
    print_result(result)
    return result


class Answered(NamedTuple):
    """The replies to all samples, in order, by what was asked of whom."""

    task: Task
    settings: Settings
    model: dict[str, Any]
    """What metrics.json says of it."""
    replies: list[Reply]
    note: str | None = None
    """What a reader must know of how they were read."""


def _answers_of_model(
    backend: Backend, samples: Sequence[Sample], source: Mapping[str, Any], settings: Settings, folder: Path, overwrite: bool, processes: Processes,
    on_progress: Progress | None,
) -> Answered:  # fmt: skip
    task = make_task(samples[0].task, dialect=settings.dialect, thinking=settings.thinking)
    model = backend.about(settings.max_new_tokens) | {"prompt": _prompt(backend, task, samples[0])}
    needs_size = task.dialect.reads_size_seen and task.name != "ocr"
    identity = _identity(task, source, model, settings)
    with Journal(
        folder, samples, identity, overwrite=overwrite, processes=processes, needs_size=needs_size
    ) as journal:
        _ask(backend, task, journal, settings, on_progress)
    processes.wait()
    return Answered(task, settings, model, [] if processes.index else journal.finish())


def _answers_of_file(
    given: Predictions, samples: Sequence[Sample], settings: Settings, folder: Path, overwrite: bool, on_progress: Progress | None
) -> Answered:
    spoken = "plain" if settings.dialect == COCO_RESULTS else settings.dialect
    task = make_task(samples[0].task, dialect=spoken, thinking=settings.thinking)
    limits = PixelLimits(min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)
    sizes = given.sizes(samples, task.dialect, limits)
    about = {"predictions": given.path, "sha256": given.sha256, "without_answer": sum(sample.id not in given.written for sample in samples)}
    source = _from_file(given, task, samples, limits)
    replies = _collect(source, samples, folder, overwrite, on_progress)
    if sizes.computed:
        settings = replace(settings, min_pixels=limits.least)
    return Answered(task, settings, about | {"image": sizes.about()}, replies, sizes.note())


def _declared(settings: Settings, given: Predictions, dialect: str | None) -> Settings:
    if given.answers is None:
        return settings
    if dialect is not None:
        raise BadData(f"{given.path}: found dialect {dialect} named for COCO results, which state their boxes themselves: leave --dialect out")
    return replace(settings, dialect=COCO_RESULTS, thinking=False)


def _doubts(result: Mapping[str, Any]) -> list[str]:
    dialect = result["settings"]["dialect"]
    if result["metrics"]["parse_failure_rate"]["value"] < 1:
        return []
    return [f"no answer could be read: is {dialect} (--dialect) how they write boxes?"] if result["task"] != "ocr" else ["every answer is empty"]


def _backend(
    model: str | Path | None, server: str | None, samples: Sequence[Sample], settings: Settings, *, vllm: bool, reach: Reach | None, **options: Any
) -> Backend:
    limits = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
    if server is None:
        return load_backend(str(model), samples, vllm=vllm, **options, **limits)
    if vllm or options["device"] or options["dtype"]:
        raise BadData("--server: found --vllm, --device or --dtype beside it, expected none: the server chooses how it runs")
    check_images(samples)
    from .server import ServerBackend

    name = None if model is None else str(model)
    return ServerBackend(server, name, task=samples[0].task, dialect=options["dialect"], reach=reach or Reach(), **limits)


def _prompt(backend: Backend, task: Task, sample: Sample) -> dict[str, str | None]:
    example = task.prompt(sample)
    return {"template": task.template(), "example": example, "as_sent": backend.as_sent(example)}


def _identity(task: Task, source: Mapping[str, Any], model: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Everything that the answers depend on. Where the data, the model or the server are is not, nor how many are asked at a time."""
    elsewhere = {"device", "server"} | ({"name"} if model.get("revision") else set())
    installed = {} if "server" in model else versions()
    return {
        "task": task.name,
        "data": {name: value for name, value in source.items() if name != "path"},
        "model": {name: value for name, value in model.items() if name not in elsewhere},
        "settings": {name: getattr(settings, name) for name in ("dialect", "thinking", "limit", "min_pixels", "max_pixels")},
        "versions": {name: installed[name] for name in ("torch", "transformers", "vllm") if name in installed},
    }


def _ask(backend: Backend, task: Task, journal: Journal, settings: Settings, on_progress: Progress | None) -> None:
    questions = [Question(sample, task.prompt(sample)) for sample in journal.missing()]
    done = len(journal.samples) - len(questions)
    for count, (question, reply) in enumerate(
        backend.replies(questions, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size), done + 1
    ):
        journal.add(question.sample, reply)
        if on_progress:
            on_progress(count, len(journal.samples))


def _from_file(
    given: Predictions, task: Task, samples: Sequence[Sample], limits: PixelLimits
) -> Iterator[Reply]:
    for sample in samples:  # no answer is the empty answer, which is malformed in every task
        answer = given.written.get(sample.id, Written("", "stop"))
        text = without_ends(answer.completion)
        frame = limits.frame(sample, task.dialect, answer.seen, text)
        known = answer.seen is not None or size_matters(sample, task.dialect, text)
        yield Reply(text, answer.finish, frame, known)


def _collect(source: Iterator[Reply], samples: Sequence[Sample], folder: Path, overwrite: bool, on_progress: Progress | None) -> list[Reply]:
    """The replies of a file of answers, which `folder`/answers.jsonl repeats."""
    if has_answers(folder) and not overwrite:
        raise BadData(f"{folder} holds the answers of a model ({RUN}), expected a folder of its own for a file of answers: {REMEDY}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN).unlink(missing_ok=True)
    replies = []
    with replacing(folder / "answers.jsonl") as part, part.open("w", encoding="utf-8") as file:
        for sample, reply in zip(samples, source, strict=True):
            row: dict[str, Any] = {"id": sample.id, "completion": reply.completion}
            row["finish"] = reply.finish
            if reply.sized:
                row["seen"] = [reply.frame.seen_width, reply.frame.seen_height]
            file.write(json_line(row))
            replies.append(reply)
            if on_progress:
                on_progress(len(replies), len(samples))
    return replies


def _read(task: Task, samples: Sequence[Sample], replies: Sequence[Reply], given: Predictions | None) -> list[Reading]:
    if given is not None and given.answers is not None:
        lengths = [len(reply.completion) for reply in replies]
        return [Reading(given.answers[sample.id], length=length) for sample, length in zip(samples, lengths, strict=True)]
    return [read_completion(task, reply.completion, reply.finish, reply.frame) for reply in replies]


def _result(
    task: Task, samples: Sequence[Sample], readings: Sequence[Reading], settings: Settings, about: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    stats, strict = statistics(task, samples, readings), strictly(readings)
    write_per_sample(per_sample_rows(task, samples, readings, stats), folder)
    options = {"seed": settings.seed, "resamples": settings.resamples, "ap_resamples": settings.ap_resamples}
    found = {"metrics": summarise(task, samples, readings, stats, **options)}
    if any(now is not was for now, was in zip(strict, readings, strict=True)):
        found["strict"] = summarise(task, samples, strict, strict_statistics(task, samples, readings, stats), **options)
    else:
        found["strict"] = found["metrics"]
    found["breakdown"] = breakdown(task, samples, readings, stats)
    words = {"wordnet": wordnet_version()} if task.name == "ocr" else {}
    return {"task": task.name, **about, "settings": asdict(settings), "versions": versions() | words, **found}


def load_samples(data: str | None, model: str | Path | None, predictions: str | Path | None, task: str | None = None) -> Sequence[Sample]:
    """The samples to evaluate, all of one task. Raises BadData that names the tasks when there are several."""
    if (model is None) == (predictions is None):
        raise BadData("expected exactly one of --model, --server and --predictions")
    if data is None and predictions is None:
        raise BadData("expected --data: a sample file, or a reader's shorthand such as coco:ROOT")
    samples = load_data(data, task) if data is not None else list(unique(read_samples(str(predictions)), str(predictions)))
    found = sorted({sample.task for sample in samples})
    if len(found) > 1 or (task is not None and found != [task]):
        raise BadData(f"{data or predictions}: found samples of {', '.join(found)}, expected one task: split the file by its field `task`")
    return samples


def about_data(spec: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """Path, number of samples, and sha256: of the file, or where the spec is no file, of its rows without image paths."""
    if Path(spec).is_file():
        return {"path": spec, "sha256": file_hash(spec), "samples": len(samples)}
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps(sample_to_row(sample, sample.root) | {"image": ""}, sort_keys=True).encode())
    return {"path": spec, "sha256": digest.hexdigest(), "samples": len(samples)}


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those installed packages that the figures may depend on."""
    return installed_versions("numpy", "scipy", "pillow", "rapidfuzz", "hotcoco", "nltk", "jieba", "torch", "transformers", "trl", "vllm")


def write_metrics(result: Mapping[str, Any], path: Path) -> None:
    """Writes a metrics.json, whole or not at all. Raises ValueError for a NaN: an undefined figure is null."""
    with replacing(path) as part:
        part.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def print_result(result: Mapping[str, Any]) -> None:
    """The table of a run for the terminal, the main metric under strict reading as well, and the notes."""
    main = main_metric(result["task"], result["metrics"])
    rows = {**result["metrics"], f"{main} (strict)": result["strict"][main]}
    Console().print(metrics_table(rows, f"{result['task']}, {result['data']['samples']:,} samples"))
    for note in result["notes"]:
        Console().print(note)


def main_metric(task: str, metrics: Mapping[str, Any]) -> str:
    """The task's main metric, or where the truth does not admit it the first that is there."""
    main = TASKS[task].MAIN_METRIC
    return main if main in metrics else next(iter(metrics))


def metrics_table(metrics: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """A table for the terminal: metric, value, 95 % interval."""
    table = Table("metric", "value", "95 % interval", title=title)
    for name, entry in metrics.items():
        value, edges = entry["value"], entry["ci95"]
        table.add_row(name, "–" if value is None else f"{value:.4f}", "–" if edges is None else f"{edges[0]:.4f} … {edges[1]:.4f}")
    return table
