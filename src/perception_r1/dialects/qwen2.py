"""Qwen2-VL: special tokens around label and box, or bare, as most engines give it.

    <|object_ref_start|>dog<|object_ref_end|><|box_start|>(157,459),(208,622)<|box_end|>
    dog(157,459),(208,622)

Both are read as the second: a box's label is the text before it, on its line. A box with nothing,
or a comma, before it has the label of the box before; a semicolon ends that, for a box without one.
"""

import re
from collections.abc import Sequence

from .base import LOOSE_ROW, Found, last_line

SPECIAL_TOKENS = re.compile(
    r"<\|(?:object_ref_start|object_ref_end|box_start|box_end|quad_start|quad_end"
    r"|vision_start|vision_end|vision_pad|image_pad|video_pad|im_start|im_end|endoftext)\|>"
)
"""The special tokens of every Qwen-VL tokenizer. `<think>` is not one: engines keep it."""

_BOX = re.compile(r"\(([^()]*+)\)\s*+,\s*+\(([^()]*+)\)", re.ASCII)
# Coordinates that are no box: a lone pair, a pair cut off, or numbers without parentheses.
_BROKEN = re.compile(
    rf"\(\s*+[+-]?+[0-9.]++\s*+,[^()]*+(?:\)\s*+,\s*+\([^()]*+)?+|{LOOSE_ROW}", re.ASCII
)


def _broken(text: str) -> int:
    return sum(1 for _ in _BROKEN.finditer(text))


def scan_qwen2(text: str) -> Found:
    """Every box of a text without special tokens, and what is wrong between them."""
    found, end, label = Found(), 0, ""
    for item in _BOX.finditer(text):
        gap = text[end : item.start()].strip()
        named = _after_separator(gap) if found.rows else gap
        if named or gap.startswith(";") or not found.rows:
            label = last_line(named).strip()
        bad = _broken(named)
        found.exact &= not bad and (not named or label == named)
        found.add(f"{item[1]},{item[2]}", label)
        found.add_bad(bad)
        end = item.end()
    tail = text[end:].strip()
    found.exact &= not tail
    found.add_bad(int(bool(found.rows) and ("(" in tail or _broken(tail) > 0)))
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
