"""Group-relative policy optimisation with rewards from physical truth: one run of a recipe."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from accelerate.utils import release_memory
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from .checkpoints import MarkComplete, step_of, write_settings
from .comparison import Comparison
from .console import ShortLog, quiet
from .curriculum import Stage, plan
from .dataset import drawn, processor_frame, prompt_dataset
from .group_shared import GroupSharedTrainer
from .model_card import model_card, own_card, write_card
from .prepare import Prepared, init_kwargs, prepare, rows_file
from .recipe import RecipeArguments, load_recipe
from .reward import PerceptionReward, keep_before, write_parquet


def run(recipe: str, overrides: Sequence[str] = ()) -> Path:
    """Runs a GRPO recipe and returns its output folder: checkpoint, rollouts.parquet, metrics.json and report.html."""
    ours, args, model_args = load_recipe(recipe, overrides, GRPOConfig)
    ready = prepare(ours, args, matching=ours.matching, iou_shape=ours.iou_shape, weights=ours.term_weights())
    args.remove_unused_columns = False
    args.model_init_kwargs = init_kwargs(args, model_args)
    output, done = Path(str(args.output_dir)), step_of(ready.checkpoint)
    samples = drawn(ready.samples, ready.samples.probabilities(), args.seed)
    stages = plan(ours, args, samples, done)
    keep_before(_rollouts(args), done)
    build = partial(_trainer, ours, model_args, ready, prompt_dataset(samples, ready.tasks, rows_file(args)))
    trainer = build(stages[0])
    comparison = Comparison(ours, args, ready) if trainer.is_world_process_zero() else None
    if comparison:
        comparison.measure("before", ready.model)
    quiet(trainer, log := ShortLog())
    trainer.train(resume_from_checkpoint=ready.checkpoint)
    for ended, stage in pairwise(stages):
        trainer.accelerator.wait_for_everyone()  # the checkpoint is whole
        del trainer
        release_memory()
        quiet(trainer := build(stage), log)
        trainer.train(resume_from_checkpoint=str(output / f"checkpoint-{ended.end}"))
    rows_file(args).unlink()
    _save(trainer, ours, args, ready)
    if trainer.is_world_process_zero():
        write_parquet(list(output.glob("rollouts-*.jsonl")), output / "rollouts.parquet")
    if comparison:
        comparison.measure("after", output)
        comparison.report(trainer.state.log_history)
        write_card(output, model_card("grpo", ours, ready, output, comparison.results))
    return output


def _rollouts(args: GRPOConfig) -> Path:
    return Path(str(args.output_dir)) / f"rollouts-{args.process_index}.jsonl"


def _trainer(ours: RecipeArguments, model_args: ModelConfig, ready: Prepared, dataset: Dataset, stage: Stage) -> GroupSharedTrainer:
    frame = processor_frame(ready.processor)
    trainer = GroupSharedTrainer(
        model=ready.model,
        reward_funcs=PerceptionReward(ready.tasks, frame, ready.processor.tokenizer, _rollouts(stage.args)),
        args=stage.args,
        train_dataset=dataset if stage.order is None else dataset.select(stage.order),
        processing_class=ready.processor,
        peft_config=get_peft_config(model_args),
        callbacks=[MarkComplete(), *stage.callbacks()],
        share=ours.shared_prefix,
    )
    own_card(trainer, model_card("grpo", ours, ready, Path(str(stage.args.output_dir))))
    return trainer


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
        write_card(output, model_card("grpo", ours, ready, output))
        prompts = {name: task.prompt(next(sample for sample in ready.samples if sample.task == name)) for name, task in ready.tasks.items()}
        write_settings(output, {"task": ours.task, "dialect": ready.dialect.name, "prompt": prompts, "thinking": ours.thinking, "base": ours.model})
