"""Reports that need no other file and no network: of a training run, and of any number of evaluations beside the paper's tables."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.samples import replacing
from ..records import BadData
from ..visualize import draw, matched_pairs
from .failures import gallery, thumbnail, true_objects, verdict
from .folders import Metrics, Run, read_runs
from .page import Block, Cell, Drawings, Example, Fold, Heading, Items, Legend, Panel, Table, Words, html_page, markdown_page
from .plots import Curve, curve_svg
from .side_by_side import number, task_section
from .tables import check_declared, general_with_ours, paper_facts, paper_tables, size_note, with_ours

LARGEST = 800
"""Longer side of a picture in a training report, in pixels, at most."""


# --- one training run ------------------------------------------------------------------------------------------------
def write_report(
    run_dir: str | Path,
    *,
    title: str,
    curves: Mapping[str, Curve],
    metrics_before: Metrics,
    metrics_after: Metrics,
    paired: Metrics,
    pictures: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> Path:
    """Writes `run_dir`/report.html and returns its path.

    `paired` holds the differences, after minus before, that were computed on the same resamples. A picture is a mapping with
    `image` (PIL, original pixels), `truth` (Truth), `before` and `after` (Answer, or None:
    malformed), `caption`, `task`, and `completions`, shown where they were no answer.
    Raises OSError when it cannot be written; then an older report stays as it was.
    """
    blocks = _before_and_after(metrics_before, metrics_after, paired)
    blocks += [Heading(text="Notes"), Items(lines=notes)] if notes else []
    blocks += [Heading(text="Training curves"), Drawings(svgs=[(name, curve_svg(points)) for name, points in curves.items()])] if curves else []
    blocks += [Heading(text="Held-out pictures"), Legend(), *map(_example, pictures)] if pictures else []
    path = Path(run_dir) / "report.html"
    with replacing(path) as part:
        part.write_text(html_page(title, blocks), encoding="utf-8")
    return path


def _before_and_after(before: Metrics, after: Metrics, paired: Metrics) -> list[Block]:
    names = dict.fromkeys([*before, *after])
    rows = [[Cell(text=name), number(before.get(name)), number(after.get(name)), number(paired.get(name), sign="+")] for name in names]
    counts = sorted({entry["n"] for entry in (*before.values(), *after.values()) if "n" in entry})
    size = f"{' and '.join(f'{count:,}' for count in counts)} held-out samples. " if counts else ""
    words = f"{size}95 % intervals in brackets; a paired difference in bold has an interval without zero."
    return [Words(text=words, quiet=True), Table(head=("metric", "before", "after", "paired difference"), rows=rows)]


def _example(picture: Mapping[str, Any]) -> Example:
    image, truth = picture["image"], picture["truth"]
    if truth.text is not None:
        panels = [Panel(name="page", picture=thumbnail(image, LARGEST)), Panel(name="truth", text=truth.text)]
        panels += [_text(when, picture) for when in ("before", "after")]
    else:
        drawn = thumbnail(draw(image, truth=truth), LARGEST)
        panels = [Panel(name="truth", words=true_objects(truth), picture=drawn)]
        panels += [_boxes(when, picture) for when in ("before", "after")]
    return Example(caption=str(picture.get("caption", "")), panels=panels)


def _text(when: str, picture: Mapping[str, Any]) -> Panel:
    if (answer := picture[when]) is None:
        return _written(when, picture, "no readable answer")
    return Panel(name=when, words="" if answer.text else "an empty answer", text=answer.text)


def _boxes(when: str, picture: Mapping[str, Any]) -> Panel:
    answer, truth, image = picture[when], picture["truth"], picture["image"]
    pairs = matched_pairs(truth, answer, image.size, picture.get("task", "")) if answer else []
    drawn = thumbnail(draw(image, truth=None, answer=answer, pairs=pairs), LARGEST)
    words = verdict(answer, truth, len(pairs))
    if answer is None and "completions" in picture:
        return replace(_written(when, picture, words), picture=drawn)
    return Panel(name=when, words=words, picture=drawn)


def _written(when: str, picture: Mapping[str, Any], words: str) -> Panel:
    """What was written instead of an answer, as it was written, where that is known."""
    written = picture.get("completions", {}).get(when)
    return Panel(name=when, words=f"{words}; it is empty" if written == "" else words, text=written or "")


# --- any number of evaluations ---------------------------------------------------------------------------------------
def write_runs_report(folders: Sequence[str | Path], output: Path, *, declared: Sequence[str] = (), worst: int = 24, title: str = "") -> list[Path]:
    """Writes the report of these run folders to `output` (HTML) and beside it as Markdown; returns both paths.

    `declared` says that the data of a run is a published set (`DIR=refcoco_val`, or `refcoco_val` for all); `worst` is the
    number of worst answers shown of each run. Raises BadData for a folder that is no run, and an output that is not .html.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise BadData(f"{output}: expected a name that ends in .html; the Markdown goes beside it as {output.stem}.md")
    runs = read_runs(folders, declared)
    check_declared(runs)
    blocks = runs_blocks(runs, worst=worst)
    title = title or f"Perception-R1: {len(runs)} evaluation{'s' * (len(runs) > 1)}"
    written = {output: html_page(title, blocks), output.with_suffix(".md"): markdown_page(title, blocks)}
    for path, text in written.items():
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    return list(written)


