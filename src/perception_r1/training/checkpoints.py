"""Checkpoints that can be trusted after a kill, and used by themselves.

A marker is written last, and only marked ones are resumed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..evaluation.adapters import CONFIG, is_adapter, read_adapter_config
from ..evaluation.merging import write_settings
from ..records import BadData

MARKER = "COMPLETE"


class MarkComplete(TrainerCallback):
    """Writes a run's `settings` into each checkpoint; marks it once all processes have written."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()  # random numbers, and shards where there are any
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            complete(folder, self.settings)
            (folder / MARKER).touch()


def complete(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes perception_r1.json into a folder with weights, and what an adapter belongs to."""
    if is_adapter(folder):
        _record_base(folder, settings)
    write_settings(folder, settings)


def _record_base(folder: Path, settings: Mapping[str, Any]) -> None:
    """Lets PEFT find an adapter's base from anywhere: by absolute path, or by id and revision."""
    config = read_adapter_config(folder)
    seen = Path(config["base_model_name_or_path"])
    if revision := settings.get("revision"):  # what was loaded is a copy in the hub's cache
        config |= {"base_model_name_or_path": settings["base"], "revision": revision}
    elif seen.is_dir():
        config["base_model_name_or_path"] = str(seen.absolute())
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def step_of(checkpoint: str | Path | None) -> int:
    """The global step of a checkpoint folder; 0 for None, a fresh start."""
    return int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0


def newest_complete(output_dir: str | Path) -> str | None:
    """The newest checkpoint folder below `output_dir` that was written to its end, or None."""
    folders = [folder for folder in Path(output_dir).glob("checkpoint-*") if (folder / MARKER).is_file()]
    return str(max(folders, key=step_of)) if folders else None


def prepare_output(args: TrainingArguments, resume: bool) -> str | None:
    """Makes the output folder and returns the checkpoint to go on from, None for a fresh start.

    Raises BadData when the folder already holds a run that was not to be resumed, or cannot be written.
    """
    folder = Path(str(args.output_dir))
    if folder.exists() and not folder.is_dir():
        raise BadData(f"output_dir {folder}: expected a folder, found a file: name another with --output_dir")
    checkpoint = newest_complete(folder)
    if checkpoint and not resume:
        raise BadData(f"output_dir {folder} holds a run up to {Path(checkpoint).name}: go on with --resume true, or name another with --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".writable"
    probe.touch()
    probe.unlink(missing_ok=True)  # another process of the run may have been first
    if args.save_total_limit == 1:
        raise BadData("save_total_limit 1: expected at least 2, because a kill while the one checkpoint is written would leave none")
    return checkpoint if resume else None
