"""The paper's tables, every row of them, with ours beside.

The paper's figures are facts from `paper_tables.json`, which names their source. A figure of ours stands in a column of the
paper only where somebody declared that the run's data is that column's; any other run stands in columns named "your data".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ..records import BadData
from .folders import Run
from .page import Cell, Table

PUBLISHED_SIZES = {
    "refcoco_val": 10_834, "refcoco_testA": 5_657, "refcoco_testB": 5_095,
    "refcoco+_val": 10_758, "refcoco+_testA": 5_726, "refcoco+_testB": 4_889,
    "refcocog_val": 4_896, "refcocog_test": 9_602, "page_ocr_en": None, "page_ocr_zh": None,
    "pixmo_val": 540, "pixmo_test": 540, "coco2017_val": 5_000,
}  # fmt: skip
"""What a run's data may be declared to be, with the number of samples published (RefCOCOg: the UMD split); None: not told."""

_ACCURACY = {"@50": "acc@0.5", "@75": "acc@0.75", "@95": "acc@0.95", "_avg": "acc@avg"}
_OCR = ("edit_distance", "f1", "precision", "recall", "bleu", "meteor")
_AP = ("AP", "AP50", "AP75")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What a column of the paper holds: a metric of a task on a published data set."""

    task: str
    metric: str
    data: str


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table: its rows as the paper has them, and what our runs may put into which column."""

    title: str
    rows: Sequence[tuple[str, Mapping[str, Any]]]
    figures: Mapping[str, Figure]
    unit: str = "per cent"

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for _, row in self.rows for name in row))

    @property
    def measures(self) -> list[tuple[str, str]]:
        """Every (task, metric) that has a column, once."""
        return list(dict.fromkeys((figure.task, figure.metric) for figure in self.figures.values()))

    def fits(self, run: Run) -> bool:
        """Whether a run has a figure for this table."""
        if run.declared and not any(figure.data == run.declared for figure in self.figures.values()):
            return False
        return any(task == run.task and run.metrics.get(metric, {}).get("value") is not None for task, metric in self.measures)


def _accuracy(data: str, columns: Sequence[str]) -> dict[str, Figure]:
    found = {}
    for column in columns:
        for ending, metric in _ACCURACY.items():
            if column.endswith(ending):
                found[column] = Figure(task="grounding", metric=metric, data=f"{data}_{column.removesuffix(ending)}")
    return found


_ABLATION = {
    "RefCOCO": Figure(task="grounding", metric="acc@0.5", data="refcoco_val"),
    "RefCOCO+": Figure(task="grounding", metric="acc@0.5", data="refcoco+_val"),
    "RefCOCOg": Figure(task="grounding", metric="acc@0.5", data="refcocog_val"),
    "PageOCR_f1": Figure(task="ocr", metric="f1", data="page_ocr_en"),
    "Pixmo_val": Figure(task="counting", metric="count_acc", data="pixmo_val"),
    "Pixmo_test": Figure(task="counting", metric="count_acc", data="pixmo_test"),
    "COCO2017_AP": Figure(task="detection", metric="AP", data="coco2017_val"),
}


