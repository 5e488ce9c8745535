"""How each model family writes boxes: text ↔ boxes in pixels of the original image.

A dialect has a grid (`units`: how many steps the image's width and height are cut into), a writer, and a scanner that
finds every item in a text. The convention is declared, by name or by the model's type, and never guessed from numbers.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .records import Answer, BadData, Frame, Malformed

OUTSIDE = 1.0
"""A box may reach this many original pixels outside the image (rounding) before it counts as a bad item."""

MOST_ITEMS = 10_000
"""An answer with more items than this is malformed: no response limit in use allows that many honest ones."""


def smart_resize(width: int, height: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Width and height, in pixels, to which Qwen-VL processors resize an image: multiples of `factor` within the limits.

    `factor` is patch × merge: 28 for Qwen2-VL and Qwen2.5-VL, 32 for Qwen3-VL. Source: Qwen2-VL's image processor.

    >>> smart_resize(640, 480, factor=28, min_pixels=3136, max_pixels=1_000_000)
    (644, 476)
    """
    if max(width, height) > 200 * min(width, height):
        raise BadData(f"image {width}x{height}: Qwen processors refuse an aspect ratio over 200: crop it first")
    sides = [round(side / factor) * factor for side in (width, height)]
    if math.prod(sides) > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)]
    elif math.prod(sides) < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        sides = [math.ceil(side * grow / factor) * factor for side in (width, height)]
    return sides[0], sides[1]


@dataclass(kw_only=True)
class Found:
    """What a scanner saw: rows of numbers (None for a bad item) with labels, and whether nothing else was there.

    Raises Malformed past MOST_ITEMS, which keeps reading and matching of hostile text fast.
    """

    rows: list[tuple[float, ...] | None] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    exact: bool = True
    empty: bool = False

    def add(self, numbers: str, label: str) -> None:
        self._make_room(1)
        self.rows.append(_four_numbers(numbers))
        self.labels.append(label)

    def add_bad(self, count: int = 1) -> None:
        self._make_room(count)
        self.rows += [None] * count
        self.labels += [""] * count

    def _make_room(self, count: int) -> None:
        if len(self.rows) + count > MOST_ITEMS:
            raise Malformed(f"expected at most {MOST_ITEMS} boxes")


_NUMBER = re.compile(r"[+-]?+(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?+[0-9]++)?", re.ASCII)


def _four_numbers(text: str) -> tuple[float, ...] | None:
    parts = text.split(",", 4)
    if len(parts) != 4 or not all(_NUMBER.fullmatch(part.strip()) for part in parts):
        return None
    values = tuple(float(part) for part in parts)
    return values if all(map(math.isfinite, values)) else None


# --- JSON: [{"bbox_2d": [x1, y1, x2, y2], "label": "…"}] -------------------------------------------------------------
# Every pattern here is possessive and starts at a character that its inside cannot contain unquoted: linear time.
_STRING = r'"(?:[^"\\]++|\\.)*+"'
# _OBJECT has no capturing group: inside a possessive repeat CPython 3.11 fails on one with SystemError.
_MEMBER = rf'{_STRING}\s*+:\s*+(?:{_STRING}|\[[^\[\]{{}}]*+\]|[^\s"{{}}\[\],]++)'
_OBJECT = re.compile(rf"\{{\s*+{_MEMBER}(?:\s*+,\s*+{_MEMBER})*+\s*+\}}", re.DOTALL)
_MEMBERS = re.compile(rf'({_STRING})\s*+:\s*+(?:({_STRING})|\[([^\[\]{{}}]*+)\]|[^\s"{{}}\[\],]++)', re.DOTALL)
_BOX_KEY = '"bbox_2d"'


_JSON = json.JSONDecoder(strict=False)


def _string(literal: str) -> str | None:
    try:
        return _JSON.decode(literal)
    except json.JSONDecodeError:
        return None


