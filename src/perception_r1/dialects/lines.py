"""LLaVA and `plain`: one box a line, without special tokens.

dog: [0.157, 0.459, 0.208, 0.622]
"""

import re
from collections.abc import Sequence

from .base import Found, last_line

_ROW = re.compile(r"\[([^\[\]]*+)\]")


def scan_lines(text: str) -> Found:
    """Every row in brackets, and what is wrong between them."""
    found, end = Found(), 0
    for item in _ROW.finditer(text):
        gap = text[end : item.start()].strip().removeprefix(",").strip()
        label = last_line(gap)
        found.exact &= gap == label and (not label or label.endswith(":"))
        found.exact &= not re.search(r"[\[\]]", label)
        found.add(item[1], label.removesuffix(":").strip())
        end = item.end()
    tail = text[end:].strip()
    found.exact &= not tail
    found.add_bad(int(bool(found.rows) and "[" in tail))
    return found


def write_lines(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> str:
    """A line for each box."""
    return "\n".join(
        f"{label}: [{', '.join(row)}]" if label else f"[{', '.join(row)}]"
        for row, label in zip(rows, labels, strict=True)
    )
