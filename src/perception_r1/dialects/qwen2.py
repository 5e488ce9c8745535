"""Qwen2-VL: special tokens around label and box, or bare, as most engines give it.

    <|object_ref_start|>dog<|object_ref_end|><|box_start|>(157,459),(208,622)<|box_end|>
    dog(157,459),(208,622)

Both are read as the second: a box's label is the text before it, on its line. A box with nothing,
or a comma, before it has the label of the box before; a semicolon ends that, for a box without one.
"""

import re
from collections.abc import Sequence

from .base import LOOSE_ROW, NUMBER, Found, last_line, without_broken

SPECIAL_TOKENS = re.compile(
    r"<\|(?:object_ref_start|object_ref_end|box_start|box_end|quad_start|quad_end"
    r"|vision_start|vision_end|vision_pad|image_pad|video_pad|im_start|im_end|endoftext)\|>"
)
"""The special tokens of every Qwen-VL tokenizer. `<think>` is not one: engines keep it."""

_BOX = re.compile(r"\(([^()]*+)\)\s*+,\s*+\(([^()]*+)\)", re.ASCII)
# Coordinates that are no box: a lone pair, a pair cut off, or numbers without parentheses.
_COORDINATES = r"[-+0-9.,\s]*+"
_BROKEN = re.compile(
    rf"\(\s*+{NUMBER}\s*+,{_COORDINATES}(?:\)\s*+,\s*+\({_COORDINATES})?+\)?+|{LOOSE_ROW}",
    re.ASCII,
)


def scan_qwen2(text: str) -> Found:
    """Every box of a text without special tokens, and what is wrong between them."""
    found, end, label = Found(), 0, ""
    for item in _BOX.finditer(text):
        gap = text[end : item.start()].strip()
        named = _after_separator(gap) if found.rows else gap
        naming, bad = without_broken(named, _BROKEN)
        if named or gap.startswith(";"):
            label = last_line(naming).strip()
        found.exact &= not named or label == named
        found.add_bad(bad)
        found.add(f"{item[1]},{item[2]}", label)
        end = item.end()
    tail = text[end:].strip()
    found.exact &= not tail
    found.add_bad(int(bool(found.rows) and ("(" in tail or _BROKEN.search(tail) is not None)))
    return found


def _after_separator(gap: str) -> str:
    return gap[1:].strip() if gap.startswith((",", ";")) else gap


def write_qwen2(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> str:
    """The form with special tokens."""
    written, previous = [], ""
    for (x1, y1, x2, y2), label in zip(rows, labels, strict=True):
        if label:
            written.append(f"<|object_ref_start|>{label}<|object_ref_end|>")
        elif previous:
            written.append(";")
        written.append(f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>")
        previous = label
    return "".join(written)
