"""Group-relative policy optimisation with rewards from physical truth, on TRL's GRPOTrainer."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import release_memory
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from ..data.mixture import Mixture, load_data
from ..dialects import Dialect, dialect_named, dialect_of_model
from ..evaluation.backends import check_model_folder, limit_pixels
from ..records import BadData
from ..tasks import Task
from .checkpoints import MarkComplete, prepare_output, step_of, write_settings
from .comparison import Comparison
from .console import ShortLog, quiet
from .cpu import keep_freed_memory
from .curriculum import Stage, plan
from .dataset import drawn, processor_frame, prompt_dataset, tasks_for, with_images
from .recipe import RecipeArguments, load_recipe, resolve_model
from .reward import PerceptionReward, keep_before, write_parquet
from .rollouts import prefill_once
from .shared_prefix import pack, share_prefix, shared_logps, why_not

logger = logging.getLogger(__name__)
_IMAGES = ("pixel_values", "image_grid_thw")


class GroupSharedTrainer(GRPOTrainer):
    """TRL's trainer, with what a group shares computed once: preprocessing, vision, prefill and the prompt's part of each forward.

    Losses, advantages, logging and all settings are TRL's. Where a run cannot share, `group_shared` is false, a warning or an
    error says why, and this is TRL's trainer unchanged. Shared batches are kept by groups: what TRL keeps a row a completion,
    (P·G, …), is (P, G, …), and pixel_values and image_grid_thw hold the images of each prompt once.
    """

    def __init__(self, *args: Any, share: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokenizer.padding_side = "left"  # TRL pads prompts on the left, and takes the image marks as the processor pads them
        reason = "it is off" if share == "off" else self._cannot_share()
        if reason and share == "on":
            raise BadData(f"shared_prefix is on, but {reason}: change that, or set shared_prefix to auto or off")
        if reason and share == "auto":
            logger.warning("shared_prefix: every rollout computes its prompt anew (TRL's own path), because %s", reason)
        self.group_shared = reason is None
        if self.group_shared:
            for model in filter(None, (self.model, self.ref_model)):
                share_prefix(self._bare(model))

    def _bare(self, model: Any) -> Any:
        model = self.accelerator.unwrap_model(model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _cannot_share(self) -> str | None:
        if reason := why_not(self._bare(self.model)):
            return reason
        size, group = self.args.per_device_train_batch_size, self.num_generations or 1
        if size % group:
            return f"per_device_train_batch_size ({size}) is not a multiple of num_generations ({group}), so groups are torn apart"
        if self.tools or self.environment_factories or self.rollout_func or self.use_transformers_continuous_batching:
            return "tools, environments, a rollout function or continuous batching make rollouts that do not share their prompt"
        return None

    @property
    def _group(self) -> int:
        """G, the rollouts of a prompt."""
        model: Any = self.model
        return int((self.num_generations if model.training else self.num_generations_eval) or 1)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[Any], list[Any] | None, dict[str, Any]]:
        if not self.group_shared:
            return super()._tokenize_prompts(prompts)
        ids, images, self._prepared = super()._tokenize_prompts(prompts[:: self._group])
        return _repeated(ids, self._group), images and _repeated(images, self._group), self._prepared

    def _generate_single_turn(
        self, prompt_ids: list[Any], images: list[Any] | None, multimodal_fields: dict[str, Any], num_generations: int, *args: Any
    ) -> tuple[list[Any], list[Any] | None]:
        rest = (multimodal_fields, num_generations, *args)
        if not self.group_shared:
            return super()._generate_single_turn(prompt_ids, images, *rest)
        once = prompt_ids[::num_generations], images and images[::num_generations]
        if not self.use_vllm:
            with prefill_once(self.accelerator.unwrap_model(self.model_wrapped), num_generations):
                return super()._generate_single_turn(*once, *rest)
        if self.vllm_generation.mode == "colocate" and self.vllm_generation.tensor_parallel_size == 1:
            self.vllm_generation.generation_kwargs = self.vllm_generation.generation_kwargs | {"n": num_generations}
            return super()._generate_single_turn(*once, *rest)
        return super()._generate_single_turn(prompt_ids, images, *rest)  # TRL's server client itself asks once a group

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.group_shared:
            return super()._generate_and_score_completions(inputs)
        processor = self.processing_class
        self.processing_class = _Prepared(processor, self)
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self.processing_class = processor
        self._before_shuffle, self._rows_made = torch.get_rng_state(), len(inputs)
        return {name: _by_group(name, value, self._group) for name, value in batch.items()}

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        self._rows_made = 0
        inputs = super()._prepare_inputs(generation_batch)
        if self._rows_made and self.model is not None and self.model.training:
            # TRL shuffles rows where groups were shuffled here: go on with the random numbers that would have followed.
            torch.set_rng_state(self._before_shuffle)
            torch.randperm(self._rows_made)
        return inputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.group_shared:
            inputs = {name: _by_row(name, value, self._group) for name, value in inputs.items()}
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if not self.group_shared:
            settings = {"batch_size": batch_size, "compute_entropy": compute_entropy, "compute_aux_loss": compute_aux_loss}
            return super()._get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, **settings, **images)
        types = images.get("mm_token_type_ids")
        types = torch.zeros_like(input_ids) if types is None else types
        ids, mask, types = (rows.unflatten(0, (-1, self._group)) for rows in (input_ids, attention_mask, types))
        step = max(1, (batch_size or len(input_ids)) // self._group)
        found = []
        for start in range(0, len(ids), step):
            some = slice(start, start + step)
            prompt, answer = slice(None, -logits_to_keep), slice(-logits_to_keep, None)
            pictures = _images_of(images, some, self._group)
            packed = pack(
                model,
                prompt_ids=ids[some, 0, prompt],
                prompt_mask=mask[some, 0, prompt],
                completion_ids=ids[some, :, answer],
                completion_mask=mask[some, :, answer],
                mm_token_type_ids=types[some, 0, prompt],
                image_grid_thw=pictures.get("image_grid_thw"),
            )
            with self.accelerator.autocast():
                found.append(shared_logps(model, packed, **pictures))
        logps = torch.cat([values for values, _ in found]).flatten(0, 1)
        return logps, torch.cat([values for _, values in found]).flatten(0, 1) if compute_entropy else None, None


class _Prepared:
    """Stands in for the processor while TRL asks it a second time for the images of a batch: they are already there, once a prompt."""

    def __init__(self, processor: Any, trainer: GroupSharedTrainer) -> None:
        self.processor, self.trainer = processor, trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)

    def __call__(self, **_: Any) -> dict[str, Any]:
        fields = dict(self.trainer._prepared)
        types = [torch.tensor(row)[None] for row in fields.pop("mm_token_type_ids")]
        longest = max(row.shape[1] for row in types)
        padded = torch.cat([torch.nn.functional.pad(row, (longest - row.shape[1], 0)) for row in types])
        return {**fields, "mm_token_type_ids": padded.repeat_interleave(self.trainer._group, 0)}


def _repeated(items: Sequence[Any], group: int) -> list[Any]:
    return [item for item in items for _ in range(group)]


def _by_group(name: str, value: Any, group: int) -> Any:
    if isinstance(value, list):
        return value[::group]
    return value.unflatten(0, (-1, group)) if isinstance(value, Tensor) and value.ndim and name not in _IMAGES else value


def _by_row(name: str, value: Any, group: int) -> Any:
    if isinstance(value, list):
        return _repeated(value, group)
    return value.flatten(0, 1) if isinstance(value, Tensor) and value.ndim and name not in _IMAGES else value


def _images_of(images: dict[str, Any], prompts: slice, group: int) -> dict[str, Tensor]:
    """pixel_values and image_grid_thw of some prompts, whose images are there once; `num_images` counts them a row."""
    if images.get("pixel_values") is None:
        return {}
    ends = [0, *torch.tensor(images["num_images"][::group]).cumsum(0).tolist()]
    some = slice(ends[prompts.start], ends[min(prompts.stop, len(ends) - 1)])
    patches = [0, *images["image_grid_thw"].prod(1).cumsum(0).tolist()]
    return {"pixel_values": images["pixel_values"][patches[some.start] : patches[some.stop]], "image_grid_thw": images["image_grid_thw"][some]}


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
    samples = load_data(ours.data, ours.task)  # before a hub is asked for a model
    checkpoint = prepare_output(args, ours.resume)
    model = resolve_model(ours.model, args.output_dir)
    check_model_folder(model)
    dialect = dialect_for(model, ours.dialect)
    processor = transformers.AutoProcessor.from_pretrained(model)
    limit_pixels(processor, ours.min_pixels, _largest(processor, ours.max_pixels))
    tasks = tasks_for(with_images(samples, f"data {ours.data}"), dialect=dialect, thinking=ours.thinking, **task_settings)
    return Prepared(model=model, processor=processor, dialect=dialect, samples=samples, tasks=tasks, checkpoint=checkpoint)


def _largest(processor: Any, max_pixels: int | None) -> int | None:
    """The smaller of a recipe's limit and the processor's own: a recipe never makes a model see larger images than it knows."""
    size = getattr(processor.image_processor, "size", None) or {}
    return min(max_pixels, size["longest_edge"]) if max_pixels and "longest_edge" in size else max_pixels


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
    return output


def init_kwargs(args: Any, model_args: ModelConfig) -> dict[str, Any]:
    """What a recipe says of loading the model (dtype, attention, revision), as TRL's trainers take it."""
    given = {"dtype": model_args.dtype, "attn_implementation": model_args.attn_implementation, "revision": model_args.model_revision}
    declared: Any = args.model_init_kwargs or {}
    return {name: value for name, value in given.items() if value is not None} | declared


def rows_file(args: Any) -> Path:
    """Where a process keeps its training rows while it trains: on the disk of the run, since /tmp may be memory."""
    return Path(str(args.output_dir)) / f"rows-{args.process_index}.arrow"


def _rollouts(args: GRPOConfig) -> Path:
    return Path(str(args.output_dir)) / f"rollouts-{args.process_index}.jsonl"


def _trainer(ours: RecipeArguments, model_args: ModelConfig, ready: Prepared, dataset: Dataset, stage: Stage) -> GroupSharedTrainer:
    frame = processor_frame(ready.processor)
    return GroupSharedTrainer(
        model=ready.model,
        reward_funcs=PerceptionReward(ready.tasks, frame, ready.processor.tokenizer, _rollouts(stage.args)),
        args=stage.args,
        train_dataset=dataset if stage.order is None else dataset.select(stage.order),
        processing_class=ready.processor,
        peft_config=get_peft_config(model_args),
        callbacks=[MarkComplete(), *stage.callbacks()],
        share=ours.shared_prefix,
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
