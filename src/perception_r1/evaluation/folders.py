"""The folder of an evaluation as a report reads it, and what its data is declared to be."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..records import BadData

Metrics = Mapping[str, Mapping[str, Any]]
"""Metric name → `{"value", "ci95", …}`, as metrics.json has it."""

GENERAL, GENERAL_RUN = "general.json", "general-run.json"
"""Figures of general benchmarks beside metrics.json, benchmark → metric → value; and which model they are of."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One evaluation: what its metrics.json says, and the folder that has its answers."""

    name: str
    """How the report calls it."""
    folder: Path
    about: Mapping[str, Any] = field(repr=False)
    """The whole of metrics.json; empty for a folder that has nothing but general benchmarks."""
    metrics: Metrics = field(repr=False)
    general: Mapping[str, Any] = field(default_factory=dict, repr=False)
    general_model: str = ""
    declared: str | None = None
    """The published data set that somebody says its samples are, such as refcoco_val; None where nobody said so."""

    @property
    def task(self) -> str:
        return str(self.about.get("task", ""))

    @property
    def samples(self) -> int:
        return int(self._data.get("samples") or 0)

    @property
    def data(self) -> str:
        return str(self._data.get("path", "an unnamed file"))

    @property
    def data_key(self) -> tuple[Any, Any]:
        """What two runs share that were measured on the same samples."""
        return self._data.get("sha256"), self._data.get("samples")

    @property
    def model(self) -> str:
        """Who answered: the model, or the file of answers."""
        model = self.about.get("model") or {}
        return str(model.get("name") or f"answers from {model.get('predictions', 'an unnamed file')}")

    @property
    def _data(self) -> Mapping[str, Any]:
        return self.about.get("data") or {}


def read_runs(folders: Sequence[str | Path], declarations: Sequence[str] = ()) -> list[Run]:
    """The runs of these folders, in order; a training run gives two, before and after.

    A declaration is `DIR=NAME`, or `NAME` for all of them. Raises BadData for a folder without a readable metrics.json, and for
    a declaration of a folder that is not there.
    """
    if not folders:
        raise BadData("expected at least one run folder with a metrics.json, found none")
    said = _declarations(declarations, folders)
    return [run for folder in folders for run in _runs_of(Path(folder), said.get(str(folder)))]


def _declarations(declarations: Sequence[str], folders: Sequence[str | Path]) -> dict[str, str]:
    said: dict[str, str] = {}
    for words in declarations:
        folder, sign, name = words.rpartition("=")
        if sign and Path(folder) not in map(Path, folders):
            raise BadData(f"found a declaration of {folder}, expected one of the folders of this report: {', '.join(map(str, folders))}")
        said |= {str(each): name for each in folders if not sign or Path(each) == Path(folder)}
    return said


def _runs_of(folder: Path, declared: str | None) -> list[Run]:
    general = _read_general(folder)
    if general and not (folder / "metrics.json").is_file():
        return [Run(name=str(folder), folder=folder, about={}, metrics={}, declared=declared, **general)]
    found = read_metrics(folder)
    if "before" not in found:
        return [Run(name=str(folder), folder=folder, about=found, metrics=found["metrics"], declared=declared, **general)]
    return [_half(folder, when, found, declared, general if when == "after" else {}) for when in ("before", "after")]


def _half(folder: Path, when: str, whole: Mapping[str, Any], declared: str | None, general: Mapping[str, Any]) -> Run:
    """A training run before or after: its own folder where it has one, else what the whole's metrics.json says."""
    own, name = folder / when, f"{folder} ({when})"
    about = read_metrics(own) if (own / "metrics.json").is_file() else {**whole, "metrics": whole["before" if when == "before" else "metrics"]}
    return Run(name=name, folder=own, about=about, metrics=about["metrics"], declared=declared, **general)


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics.json of a folder. Raises BadData where there is none, or none that `evaluate` wrote."""
    path = folder / "metrics.json"
    if not path.is_file():
        raise BadData(f"{folder}: found no metrics.json, expected the folder of a run: make one with `perception-r1 evaluate … -o {folder}`")
    found = _read_json(path)
    if not isinstance(found, dict) or not {"task", "data", "metrics"} <= set(found):
        raise BadData(f"{path}: expected an object with task, data and metrics, as `perception-r1 evaluate` writes it")
    return found


def _read_general(folder: Path) -> dict[str, Any]:
    """The fields `general` and `general_model` of a run; none where the folder has no general benchmarks."""
    path, about = folder / GENERAL, folder / GENERAL_RUN
    if not path.is_file():
        return {}
    found = _read_json(path)
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        raise BadData(f'{path}: expected {{"benchmark": {{"metric": value}}}}, as `perception-r1 evaluate --general` writes it')
    told = _read_json(about) if about.is_file() else {}
    return {"general": found, "general_model": str(told.get("model", ""))}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadData(f"{path}: found no JSON ({error}), expected what `perception-r1 evaluate` writes") from error
