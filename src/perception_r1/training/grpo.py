"""Group-relative policy optimisation with rewards from physical truth, on TRL's GRPOTrainer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from ..data.mixture import Mixture, load_data
from ..dialects import Dialect, dialect_named, dialect_of_model
from ..evaluation.backends import check_model_folder, limit_pixels
from ..records import BadData
from ..tasks import Task
from .checkpoints import MarkComplete, prepare_output, write_settings
from .comparison import Comparison
from .console import quiet
from .cpu import keep_freed_memory
from .dataset import drawn, processor_frame, prompt_dataset, tasks_for
from .recipe import RecipeArguments, load_recipe, resolve_model
from .reward import PerceptionReward, keep_before, write_parquet


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything of a run that can fail before its first step."""

    model: str
    processor: Any
    dialect: Dialect
    samples: Mixture
    tasks: dict[str, Task]
    checkpoint: str | None


def dialect_for(model: str, named: str | None) -> Dialect:
    """The dialect called `named`, else the one that the model's family writes."""
    return dialect_named(named) if named else dialect_of_model(transformers.AutoConfig.from_pretrained(model).model_type)


def prepare(ours: RecipeArguments, args: Any, **task_settings: Any) -> Prepared:
    """Loads and checks what a run needs besides the weights. Raises BadData for what is not right."""
    if args.device.type == "cpu":
        keep_freed_memory()
    checkpoint = prepare_output(args, ours.resume)
    model = resolve_model(ours.model, args.output_dir)
    check_model_folder(model)
    dialect = dialect_for(model, ours.dialect)
    processor = transformers.AutoProcessor.from_pretrained(model)
    limit_pixels(processor, ours.min_pixels, _largest(processor, ours.max_pixels))
    samples = load_data(ours.data, ours.task)
    if missing := [sample for sample in samples if not sample.image_path.is_file()]:
        first = f"{missing[0].image_path} of {missing[0].id}"
        raise BadData(f"data {ours.data}: {len(missing)} of {len(samples)} images are not there, the first is {first}")
    tasks = tasks_for(samples, dialect=dialect, thinking=ours.thinking, **task_settings)
    return Prepared(model=model, processor=processor, dialect=dialect, samples=samples, tasks=tasks, checkpoint=checkpoint)


def _largest(processor: Any, max_pixels: int | None) -> int | None:
    """The smaller of a recipe's limit and the processor's own: a recipe never makes a model see larger images than it knows."""
    size = getattr(processor.image_processor, "size", None) or {}
    return min(max_pixels, size["longest_edge"]) if max_pixels and "longest_edge" in size else max_pixels


def run(recipe: str, overrides: Sequence[str] = ()) -> Path:
    """Runs a GRPO recipe and returns its output folder: checkpoint, rollouts.parquet, metrics.json and report.html."""
    ours, args, model_args = load_recipe(recipe, overrides, GRPOConfig)
    ready = prepare(ours, args, matching=ours.matching, weights=ours.term_weights())
    args.remove_unused_columns = False
    args.model_init_kwargs = init_kwargs(args, model_args)
    trainer = _trainer(ours, args, model_args, ready)
    comparison = Comparison(ours, args, ready) if trainer.is_world_process_zero() else None
    if comparison:
        comparison.measure("before", ready.model)
    quiet(trainer)
    trainer.train(resume_from_checkpoint=ready.checkpoint)
    _save(trainer, ours, args, ready)
    if trainer.is_world_process_zero():
        output = Path(str(args.output_dir))
        write_parquet(list(output.glob("rollouts-*.jsonl")), output / "rollouts.parquet")
    if comparison:
        comparison.measure("after", Path(str(args.output_dir)))
        comparison.report(trainer.state.log_history)
    return Path(str(args.output_dir))


def init_kwargs(args: Any, model_args: ModelConfig) -> dict[str, Any]:
    """What a recipe says of loading the model (dtype, attention, revision), as TRL's trainers take it."""
    given = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation, "revision": model_args.model_revision}
    declared: Any = args.model_init_kwargs or {}
    return {name: value for name, value in given.items() if value is not None} | declared


def _trainer(ours: RecipeArguments, args: GRPOConfig, model_args: ModelConfig, ready: Prepared) -> GRPOTrainer:
    rollouts = Path(str(args.output_dir)) / f"rollouts-{args.process_index}.jsonl"
    done = int(Path(ready.checkpoint).name.rpartition("-")[2]) if ready.checkpoint else 0
    keep_before(rollouts, done)
    reward = PerceptionReward(ready.tasks, processor_frame(ready.processor, ready.dialect), ready.processor.tokenizer, rollouts)
    return GRPOTrainer(
        model=ready.model,
        reward_funcs=reward,
        args=args,
        train_dataset=prompt_dataset(drawn(ready.samples, ready.samples.probabilities(), args.seed), ready.tasks),
        processing_class=ready.processor,
        peft_config=get_peft_config(model_args),
        callbacks=[MarkComplete()],
    )


def _save(trainer: GRPOTrainer, ours: RecipeArguments, args: GRPOConfig, ready: Prepared) -> None:
    """Writes a checkpoint that loads by itself: with PEFT the adapter is kept beside it and merged into it."""
    output = Path(str(args.output_dir))
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        trainer.save_model(str(output / "adapter"))
        if trainer.is_world_process_zero():
            model.merge_and_unload().save_pretrained(output)
    else:
        trainer.save_model(str(output))
    if trainer.is_world_process_zero():
        ready.processor.save_pretrained(output)
        trainer.create_model_card(model_name=output.name)
        prompts = {name: task.prompt(next(sample for sample in ready.samples if sample.task == name)) for name, task in ready.tasks.items()}
        write_settings(output, {"task": ours.task, "dialect": ready.dialect.name, "prompt": prompts, "thinking": ours.thinking, "base": ours.model})
