"""The bundled tiny policy: a real transformers vision-language model, small enough to train on a laptop."""

import json
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped policy."""


SETTINGS_FILE = "perception_r1.json"
"""Lies beside a checkpoint and says how to use it: task, dialect, prompt, thinking, and what a supervised one was shown."""


def model_folder(name: str | Path) -> str:
    """The folder or hub id that a `--model` names: `tiny` is the bundled policy."""
    return str(WEIGHTS) if str(name) == "tiny" else str(name)


def is_bundled(model: str | Path) -> bool:
    """Whether a folder holds the bundled policy, or one of its architecture, as trained from it."""
    return Path(model).is_dir() and _shape(Path(model)) == _shape(WEIGHTS)


def _shape(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sides = ("depth", "hidden_size", "patch_size", "num_position_embeddings")
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    return [vision.get(name) for name in sides], text.get("hidden_size"), text.get("vocab_size")
