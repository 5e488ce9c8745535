"""Named runs: a YAML file of settings, ours and TRL's side by side, that any `--key value` overrides."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig, SFTConfig, TrlParser

from .. import recipes
from ..policy import model_folder, tiny
from ..records import BadData
from ..rewards import RewardSettings
from ..tasks import parse_weights
from .keys import check_given
from .requirements import check_settings
from .unknown_keys import unknown_key

T = TypeVar("T", bound=TrainingArguments)


@dataclass(frozen=True, kw_only=True)
class RecipeArguments:
    """Our settings of a run. Everything else in a recipe is a key of TRL's GRPOConfig or SFTConfig, or of ModelConfig."""

    model: str = field(metadata={"help": "Model folder or hub id; `tiny` is the bundled policy, `tiny-untrained` the same before training."})
    data: str = field(metadata={"help": "Training samples: a file, several with weights, or a shorthand such as scenes:counting?n=2000."})
    task: str | None = field(default=None, metadata={"help": "grounding, counting, detection or ocr; left out: each sample's own."})
    eval_data: str | None = field(default=None, metadata={"help": "Held-out samples, measured before and after training."})
    dialect: str | None = field(default=None, metadata={"help": "How answers write boxes; left out: the model family's own."})
    matching: str = field(
        default="hungarian",
        metadata={"help": "hungarian, greedy, sequential or best (which pays for copies)."},
    )
    iou_shape: str = field(default="iou", metadata={"help": "Grounding: what the reward makes of the IoU: iou, squared, giou or thresholded."})
    weights: str = field(default="", metadata={"help": "Weights of reward terms, as iou=1,format=0.5; 0 removes a term."})
    shared_prefix: str = field(default="auto", metadata={"help": "GRPO: compute what a group shares once: auto (where it can), on or off."})
    curriculum: str | None = field(default=None, metadata={"help": "GRPO: term by which samples go from easy to hard, or reward for the total."})
    difficulty: str | None = field(default=None, metadata={"help": "GRPO: file of perception-r1 probe --save-difficulty, for the curriculum."})
    stages: str = field(default="", metadata={"help": "GRPO: num_generations of each stage, easy to hard, as 4,8,16; with shares as 4:2,8:1."})
    thinking: bool = field(default=False, metadata={"help": "Demand <think>…</think><answer>…</answer>."})
    turns: int = field(default=1, metadata={"help": "SFT: how many questions about one image make one conversation, at most."})
    vision_learning_rate: float | None = field(default=None, metadata={"help": "SFT: learning rate of the vision tower; left out: as the rest."})
    shown: str = field(default="", metadata={"help": "SFT: what the data contains and lacks, in words, kept beside the checkpoint."})
    min_pixels: int | None = field(default=None, metadata={"help": "Smallest image the model sees, in pixels."})
    max_pixels: int | None = field(default=None, metadata={"help": "Largest image the model sees, in pixels; never above its processor's own."})
    eval_limit: int | None = field(default=None, metadata={"help": "Only the first so many held-out samples; left out: all."})
    eval_batch_size: int = field(default=64, metadata={"help": "Questions answered at a time when measuring."})
    eval_max_new_tokens: int | None = field(default=None, metadata={"help": "Longest answer when measuring; left out: as in training."})
    resume: bool = field(default=False, metadata={"help": "Go on from the newest complete checkpoint in output_dir."})

    def __post_init__(self) -> None:
        if self.shared_prefix not in ("auto", "on", "off"):
            raise ValueError(f"shared_prefix is {self.shared_prefix!r}: expected auto, on or off")

    def term_weights(self) -> dict[str, float]:
        return parse_weights(self.weights)


def _settings(recipe: str) -> Mapping[str, Any]:
    settings = recipes.read(recipe)
    if settings.get("bf16") == "auto":
        settings["bf16"] = _can_bf16()
    if isinstance(share := settings.get("shared_prefix"), bool):  # YAML reads on and off as true and false
        settings["shared_prefix"] = "on" if share else "off"
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):  # and no as false
        if settings.get(key) is False:
            settings[key] = "no"
    if isinstance(settings.get("weights"), dict):
        settings["weights"] = ",".join(f"{name}={value}" for name, value in settings["weights"].items())
    if isinstance(stages := settings.get("stages"), int | list):
        settings["stages"] = ",".join(map(str, stages if isinstance(stages, list) else [stages]))
    return settings


def _can_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _typed(overrides: Sequence[str]) -> list[str]:
    """The words behind a recipe's name, with `--bf16 auto` as what it means here."""
    words = list(overrides)
    for place, word in enumerate(words):
        if word == "--bf16=auto":
            words[place] = f"--bf16={_can_bf16()}"
        elif word == "auto" and place and words[place - 1] == "--bf16":
            words[place] = str(_can_bf16())
    return words


def _check_keys(
    keys: Sequence[str], known: set[str], recipe: str, elsewhere: Mapping[str, Iterable[str]]
) -> None:
    for key in keys:
        if key not in known:
            matter = unknown_key(key, known, elsewhere)
            raise BadData(f"recipe {recipe}: key {key!r} is not known: {matter}")


def _keys_elsewhere(config: type) -> dict[str, list[str]]:
    """The keys of the trainers that do not run, by the command that runs them."""
    name, other = ("sft", SFTConfig) if config is GRPOConfig else ("grpo", GRPOConfig)
    return {name: [declared.name for declared in fields(other)]}


def load_recipe(recipe: str, overrides: Sequence[str], config: type[T]) -> tuple[RecipeArguments, T, ModelConfig]:
    """Settings of a run: the recipe (a name, or a YAML path) with `--key value` overrides, parsed by TRL's own parser.

    `config` is TRL's GRPOConfig or SFTConfig. Raises BadData naming a key that nobody knows, a
    value that does not fit, or a package that a value needs and that is not there.
    """
    check_settings(recipe, overrides)
    overrides = _typed(overrides)
    kinds: Any = (RecipeArguments, config, ModelConfig)
    parser = TrlParser(kinds, exit_on_error=False)
    known = {action.dest for action in parser._actions}
    settings = _settings(recipe)
    typed = [word.removeprefix("--").split("=")[0].replace("-", "_") for word in overrides if word.startswith("--")]
    given = {*settings, *typed}
    _check_keys([*settings, *typed], known, recipe, _keys_elsewhere(config))
    settings = {"output_dir": f"runs/{Path(recipe).stem}", **settings}
    parser.set_defaults_with_config(**settings)
    try:
        ours, trl, model = parser.parse_args_into_dataclasses(args=list(overrides))
    except (ValueError, SystemExit, argparse.ArgumentError) as error:
        raise BadData(f"recipe {recipe}: {error}") from error
    check_given(given, ours, trl, model)
    RewardSettings(
        dialect=ours.dialect or "plain", matching=ours.matching, iou_shape=ours.iou_shape,
        weights=ours.term_weights(),
    )  # before any data is read
    return ours, trl, model


def resolve_model(name: str, output_dir: str | Path) -> str:
    """The folder or hub id to load: `tiny` and `tiny-untrained` are the bundled policy's."""
    if name == "tiny-untrained":
        folder = Path(output_dir) / "untrained"
        tiny.save_untrained(folder)
        return str(folder)
    return model_folder(name)
