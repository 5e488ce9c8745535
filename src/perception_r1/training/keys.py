"""TRL's keys in a recipe: which a run honours, which it refuses and why. None is swallowed.

`given` is everywhere what the recipe and the command line name: a default that nobody asked for
is never refused.
"""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from trl import GRPOConfig, ModelConfig, SFTConfig

from ..records import BadData

LORA = "a setting of LoRA (training/loading.py)"
BITSANDBYTES = "a setting of bitsandbytes (training/loading.py)"
HONOURED = {
    "model_revision": "commit, branch or tag of a hub model, of all its files (see prepare.py)",
    "dtype": "the type that the weights are loaded and trained in",
    "attn_implementation": "how transformers computes attention",
    "use_peft": "trains a LoRA adapter, which is merged at the end",
    **dict.fromkeys(
        ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters"),
        LORA,
    ),
    **dict.fromkeys(("lora_modules_to_save", "lora_task_type", "use_rslora", "use_dora"), LORA),
    **dict.fromkeys(("load_in_8bit", "load_in_4bit"), BITSANDBYTES),
    **dict.fromkeys(
        ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"), BITSANDBYTES
    ),
}
"""Every key of TRL's ModelConfig that a run honours, and what it does there."""

REFUSED = {"model_name_or_path": "the model of a run is our key `model`: write --model NAME"}
"""The keys of ModelConfig that a run refuses, and what to write instead."""

NEEDS = {
    **{name: "use_peft" for name, what in HONOURED.items() if what == LORA},
    **dict.fromkeys(("load_in_8bit", "load_in_4bit"), "use_peft"),
    **dict.fromkeys(
        ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"), "load_in_4bit"
    ),
}
"""Keys that mean nothing, and would be swallowed, unless another is true."""

PICTURES = "every conversation has its picture"
OVERRULED: Mapping[type, Mapping[str, tuple[Any, str]]] = {
    GRPOConfig: {
        "remove_unused_columns": (False, "the reward reads the columns that TRL calls unused"),
    },
    SFTConfig: {
        "remove_unused_columns": (False, "pictures are in a column that TRL calls unused"),
        "assistant_only_loss": (True, "the loss is that of the answers"),
        "completion_only_loss": (None, "rows are conversations, whose answers alone are learned"),
        "max_length": (None, "a cut conversation would lose image tokens"),
        "truncation_mode": ("keep_start", "nothing is cut"),
        "dataset_kwargs": (
            {"skip_prepare_dataset": True},
            "rows are made from the samples, and TRL does not prepare them",
        ),
        "dataset_num_proc": (None, "rows are made from the samples, and TRL does not prepare them"),
        "dataset_text_field": ("text", "rows are made from the samples, and hold no text field"),
        "shuffle_dataset": (False, "rows are shuffled in every epoch as it is"),
        "packing": (False, PICTURES),
        "eval_packing": (None, PICTURES),
        "padding_free": (False, PICTURES),
    },
}
"""TRL's keys for which a run has a value of its own: that value, and why."""

OURS = {
    GRPOConfig: ("turns", "vision_learning_rate", "shown"),
    SFTConfig: (
        *(
            "eval_data",
            "eval_limit",
            "eval_batch_size",
            "eval_max_new_tokens",
            "matching",
            "iou_shape",
            "weights",
        ),
        *("shared_prefix", "curriculum", "difficulty", "stages"),
    ),
}
"""Our keys that the command of a config does not know what to do with."""

LOADING = {
    "trust_remote_code": "code of a model's own is never run: use a model that transformers knows",
    "revision": "write --model_revision, which the processor follows too",
    "quantization_config": "write --load_in_4bit true or --load_in_8bit true",
}
"""What model_init_kwargs must not hold, and what to write instead."""


def check_given(given: Collection[str], ours: Any, args: Any, model_args: ModelConfig) -> None:
    """Raises BadData, in one line, for the first key that a run would not do what it says of."""
    _check_model_keys(given, model_args)
    _check_loading(given, args, model_args)
    for name, (value, reason) in _overruled(given, ours, args).items():
        found = getattr(args, name)
        if name in given and found != value:
            said = f"which a run sets to {str(value).lower()}, because {reason}"
            raise BadData(f"{name} is {found!r}, {said}: leave it out")
    for name in _of(OURS, args):
        if name in given and getattr(ours, name) != type(ours).__dataclass_fields__[name].default:
            other = "grpo" if isinstance(args, SFTConfig) else "sft"
            raise BadData(
                f"{name} is a key of perception-r1 {other}, not of this command: leave it out"
            )


def _of(table: Mapping[type, Any], args: Any) -> Any:
    return next(entry for kind, entry in table.items() if isinstance(args, kind))


def _overruled(given: Collection[str], ours: Any, args: Any) -> dict[str, tuple[Any, str]]:
    found = dict(_of(OVERRULED, args))
    if ours.curriculum and isinstance(args, GRPOConfig):
        found["shuffle_dataset"] = (False, "a curriculum has an order of its own")
    return found


def _check_model_keys(given: Collection[str], model_args: ModelConfig) -> None:
    for name, remedy in REFUSED.items():
        if getattr(model_args, name) is not None:
            raise BadData(f"{name} is {getattr(model_args, name)!r}: {remedy}")
    for name, needed in NEEDS.items():
        if name not in given or getattr(model_args, needed):
            continue
        asked = getattr(model_args, name)
        on = asked if isinstance(asked, bool) else needed not in given  # who says false has decided
        if on:
            raise BadData(
                f"{name} is {asked!r}, which does nothing without {needed}: "
                f"add --{needed} true, or leave it out"
            )
    for field in fields(model_args):
        found, choices = getattr(model_args, field.name), field.metadata.get("choices")
        if (
            choices and found is not None and found not in choices
        ):  # argparse looks at typed words only
            raise BadData(f"{field.name} is {found!r}: expected one of {', '.join(choices)}")
    if model_args.lora_task_type != "CAUSAL_LM":
        found = model_args.lora_task_type
        raise BadData(
            f"lora_task_type is {found!r}, expected CAUSAL_LM: a policy writes text: leave it out"
        )


def _check_loading(given: Collection[str], args: Any, model_args: ModelConfig) -> None:
    if args.trust_remote_code:
        raise BadData(f"trust_remote_code is true: {LOADING['trust_remote_code']}")
    if args.resume_from_checkpoint:
        raise BadData(
            "resume_from_checkpoint: write --resume true, for the newest complete one of output_dir"
        )
    declared: Mapping[str, Any] = args.model_init_kwargs or {}
    for name in ("dtype", "attn_implementation"):
        twice = name in given and name in declared
        if twice and declared[name] != getattr(model_args, name):
            found = f"{name} is {getattr(model_args, name)!r}"
            raise BadData(f"{found}, and {declared[name]!r} in model_init_kwargs: leave one out")
    for name, value in declared.items():
        if name in LOADING and value:
            raise BadData(
                f"model_init_kwargs: found {name}, not passed on from there: {LOADING[name]}"
            )
