"""What the settings of a run need, checked at once: before torch is imported or a model loaded.

Nothing here imports what it looks for. A setting that cannot work is one line that names it, what
it lacks and the remedy.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import not_installed, recipes
from ..evaluation.model_files import check_model_folder
from ..records import BadData

Settings = Mapping[str, Any]
"""Keys of a recipe with their values: as YAML gives them, or as typed, a word or several."""

TRACKERS = {
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "kubeflow": "kubeflow",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
"""What `report_to` may name, and the package that it needs."""

OPTIMIZERS = {
    "8bit": "bitsandbytes",
    "bnb": "bitsandbytes",
    "paged": "bitsandbytes",
    "ademamix": "bitsandbytes",
    "lion": "bitsandbytes",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "adamw_torch_npu": "torch_npu",
    "adamw_torch_xla": "torch_xla",
    "anyprecision": "torchdistx",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
}
"""The package behind an `optim` whose name holds such a part; the longest decides."""

ATTENTIONS = {
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_interface", "kernels"),
    "flash_attention_4": ("flash_attn", "kernels"),
}
"""The packages of which an `attn_implementation` needs one."""

ON_PYPI = {
    "azureml": "azureml-core",
    "flash_attn": "flash-attn --no-build-isolation",
    "galore_torch": "galore-torch",
    "apollo_torch": "apollo-torch",
    "lomo_optim": "lomo-optim",
    "optimi": "torch-optimi",
    "liger_kernel": "liger-kernel",
}
"""How pip is asked for a package whose module has another name."""


def check_settings(recipe: str, overrides: Sequence[str]) -> None:
    """Raises BadData for a recipe that is not there, and for settings that cannot be followed."""
    settings = given(recipe, overrides)
    if isinstance(name := settings.get("model"), str) and not name.startswith("tiny"):
        check_model_folder(name)
    for check in (_tracker, _optimizer, _attention, _deepspeed, _liger, _evaluation):
        check(settings)


def given(recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The recipe's settings under the `--key value` words that override them. Raises BadData.

    >>> given("quickstart", ["--report-to", "wandb", "--optim=sgd", "--tf32"])["report_to"]
    'wandb'
    """
    settings = recipes.read(recipe)
    for key, values in _typed(overrides):
        settings[key] = values[0] if len(values) == 1 else values or True  # a key alone switches on
    return settings


def _typed(overrides: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields each key that was typed, with the words up to the next one."""
    key, values = "", []
    for word in overrides:
        if not word.startswith("--"):
            values.append(word)
            continue
        if key:
            yield key, values
        name, equals, value = word.removeprefix("--").partition("=")
        key, values = name.replace("-", "_"), [value] if equals else []
    if key:
        yield key, values


def installed(module: str) -> bool:
    """Whether a package can be imported; it is not."""
    return sys.modules.get(module) is not None or (
        module not in sys.modules and importlib.util.find_spec(module) is not None
    )


def _need(setting: str, *modules: str, instead: str) -> None:
    """Raises BadData where none of the packages is there."""
    if not any(map(installed, modules)):
        first = modules[0]
        pip = f"pip install {ON_PYPI.get(first, first)}"
        raise BadData(f"{setting}: {first} is not installed: {pip}, or give {instead}")


def _tracker(settings: Settings) -> None:
    for name in _words(settings.get("report_to")):
        if name in ("none", "all"):  # all that are installed
            continue
        if name not in TRACKERS:
            raise BadData(
                f"report_to: found {name!r}, expected none, all or some of {', '.join(TRACKERS)}"
            )
        others = ("tensorboardX",) if name == "tensorboard" else ()
        _need(f"report_to {name}", TRACKERS[name], *others, instead="--report_to none")


def _optimizer(settings: Settings) -> None:
    name = str(settings.get("optim") or "")
    parts = [part for part in OPTIMIZERS if part in name]
    if parts:
        _need(f"optim {name}", OPTIMIZERS[max(parts, key=len)], instead="--optim adamw_torch")


def _attention(settings: Settings) -> None:
    declared = settings.get("model_init_kwargs") or {}
    if isinstance(declared, str) and declared.startswith("{"):
        declared = _json(declared)
    own = declared.get("attn_implementation") if isinstance(declared, Mapping) else None
    name = str(settings.get("attn_implementation") or own or "")
    modules = ("kernels",) if "/" in name else ATTENTIONS.get(name.rpartition("|")[2])
    if modules:
        _need(f"attn_implementation {name}", *modules, instead="--attn_implementation sdpa")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # the parser of all settings says what is wrong with it
        return {}


def _deepspeed(settings: Settings) -> None:
    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true")
    if (launched or settings.get("deepspeed")) and not installed("deepspeed"):
        asked = (
            "accelerate launch asks for DeepSpeed"
            if launched
            else f"deepspeed {settings['deepspeed']}"
        )
        raise BadData(f"{asked}: {not_installed('deepspeed', 'deepspeed')}")


def _liger(settings: Settings) -> None:
    if _on(settings.get("use_liger_kernel")):
        _need("use_liger_kernel true", "liger_kernel", instead="--use_liger_kernel false")


def _evaluation(settings: Settings) -> None:
    for key in ("eval_strategy", "eval_on_start", "load_best_model_at_end"):
        value = settings.get(key)
        if value and str(value).lower() not in ("no", "false"):
            raise BadData(
                f"{key} {value}: nothing is measured during training: name held-out samples with "
                "--eval_data, which grpo measures before and after, and measure any checkpoint "
                "with `perception-r1 evaluate --model CHECKPOINT`"
            )


def _on(value: Any) -> bool:
    return str(value).lower() in ("true", "1", "yes", "y", "t", "on")


def _words(value: Any) -> list[str]:
    """One name or several, as a list of names."""
    several = value if isinstance(value, list) else [value] if value else []
    return [str(word) for word in several]
