"""Everything of a run that can fail before its first step: data, folder, processor, dialect, tasks, and how the model is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl import ModelConfig

from ..data.mixture import Mixture, load_data
from ..dialects import Dialect, dialect_named, dialect_of_model
from ..evaluation.backends import known_config, limit_pixels, load_processor
from ..evaluation.model_files import check_model_folder
from ..evaluation.stored_tensors import check_checkpoint, check_weights
from ..tasks import Task
from .checkpoints import prepare_output
from .cpu import keep_freed_memory
from .dataset import processor_frame, tasks_for, usable
from .recipe import RecipeArguments, resolve_model


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


def prepare(ours: RecipeArguments, args: Any, **task_settings: Any) -> Prepared:
    """Loads and checks what a run needs besides the weights. Raises BadData for what is not right."""
    if args.device.type == "cpu":
        keep_freed_memory()
    samples = load_data(ours.data, ours.task)  # before a hub is asked for a model
    if checkpoint := prepare_output(args, ours.resume):
        check_checkpoint(Path(checkpoint))
    model = resolve_model(ours.model, args.output_dir)
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


def init_kwargs(args: Any, model_args: ModelConfig) -> dict[str, Any]:
    """What a recipe says of loading the model (dtype, attention, revision), as TRL's trainers take it."""
    given = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation, "revision": model_args.model_revision}
    declared: Any = args.model_init_kwargs or {}
    return {name: value for name, value in given.items() if value is not None} | declared


def rows_file(args: Any) -> Path:
    """Where a process keeps its training rows while it trains: on the disk of the run, since /tmp may be memory."""
    return Path(str(args.output_dir)) / f"rows-{args.process_index}.arrow"
