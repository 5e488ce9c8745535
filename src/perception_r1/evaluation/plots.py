"""Drawings of a report as SVG: a figure over training steps, and figures of the parts of the data side by side."""

import math
from collections.abc import Sequence
from typing import Any

from .page import in_html

Curve = Sequence[tuple[float, float]]
"""(step, value) pairs in the order logged."""

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34
"""A curve's picture and the margins around its axes, in CSS pixels."""
SMOOTH_FROM = 30
"""Curves with at least this many points also get a moving average over a tenth of them."""
COLOURS = ("#2563eb", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of runs, told apart by colour-blind readers too (after Okabe and Ito); used again from the first after the last."""
BAR, GAP, NAMES, BARS, AFTER = 9, 7, 130, 300, 110
"""Thickness of a bar and the space between parts; widths of the names, of the longest bar, and of what stands behind; in CSS pixels."""


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers (1, 2 or 5 times a power of ten apart) within [low, high].

    >>> ticks(0, 200), ticks(-0.11, 0.13)
    ([0.0, 50.0, 100.0, 150.0, 200.0], [-0.1, -0.05, 0.0, 0.05, 0.1])
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * (1 - 1e-9))
    return [round(index * step, 12) + 0.0 for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Means over up to `window` values around each one; shorter at the ends.

    >>> moving_average([0, 3, 6], 3)
    [1.5, 3.0, 4.5]
    """
    half = window // 2
    near = (values[max(0, at - half) : at + half + 1] for at in range(len(values)))
    return [math.fsum(some) / len(some) for some in near]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0  # a constant curve lies in the middle
    return low - room, high + room


def curve_svg(points: Curve) -> str:
    """An SVG of one curve with labelled axes. Values that are not finite are left out; none left is said in words."""
    kept = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not kept:
        return '<p class="quiet">nothing was logged</p>'
    steps, values = zip(*kept, strict=True)
    (x0, x1), (y0, y1) = (min(steps), max(steps)) if len(set(steps)) > 1 else _range(steps), _range(values)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT), TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(ticks(x0, x1), ticks(y0, y1), place)]
    smooth = len(kept) >= SMOOTH_FROM
    parts.append(_line([place(x, y) for x, y in kept], "#93c5fd" if smooth else "#2563eb", 1.2 if smooth else 1.8))
    if smooth:
        mean = moving_average(values, max(3, len(kept) // 10))
        parts.append(_line([place(x, y) for x, y in zip(steps, mean, strict=True)], "#1d4ed8", 2))
    if len(kept) == 1:
        x, y = place(*kept[0])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#2563eb"/>')
    return f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _line(places: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    dots = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{dots}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _axes(at_x: Sequence[float], at_y: Sequence[float], place: Any) -> str:
    floor = HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT},{TOP} V{floor} H{WIDTH - RIGHT}" fill="none" stroke="#9ca3af"/>']
    for value in at_y:
        y = place(at_x[0], value)[1]
        parts.append(f'<path d="M{LEFT},{y:.1f} H{WIDTH - RIGHT}" stroke="#eef0f3"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in at_x:
        x = place(value, at_y[0])[0]
        parts.append(f'<text x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{value:.6g}</text>')
    return "".join(parts) + f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>'


def bars_svg(parts: Sequence[tuple[str, str, Sequence[float | None]]], runs: Sequence[str]) -> str:
    """An SVG of one figure for parts of the data: for each (name, note, values) a bar for every run, with its value behind it.

    The axis starts at 0 and ends at 1, or at the greatest value where one is greater. None (nothing to compute it from) is a dash.
    """
    high = max([1.0, *(value for _, _, values in parts for value in values if value is not None)])
    top = 18 * (len(runs) > 1) * len(runs)
    step = max(BAR * len(runs), 12) + GAP
    width, floor = NAMES + BARS + AFTER, top + step * len(parts)
    drawn = [_legend(runs)] if len(runs) > 1 else []
    for value in ticks(0, high):
        x = NAMES + BARS * value / high
        drawn.append(f'<path d="M{x:.1f},{top} V{floor}" stroke="#eef0f3"/>')
        drawn.append(f'<text x="{x:.1f}" y="{floor + 14}" text-anchor="middle">{value:.4g}</text>')
    for row, (name, note, values) in enumerate(parts):
        y = top + step * row
        words = f"{in_html(_short(name, 20))}<title>{in_html(name)}</title>"
        drawn.append(f'<text x="{NAMES - 6}" y="{y + step / 2 + 4:.1f}" text-anchor="end">{words}</text>')
        drawn += [_bar(y + GAP / 2 + BAR * k, value, high, COLOURS[k % len(COLOURS)]) for k, value in enumerate(values)]
        drawn.append(f'<text x="{width - 4}" y="{y + step / 2 + 4:.1f}" text-anchor="end">{in_html(note)}</text>')
    return f'<svg width="{width}" height="{floor + 20}" viewBox="0 0 {width} {floor + 20}" role="img">{"".join(drawn)}</svg>'


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _bar(y: float, value: float | None, high: float, colour: str) -> str:
    if value is None:
        return f'<text x="{NAMES + 4}" y="{y + BAR:.1f}">–</text>'
    length = BARS * max(0.0, value) / high
    words = f'<text x="{NAMES + length + 4:.1f}" y="{y + BAR:.1f}">{value:.3g}</text>'
    return f'<rect x="{NAMES}" y="{y:.1f}" width="{length:.1f}" height="{BAR - 1}" fill="{colour}"/>{words}'


def _legend(runs: Sequence[str]) -> str:
    return "".join(
        f'<rect x="{NAMES}" y="{18 * k + 2}" width="10" height="10" fill="{COLOURS[k % len(COLOURS)]}"/>'
        f'<text x="{NAMES + 16}" y="{18 * k + 11}">{in_html(_short(name, 60))}</text>'
        for k, name in enumerate(runs)
    )