@cache
def paper_facts() -> Mapping[str, Any]:
    """paper_tables.json as it is."""
    return json.loads(files("perception_r1.evaluation").joinpath("paper_tables.json").read_text(encoding="utf-8"))


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Every table of paper_tables.json, in its order."""
    facts = paper_facts()
    detection = {name: Figure(task="detection", metric=name, data="coco2017_val") for name in _AP}
    ocr = {f"{metric}_{language}": Figure(task="ocr", metric=metric, data=f"page_ocr_{language}") for metric in _OCR for language in ("en", "zh")}
    counting = {split: Figure(task="counting", metric="count_acc", data=f"pixmo_{split}") for split in ("val", "test")}

    def grounding(name: str, title: str) -> PaperTable:
        rows = list(facts[name].items())
        return PaperTable(title=f"Visual grounding, {title}: accuracy at IoU", rows=rows, figures=_accuracy(name, list(rows[0][1])))

    terms = [(row["terms"], {name: value for name, value in row.items() if name != "terms"}) for row in facts["detection_reward_terms"]]
    return (
        grounding("refcoco", "RefCOCO"),
        grounding("refcoco+", "RefCOCO+"),
        grounding("refcocog", "RefCOCOg"),
        PaperTable(title="Page OCR, English and Chinese", rows=list(facts["page_ocr"].items()), figures=ocr),
        PaperTable(title="Visual counting, PixMo-Count: accuracy", rows=list(facts["pixmo_count"].items()), figures=counting),
        PaperTable(title="Object detection, COCO 2017 val", rows=list(facts["coco2017"].items()), figures=detection),
        PaperTable(title="General understanding", rows=list(facts["general"].items()), figures={}, unit="as each benchmark reports it"),
        PaperTable(title="Ablations: matching, RL, thinking, SFT", rows=list(facts["ablations"].items()), figures=_ABLATION),
        PaperTable(title="Ablation: reward terms of detection", rows=terms, figures=detection),
        *_settings_tables(facts),
    )


def _settings_tables(facts: Mapping[str, Any]) -> list[PaperTable]:
    recipe = [(name, {"data sets": ", ".join(row.get("datasets", [])), **_counts(row)}) for name, row in facts["data_recipe"].items()]
    settings = [(name.replace("_", " "), {"value": value}) for name, value in facts["settings"].items()]
    perplexity = [(name, {"value": value}) for name, value in facts["perceptual_perplexity"].items()]
    return [
        PaperTable(title="Training data", rows=recipe, figures={}, unit="samples"),
        PaperTable(title="Training settings", rows=settings, figures={}, unit="as each is counted"),
        PaperTable(title="Perceptual perplexity", rows=perplexity, figures={}, unit="matchings, the mean over images"),
    ]


def _counts(row: Mapping[str, Any]) -> dict[str, int]:
    return {name: row[name] for name in ("original", "used")}


def check_declared(runs: Sequence[Run]) -> None:
    """Raises BadData for a run that is declared to be data that no table knows, or data of another task."""
    tasks = {figure.data: figure.task for table in paper_tables() for figure in table.figures.values()}
    for run in runs:
        if run.declared is None or not run.task:
            continue
        if run.declared not in tasks:
            raise BadData(f"{run.name}: found data declared as {run.declared!r}, expected one of {', '.join(PUBLISHED_SIZES)}")
        if tasks[run.declared] != run.task:
            raise BadData(f"{run.name}: found data declared as {run.declared}, which is for {tasks[run.declared]}, but the run is one of {run.task}")


def size_note(run: Run) -> str | None:
    """A warning where a run has another number of samples than the data that it is declared to be; None where it has not."""
    expected = PUBLISHED_SIZES.get(run.declared or "")
    if expected is None or expected == run.samples:
        return None
    words = f"{run.name} is declared to be {run.declared}, which has {expected:,} samples"
    words += f", but was measured on {run.samples:,} of {run.data}"
    if run.task == "detection":
        words += ". COCO's AP of another number of images does not compare"
    return words


GENERAL = {
    "MMBench": (("mmbench_en_dev", "mmbench_en_test"), ("gpt_eval_score",)),
    "MMVet": (("mmvet",), ("gpt_eval_score",)),
    "MMStar": (("mmstar",), ("average",)),
    "ScienceQA": (("scienceqa_img", "scienceqa"), ("exact_match",)),
    "SeedBench": (("seedbench",), ("seed_all", "seed_image")),
    "MME_cognition": (("mme",), ("mme_cognition_score",)),
    "MME_perception": (("mme",), ("mme_perception_score", "mme_percetion_score")),
    "LLaVA-Bench": (("llava_in_the_wild",), ("gpt_eval_llava_all",)),
    "AI2D": (("ai2d",), ("exact_match",)),
}
"""The paper's general benchmarks: lmms-eval's tasks for each, and its metrics that are the paper's figure (one is misspelt there)."""