def runs_blocks(runs: Sequence[Run], *, worst: int) -> list[Block]:
    """Everything that the report of these runs shows, in order."""
    measured = [run for run in runs if run.task]
    tasks = [[run for run in measured if run.task == task] for task in dict.fromkeys(run.task for run in measured)]
    blocks = [_overview(runs), *(Words(text=note, strong=True) for run in measured if (note := size_note(run)))]
    blocks += _paper_section(runs)
    blocks += [block for group in tasks for block in task_section(group)]
    for run in measured if worst else []:
        blocks += [Heading(text=f"Worst answers of {run.name}"), *gallery(run, worst)]
    return [*blocks, *_other_tables(runs)]


def _overview(runs: Sequence[Run]) -> Table:
    head = ("run", "task", "who answered", "data", "declared as", "samples")
    rows = [
        [Cell(text=text) for text in (run.name, run.task or "–", run.model, run.data, run.declared or "not declared", f"{run.samples:,}")]
        if run.task
        else [Cell(text=text) for text in (run.name, "general benchmarks", run.general_model or "–", "–", "–", "–")]
        for run in runs
    ]
    return Table(head=head, rows=rows)


def _paper_section(runs: Sequence[Run]) -> list[Block]:
    blocks: list[Block] = []
    for table in paper_tables():
        if any(table.fits(run) for run in runs):
            blocks += [Heading(text=f"{table.title} ({table.unit})", level=3), with_ours(table, runs)]
    if (general := general_with_ours(runs)) is not None:
        words = "Figures of ours are as the benchmark reports them; some report shares between 0 and 1 where the paper has per cent."
        blocks += [Heading(text="General understanding", level=3), general, Words(text=words, quiet=True), *_all_general(runs)]
    if not blocks:
        return []
    words = (
        f"The paper's rows are figures of {paper_facts()['source'].partition(' and ')[0]}; ours are highlighted, with 95 % intervals. "
        "Figures under “your data” were not measured on the paper's data, and do not compare with its columns."
    )
    return [Heading(text="The paper's tables"), Words(text=words, quiet=True), *blocks]


def _all_general(runs: Sequence[Run]) -> list[Block]:
    ours = [run for run in runs if run.general]
    names = dict.fromkeys((benchmark, metric) for run in ours for benchmark, row in run.general.items() for metric in row)
    rows = [
        [Cell(text=f"{benchmark}: {metric}"), *(Cell(text=str(run.general.get(benchmark, {}).get(metric, "–"))) for run in ours)]
        for benchmark, metric in names
    ]
    return [Fold(title="Every figure of the general benchmarks", blocks=[Table(head=["figure", *(run.name for run in ours)], rows=rows)])]


def _other_tables(runs: Sequence[Run]) -> list[Block]:
    shown = {"General understanding"} if any(run.general for run in runs) else set()
    others = [table for table in paper_tables() if table.title not in shown and not any(table.fits(run) for run in runs)]
    inside = [block for table in others for block in (Heading(text=f"{table.title} ({table.unit})", level=4), with_ours(table, []))]
    return [Fold(title="The paper's other tables, of which these runs have no figure", blocks=inside)] if inside else []
