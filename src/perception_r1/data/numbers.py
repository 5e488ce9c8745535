"""Numbers in somebody else's file: each is what it says, or an error that names file, entry and
field.

    number     3, 2.5, and as text "3", "2.5", "2e3"    finite
    whole      640, 640.0, "640"                        no fraction
    flag       0, 1, "0", "1", false, true
    identity   42, 42.0, "42": one id; "a7", "007": texts, each an id of its own

A text is a number where JSON would read it as one: not " 3", "+3", "1_000" or "yes". A truth value
is no number, and a fraction of exactly nothing (640.0) is none. A float of 2**53 or more is no id:
other ids are the same float.
"""

import math
import re
from collections.abc import Callable, Mapping
from reprlib import Repr
from typing import Any, TypeVar

from ..records import BadData

T = TypeVar("T")

EXACT = 2**53
"""From here on a float stands for several whole numbers."""

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")
_ID = re.compile(r"(-?(?:0|[1-9][0-9]{0,30}))(\.0+)?")
"""No exponent: "12e4" may be the beginning of a hash."""

_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


class Unread(BadData):
    """A value is not what was expected, which the message says. Whoever knows where it stands adds
    that.
    """


def number(value: Any) -> float:
    """A finite number. Raises Unread."""
    if type(value) is float and -math.inf < value < math.inf:  # as most are
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unread("a number")
    try:
        found = float(value)
    except OverflowError as problem:
        raise Unread("a finite number") from problem
    if not math.isfinite(found):
        raise Unread("a finite number")
    return found


def whole(value: Any) -> int:
    """A whole number, exactly. Raises Unread."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        found = number(value)
    except Unread as problem:
        raise Unread("a whole number") from problem
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    if not found.is_integer() or abs(found) >= EXACT:
        raise Unread("a whole number")
    return int(found)


def flag(value: Any) -> bool:
    """Yes or no. Raises Unread.

    >>> flag("0"), flag(1), flag(False)
    (False, True, False)
    """
    if isinstance(value, bool):
        return value
    try:
        found = number(value)
    except Unread as problem:
        raise Unread("0 or 1") from problem
    if found not in (0, 1):
        raise Unread("0 or 1")
    return found == 1


def identity(value: Any) -> int | str:
    """An id: a whole number however it is written, or another text that is not blank. Raises
    Unread.

    >>> identity("42"), identity(42.0), identity("007")
    (42, 42, '007')
    """
    if type(value) is int:  # as most are
        return value
    expected = "a whole number or a text that is its id"
    if isinstance(value, str):
        digits = _ID.fullmatch(value)
        if not digits:
            return name(value, expected)
        value = float(value) if digits[2] else int(digits[1])
    try:
        return whole(value)
    except Unread as problem:
        beyond = isinstance(value, float) and EXACT <= abs(value) < math.inf
        because = ": as a float it is not exact, other ids are the same" if beyond else ""
        raise Unread(expected + because) from problem


def four(value: Any) -> list[float]:
    """The four numbers of a box. Raises Unread."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise Unread("four numbers")
    try:
        return [number(item) for item in value]
    except Unread as problem:
        raise Unread(f"four {str(problem).removeprefix('a ')}s") from problem


def name(value: Any, expected: str = "a text that is not blank") -> str:
    """A text that a file can hold and that is not blank. Raises Unread."""
    if not isinstance(value, str) or not value.strip():
        raise Unread(expected)
    if any("\ud800" <= letter <= "\udfff" for letter in value):  # half a character
        raise Unread(expected)
    return value


def shown(value: Any) -> str:
    """A value as a message shows it, in at most about 60 letters."""
    if value is None:
        return "nothing"
    try:
        return _repr.repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


class Fields:
    """The fields of one entry of somebody's file: an image, an annotation, a row."""

    __slots__ = ("entry", "place")

    def __init__(self, entry: Any, place: str | Callable[[], str]) -> None:
        """`place` says where the entry stands, `labels.json: annotation 7`; it is called when
        something is wrong.
        """
        self.entry, self.place = entry, place

    @property
    def where(self) -> str:
        return self.place if isinstance(self.place, str) else self.place()

    def get(self, field: str) -> Any:
        """The field as it is written, None where it is absent. Raises BadData where the entry is no
        object.
        """
        if not isinstance(self.entry, dict) and not isinstance(
            self.entry, Mapping
        ):  # dict: the quick answer
            raise BadData(f"{self.where}: found {shown(self.entry)}, expected a JSON object")
        return self.entry.get(field)

    def take(self, field: str, read: Callable[[Any], T]) -> T:
        """The field as `read`, one of the functions above, reads it. Raises BadData that names
        file, entry and field.
        """
        value = self.get(field)
        try:
            return read(value)
        except Unread as problem:
            raise BadData(self.problem(field, str(problem))) from problem

    def optional(self, field: str, read: Callable[[Any], T], default: T) -> T:
        """As `take`, of an entry of which a field was taken; `default` where the field is absent or
        null.
        """
        return default if self.entry.get(field) is None else self.take(field, read)

    def problem(self, field: str, expected: str) -> str:
        """What is said of a field that is not as `expected`: file, entry, field, value and image.
        """
        image = self.entry.get("image_id")
        of = "" if image is None or field == "image_id" else f" of image {shown(image)}"
        return (
            f"{self.where}: found {field} {shown(self.entry.get(field))}{of}, expected {expected}"
        )
