"""InternVL: special tokens around label and list of boxes, or bare, as most engines give it.

    <ref>dog</ref><box>[[157,459,208,622]]</box>
    dog[[157,459,208,622]]

Both are read as the second: the label of a list of boxes is the text before it, on its line.
"""

import re
from collections.abc import Sequence

from .base import LOOSE_ROW, NUMBER, Found, last_line, without_broken

SPECIAL_TOKENS = re.compile(
    r"</?(?:ref|box|quad|img)>|<IMG_CONTEXT>|<\|(?:im_start|im_end|endoftext)\|>"
)
"""The special tokens of every InternVL tokenizer."""

_ROW = re.compile(r"\[([^\[\]]*+)\]")
_BETWEEN = r"[\s,]*+"
# A list of rows, perhaps cut off; or one row in single brackets.
_BOXES = re.compile(
    rf"\[\s*+(\[[^\[\]]*+\](?:{_BETWEEN}\[[^\[\]]*+\])*+)\s*+(\])?+|\[([^\[\]]*+)\]", re.ASCII
)
_COORDINATES = re.compile(rf"\s*+{NUMBER}\s*+,", re.ASCII)
# Coordinates that are no box: a row cut off, or numbers without brackets.
_BROKEN = re.compile(rf"\[\s*+{NUMBER}[-+0-9.,\s]*+(?!\])|{LOOSE_ROW}", re.ASCII)


def scan_internvl(text: str) -> Found:
    """Every list of boxes in a text without special tokens, and what is wrong between them."""
    found, end = Found(), 0
    for item in _BOXES.finditer(text):
        listed, closed, single = item.groups()
        if single is not None and not _COORDINATES.match(single):
            continue  # brackets in a label, or in words around
        gap = text[end : item.start()].strip()
        named = gap.removeprefix(",").strip() if found.rows else gap
        naming, bad = without_broken(named, _BROKEN)
        label = last_line(naming).strip()
        found.exact &= label == named and named.count("[") == named.count("]")
        found.exact &= bool(closed) and _commas_only(listed)
        found.add_bad(bad)
        for row in _ROW.findall(listed or f"[{single}]"):
            found.add(row, label)
        end = item.end()
    tail = text[end:].strip()
    found.exact &= not tail
    cut_off = tail.endswith("[") or _BROKEN.search(tail) is not None
    found.add_bad(int(bool(found.rows) and cut_off))
    return found


def _commas_only(listed: str) -> bool:
    """Whether there is one comma between any two rows."""
    places = "".join(_ROW.sub("_", listed).split()).split(",")
    return all(place == "_" for place in places)


def write_internvl(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> str:
    """The form with special tokens, a line for each box."""
    return "\n".join(
        f"<ref>{label}</ref><box>[[{','.join(row)}]]</box>"
        for row, label in zip(rows, labels, strict=True)
    )
