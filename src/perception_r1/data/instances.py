"""COCO's instances JSON, read a piece at a time: memory grows with the number of boxes, not with
the size of the file.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from ..records import BadData
from .numbers import Fields, shown
from .regular import expect_file

KEPT = (
    "id",
    "file_name",
    "width",
    "height",
    "image_id",
    "category_id",
    "bbox",
    "area",
    "iscrowd",
    "name",
    "supercategory",
)
"""Fields of images, annotations and categories that are read; the polygons alone would take
gigabytes.
"""

PIECE = 1 << 20
"""Characters of an annotation file that are read at a time."""

_SPACE = re.compile(r"[ \t\n\r]*+")
_ENDS = re.compile(r"[ \t\n\r,:\]}]")


def read_instances(file: Path) -> dict[str, Any]:
    """The lists `images` (at least one), `annotations` and `categories` of an instances JSON, each
    entry with its fields `KEPT` alone. Memory grows with the number of boxes, not with the size of
    the file. Raises BadData.
    """
    expect_file(file, "COCO's instances JSON")
    content: dict[str, Any] = {}
    try:
        with file.open("rb") as start:
            encoding = json.detect_encoding(start.read(4))
        with file.open(encoding=encoding) as text:
            for name, entries in Pieces(text).lists():
                if name in content:
                    raise ValueError(f"{name!r:.40} is there twice")
                content[name] = None if entries is None else [_kept(entry) for entry in entries]
    except (ValueError, RecursionError) as problem:
        raise BadData(
            f"{file}: found no JSON object ({problem}), expected COCO's instances JSON"
        ) from problem
    if not all(
        isinstance(content.get(part), list) for part in ("images", "annotations", "categories")
    ):
        raise BadData(
            f"{file}: expected COCO's instances JSON with the lists images, annotations "
            "and categories"
        )
    if not content["images"]:
        raise BadData(f"{file}: found no image, expected at least one")
    return content


def entries(file: Path, content: Mapping[str, Any], part: str) -> Iterator[Fields]:
    """The entries of `images`, `annotations` or `categories`, whose complaints name the file and
    the entry's id. Raises BadData.
    """
    kind = {"images": "image", "annotations": "annotation", "categories": "category"}[part]
    for place, entry in enumerate(content[part], 1):
        yield Fields(entry, partial(_where, file, kind, place, entry))


def _where(file: Path, kind: str, place: int, entry: Any) -> str:
    known = isinstance(entry, dict) and entry.get("id") is not None
    return f"{file}: {kind} {shown(entry['id'])}" if known else f"{file}: {kind} number {place}"


def _kept(entry: Any) -> Any:
    return {key: entry[key] for key in KEPT if key in entry} if isinstance(entry, dict) else entry


class Pieces:
    """A text file with one JSON object, of which no more than a piece and a value are in memory.
    Raises ValueError.
    """

    def __init__(self, file: TextIO, piece: int = PIECE) -> None:
        self.file, self.piece = file, piece
        self.text, self.at, self.before = "", 0, 0
        self.parse = json.JSONDecoder().raw_decode

    def lists(self) -> Iterator[tuple[str, Iterator[Any] | None]]:
        """Yields each name with its list, whose entries are to be taken before the next name, or
        None for what is no list.
        """
        self._take("{")
        for _ in self._members("}"):
            name = self._value()
            if not isinstance(name, str):
                raise ValueError(
                    f"{name!r:.40} at character {self.before + self.at}, expected a name"
                )
            self._take(":")
            if self._next() == "[":
                yield name, self._entries()
            else:
                self._value()
                yield name, None
        if self._next():
            raise ValueError(f"more text after the object, at character {self.before + self.at}")

    def _entries(self) -> Iterator[Any]:
        self._take("[")
        for _ in self._members("]"):
            yield self._value()

    def _members(self, closing: str) -> Iterator[None]:
        """Yields where a member stands; whoever asks for the next one has read it."""
        if self._next() == closing:
            self._take(closing)
            return
        yield
        while self._take(",", closing) == ",":
            yield

    def _next(self) -> str:
        """The next character that is no white space, not taken yet; "" at the file's end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text) or not self._more(self.piece):
                return self.text[self.at : self.at + 1]

    def _take(self, *expected: str) -> str:
        found = self._next()
        if found not in expected:
            raise ValueError(
                f"{found!r} at character {self.before + self.at}, expected {' or '.join(expected)}"
            )
        self.at += 1
        return found

    def _value(self) -> Any:
        self._next()
        size = self.piece
        while True:
            try:
                value, end = self.parse(self.text, self.at)
                problem, whole = None, _ENDS.match(self.text, end)
            except json.JSONDecodeError as found:
                value, end, problem, whole = None, self.at, found, None
            if whole or not self._more(
                size
            ):  # not whole: a number, say, may go on in the next piece
                break
            size *= 2
        if problem:
            raise ValueError(f"{problem.msg} at character {self.before + problem.pos}")
        self.at = end
        return value

    def _more(self, size: int) -> bool:
        new = self.file.read(size)
        if new:
            self.text, self.before, self.at = self.text[self.at :] + new, self.before + self.at, 0
        return bool(new)
