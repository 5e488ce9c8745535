"""Checkpoints that can be trusted after a kill: a marker is written last, and only marked ones are resumed."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..policy import SETTINGS_FILE
from ..records import BadData

MARKER = "COMPLETE"


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once everything in it has been written."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / MARKER).touch()


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


def write_settings(folder: str | Path, settings: dict[str, Any]) -> None:
    """Writes `perception_r1.json` beside a checkpoint, so that `evaluate` and `demo` need only the folder."""
    (Path(folder) / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
