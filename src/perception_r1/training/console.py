"""What a run says on the terminal while it trains: one short line a log."""

import time
from typing import Any

from rich.console import Console
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SHOWN = ("loss", "reward", "kl", "mean_token_accuracy", "parse_failure_rate", "constant/reward")


class ShortLog(TrainerCallback):
    """Prints step, seconds since the start, and the figures that tell how it goes; the whole log is in trainer_state.json."""

    def __init__(self) -> None:
        self.console, self.start = Console(), time.monotonic()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        given = {name.replace("terms/", ""): value for name, value in logs.items() if name in SHOWN or "terms/" in name}
        if state.is_world_process_zero and given:
            figures = "  ".join(f"{name} {float(value):.3f}" for name, value in given.items() if value is not None)
            line = f"step {state.global_step}/{state.max_steps}  {time.monotonic() - self.start:.0f} s  {figures}"
            self.console.print(line, highlight=False, soft_wrap=True)


def quiet(trainer: Trainer, log: ShortLog | None = None) -> None:
    """Replaces a trainer's own progress bar and log printing by ShortLog, a new one or that of the run's trainers before."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(log or ShortLog())
