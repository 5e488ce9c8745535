"""Everything of a run that can fail before its first step: data, folder, processor, dialect, tasks, and how the model is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ..data.mixture import Mixture, load_data
from ..dialects import Dialect, dialect_named, dialect_of_model
from ..evaluation.asking import installed_vllm
from ..evaluation.checkpoint import known_config, limit_pixels, load_processor, loaded
from ..evaluation.model_files import check_model_folder
from ..evaluation.stored_tensors import check_checkpoint, check_weights
from ..records import BadData
from ..tasks import Task
from .checkpoints import prepare_output
from .compiling import check_compile
from .cpu import keep_freed_memory
from .dataset import processor_frame, tasks_for, usable
from .recipe import RecipeArguments, resolve_model

MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
"""What a model on a hub is made of; not weights that would run code when they are read."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything of a run that can fail before its first step."""

    model: str
    processor: Any
    dialect: Dialect
    samples: Mixture
    tasks: dict[str, Task]
    checkpoint: str | None


def dialect_for(config: Any, named: str | None) -> Dialect:
    """The dialect called `named`, else the one that the family of this config writes."""
    return dialect_named(named) if named else dialect_of_model(config.model_type)


def prepare(
    ours: RecipeArguments, args: Any, *, revision: str = "main", **task_settings: Any
) -> Prepared:
    """Loads and checks what a run needs besides the weights. Raises BadData for what is not right."""
    if getattr(args, "use_vllm", False):
        installed_vllm()
    check_compile(args)
    if args.device.type == "cpu":
        keep_freed_memory()
    samples = load_data(ours.data, ours.task)  # before a hub is asked for a model
    if checkpoint := prepare_output(args, ours.resume):
        check_checkpoint(Path(checkpoint))
    model = at_revision(resolve_model(ours.model, args.output_dir), revision)
    check_model_folder(model)
    check_weights(Path(model))
    dialect = dialect_for(known_config(model), ours.dialect)
    processor = load_processor(model)
    limit_pixels(processor, ours.min_pixels, _largest(processor, ours.max_pixels))
    frame = processor_frame(processor)
    checked = usable(samples, f"data {ours.data}", frame)
    tasks = tasks_for(checked, dialect=dialect, thinking=ours.thinking, **task_settings)
    if ours.eval_data:  # measured when the model has long been loaded
        held_out = load_data(ours.eval_data, ours.task)[: ours.eval_limit]
        for _ in usable(held_out, f"eval_data {ours.eval_data}", frame):
            pass
    return Prepared(model=model, processor=processor, dialect=dialect, samples=samples, tasks=tasks, checkpoint=checkpoint)


def _largest(processor: Any, max_pixels: int | None) -> int | None:
    """The smaller of a recipe's limit and the processor's own: a recipe never makes a model see larger images than it knows."""
    size = getattr(processor.image_processor, "size", None) or {}
    return min(max_pixels, size["longest_edge"]) if max_pixels and "longest_edge" in size else max_pixels


def at_revision(model: str, revision: str) -> str:
    """The folder or hub id to load for a `model_revision`: for another than main a folder of it.

    Weights, reference, processor, config and the measuring before training all read that folder.
    Raises BadData.
    """
    if revision == "main":
        return model
    if Path(model).is_dir():
        found = f"model_revision is {revision!r}, but model {model} is a folder, which has none"
        raise BadData(f"{found}: leave it out")
    check_model_folder(model)
    name = f"{model} at {revision}"
    files: Any = {"revision": revision, "allow_patterns": MODEL_FILES}
    return loaded(name, lambda: snapshot_download(model, **files))


def rows_file(args: Any) -> Path:
    """Where a process keeps its training rows while it trains: on the disk of the run, since /tmp may be memory."""
    return Path(str(args.output_dir)) / f"rows-{args.process_index}.arrow"
