"""How a recipe loads its model: type, attention, 4 or 8 bit, and where a LoRA adapter lies."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
import transformers
from peft import LoraConfig
from torch import nn
from transformers.integrations import validate_bnb_backend_availability
from transformers.utils.import_utils import is_bitsandbytes_available
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..records import BadData

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the head's, those of the vision tower among them."""


def init_kwargs(args: Any, model_args: ModelConfig) -> dict[str, Any]:
    """What a recipe says of loading the model (dtype, attention), as TRL's trainers take it."""
    given: dict[str, Any] = {
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
    }
    if model_args.load_in_4bit or model_args.load_in_8bit:
        given["device_map"] = {"": "cpu"} if args.device.type == "cpu" else None
    declared: Any = args.model_init_kwargs or {}
    return {name: value for name, value in given.items() if value is not None} | declared


def quantization(model_args: ModelConfig) -> Any:
    """The BitsAndBytesConfig of a recipe, as TRL makes it; None for a model loaded as it is.

    Raises BadData where bitsandbytes is absent, or has nothing to run on here.
    """
    asked = [name for name in ("load_in_4bit", "load_in_8bit") if getattr(model_args, name)]
    if not asked:
        return None
    if not is_bitsandbytes_available():
        raise BadData(
            f"{asked[0]}: bitsandbytes is not installed, or too old: pip install -U bitsandbytes"
        )
    try:
        validate_bnb_backend_availability(raise_exception=True)
        return get_quantization_config(model_args)
    except (RuntimeError, ValueError, TypeError) as problem:
        raise BadData(f"{asked[0]}: {' '.join(str(problem).split())}") from problem


def adapter_config(model: str, model_args: ModelConfig) -> LoraConfig | None:
    """The LoRA adapter that a recipe trains on a model; None for one without.

    By default it lies on all linear layers of the language model. The vision tower and the head
    stay as they are. Raises BadData for a name that fits no part of the model: PEFT leaves it out.
    """
    config: Any = get_peft_config(model_args)
    if config is None:
        return None
    whole = _architecture(model)
    modules = [name for name, _ in whole.named_modules()]
    parameters = [name for name, _ in whole.named_parameters()]
    config.target_modules = _targets(model_args) or None
    for key, names, parts in (
        ("lora_target_modules", config.target_modules, modules),
        ("lora_modules_to_save", config.modules_to_save, modules),
        ("lora_target_parameters", config.target_parameters, parameters),
    ):
        _check_names(key, names or (), parts, model)
    if not config.target_modules and not config.target_parameters:
        config.target_modules = language_layers(whole, model)
    return config


def _architecture(model: str) -> Any:
    """A model without its weights: what its config builds."""
    config = transformers.AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        return transformers.AutoModelForImageTextToText.from_config(config)


def _targets(model_args: ModelConfig) -> Any:
    """The layers that a recipe names, as a list of names, or as a pattern (all-linear is one)."""
    named: Any = model_args.lora_target_modules
    # TRL takes a single name out of its list, and PEFT a bare word for a pattern of whole names.
    return [named] if isinstance(named, str) and re.fullmatch(r"[\w.]+", named) else named


def _pattern(key: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as problem:
        expected = "expected names, or a regular expression, as .*_proj"
        raise BadData(f"{key}: found {text!r} ({problem}), {expected}") from problem


def _check_names(key: str, names: Sequence[str] | str, parts: Sequence[str], model: str) -> None:
    if isinstance(names, str):
        if names != ALL_LINEAR and not any(_pattern(key, names).fullmatch(part) for part in parts):
            raise BadData(f"{key}: the pattern {names!r} fits no part of model {model}")
        return
    for name in names:
        if not any(part == name or part.endswith(f".{name}") for part in parts):
            last = {part.rpartition(".")[2] for part in parts}
            near = difflib.get_close_matches(name, last, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise BadData(f"{key}: no part of model {model} is called {name!r}{hint}")
        if key == "lora_target_modules" and name.rpartition(".")[2] == "lm_head":
            raise BadData(
                f"{key}: lm_head takes no adapter: train it whole, --lora_modules_to_save lm_head"
            )


def language_layers(whole: nn.Module, model: str) -> str:
    """A pattern of PEFT's for the linear layers of a model's language model, and no others."""
    language = cast(Any, whole).get_decoder()
    prefix = next(name for name, module in whole.named_modules() if module is language)
    linear = [name for name, module in language.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise BadData(
            f"model {model}: found no linear layers of text: name some with --lora_target_modules"
        )
    last = sorted({name.rpartition(".")[2] for name in linear})
    return rf"{re.escape(prefix)}\.(.*\.)?({'|'.join(map(re.escape, last))})"
