"""The bundled tiny policy: a real transformers vision-language model, small enough to train on a laptop."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped policy."""


SETTINGS_FILE = "perception_r1.json"
"""Lies beside a checkpoint and says how to use it: task, dialect, prompt, thinking, and what a supervised one was shown."""


def model_folder(name: str | Path) -> str:
    """The folder or hub id that a `--model` names: `tiny` is the bundled policy."""
    return str(WEIGHTS) if str(name) == "tiny" else str(name)
