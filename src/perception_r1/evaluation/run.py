"""One evaluation: samples and answers in, `answers.jsonl` and `metrics.json` out. Answers come from a model or from a file."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import versions as installed_versions
from ..data.mixture import load_data
from ..data.rows import sample_to_row
from ..data.samples import open_image, read_samples, replacing, unique
from ..dialects import frame_of
from ..records import BadData, Frame, Sample
from ..tasks import TASKS, Task, make_task
from .breakdown import breakdown
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
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluates a model, or a file of answers, on samples of one task; returns what it wrote to `output`/metrics.json.

    Exactly one of `model` (folder or hub id) and `predictions` (see `read_predictions`; without `data`, lines that also hold
    the sample). What is left None comes from the model's perception_r1.json and config, else from the package's defaults.
    Answers go to `output`/answers.jsonl as they come, and what each is worth to `output`/per_sample.jsonl.
    Raises BadData for unusable input, OSError for an unwritable output.
    """
    settings = Settings(
        dialect=dialect or "qwen2-vl", thinking=bool(thinking), batch_size=batch_size, max_new_tokens=max_new_tokens, limit=limit,
        min_pixels=min_pixels, max_pixels=max_pixels, seed=seed, resamples=resamples, ap_resamples=ap_resamples,
    )  # fmt: skip
    everything = load_samples(data, model, predictions, task)
    samples = everything[:limit]
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    check_installed(make_task(samples[0].task))
    given = None if predictions is None else read_predictions(predictions, everything, categories)
    if model is not None:
        options = {"dialect": dialect, "device": device, "dtype": dtype, "min_pixels": min_pixels, "max_pixels": max_pixels}
        backend = load_backend(model, samples, **options)
        thinks = bool(backend.settings.get("thinking")) if thinking is None else thinking
        settings = replace(settings, dialect=backend.dialect.name, thinking=thinks)
        about = {"name": backend.name, "model_type": backend.model_type, "device": str(backend.device), "dtype": str(backend.dtype)}
    elif given is not None:
        settings = _declared(settings, given, dialect)
        about = {"predictions": given.path, "sha256": given.sha256, "without_answer": sum(s.id not in given.written for s in samples)}
    spoken = "plain" if settings.dialect == COCO_RESULTS else settings.dialect
    made = make_task(samples[0].task, dialect=spoken, thinking=settings.thinking)
    source = _from_model(backend, made, samples, settings) if given is None else _from_file(given.written, made, samples, settings)
    answers, frames = _collect(source, samples, folder / "answers.jsonl", on_progress)
    readings = _read(made, samples, answers, frames, given)
    result = _result(made, samples, readings, settings, {"data": about_data(data or str(predictions), samples), "model": about}, folder)
    result["notes"] = [*(given.notes(samples) if given else ()), *_doubts(result)]
    write_metrics(result, folder / "metrics.json")
    print_result(result)
    return result


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


Source = Iterator[tuple[Written, Frame]]


def load_backend(model: str | Path, samples: Sequence[Sample], **options: Any) -> Any:
    """The `TransformersBackend` of a model with its options. A missing image of the samples raises BadData before anything is loaded."""
    if missing := next((sample for sample in samples if not sample.image_path.is_file()), None):
        open_image(missing)  # raises, naming it
    from .backends import TransformersBackend  # torch only when a model runs

    return TransformersBackend(model, **options)


def _from_model(backend: Any, task: Task, samples: Sequence[Sample], settings: Settings) -> Source:
    for start in range(0, len(samples), settings.batch_size):
        batch = samples[start : start + settings.batch_size]
        prompts, images = [task.prompt(sample) for sample in batch], [open_image(sample) for sample in batch]
        for reply in backend.generate(prompts, images, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size):
            yield Written(reply.completion, reply.finish), reply.frame


def _from_file(written: Mapping[str, Written], task: Task, samples: Sequence[Sample], settings: Settings) -> Source:
    limits = {name: value for name in ("min_pixels", "max_pixels") if (value := getattr(settings, name)) is not None}
    for sample in samples:  # no answer is the empty answer, which is malformed in every task
        yield written.get(sample.id, Written("", "stop")), frame_of(sample.width, sample.height, task.dialect, seen=sample.seen, **limits)


def _collect(source: Source, samples: Sequence[Sample], path: Path, on_progress: Progress | None) -> tuple[list[Written], list[Frame]]:
    answers, frames = [], []
    with path.open("w", encoding="utf-8") as file:
        for sample, (answer, frame) in zip(samples, source, strict=True):
            file.write(json.dumps({"id": sample.id, "completion": answer.completion, "finish": answer.finish}, ensure_ascii=False) + "\n")
            file.flush()
            answers.append(answer)
            frames.append(frame)
            if on_progress:
                on_progress(len(answers), len(samples))
    return answers, frames


def _read(
    task: Task, samples: Sequence[Sample], written: Sequence[Written], frames: Sequence[Frame], given: Predictions | None
) -> list[Reading]:
    if given is not None and given.answers is not None:
        lengths = [len(answer.completion) for answer in written]
        return [Reading(given.answers[sample.id], length=length) for sample, length in zip(samples, lengths, strict=True)]
    return [read_completion(task, answer.completion, answer.finish, frame) for answer, frame in zip(written, frames, strict=True)]


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
    return {"task": task.name, **about, "settings": asdict(settings), "versions": versions(), **found}


def load_samples(data: str | None, model: str | Path | None, predictions: str | Path | None, task: str | None = None) -> Sequence[Sample]:
    """The samples to evaluate, all of one task. Raises BadData that names the tasks when there are several."""
    if (model is None) == (predictions is None):
        raise BadData("expected exactly one of --model and --predictions")
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
    return installed_versions("numpy", "scipy", "pillow", "rapidfuzz", "hotcoco", "nltk", "jieba", "torch", "transformers", "trl")


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
