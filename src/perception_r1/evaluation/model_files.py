"""What is wrong with a model and seen without torch: a folder that is none, or brings code."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..records import BadData
from .adapters import is_adapter, merge_remedy

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


def check_model_folder(name: str | Path) -> None:
    """Raises BadData for a local folder that is no model with a processor, or names code to run.

    A hub id passes.
    """
    folder = Path(name)
    if not folder.is_dir():
        if not _may_be_hub_id(str(name)):
            expected = "a folder with config, weights and processor, or a hub id owner/name"
            raise BadData(f"model {folder}: found no such folder, expected {expected}")
        return
    if is_adapter(folder):
        found = f"model {folder}: found an adapter, expected a whole model"
        raise BadData(f"{found}: {merge_remedy(folder)}")
    if not (folder / "config.json").is_file():
        found = f"model {folder}: expected config.json in the folder, found none"
        raise BadData(f"{found}: name a checkpoint folder")
    for kind, names in (("processor", PROCESSOR_FILES), ("tokenizer", TOKENIZER_FILES)):
        if not has_any(folder, names):
            remedy = f"copy its base model's {kind} files into the folder"
            raise BadData(f"model {folder}: has no {kind} ({' or '.join(names)}): {remedy}")
    check_custom_code(folder)


def _may_be_hub_id(name: str) -> bool:
    """Whether a name that is no folder here may be an owner/name: not where its first part is one."""
    parts = Path(name).parts
    local = name.startswith((".", "/", "~")) or Path(name).exists()
    return not local and len(parts) <= 2 and not (len(parts) == 2 and Path(parts[0]).is_dir())


def has_any(folder: str | Path, names: Sequence[str]) -> bool:
    """Whether one of these files lies in a folder."""
    return any((Path(folder) / name).is_file() for name in names)


def check_custom_code(folder: Path) -> None:
    """Raises BadData where a JSON file of a model folder names a class that comes with the model.

    Else transformers would ask on the terminal whether to run that code, or take another class.
    """
    for path in sorted(folder.glob("*config.json")):
        for classes in _auto_maps(_json(path)):
            named = next(iter(classes.values())) if isinstance(classes, dict) else classes
            found = f"{path}: found auto_map, which names code that comes with the model ({named})"
            expected = "expected a model that transformers itself knows, then delete auto_map"
            raise BadData(f"{found}; such code is never run: {expected}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # whoever loads the file says what is wrong with it
        return {}


def _auto_maps(settings: Any) -> Iterator[Any]:
    """Yields what stands under `auto_map`, at any depth: a processor's file holds its parts."""
    waiting = [settings]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            if found.get("auto_map"):
                yield found["auto_map"]
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
