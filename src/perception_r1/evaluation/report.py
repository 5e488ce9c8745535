"""The report of a run: one HTML file that needs no other file and no network. Tables, curves drawn as SVG, pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.samples import replacing
from ..records import Answer, BadData, Truth
from ..visualize import MATCHED, TRUTH, UNMATCHED, draw, matched_pairs, picture_to_data_uri

Metrics = Mapping[str, Mapping[str, Any]]
"""Metric name → `{"value", "ci95", …}`, as metrics.json has it."""
Curve = Sequence[tuple[float, float]]
"""(step, value) pairs in the order logged."""

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34
"""A curve's picture and the margins around its axes, in CSS pixels."""
LARGEST = 800
"""Longer side of an embedded picture, in pixels, at most."""
SMOOTH_FROM = 30
"""Curves with at least this many points also get a moving average over a tenth of them."""

_STYLE = f"""
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; max-width: 1200px; margin: 2rem auto; padding: 0 1.5rem }}
h1 {{ font-size: 1.5rem; margin-bottom: .2rem }} h2 {{ font-size: 1.15rem; margin: 2rem 0 .6rem }} .quiet {{ color: #6b7280; font-size: .85em }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #e5e7eb }}
th:first-child, td:first-child {{ text-align: left }} thead th {{ border-bottom: 2px solid #9ca3af }} .scroll {{ overflow-x: auto }}
.curves {{ display: flex; flex-wrap: wrap; gap: 1rem 1.5rem }} figure {{ margin: 0 }} figcaption {{ font-size: .9em; overflow-wrap: anywhere }}
svg text {{ font: 11px system-ui, sans-serif; fill: #4b5563 }} .curves figcaption {{ font-weight: 600 }}
.sample {{ margin: 0 0 1.6rem }} .sample p {{ margin: 0 0 .3rem; overflow-wrap: anywhere }}
.panels {{ display: grid; gap: .8rem }} .panels img {{ width: 100%; border: 1px solid #d1d5db }}
.panels pre {{ white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22rem; overflow-y: auto; margin: 0; background: #f9fafb }}
.panels pre {{ border: 1px solid #d1d5db; padding: .5rem }}
.truth {{ color: {TRUTH} }} .matched {{ color: {MATCHED} }} .unmatched {{ color: {UNMATCHED} }}
"""


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
    `image` (PIL, original pixels), `truth` (Truth), `before` and `after` (Answer, or None: malformed) and `caption`.
    Raises OSError when it cannot be written; then an older report stays as it was.
    """
    drawn = "".join(f"<figure><figcaption>{escape(name)}</figcaption>{curve_svg(points)}</figure>" for name, points in curves.items())
    body = [_comparison(metrics_before, metrics_after, paired)]
    body += [f"<h2>Notes</h2><ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"] if notes else []
    body += [f'<h2>Training curves</h2><div class="curves">{drawn}</div>'] if drawn else []
    body += ["<h2>Held-out pictures</h2>", _LEGEND, *(_sample(picture) for picture in pictures)] if pictures else []
    path = Path(run_dir) / "report.html"
    with replacing(path) as part:
        part.write_text(_page(title, body), encoding="utf-8")
    return path


def _page(title: str, body: Sequence[str]) -> str:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><h1>{escape(title)}</h1>\n' + "\n".join(body) + "\n</body></html>\n"


# --- tables ----------------------------------------------------------------------------------------------------------
def _cell(entry: Mapping[str, Any] | None, sign: str = "") -> str:
    if entry is None or entry["value"] is None:
        return "<td>–</td>"
    edges = entry.get("ci95")
    within = f' <span class="quiet">[{edges[0]:{sign}.3f}, {edges[1]:{sign}.3f}]</span>' if edges else ""
    value = f"{entry['value']:{sign}.3f}"
    sure = bool(sign and edges and (edges[0] > 0 or edges[1] < 0))
    return f"<td>{f'<b>{value}</b>' if sure else value}{within}</td>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _comparison(before: Metrics, after: Metrics, paired: Metrics) -> str:
    names = dict.fromkeys([*before, *after])
    cells = {name: _cell(before.get(name)) + _cell(after.get(name)) + _cell(paired.get(name), sign="+") for name in names}
    counts = sorted({entry["n"] for entry in (*before.values(), *after.values()) if "n" in entry})
    size = f"{' and '.join(f'{count:,}' for count in counts)} held-out samples. " if counts else ""
    words = f"{size}95 % bootstrap intervals in brackets; a paired difference in bold has an interval without zero."
    rows = [f"<tr><td>{escape(name)}</td>{row}</tr>" for name, row in cells.items()]
    return f'<p class="quiet">{words}</p>' + _table(("metric", "before", "after", "paired difference"), rows)


# --- curves ----------------------------------------------------------------------------------------------------------
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


# --- pictures --------------------------------------------------------------------------------------------------------
_LEGEND = (
    '<p><b class="truth">truth</b> · <b class="matched">box that matches a truth (IoU ≥ 0.5, or near its point)</b> · '
    '<b class="unmatched">box that matches nothing (dashed)</b></p>'
)


def _sample(picture: Mapping[str, Any]) -> str:
    image, truth = picture["image"], picture["truth"]
    if truth.text is not None:
        panels = [_panel("page", "", _image(draw(image, truth=None), "page")), _text("truth", truth.text)]
        panels += [_text(when, picture[when].text if picture[when] else "") for when in ("before", "after")]
    else:
        panels = [_panel("truth", _objects(len(truth)), _image(draw(image, truth=truth), "truth"))]
        panels += [_boxes(when, picture[when], picture) for when in ("before", "after")]
    columns = f"grid-template-columns: repeat({len(panels)}, minmax(0, 1fr))"
    caption = escape(str(picture.get("caption", "")))
    return f'<section class="sample"><p>{caption}</p><div class="panels" style="{columns}">{"".join(panels)}</div></section>'


def _panel(name: str, words: str, inside: str) -> str:
    return f"<figure>{inside}<figcaption><b>{escape(name)}</b>{': ' if words else ''}{escape(words)}</figcaption></figure>"


def _image(picture: Image.Image, alt: str) -> str:
    picture.thumbnail((LARGEST, LARGEST))
    return f'<img alt="{escape(alt)}" src="{picture_to_data_uri(picture)}">'


def _objects(count: int) -> str:
    return f"{count} object{'' if count == 1 else 's'}" if count else "nothing is there"


def _text(name: str, text: str) -> str:
    return _panel(name, "" if text else "no readable answer", f"<pre>{escape(text)}</pre>")


def _boxes(name: str, answer: Answer | None, picture: Mapping[str, Any]) -> str:
    image, truth = picture["image"], picture["truth"]
    if answer is None:
        return _panel(name, "no readable answer", _image(draw(image, truth=None), name))
    pairs = matched_pairs(truth, answer, image.size)
    return _panel(name, _verdict(answer, truth, len(pairs)), _image(draw(image, truth=None, answer=answer, pairs=pairs), name))


def _verdict(answer: Answer, truth: Truth, matched: int) -> str:
    if not answer.count:
        return "says that nothing is there"
    unreadable = f", {answer.bad} unreadable" if answer.bad else ""
    compared = f"{_objects(len(truth))} counted" if truth.count is not None else f"{matched} of {_objects(len(truth))} matched"
    return f"{answer.count} box{'' if answer.count == 1 else 'es'}{unreadable}; {compared}"


# --- several runs ----------------------------------------------------------------------------------------------------
def report_from_dirs(dirs: Sequence[str | Path], title: str = "Perception-R1 runs") -> str:
    """An HTML page that compares the metrics.json of several run folders, one table a task.

    A run that was also measured before its training gets a column for that. Raises BadData for a folder without a
    readable metrics.json.
    """
    runs = [(str(folder), _read_metrics(Path(folder))) for folder in dirs]
    if not runs:
        raise BadData("expected at least one run folder with a metrics.json, found none")
    tasks = dict.fromkeys(run["task"] for _, run in runs)
    return _page(title, [_runs_table(task, [(name, run) for name, run in runs if run["task"] == task]) for task in tasks])


def _read_metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    if not path.is_file():
        raise BadData(f"{folder}: found no metrics.json, expected the folder of a run: make one with `perception-r1 evaluate … -o {folder}`")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadData(f"{path}: found no JSON ({error}), expected what `perception-r1 evaluate` writes") from error
    if not isinstance(found, dict) or not {"task", "data", "metrics"} <= set(found):
        raise BadData(f"{path}: expected an object with task, data and metrics, as `perception-r1 evaluate` writes it")
    return found


def _runs_table(task: str, runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    columns: list[tuple[str, Metrics]] = []
    for name, run in runs:
        columns += [(f"{name} (before)", run["before"])] if "before" in run else []
        columns.append((name, run["metrics"]))
    names = dict.fromkeys(metric for _, metrics in columns for metric in metrics)
    rows = [f"<tr><td>{escape(name)}</td>{''.join(_cell(metrics.get(name)) for _, metrics in columns)}</tr>" for name in names]
    about = "".join(f"<li>{escape(name)}: {escape(_about(run))}</li>" for name, run in runs)
    same = len({(run["data"].get("sha256"), run["data"].get("samples")) for _, run in runs}) == 1
    warning = "" if same else "<p><b>These runs were measured on different data: their figures are not comparable.</b></p>"
    return f'<h2>{escape(task)}</h2>{warning}{_table(("metric", *(name for name, _ in columns)), rows)}<ul class="quiet">{about}</ul>'


def _about(run: Mapping[str, Any]) -> str:
    model = run.get("model", {})
    source = model.get("name") or f"answers from {model.get('predictions', 'an unnamed file')}"
    return f"{source}; {run['data'].get('samples', 0):,} samples of {run['data'].get('path', 'an unnamed file')}"
