"""A study's results as one SVG, drawn without any plotting library."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from ..data.samples import replacing
from ..evaluation.plots import COLOURS, ticks
from .grid import Study
from .intervals import Figure
from .results import Row, Section
from .table import significant

WIDTH, LABELS, RIGHT = 680, 170, 24
"""Width of the picture, of the arms' names on its left, and of its right margin, in CSS pixels."""
LINE, HEAD, FOOT = 22, 34, 34
"""Height of an arm, of a panel's title, and of its axis."""
CURVE = 220
"""Height of the axes of a panel of curves or points."""
DARK, LIGHT = "#1f2937", "#d1d5db"


@dataclass(frozen=True)
class Panel:
    """A part of the picture, as SVG that starts at height 0, and how high it is."""

    drawn: str
    height: int


def write_plot(study: Study, sections: Sequence[Section], path: Path) -> None:
    """Writes the plots that the study declares, one above the other. Without any result the picture says so."""
    panels = [panel for kind in study.plots for panel in PLOTS[kind](study, sections)] or [Panel(_text(12, 20, "no run has ended yet"), 30)]
    height = sum(panel.height for panel in panels)
    placed, y = [], 0
    for panel in panels:
        placed.append(f'<g transform="translate(0,{y})">{panel.drawn}</g>')
        y += panel.height
    style = f"text {{ font: 12px system-ui, sans-serif; fill: {DARK} }} .title {{ font-weight: 600 }}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img">'
    with replacing(path) as part:
        part.write_text(f'{head}<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(placed)}</svg>\n', encoding="utf-8")


# --- pieces ----------------------------------------------------------------------------------------------------------
def _text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = LIGHT, width: float = 1, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="3 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def _dot(x: float, y: float, colour: str, filled: bool) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour if filled else "#fff"}" stroke="{colour}" stroke-width="1.8"/>'


def _scale(values: Sequence[float], start: float, end: float) -> tuple[Callable[[float], float], list[float]]:
    """A function from a value to its place between two pixels, and the values to mark."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - room, high + room
    return lambda value: start + (value - low) / (high - low) * (end - start), ticks(low, high)


def _axis(place: Callable[[float], float], marks: Sequence[float], top: float, bottom: float, name: str) -> str:
    lines = [_line(place(mark), top, place(mark), bottom, "#eef0f3") + _text(place(mark), bottom + 14, f"{mark:g}", "middle") for mark in marks]
    return "".join(lines) + _text((LABELS + WIDTH - RIGHT) / 2, bottom + 28, name, "middle")


# --- arms with their intervals ---------------------------------------------------------------------------------------
def _arms(study: Study, sections: Sequence[Section]) -> Iterator[Panel]:
    for section in sections:
        if rows := [row for row in section.rows if row.main is not None]:
            yield _arms_of(study, section, rows)


def _arms_of(study: Study, section: Section, rows: Sequence[Row]) -> Panel:
    figures = {row.arm: row.main for row in rows if row.main is not None}
    place, marks = _scale([edge for figure in figures.values() for edge in figure.interval()], LABELS, WIDTH - RIGHT)
    bottom = HEAD + LINE * len(rows)
    better = "lower" if section.lower_is_better else "higher"
    against = f"hollow: n.s. against {study.reference}, or one seed"
    parts = [_text(12, 20, f"{section.domain}: {section.metric}, {better} is better; {against}", kind="title")]
    parts.append(_axis(place, marks, HEAD - 6, bottom, ""))
    if study.reference in figures:
        at = place(figures[study.reference].value)
        parts.append(_line(at, HEAD - 6, at, bottom, "#9ca3af", dashed=True))
    for k, row in enumerate(rows):
        y, (low, high) = HEAD + LINE * (k + 0.5) - 3, figures[row.arm].interval()
        colour = COLOURS[list(study.arms).index(row.arm) % len(COLOURS)]
        sure = row.arm == study.reference or (row.change is not None and significant(row.change))
        name = row.arm if len(row.seeds) > 1 or not study.arms[row.arm] else f"{row.arm} (1 seed)"
        parts += [_text(LABELS - 12, y + 4, name, "end"), _line(place(low), y, place(high), y, colour, 2)]
        parts.append(_dot(place(figures[row.arm].value), y, colour, sure))
    return Panel("".join(parts), bottom + FOOT)


# --- reward curves ---------------------------------------------------------------------------------------------------
def _curves(study: Study, sections: Sequence[Section]) -> Iterator[Panel]:
    for section in sections:
        for column, name in (("step", "step"), ("seconds", "seconds of training")):
            curves = {arm: _mean_curve(found, column) for arm, found in section.curves.items() if any(found)}
            if curves:
                yield _curves_of(study, section, curves, name)


def _mean_curve(curves: Sequence[Sequence[Mapping[str, float]]], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds of both coordinates, smoothed over five logs."""
    length = min(len(curve) for curve in curves if curve)
    x, y = (np.mean([[row[name] for row in curve[:length]] for curve in curves if curve], axis=0) for name in (column, "reward"))
    window = min(5, length)
    return x[window - 1 :], np.convolve(y, np.ones(window) / window, "valid")


