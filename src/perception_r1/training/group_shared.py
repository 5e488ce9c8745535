"""TRL's GRPOTrainer with what a group shares computed once."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import DistributedType
from torch import Tensor
from trl import GRPOTrainer

from ..evaluation.gpu import avoid_cudnn_attention
from ..evaluation.vision_windows import batch_windows
from ..records import BadData
from .precision import cast_once, halve_linears
from .rollouts import prefill_once
from .shared_prefix import pack, share_prefix, shared_logps, why_not
from .vllm_rollouts import read_as_trained

logger = logging.getLogger(__name__)
_IMAGES = ("pixel_values", "image_grid_thw")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The types of accelerate's mixed precisions."""


class GroupSharedTrainer(GRPOTrainer):
    """TRL's trainer, with what a group shares computed once: preprocessing, vision, prefill and the prompt's part of each forward.

    Losses, advantages, logging and all settings are TRL's. Where a run cannot share, `group_shared` is false, a warning or an
    error says why, and the steps are TRL's own; what holds for both is one autocast round the rollouts, the reference's linear
    weights in its type, and attention without cuDNN (docs/decisions/0014-on-a-gpu.md).
    Shared batches are kept by groups: what TRL keeps a row a completion,
    (P·G, …), is (P, G, …), and pixel_values and image_grid_thw hold the images of each prompt once.
    """

    def __init__(self, *args: Any, share: str = "auto", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        avoid_cudnn_attention()
        if self.use_vllm:  # whether groups share or not: the prompts that TRL hands it are the same
            read_as_trained(self.vllm_generation, self.processing_class)
        self._tokenizer.padding_side = "left"  # TRL pads prompts on the left, and takes the image marks as the processor pads them
        reason = "it is off" if share == "off" else self._cannot_share()
        if reason and share == "on":
            raise BadData(f"shared_prefix is on, but {reason}: change that, or set shared_prefix to auto or off")
        if reason and share == "auto":
            logger.warning("shared_prefix: every rollout computes its prompt anew (TRL's own path), because %s", reason)
        self.group_shared = reason is None
        if self.group_shared:
            for model in self._models():
                share_prefix(model)
                batch_windows(model)
        if self._half_reference():
            half = HALVES[self.accelerator.mixed_precision]
            head = getattr(self.args, "cast_lm_head_to_fp32", False)
            halve_linears(self._bare(self.ref_model), half, float32_head=head)

    def _models(self) -> list[Any]:
        """The policy and, where it is a model of its own, the reference, without what is wrapped around them."""
        return [self._bare(model) for model in (self.model, self.ref_model) if model is not None]

    def _bare(self, model: Any) -> Any:
        model = self.accelerator.unwrap_model(model, keep_torch_compile=False)
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

    def _half_reference(self) -> bool:
        """Whether the reference is frozen, whole in this process, and only used under an autocast."""
        accelerator = self.accelerator
        if self.ref_model is None or getattr(self.args, "sync_ref_model", False) or not accelerator.native_amp:
            return False
        return accelerator.mixed_precision in HALVES and not self._sharded

    @property
    def _sharded(self) -> bool:
        """Whether a process holds a part of the weights only, or an engine's wrapper of them."""
        kinds = (DistributedType.FSDP, DistributedType.DEEPSPEED)
        return self.accelerator.distributed_type in kinds

    def _frozen(self) -> list[torch.nn.Parameter]:
        """The weights under an adapter that an autocast is to cast once a rollout."""
        if not self.accelerator.native_amp or self._sharded:
            return []
        policy: Any = self.model
        return [weights for weights in policy.parameters() if not weights.requires_grad]

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
        once = prompt_ids[::num_generations], images and images[::num_generations]
        if not self.use_vllm:
            # One autocast around all of it: transformers encodes images outside the model's forward, around which accelerate puts
            # its own, and an autocast keeps the weights it has cast only as long as it lasts: else for one token.
            with self.accelerator.autocast(), cast_once(self._frozen()):
                if not self.group_shared:
                    return super()._generate_single_turn(prompt_ids, images, *rest)
                with prefill_once(self._bare(self.model_wrapped), num_generations):
                    return super()._generate_single_turn(*once, *rest)
        if not self.group_shared:
            return super()._generate_single_turn(prompt_ids, images, *rest)
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
