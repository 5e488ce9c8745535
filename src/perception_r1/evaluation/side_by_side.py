"""Runs of one task side by side: metrics with intervals, strict reading, paired differences, parts of the data, settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..records import BadData
from .compare import compare_runs
from .folders import Metrics, Run
from .page import Block, Cell, Drawings, Fold, Heading, Items, Table, Words
from .plots import bars_svg

PLOTTED = {
    "class": ("AP", "f1@0.5"),
    "size": ("AP", "acc@0.5", "mean_iou"),
    "count": ("count_acc", "count_mae"),
    "language": ("edit_distance", "f1"),
}
"""Of each kind of parts, the metrics that are drawn where a run has them."""


AP_BIAS = "COCO's AP depends on how many images it is of; with few it is too high"
"""Measured in docs/decisions/0012-intervals-and-tests.md."""


def number(entry: Mapping[str, Any] | None, sign: str = "") -> Cell:
    """A metric with its interval; of a signed difference, in bold where its interval leaves zero out."""
    if entry is None or entry.get("value") is None:
        return Cell(text="–")
    edges = entry.get("ci95")
    within = f"[{edges[0]:{sign}.3f}, {edges[1]:{sign}.3f}]" if edges else ""
    sure = bool(sign and edges and (edges[0] > 0 or edges[1] < 0))
    return Cell(text=f"{entry['value']:{sign}.3f}", quiet=within, strong=sure)


def metrics_table(columns: Sequence[tuple[str, Metrics]]) -> Table:
    """A row a metric, a column for each (name, metrics)."""
    names = dict.fromkeys(metric for _, metrics in columns for metric in metrics)
    rows = [[Cell(text=name), *(number(metrics.get(name)) for _, metrics in columns)] for name in names]
    return Table(head=["metric", *(name for name, _ in columns)], rows=rows)


def task_section(runs: Sequence[Run]) -> list[Block]:
    """What runs of one task show: one table of all of them, the differences of each later one to the first, parts, settings."""
    columns: list[tuple[str, Metrics]] = []
    for run in runs:
        columns += [(run.name, run.metrics), *([(f"{run.name}, strict", run.about["strict"])] if _strict_differs(run) else [])]
    blocks: list[Block] = [Heading(text=f"{runs[0].task}: all metrics"), metrics_table(columns)]
    blocks.append(Words(text=f"95 % intervals in brackets. {_strictness(runs)}", quiet=True))
    blocks += _about_ap(runs)
    notes = [f"{run.name}: {note}" for run in runs for note in run.about.get("notes") or ()]
    blocks += [Items(lines=notes)] if notes else []
    return [*blocks, *_differences(runs), *_parts(runs), Fold(title=f"How {runs[0].task} was measured", blocks=[_settings(runs)])]


def _strict_differs(run: Run) -> bool:
    return run.about.get("strict", run.metrics) != run.metrics


def _strictness(runs: Sequence[Run]) -> str:
    if not any("strict" in run.about for run in runs):
        return "Strict reading was not measured."
    words = "Strict: an answer that is not exactly in the demanded structure counts as malformed"
    same = [run.name for run in runs if "strict" in run.about and not _strict_differs(run)]
    return f"{words}; for {', '.join(same)} that changes no figure." if same else f"{words}."


def _about_ap(runs: Sequence[Run]) -> list[Block]:
    """That AP depends on the number of images; a warning where these runs have different ones."""
    if runs[0].task != "detection":
        return []
    if len({run.samples for run in runs}) == 1:
        return [Words(text=f"{AP_BIAS}: compare it on the same images only.", quiet=True)]
    sizes = ", ".join(f"{run.name} {run.samples:,}" for run in runs)
    words = f"Do not compare the AP of these runs, of different numbers of images ({sizes})."
    return [Words(text=f"{words} {AP_BIAS}.", strong=True)]


# --- paired differences ----------------------------------------------------------------------------------------------
def _differences(runs: Sequence[Run]) -> list[Block]:
    """Of each later run to the first, on the same samples; or why there is none."""
    first, blocks = runs[0], []
    for run in runs[1:]:
        if run.data_key != first.data_key:
            text = f"{run.name} and {first.name} were measured on different data: their figures are not comparable."
            blocks.append(Words(text=text, strong=True))
            continue
        try:
            found = compare_runs(first.folder, run.folder)
        except BadData as problem:
            blocks.append(Words(text=f"No paired difference of {run.name} and {first.name}: {problem}"))
            continue
        blocks.append(Heading(text=f"{run.name} minus {first.name}, on the same samples", level=3))
        blocks += _tested_differences(found)
        blocks += [Items(lines=found["notes"])] if found["notes"] else []
    return blocks


def _tested_differences(found: Mapping[str, Any]) -> list[Block]:
    """The main metrics first, whose p are adjusted, then the rest, and how both are meant."""
    tested = ", ".join(found["tested"]) or "no metric"
    words = (
        "p: two-sided, of a permutation test that swaps the two runs on random samples. "
        f"Tested are the main metrics ({tested}): Holm adjusts their p for how many they are. "
        "The p of other rows is not adjusted; one in twenty is below 0.05 where nothing changed."
    )
    return [_difference_table(found["metrics"], found["tested"]), Words(text=words, quiet=True)]


def _difference_table(metrics: Mapping[str, Mapping[str, Any]], tested: Sequence[str]) -> Table:
    rows = []
    for name, entry in metrics.items():
        p_cells = [_plain(entry["p"], 4), _plain(entry["p_holm"], 4)]
        rows.append([Cell(text=name, strong=name in tested), number(entry, sign="+"), *p_cells])
    return Table(head=["metric", "paired difference", "p", "p (Holm)"], rows=rows)


# --- parts of the data -----------------------------------------------------------------------------------------------
def _parts(runs: Sequence[Run]) -> list[Block]:
    kinds = dict.fromkeys(kind for run in runs for kind in run.about.get("breakdown") or {})
    return [block for kind in kinds for block in _kind(kind, [run for run in runs if (run.about.get("breakdown") or {}).get(kind)])]


def _kind(kind: str, runs: Sequence[Run]) -> list[Block]:
    parts = [run.about["breakdown"][kind] for run in runs]
    names = list(dict.fromkeys(name for found in parts for name in found))
    every = dict.fromkeys(key for found in parts for row in found.values() for key in row)
    metrics = [metric for metric in every if metric not in ("n", "ci95")]
    drawn = [metric for metric in PLOTTED.get(kind, ()) if metric in metrics] or metrics[:1]
    svgs = [(metric, bars_svg([_bars(name, metric, parts) for name in names], [run.name for run in runs])) for metric in drawn]
    table = _part_table(names, metrics, runs, parts)
    return [Heading(text=f"By {kind}", level=3), Drawings(svgs=svgs), Fold(title=f"Every figure by {kind}", blocks=[table])]


def _bars(name: str, metric: str, parts: Sequence[Mapping[str, Any]]) -> tuple[str, str, list[float | None]]:
    sizes = [row["n"] for found in parts if (row := found.get(name)) and "n" in row]
    return name, f"n={max(sizes):,}" if sizes else "", [found.get(name, {}).get(metric) for found in parts]


def _part_table(names: Sequence[str], metrics: Sequence[str], runs: Sequence[Run], parts: Sequence[Mapping[str, Any]]) -> Table:
    several = len(runs) > 1
    head = ["part", "n", *(f"{metric}{f', {run.name}' * several}" for metric in metrics for run in runs)]
    rows = []
    for name in names:
        size = next((str(found[name]["n"]) for found in parts if "n" in found.get(name, {})), "–")
        cells = [_part_cell(found.get(name, {}), metric) for metric in metrics for found in parts]
        rows.append([Cell(text=name), Cell(text=size), *cells])
    return Table(head=head, rows=rows)


def _part_cell(row: Mapping[str, Any], metric: str) -> Cell:
    """A figure of a part; older files have no intervals there."""
    return number({"value": row.get(metric), "ci95": row.get("ci95", {}).get(metric)})


def _plain(value: float | None, digits: int = 3) -> Cell:
    return Cell(text="–" if value is None else f"{value:.{digits}f}")


# --- settings --------------------------------------------------------------------------------------------------------
def _settings(runs: Sequence[Run]) -> Table:
    """Everything that metrics.json records beside the figures, a column a run."""
    columns = [_flat({part: run.about.get(part) for part in ("model", "data", "settings", "versions")}) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[Cell(text=name), *(Cell(text=column.get(name, "–")) for column in columns)] for name in names]
    return Table(head=["setting", *(run.name for run in runs)], rows=rows)


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {name: "–" if value is None else str(value)}
    found: dict[str, str] = {}
    for key, inside in value.items():
        found |= _flat(inside, f"{name}.{key}" if name else str(key))
    return found