def _scan_json(text: str) -> Found:
    found, gaps, end = Found(), [], 0
    for item in _OBJECT.finditer(text):
        members = _MEMBERS.findall(item.group())
        boxes = [numbers for key, _, numbers in members if key == _BOX_KEY]
        names = [_string(literal) for key, literal, _ in members if key == '"label"' and literal]
        found.add(boxes[0] if len(boxes) == 1 else "", (names[0] if names else None) or "")
        found.exact &= len(members) == 2 and len(names) == 1 and names[0] is not None
        gaps.append("".join(text[end : item.start()].split()))
        end = item.end()
    tail = "".join(text[end:].split())
    if not gaps:
        found.empty = "[]" in tail
        found.exact = tail in ("[]", "```json[]```", "```[]```")
    else:
        fences = (gaps[0].removesuffix("["), tail.removeprefix("]"))
        found.exact &= gaps[0].endswith("[") and tail.startswith("]") and fences in (("", ""), ("```json", "```"), ("```", "```"))
        found.exact &= all(gap == "," for gap in gaps[1:])
    outside = "".join(gaps) + tail
    broken = outside.count(_BOX_KEY)
    unclosed = outside.count("[") > outside.count("]") and not tail.startswith("]")
    found.add_bad(max(broken, int(bool(gaps) and unclosed and bool(tail.strip(",`")))))
    return found


