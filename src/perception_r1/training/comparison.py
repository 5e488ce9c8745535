"""What a run changed: the same held-out samples before and after, paired, in numbers and pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..data.mixture import load_data
from ..data.samples import open_image
from ..evaluation.average_precision import coco_ap_difference
from ..evaluation.checkpoint import read_settings
from ..evaluation.metrics import Reading, paired_difference, read_completion, statistics
from ..evaluation.predictions import Written, read_completions
from ..evaluation.report import write_report
from ..evaluation.run import about_data, evaluate, write_metrics
from ..frames import PixelLimits
from ..policy import is_bundled
from ..records import Answer, BadData, Frame, Sample
from ..tasks import make_task
from .dataset import processor_frame
from .recipe import RecipeArguments

PICTURES = 12
CURVES = ("reward", "kl", "parse_failure_rate", "constant/reward", "completions/mean_length")


class Comparison:
    """Measures a model on `eval_data` before and after training, and writes metrics.json and report.html.

    Without `eval_data` nothing is measured and the report shows the curves alone.
    """

    def __init__(self, ours: RecipeArguments, args: Any, ready: Any) -> None:
        self.ours, self.args, self.ready = ours, args, ready
        self.output = Path(str(args.output_dir))
        self.samples = load_data(ours.eval_data, ours.task)[: ours.eval_limit] if ours.eval_data else []
        if len(named := {sample.task for sample in self.samples}) > 1:
            raise BadData(f"eval_data {ours.eval_data}: found samples of {', '.join(sorted(named))}, expected one task")
        self.task = make_task(self.samples[0].task if self.samples else next(iter(ready.tasks)), dialect=ready.dialect, thinking=ours.thinking)
        size = getattr(ready.processor.image_processor, "size", None) or {}
        edges = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
        self.pixels: dict[str, Any] = edges if ours.min_pixels or ours.max_pixels else {}
        """Image limits of the training's processor, where the recipe sets any."""
        self.results: dict[str, dict[str, Any]] = {}

    def measure(self, when: str, model: str | Path) -> None:
        """Greedy answers of `model` on the held-out samples, into `output`/`when`; a resumed run keeps those it has."""
        if not self.samples:
            return
        if when == "before" and (kept := self._kept(self.output / when / "metrics.json")):
            self.results[when] = kept
            return
        Console().print(f"[bold]{when} RL[/]: {self.ours.eval_data}")
        self.results[when] = evaluate(
            data=self.ours.eval_data, output=self.output / when, model=model, task=self.ours.task, dialect=self.ready.dialect.name,
            limit=self.ours.eval_limit,
            thinking=self.ours.thinking, batch_size=self.ours.eval_batch_size, seed=self.args.seed,
            max_new_tokens=self._longest,
            overwrite=True, **self.pixels,
        )  # fmt: skip

    def _kept(self, done: Path) -> dict[str, Any] | None:
        """What a run that is resumed had measured, if it asked the same of the same samples."""
        if not (self.ready.checkpoint and done.is_file()):
            return None
        kept = json.loads(done.read_text(encoding="utf-8"))
        present = about_data(str(self.ours.eval_data), self.samples)
        asked = {"dialect": self.ready.dialect.name, "thinking": self.ours.thinking}
        asked |= {"limit": self.ours.eval_limit, "max_new_tokens": self._longest}
        same_samples = all(kept["data"].get(name) == present[name] for name in ("sha256", "samples"))
        same_question = all(kept["settings"].get(name) == value for name, value in asked.items())
        return kept if same_samples and same_question else None

    @property
    def _longest(self) -> int:
        """Tokens of the longest answer when measuring."""
        return self.ours.eval_max_new_tokens or self.args.max_completion_length

    def _written(self, when: str) -> dict[str, Written]:
        """What was written to each sample, by its id."""
        return read_completions(self.output / when / "answers.jsonl", self.samples)

    def _readings(self, when: str) -> list[Reading]:
        written = self._written(when)
        frame = processor_frame(self.ready.processor)
        return [self._reading(written[sample.id], sample, frame(sample)) for sample in self.samples]

    def _reading(self, written: Written, sample: Sample, frame: Frame) -> Reading:
        if written.seen is not None:  # what was measured before a resume may have seen another size
            frame = PixelLimits().frame(sample, self.task.dialect, written.seen)
        return read_completion(self.task, written.completion, written.finish, frame)

    def report(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes `metrics.json` (after, with before and the paired difference) and `report.html`; prints the table."""
        paired, pictures = self._compared() if self.samples else ({}, [])
        found = {when: result["metrics"] for when, result in self.results.items()}
        if self.samples:
            write_metrics({**self.results["after"], "before": found["before"], "paired": paired}, self.output / "metrics.json")
            Console().print(self._table(paired))
        for note in self.notes():
            Console().print(f"- {note}")
        path = write_report(
            self.output, title=f"{self.output.name}: {self.task.name} before and after RL", curves=curves(history),
            metrics_before=found.get("before", {}), metrics_after=found.get("after", {}), paired=paired, pictures=pictures, notes=self.notes(),
        )  # fmt: skip
        Console().print(f"checkpoint, rollouts.parquet and [bold]{path}[/]")

    def _compared(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        readings = [self._readings(when) for when in ("before", "after")]
        before, after = ([reading.answer for reading in some] for some in readings)
        paired = paired_difference(self.task, *(statistics(self.task, self.samples, some) for some in readings), seed=self.args.seed)
        if self.task.name == "detection":
            paired = coco_ap_difference(self.samples, before, after, seed=self.args.seed) | paired
        return paired, self._pictures(before, after)

    def _table(self, paired: Mapping[str, Any]) -> Table:
        table = Table("metric", "before RL", "after RL", "paired difference", title=f"{len(self.samples):,} held-out samples, greedy, 95 % intervals")
        for name, change in paired.items():
            cells = [_cell(self.results[when]["metrics"][name]) for when in ("before", "after")]
            table.add_row(name, *cells, _cell(change, sign="+"))
        return table

    def notes(self) -> list[str]:
        """What a reader must know to judge the figures."""
        shown = read_settings(self.ready.model).get("shown")
        notes = [f"What the base's supervised training contained: {shown}"] if shown else []
        if self.samples:
            measured = self.results["after"]["metrics"]
            main = self.task.MAIN_METRIC if self.task.MAIN_METRIC in measured else next(iter(measured))  # bare counts have no distance
            better = "lower" if main in self.task.LOWER_IS_BETTER else "higher"
            notes.append(f"The main metric is {main} ({better} is better), of greedy answers to the same {len(self.samples):,} held-out samples.")
        else:
            notes.append("Nothing was measured: name held-out samples with --eval_data to see before and after.")
        photographs = any(sample.source != "scenes" for sample in self.ready.samples)
        if is_bundled(self.ready.model) and photographs:
            notes.append("The bundled tiny policy sees 64 x 64 pixels and knows drawn shapes: it does not learn photographs. The path is shown.")
        return notes

    def _pictures(self, before: Sequence[Answer | None], after: Sequence[Answer | None]) -> list[dict[str, Any]]:
        """Held-out samples taken evenly over the file, so that nobody chose them."""
        picks = np.unique(np.linspace(0, len(self.samples) - 1, PICTURES).astype(int))
        written = {when: self._written(when) for when in ("before", "after")}
        pictures = []
        for k in map(int, picks):
            sample = self.samples[k]
            completions = {when: written[when][sample.id][0] for when in written}
            answers = {"before": before[k], "after": after[k], "completions": completions}
            about = {"image": open_image(sample), "truth": sample.truth, "task": sample.task}
            caption = f"{sample.id}: {self.task.prompt(sample)}"
            pictures.append({**about, **answers, "caption": caption})
        return pictures


def _cell(entry: Mapping[str, Any], sign: str = "") -> str:
    if entry["value"] is None:
        return "–"
    edges = entry["ci95"]
    return f"{entry['value']:{sign}.3f}" + (f" [{edges[0]:{sign}.3f}, {edges[1]:{sign}.3f}]" if edges else "")


def curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Curves of a run by name, (step, value) each: reward, KL, every term and the rates, from the trainer's log."""
    names = [name for row in history for name in row if name in CURVES or "terms/" in name]
    return {name: [(float(row["step"]), float(row[name])) for row in history if row.get(name) is not None] for name in dict.fromkeys(names)}
