"""LoRA adapters as folders: what they belong to, and the model that adapter and base make together.

A folder with `adapter_config.json` holds an adapter, as PEFT saves it. Its base is what
perception_r1.json names, as it was named when the run was started, else what PEFT wrote down.
torch and PEFT are loaded with the weights, not before.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..policy import model_folder
from ..records import BadData

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Base(NamedTuple):
    """The model that an adapter was trained on."""

    name: str
    """A folder, or a hub id."""
    revision: str | None = None
    """Of a hub id; None for its newest."""

    def options(self) -> dict[str, str]:
        """What transformers' `from_pretrained` is told besides the name."""
        return {"revision": self.revision} if self.revision else {}


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """What PEFT wrote of an adapter. Raises BadData for another kind than LoRA."""
    path = Path(folder) / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise BadData(
            f"{path}: expected JSON as PEFT writes it, found {problem}: save the adapter again"
        ) from problem
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        kind = found.get("peft_type") if isinstance(found, dict) else type(found).__name__
        raise BadData(f"{path}: found peft_type {kind}, expected LORA: merge other kinds with PEFT")
    return found


def base_of(folder: str | Path, settings: Mapping[str, Any]) -> Base:
    """The base of the adapter in `folder`: by its perception_r1.json (`settings`), else by PEFT.

    A relative folder that is not there from here is looked for where PEFT saw it. Raises BadData
    where nothing is named.
    """
    config = read_adapter_config(folder)
    seen, named = config.get("base_model_name_or_path"), settings.get("base")
    places = [str(place) for place in (named and model_folder(named), seen) if place]
    if not places:
        where = Path(folder) / CONFIG
        raise BadData(
            f"{where}: expected base_model_name_or_path, found none: write there whose it is"
        )
    there = next((place for place in places if Path(place).is_dir()), None)
    if there:
        return Base(there)
    if seen and named == "tiny-untrained":
        raise BadData(
            f"adapter {folder}: its base {seen} is gone: keep the folder `untrained` of the run"
        )
    return Base(places[0], settings.get("revision") or config.get("revision"))


def merge_remedy(folder: str | Path) -> str:
    """The command that makes a whole model of an adapter."""
    return f"perception-r1 merge {folder} -o {folder}-merged, and name that"


def load_merged(folder: str | Path, base: Base, dtype: Any) -> Any:
    """The base with the adapter of `folder` merged into it, on the CPU, in a torch `dtype`.

    Adding is done in float32, whatever the type asked for. Raises BadData where adapter and base
    do not fit each other.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    if not (Path(folder) / WEIGHTS).is_file():
        raise BadData(f"adapter {folder}: expected {WEIGHTS}, found none: save it as safetensors")
    model = AutoModelForImageTextToText.from_pretrained(
        base.name, dtype=torch.float32, **base.options()
    )
    config = LoraConfig.from_pretrained(str(folder))
    try:
        adapted: Any = get_peft_model(model, config)
    except ValueError as problem:  # none of its target modules is there
        raise _misfit(folder, base, str(problem)) from problem
    _fill(adapted, folder, base)
    _untie(adapted)
    merged = adapted.merge_and_unload()
    for parameter in (
        merged.parameters()
    ):  # buffers, as the rotary frequencies, stay exact, as in a model loaded so
        parameter.data = parameter.data.to(dtype)
    return merged


def _fill(adapted: Any, folder: str | Path, base: Base) -> None:
    """Puts the adapter's weights in. PEFT itself leaves out, with a warning, what has no place."""
    from peft import load_peft_weights, set_peft_model_state_dict

    given = load_peft_weights(str(folder), device="cpu")
    try:
        found = set_peft_model_state_dict(adapted, given)
    except RuntimeError as problem:  # a size that differs
        raise _misfit(folder, base, str(problem)) from problem
    own = {name for name, _ in adapted.named_parameters() if ".default" in name}
    strangers, empty = found.unexpected_keys, sorted(own & set(found.missing_keys))
    if strangers:
        raise _misfit(
            folder, base, f"{len(strangers)} weights have no place in it, as {strangers[0]}"
        )
    if empty:
        raise _misfit(folder, base, f"{len(empty)} weights are not there, as {empty[0]}")


def _misfit(folder: str | Path, base: Base, found: str) -> BadData:
    reason = " ".join(found.split())[:300]
    return BadData(
        f"adapter {folder} does not fit its base {base.name}: {reason}: name the base it is for"
    )


def _untie(adapted: Any) -> None:
    """Gives the head weights of its own where it shares the embedding's and one has an adapter.

    The adapter was trained on one of the two. Merged into what they share, it would change both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    ends = adapted.get_input_embeddings(), adapted.get_output_embeddings()
    if not any(isinstance(end, BaseTunerLayer) for end in ends):
        return
    embedding, head = (_bare(end) for end in ends)
    if head.weight is not embedding.weight:
        return
    head.weight = nn.Parameter(head.weight.detach().clone())
    config = adapted.config
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = False


def _bare(layer: Any) -> Any:
    """A layer without its adapter."""
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
