"""Group-relative policy optimisation with rewards from physical truth: one run of a recipe."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from accelerate.utils import release_memory
from datasets import Dataset
from trl import GRPOConfig, ModelConfig

from ..evaluation.waiting import patience
from .checkpoints import MarkComplete, step_of
from .comparison import Comparison
from .console import ShortLog, quiet
from .curriculum import Stage, plan
from .dataset import drawn, processor_frame, prompt_dataset
from .group_shared import GroupSharedTrainer
from .loading import adapter_config, init_kwargs, quantization
from .model_card import model_card, own_card, write_card
from .pictures import Shrink
from .prepare import Prepared, prepare, rows_file
from .recipe import RecipeArguments, load_recipe
from .reward import PerceptionReward, keep_before, write_parquet
from .saving import SavesWhole, finish, save_weights, settings_of


class Trainer(SavesWhole, GroupSharedTrainer):
    """The trainer of a run: a group shares what it can, and weights are saved whole."""


def run(recipe: str, overrides: Sequence[str] = ()) -> Path:
    """Runs a GRPO recipe and returns its output folder: checkpoint, rollouts.parquet, metrics.json and report.html."""
    ours, args, model_args = load_recipe(recipe, overrides, GRPOConfig)
    quantized = quantization(model_args)
    weights = ours.term_weights()
    rewarded = {"matching": ours.matching, "iou_shape": ours.iou_shape, "weights": weights}
    ready = prepare(ours, args, revision=model_args.model_revision, **rewarded)
    settings = settings_of(ours, args, model_args, ready) | rewarded
    args.remove_unused_columns = False
    args.model_init_kwargs = init_kwargs(args, model_args)
    output, done = Path(str(args.output_dir)), step_of(ready.checkpoint)
    samples = drawn(ready.samples, ready.samples.probabilities(), args.seed)
    stages = plan(ours, args, samples, done)
    for part in _rollout_parts(args):
        keep_before(part, done)
    comparison = Comparison(ours, args, ready) if args.process_index == 0 else None
    rows = prompt_dataset(samples, ready.tasks, rows_file(args), Shrink(ready.processor))
    build = partial(_trainer, ours, model_args, ready, rows, settings, quantized)
    trainer = build(stages[0])
    with patience():
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
    save_weights(trainer, output)
    history = trainer.state.log_history
    trainer.accelerator.free_memory()
    del trainer
    release_memory()  # policy, reference and optimizer make room for what is merged and measured
    if comparison:
        write_card(output, model_card("grpo", ours, ready, output))
        finish(output, ready.processor, settings, adapted=model_args.use_peft)
        write_parquet(list(output.glob("rollouts-*.jsonl")), output / "rollouts.parquet")
        comparison.measure("after", output)
        comparison.report(history)
        write_card(output, model_card("grpo", ours, ready, output, comparison.results))
    return output


def _rollouts(args: GRPOConfig) -> Path:
    return Path(str(args.output_dir)) / f"rollouts-{args.process_index}.jsonl"


def _rollout_parts(args: GRPOConfig) -> list[Path]:
    """The rollouts that this process clears: its own, the first also those of processes that are no more."""
    own = _rollouts(args)
    if args.process_index:
        return [own]
    live = {own.with_name(f"rollouts-{index}.jsonl") for index in range(args.world_size)}
    return [own, *sorted(set(own.parent.glob("rollouts-*.jsonl")) - live)]


def _trainer(
    ours: RecipeArguments,
    model_args: ModelConfig,
    ready: Prepared,
    dataset: Dataset,
    settings: Mapping[str, Any],
    quantized: Any,
    stage: Stage,
) -> Trainer:
    frame = processor_frame(ready.processor)
    trainer = Trainer(
        model=ready.model,
        reward_funcs=PerceptionReward(ready.tasks, frame, ready.processor.tokenizer, _rollouts(stage.args)),
        args=stage.args,
        train_dataset=dataset if stage.order is None else dataset.select(stage.order),
        processing_class=ready.processor,
        quantization_config=quantized,
        peft_config=adapter_config(ready.model, model_args),
        callbacks=[MarkComplete(settings), *stage.callbacks()],
        share=ours.shared_prefix,
    )
    own_card(trainer, model_card("grpo", ours, ready, Path(str(stage.args.output_dir))))
    return trainer