def _curves_of(study: Study, section: Section, curves: dict[str, tuple[np.ndarray, np.ndarray]], name: str) -> Panel:
    bottom = HEAD + CURVE
    across, at_x = _scale(np.concatenate([x for x, _ in curves.values()]).tolist(), LABELS, WIDTH - RIGHT)
    up, at_y = _scale(np.concatenate([y for _, y in curves.values()]).tolist(), bottom, HEAD)
    parts = [_text(12, 20, f"{section.domain}: reward of the rollouts, mean of five logs and of the seeds", kind="title")]
    parts.append(_axis(across, at_x, HEAD, bottom, name))
    parts += [_line(LABELS, up(mark), WIDTH - RIGHT, up(mark), "#eef0f3") + _text(LABELS - 8, up(mark) + 4, f"{mark:g}", "end") for mark in at_y]
    for k, (arm, (x, y)) in enumerate(curves.items()):
        colour = COLOURS[list(study.arms).index(arm) % len(COLOURS)]
        dots = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x, y, strict=True))
        parts.append(f'<polyline points="{dots}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts.append(_line(12, HEAD + LINE * (k + 0.5), 32, HEAD + LINE * (k + 0.5), colour, 3) + _text(38, HEAD + LINE * (k + 0.5) + 4, arm))
    return Panel("".join(parts), bottom + FOOT + 8)


# --- gain against perplexity -----------------------------------------------------------------------------------------
def _gain(study: Study, sections: Sequence[Section]) -> Iterator[Panel]:
    """Every trained arm's gain over the reference, in the main metric where higher is better, by the domain's perceptual perplexity."""
    found: dict[str, list[tuple[float, int, Figure, float]]] = {}
    domains: dict[float, list[str]] = {}  # those of equal perplexity stand side by side
    for section in sections:
        equal = domains.setdefault(section.log10_perplexity, [])
        for row in section.rows:
            if row.change is not None and study.arms[row.arm]:
                found.setdefault(row.arm, []).append((section.log10_perplexity, len(equal), row.change, -1.0 if section.lower_is_better else 1.0))
        equal.append(section.domain)
    if not found:
        return
    top = HEAD + LINE
    bottom = top + CURVE
    edges = [sign * edge for some in found.values() for _, _, change, sign in some for edge in change.interval()]
    across, at_x = _scale(list(domains), LABELS + 20, WIDTH - RIGHT - 20)
    up, at_y = _scale([0.0, *edges], bottom, top)
    parts = [_text(12, 20, f"Gain over {study.reference} in the main metric; hollow: not significant, or one seed", kind="title")]
    parts.append(_axis(across, at_x, top, bottom, "log10 of perceptual perplexity"))
    parts += [_line(LABELS, up(mark), WIDTH - RIGHT, up(mark), "#eef0f3") + _text(LABELS - 8, up(mark) + 4, f"{mark:g}", "end") for mark in at_y]
    parts.append(_line(LABELS, up(0), WIDTH - RIGHT, up(0), "#9ca3af", dashed=True))
    parts += [_text(across(x), HEAD + 14, ", ".join(names), "middle") for x, names in domains.items()]
    for k, (arm, some) in enumerate(found.items()):
        colour = COLOURS[list(study.arms).index(arm) % len(COLOURS)]
        for x, place, change, sign in some:
            at = across(x) + 9 * (k - (len(found) - 1) / 2) + 12 * len(found) * (place - (len(domains[x]) - 1) / 2)
            low, high = change.interval()
            parts += [_line(at, up(sign * low), at, up(sign * high), colour, 2), _dot(at, up(sign * change.value), colour, significant(change))]
        parts += [_dot(20, HEAD + LINE * (k + 0.5), colour, True), _text(32, HEAD + LINE * (k + 0.5) + 4, arm)]
    yield Panel("".join(parts), bottom + FOOT + 8)


PLOTS: dict[str, Callable[[Study, Sequence[Section]], Iterator[Panel]]] = {"arms": _arms, "curves": _curves, "gain": _gain}
