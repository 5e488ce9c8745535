"""A study's results as one table in Markdown and in JSON: every arm in every domain, beside the paper's figure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.samples import replacing
from ..evaluation.probe import scientific
from .grid import Study
from .intervals import Figure
from .results import Row, Section

HOW = (
    "Brackets are 95 % intervals over seeds (Student's t) and held-out scenes (bootstrap), both together. *one seed*: over scenes "
    "alone, so nothing is said about significance. *n.s.*: not significant, the interval holds zero. Differences are paired: the same "
    "scenes, seed by seed. "
    "The paper's figures are of other models on other data; only their order can be compared."
)


def markdown(study: Study, sections: Sequence[Section], command: str) -> str:
    """The whole table, with the question, the paper's finding, how intervals are made, and what is pending."""
    lines = [f"**{study.question}** The paper: {study.finding}", ""]
    for section in sections:
        lines += [*_table(study, section), ""]
    if pending := _pending(study, sections):
        lines += [f"Pending: {', '.join(pending)}. `{command}` runs what is missing.", ""]
    return "\n".join([*lines, *_cost(sections), HOW, ""])


def _table(study: Study, section: Section) -> list[str]:
    arrow = "↓" if section.lower_is_better else "↑"
    head = ["arm", "seeds", f"`{section.metric}` {arrow}", f"against {study.reference}", f"sampled reward, of {section.greatest:g}", "difference"]
    head += [f"`{name}`" for name in section.rows[0].also] + ([f"paper, {section.title}"] if section.title else [])
    head += ["RL steps", "CPU minutes a run"]
    perplexity = f"{scientific(section.log10_perplexity)} (log10 {section.log10_perplexity:.2f})"
    lines = [f"{section.domain}, from `{section.model}`, {section.scenes:,} held-out samples, perceptual perplexity {perplexity}:", ""]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return [*lines, *("| " + " | ".join(_cells(row, section)) + " |" for row in section.rows)]


def _cells(row: Row, section: Section) -> list[str]:
    cells = [row.arm, str(len(row.seeds)) if row.seeds else "pending", _cell(row.main), _difference(row.change), _cell(row.sampled)]
    cells += [_difference(row.sampled_change), *("–" if value is None else f"{value:.3f}" for value in row.also.values())]
    cells += ["–" if row.paper is None else f"{row.paper:g}"] if section.title else []
    return [*cells, str(row.steps or "–"), f"{row.cpu_minutes:.1f}" if row.seeds else "–"]


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    low, high = figure.interval()
    return f"{figure.value:.3f} [{low:.3f}, {high:.3f}]"


def significant(change: Figure) -> bool:
    """Whether the interval leaves out zero. One seed never says so: the next might differ by as much."""
    low, high = change.interval()
    return len(change.by_seed_K) > 1 and (low > 0 or high < 0)


def _difference(change: Figure | None) -> str:
    if change is None:
        return "–"
    low, high = change.interval()
    doubt = "one seed" if len(change.by_seed_K) == 1 else "n.s."
    return f"{change.value:+.3f} [{low:+.3f}, {high:+.3f}]" + ("" if significant(change) else f" *{doubt}*")


def _pending(study: Study, sections: Sequence[Section]) -> list[str]:
    missing = [f"{name}" for name in study.domains if name not in {section.domain for section in sections}]
    for section in sections:
        for row in section.rows:
            wanted = study.seeds if study.arms[row.arm] else 1
            if len(row.seeds) < wanted:
                missing.append(f"{section.domain} {row.arm} ({len(row.seeds)} of {wanted} seeds)")
    return missing


def _cost(sections: Sequence[Section]) -> list[str]:
    """How many runs there are, what they cost in all, and with which versions."""
    rows = [row for section in sections for row in section.rows]
    count, minutes = sum(len(row.seeds) for row in rows), sum(len(row.seeds) * row.cpu_minutes for row in rows)
    versions = sorted(set[str]().union(*(section.versions for section in sections)))
    told = f"{count} runs, {minutes:.0f} CPU minutes in all, those that other studies share included; {', '.join(versions)}."
    return [told, ""] if count else []


def as_json(study: Study, sections: Sequence[Section]) -> dict[str, Any]:
    """The figures of the table, unrounded."""

    def plain(figure: Figure | None) -> dict[str, Any] | None:
        return None if figure is None else {"value": figure.value, "ci95": list(figure.interval()), "by_seed": figure.by_seed_K.tolist()}

    def row_of(row: Row) -> dict[str, Any]:
        figures = {name: plain(getattr(row, name)) for name in ("main", "change", "sampled", "sampled_change")}
        rest = {name: getattr(row, name) for name in ("also", "steps", "cpu_minutes", "paper")}
        return {"arm": row.arm, "seeds": list(row.seeds), **figures, **rest}

    named = ("domain", "model", "metric", "lower_is_better", "scenes", "log10_perplexity", "greatest", "title")
    found = [{name: getattr(section, name) for name in named} | {"rows": [row_of(row) for row in section.rows]} for section in sections]
    about = {name: getattr(study, name) for name in ("question", "finding", "reference")}
    return {"study": study.name, **about, "intervals": HOW, "domains": found}


def write_table(study: Study, sections: Sequence[Section], folder: Path, command: str) -> str:
    """Writes table.md and table.json into `folder` and returns the Markdown."""
    text = markdown(study, sections, command)
    for name, written in (("table.md", text), ("table.json", json.dumps(as_json(study, sections), indent=1, ensure_ascii=False) + "\n")):
        with replacing(folder / name) as part:
            part.write_text(written, encoding="utf-8")
    return text
