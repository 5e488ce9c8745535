"""Qwen2.5-VL and Qwen3-VL: a JSON list, fenced or bare, of boxes with labels.

[{"bbox_2d": [435, 1, 616, 415], "label": "person"}, {"bbox_2d": [2, 70, 80, 210], "label": "dog"}]
"""

import json
import re
from collections.abc import Sequence

from .base import Found

# Every pattern is possessive and starts at a character that its inside cannot contain unquoted:
# linear time. White space is JSON's own, never that of other scripts.
_SPACE = r"[ \t\n\r]*+"
_STRING = r'"(?:[^"\\]++|\\.)*+"'
_BARE = r'[^\s"{}\[\],]++'
# _OBJECT has no capturing group: inside a possessive repeat CPython 3.11 fails with SystemError.
_MEMBER = rf"{_STRING}{_SPACE}:{_SPACE}(?:{_STRING}|\[[^\[\]{{}}]*+\]|{_BARE})"
_OBJECT = re.compile(rf"\{{{_SPACE}{_MEMBER}(?:{_SPACE},{_SPACE}{_MEMBER})*+{_SPACE}\}}", re.DOTALL)
_MEMBERS = re.compile(
    rf"({_STRING}){_SPACE}:{_SPACE}(?:({_STRING})|\[([^\[\]{{}}]*+)\]|{_BARE})", re.DOTALL
)
_GAP = re.compile(r"[ \t\n\r]++")
_BOX_KEY, _LABEL_KEY = '"bbox_2d"', '"label"'
_FENCES = (("", ""), ("```json", "```"), ("```", "```"))
_JSON = json.JSONDecoder(strict=False)


def _string(literal: str) -> str | None:
    try:
        return _JSON.decode(literal)
    except json.JSONDecodeError:
        return None


def _add_item(found: Found, item: str) -> None:
    members = _MEMBERS.findall(item)
    boxes = [numbers for key, _, numbers in members if key == _BOX_KEY]
    names = [_string(literal) for key, literal, _ in members if key == _LABEL_KEY and literal]
    found.add(boxes[0] if len(boxes) == 1 else "", (names[0] if names else None) or "")
    found.exact &= len(members) == 2 and len(names) == 1 and names[0] is not None


def scan_json(text: str) -> Found:
    """Every object of a text, and what is wrong around them."""
    found, gaps, end = Found(), [], 0
    for item in _OBJECT.finditer(text):
        _add_item(found, item.group())
        gaps.append(_GAP.sub("", text[end : item.start()]))
        end = item.end()
    tail = _GAP.sub("", text[end:])
    if not gaps:
        found.empty = "[]" in tail
        found.exact = tail in ("[]", "```json[]```", "```[]```")
    else:
        found.exact &= gaps[0].endswith("[") and tail.startswith("]")
        found.exact &= (gaps[0].removesuffix("["), tail.removeprefix("]")) in _FENCES
        found.exact &= all(gap == "," for gap in gaps[1:])
    outside = "".join(gaps) + tail
    unclosed = outside.count("[") > outside.count("]") and not tail.startswith("]")
    cut_off = bool(gaps) and unclosed and bool(tail.strip(",`"))
    found.add_bad(max(outside.count(_BOX_KEY), int(cut_off)))
    return found


def write_json(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> str:
    """The list of objects."""
    items = (
        f'{{"bbox_2d": [{", ".join(row)}], "label": {json.dumps(label, ensure_ascii=False)}}}'
        for row, label in zip(rows, labels, strict=True)
    )
    return f"[{', '.join(items)}]"