# --- ours beside theirs ----------------------------------------------------------------------------------------------
def with_ours(table: PaperTable, runs: Sequence[Run]) -> Table:
    """The paper's rows and, below, ours: one for each run whose task and metrics fit; runs of one model on declared data share a row.

    Figures are per cent with one decimal, as in the paper, ours with their 95 % intervals.
    """
    fitting = [run for run in runs if table.fits(run)]
    yours = [measure for measure in table.measures if any(run.declared is None and run.task == measure[0] for run in fitting)]
    several = len({task for task, _ in yours}) > 1
    columns = table.columns
    head = ["", *(name.replace("_", " ") for name in columns), *(f"your data: {f'{task} ' * several}{metric}" for task, metric in yours)]
    rows = [[Cell(text=name), *(Cell(text=_paper(row.get(column))) for column in columns), *[_DASH] * len(yours)] for name, row in table.rows]
    ours = [_our_row(table, group, columns, yours) for group in _rows_of(table, fitting)]
    return Table(head=head, rows=[*rows, *ours], ours=frozenset(range(len(rows), len(rows) + len(ours))))


_DASH = Cell(text="–")


def _paper(value: Any) -> str:
    if value is None or value == "":
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rows_of(table: PaperTable, runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that share a row: those of one model on declared data, each on other data than the others of its row."""
    rows: list[list[Run]] = []
    for run in runs:
        row = next((row for row in rows if all(_share(run, other) for other in row)), None)
        if row is None:
            rows.append([run])
        else:
            row.append(run)
    return rows


def _share(run: Run, other: Run) -> bool:
    return None not in (run.declared, other.declared) and run.model == other.model and run.declared != other.declared


def _our_row(table: PaperTable, group: Sequence[Run], columns: Sequence[str], yours: Sequence[tuple[str, str]]) -> list[Cell]:
    by_data = {run.declared: run for run in group}
    cells = []
    for column in columns:
        figure = table.figures.get(column)
        cells.append(percent(by_data[figure.data].metrics.get(figure.metric)) if figure and figure.data in by_data else _DASH)
    alone = group[0] if group[0].declared is None else None
    own = [percent(alone.metrics.get(metric)) if alone and alone.task == task else _DASH for task, metric in yours]
    return [_name_of(group), *cells, *own]


def _name_of(group: Sequence[Run]) -> Cell:
    if group[0].declared is None:
        return Cell(text=group[0].name, quiet=f"your data: {group[0].data}, n={group[0].samples:,}")
    return Cell(text=group[0].model, quiet="; ".join(f"{run.declared} as declared: {run.data}, n={run.samples:,}" for run in group))


def percent(entry: Mapping[str, Any] | None) -> Cell:
    """A metric between 0 and 1 as the paper writes it, with its interval."""
    if entry is None or entry.get("value") is None:
        return _DASH
    edges = entry.get("ci95")
    return Cell(text=f"{100 * entry['value']:.1f}", quiet=f"[{100 * edges[0]:.1f}, {100 * edges[1]:.1f}]" if edges else "")


def general_with_ours(runs: Sequence[Run]) -> Table | None:
    """The paper's table of general benchmarks with a row for each run that has any, as they report themselves; None without such a run."""
    ours = [run for run in runs if run.general]
    if not ours:
        return None
    table = next(table for table in paper_tables() if table.title == "General understanding")
    theirs = with_ours(table, [])
    rows = [[Cell(text=run.name, quiet=run.general_model), *(_general_cell(run, column) for column in table.columns)] for run in ours]
    return Table(head=theirs.head, rows=[*theirs.rows, *rows], ours=frozenset(range(len(theirs.rows), len(theirs.rows) + len(rows))))


def _general_cell(run: Run, column: str) -> Cell:
    benchmarks, metrics = GENERAL.get(column, ((), ()))
    for benchmark in benchmarks:
        for metric in metrics:
            if isinstance(value := run.general.get(benchmark, {}).get(metric), (int, float)):
                return Cell(text=f"{value:.5g}", quiet=f"{benchmark}: {metric}")
    return _DASH