def _write_json(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> str:
    items = (f'{{"bbox_2d": [{", ".join(row)}], "label": {json.dumps(label, ensure_ascii=False)}}}' for row, label in zip(rows, labels, strict=True))
    return f"[{', '.join(items)}]"


# --- Qwen2-VL: <|object_ref_start|>label<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>, or label(x1,y1),(x2,y2) ---
_QWEN2 = re.compile(
    r"(?:<\|object_ref_start\|>((?:[^<]++|<(?!\|))*+)<\|object_ref_end\|>\s*+)?"
    r"(<\|box_start\|>\s*+)?\(([^()]*+)\)\s*+,\s*+\(([^()]*+)\)(\s*+<\|box_end\|>)?"
)


def _scan_qwen2(text: str) -> Found:
    found, end, label = Found(), 0, ""
    for item in _QWEN2.finditer(text):
        ref, opened, low, high, closed = item.groups()
        gap = text[end : item.start()].strip().removeprefix(",").strip()
        if ref is not None or gap or not opened:  # a further box directly after a special-token box keeps its label
            label = (gap.splitlines() or [""])[-1] if ref is None else ref
        found.exact &= bool(opened) == bool(closed) and not (gap and opened) and not re.search(r"[()\n]|<\|", gap)
        found.add(f"{low},{high}", label.strip())
        found.add_bad(gap.count("<|box_start|>"))
        end = item.end()
    tail = text[end:].strip()
    found.exact &= not tail
    found.add_bad(max(tail.count("<|box_start|>"), int(bool(found.rows) and "(" in tail)))
    return found


def _write_qwen2(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> str:
    named = any(labels)
    return "".join(
        (f"<|object_ref_start|>{label}<|object_ref_end|>" if named else "") + f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"
        for (x1, y1, x2, y2), label in zip(rows, labels, strict=True)
    )


# --- InternVL: <ref>label</ref><box>[[x1,y1,x2,y2]]</box> ------------------------------------------------------------
_INTERN = re.compile(r"(?:<ref>((?:[^<]++|<(?!/?(?:ref|box)>))*+)</ref>\s*+)?<box>([^<]*+)</box>")
_ROW = re.compile(r"\[([^\[\]]*+)\]")


def _scan_internvl(text: str) -> Found:
    found, end = Found(), 0
    for item in _INTERN.finditer(text):
        rows = _ROW.findall(item[2])
        for row in rows:
            found.add(row, (item[1] or "").strip())
        found.add_bad(int(not rows) + text.count("<box>", end, item.start()))
        found.exact &= re.sub(r"\s", "", _ROW.sub("_", item[2])) == f"[{','.join('_' * len(rows))}]" and bool(rows)
        found.exact &= not text[end : item.start()].strip(", \t\r\n")
        end = item.end()
    found.exact &= not text[end:].strip()
    found.add_bad(text.count("<box>", end))
    return found


def _write_internvl(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> str:
    return "\n".join(f"<ref>{label}</ref><box>[[{','.join(row)}]]</box>" for row, label in zip(rows, labels, strict=True))


# --- LLaVA and plain: one `label: [x1, y1, x2, y2]` a line -----------------------------------------------------------
def _scan_lines(text: str) -> Found:
    found, end = Found(), 0
    for item in _ROW.finditer(text):
        gap = text[end : item.start()].strip().removeprefix(",").strip()
        label = (gap.splitlines() or [""])[-1]
        found.exact &= gap == label and (not label or label.endswith(":")) and not re.search(r"[\[\]]", label)
        found.add(item[1], label.removesuffix(":").strip())
        end = item.end()
    tail = text[end:].strip()
    found.exact &= not tail
    found.add_bad(int(bool(found.rows) and "[" in tail))
    return found


def _write_lines(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> str:
    return "\n".join(f"{label}: [{', '.join(row)}]" if label else f"[{', '.join(row)}]" for row, label in zip(rows, labels, strict=True))


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One family's way of writing boxes. `units` gives the grid's steps along width and height for a frame."""

    name: str
    units: Callable[[Frame], tuple[int, int]]
    scan: Callable[[str], Found]
    join: Callable[[Sequence[Sequence[str]], Sequence[str]], str]
    divisor: int = 1
    """Written numbers are grid steps over this (LLaVA writes 0.123 for step 123 of 1,000)."""
    nothing: str = "none"
    """How it writes that nothing is there."""
    model_types: tuple[str, ...] = ()
    """`model_type` values of Hugging Face configs that speak it."""
    factor: int | None = None
    """patch × merge of the family's processor when it resizes by `smart_resize`."""

    @property
    def reads_size_seen(self) -> bool:
        """Whether its numbers depend on the size at which the model saw the image."""
        small, large = (Frame(width=1, height=1, seen_width=side, seen_height=side) for side in (1, 2))
        return self.units(small) != self.units(large)

    def _steps(self, frame: Frame) -> np.ndarray:
        return np.array(self.units(frame) * 2, dtype=np.float64)

    def _pixels_per_step(self, frame: Frame) -> np.ndarray:
        return np.array([frame.width, frame.height] * 2) / self._steps(frame)

    def quantise(self, boxes_N4: np.ndarray, frame: Frame) -> np.ndarray:
        """Integer grid steps (N, 4) nearest to boxes (N, 4) in original pixels; a side that would collapse keeps one step."""
        limit_4 = self._steps(frame)
        exact_N4 = boxes_N4 / self._pixels_per_step(frame)
        grid_N4 = np.clip(np.rint(exact_N4), 0, limit_4)
        flat_N2 = grid_N4[:, :2] >= grid_N4[:, 2:]
        low_N2 = np.clip(np.floor(exact_N4[:, :2]), 0, limit_4[:2] - 1)
        grid_N4[:, :2] = np.where(flat_N2, low_N2, grid_N4[:, :2])
        grid_N4[:, 2:] = np.where(flat_N2, low_N2 + 1, grid_N4[:, 2:])
        return grid_N4.astype(np.int64)

    def snap(self, boxes_N4: np.ndarray, frame: Frame) -> np.ndarray:
        """The boxes (N, 4), in original pixels, that `read(write(boxes))` gives: the best that can be written."""
        return self._to_pixels(self.quantise(boxes_N4, frame) / self.divisor, frame)

    def _to_pixels(self, written_N4: np.ndarray, frame: Frame) -> np.ndarray:
        with np.errstate(over="ignore"):  # 1e308 becomes infinite, which is outside every image
            return written_N4 * self.divisor * self._pixels_per_step(frame)

    def write(self, boxes_N4: np.ndarray, labels: Sequence[str], frame: Frame) -> str:
        """Text of boxes (N, 4) in original pixels with N labels. Raises BadData for a label that could not be read back, or too many boxes."""
        if not len(boxes_N4):
            return self.nothing
        if len(boxes_N4) > MOST_ITEMS:
            raise BadData(f"boxes: expected at most {MOST_ITEMS} in one answer, found {len(boxes_N4)}: split the sample")
        if self.join is not _write_json:
            labels = [" ".join(label.split()) for label in labels]
        rows = [[f"{v / self.divisor:.3f}" if self.divisor > 1 else str(v) for v in row] for row in self.quantise(boxes_N4, frame)]
        text = self.join(rows, labels)
        found = self.scan(text)
        if found.labels != list(labels) or not found.exact:
            raise BadData(f"labels {list(labels)!r:.200} cannot be written in dialect {self.name}: they hold its own punctuation")
        return text

    def read(self, text: str, frame: Frame) -> Answer:
        """The answer in model text, boxes in original pixels. Raises Malformed when nothing can be read."""
        stripped = text.strip()
        if stripped == self.nothing:
            return Answer()
        if stripped.casefold().removesuffix(".") == self.nothing:
            return Answer(exact=False)
        found = self.scan(stripped)
        if found.empty and not found.rows:
            return Answer(exact=found.exact)
        numbers_N4 = np.array([row or (0.0,) * 4 for row in found.rows], dtype=np.float64).reshape(-1, 4)
        boxes_N4 = self._to_pixels(numbers_N4, frame)
        inside = (boxes_N4[:, :2] >= -OUTSIDE).all(1) & (boxes_N4[:, 2:] <= np.array([frame.width, frame.height]) + OUTSIDE).all(1)
        good = inside & (boxes_N4[:, :2] < boxes_N4[:, 2:]).all(1)  # the stand-in for unreadable numbers has no area
        if not good.any():
            raise Malformed(f"expected boxes as {self.name} writes them, found {stripped[:60]!r}")
        labels = tuple(found.labels[n] for n in np.flatnonzero(good))
        bad = int((~good).sum())
        return Answer(boxes=boxes_N4[good], labels=labels, bad=bad, exact=found.exact and not bad)


def _thousand(frame: Frame) -> tuple[int, int]:
    return 1000, 1000


def _seen(frame: Frame) -> tuple[int, int]:
    return frame.seen_width, frame.seen_height


def _original(frame: Frame) -> tuple[int, int]:
    return frame.width, frame.height


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(name="qwen2-vl", units=_thousand, scan=_scan_qwen2, join=_write_qwen2, model_types=("qwen2_vl",), factor=28),
        Dialect(name="qwen2.5-vl", units=_seen, scan=_scan_json, join=_write_json, nothing="[]", model_types=("qwen2_5_vl",), factor=28),
        Dialect(
            name="qwen3-vl", units=_thousand, scan=_scan_json, join=_write_json, nothing="[]", model_types=("qwen3_vl", "qwen3_vl_moe"), factor=32
        ),
        Dialect(name="internvl", units=_thousand, scan=_scan_internvl, join=_write_internvl, model_types=("internvl", "internvl_chat")),
        Dialect(
            name="llava", units=_thousand, scan=_scan_lines, join=_write_lines, divisor=1000, model_types=("llava", "llava_next", "llava_onevision")
        ),
        Dialect(name="plain", units=_original, scan=_scan_lines, join=_write_lines),
    )
}


def dialect_named(name: str) -> Dialect:
    """The dialect called `name`; BadData lists the names when there is none."""
    if name not in DIALECTS:
        raise BadData(f"dialect {name!r} is not known: expected one of {', '.join(DIALECTS)}")
    return DIALECTS[name]


def dialect_of_model(model_type: str) -> Dialect:
    """The dialect that models of this Hugging Face `model_type` were trained to write."""
    for dialect in DIALECTS.values():
        if model_type in dialect.model_types:
            return dialect
    raise BadData(f"model type {model_type!r} has no known way of writing boxes: name one with --dialect ({', '.join(DIALECTS)})")


def frame_of(
    width: int, height: int, dialect: Dialect, *, seen: tuple[int, int] | None = None, min_pixels: int = 3136, max_pixels: int = 1_000_000
) -> Frame:
    """The frame of an image: `seen` when known, else what the dialect's processor makes of it within the pixel limits.

    The defaults are Qwen's smallest image and the 1,000,000 pixels of the paper's code. Families that do not resize by
    `smart_resize` write relative or original coordinates, for which the size seen does not matter.
    """
    if seen is None:
        seen = smart_resize(width, height, factor=dialect.factor, min_pixels=min_pixels, max_pixels=max_pixels) if dialect.factor else (width, height)
    return Frame(width=width, height=height, seen_width=seen[0], seen_height=seen[1])
