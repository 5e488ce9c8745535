"""What a run leaves: settings, weights that every process helps to gather, and a whole model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import transformers
from accelerate.utils import is_peft_model
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import Trainer
from trl import ModelConfig

from ..evaluation.checkpoint import image_limits
from ..evaluation.merging import write_merged
from .checkpoints import complete
from .prepare import Prepared
from .recipe import RecipeArguments

ADAPTER = "adapter"
"""Folder of a run's adapter, beside the model that it was merged into."""


def settings_of(
    ours: RecipeArguments, args: Any, model_args: ModelConfig, ready: Prepared
) -> dict[str, Any]:
    """What perception_r1.json says, in each checkpoint and at the end: how to ask, and the base."""
    prompts = {name: task.prompt(_first(ready.samples, name)) for name, task in ready.tasks.items()}
    names = list(ready.tasks)
    found: dict[str, Any] = {
        "task": names[0] if len(names) == 1 else names,
        "dialect": ready.dialect.name,
        "prompt": prompts,
        "thinking": ours.thinking,
        "image": image_limits(ready.processor),
        "base": ours.model,
    }
    if model_args.model_revision != "main":
        found["revision"] = model_args.model_revision
    if model_args.use_peft:
        found["dtype"] = _weights_type(ready.model, args, model_args)
    return found


def _first(samples: Iterable[Any], task: str) -> Any:
    return next(sample for sample in samples if sample.task == task)


def _weights_type(model: str, args: Any, model_args: ModelConfig) -> str:
    """The type in which a run's merged weights are written: that in which its base was loaded."""
    named = (args.model_init_kwargs or {}).get("dtype", model_args.dtype)
    if named not in (None, "auto"):
        return str(named).removeprefix("torch.")
    own = transformers.AutoConfig.from_pretrained(model).dtype
    return str(own or "float32").removeprefix("torch.")


class SavesWhole(Trainer):
    """A trainer that writes whole weights also where each process holds a part of them (FSDP).

    Stock trainers write none where the state dict's type is SHARDED_STATE_DICT, FSDP2's default.
    """

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self._in_parts():
            super().save_model(output_dir, _internal_call)
            return
        state = whole_state(cast(nn.Module, self.model))
        self._save(output_dir, state_dict=state)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _in_parts(self) -> bool:
        if getattr(
            self, "is_distributed_loading_by_transformers", False
        ):  # then transformers gathers them
            return False
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        weights = cast(nn.Module, self.model).parameters()
        parted = any(isinstance(parameter, DTensor) for parameter in weights)
        return parted or (plugin is not None and "FULL" not in str(plugin.state_dict_type))


def whole_state(model: nn.Module) -> dict[str, Any]:
    """The weights of a model that FSDP has parted: whole on the first process's CPU, {} elsewhere.

    All processes must call it. Of a model with adapters only what was trained is gathered.
    """
    trained_only = bool(is_peft_model(model))
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only
    )
    state = get_model_state_dict(model, options=options)
    for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if name in state and source in state:  # gathered one by one, though they are one tensor
            state[name] = state[source]
    return state


def save_weights(trainer: Trainer, output: Path) -> None:
    """Writes weights to `output`, an adapter to a folder in it. All processes must call it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    trainer.save_model(str(output / ADAPTER if is_peft_model(model) else output))


def finish(output: Path, processor: Any, settings: Mapping[str, Any], *, adapted: bool) -> None:
    """Makes `output` a checkpoint that loads by itself. An adapter is merged into its base.

    For one process, once the trainer is gone: the base takes its room. It is the base's own weights
    that are merged into, also where they were loaded in 4 or 8 bit. perception_r1.json comes last.
    """
    if adapted:
        complete(output / ADAPTER, settings)
        write_merged(output / ADAPTER, output)
        return
    processor.save_pretrained(output)
    complete(output, settings)
