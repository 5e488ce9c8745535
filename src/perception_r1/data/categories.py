"""The categories of an instances JSON: one name each, and no root that stands for the others.

An export of Roboflow begins with a root: a category that owns no annotation and is the
supercategory of another. It is no class of objects, so it is left out. COCO's own supercategories
are names alone, and no categories.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..records import BadData
from ..tasks.task import plain_name
from .instances import entries
from .numbers import Unread, identity, name, shown

Id = int | str


@dataclass(frozen=True, kw_only=True)
class Categories:
    """What can be found in the images of a data set."""

    names: Mapping[Id, str]
    """Name by id, in the order of the ids; ids that were joined have one name."""
    roots: tuple[str, ...] = ()
    """The roots that were left out, in words."""
    merged: tuple[str, ...] = ()
    """The ids that were joined, in words."""

    def numbers(self) -> dict[str, Id]:
        """The first id of each name, in the order of the ids."""
        found: dict[str, Id] = {}
        for number, called in self.names.items():
            found.setdefault(called, number)
        return found


def read_categories(file: Path, content: Mapping[str, Any], *, merge: bool = False) -> Categories:
    """The categories of an instances JSON. Raises BadData.

    Two categories of one name, but for case and white space, are an error; with `merge` they are
    one, called as the first is.
    """
    found = category_names(file, content)
    owners = {key for entry in content["annotations"] if (key := _id_or_none(entry)) is not None}
    roots = dict(_roots(content, found, owners))
    names = {number: called for number, called in found.items() if number not in roots}
    if not names:
        raise BadData(f"{file}: found no category, expected at least one")
    joined, merged = _joined(file, names, merge)
    return Categories(
        names=joined, roots=tuple(f"{file}: {words}" for words in roots.values()), merged=merged
    )


def category_names(file: Path, content: Mapping[str, Any]) -> dict[Id, str]:
    """The name of every category by its id, in the order of the ids. Raises BadData."""
    found: dict[Id, str] = {}
    for fields in entries(file, content, "categories"):
        number = fields.take("id", identity)
        if number in found:
            raise BadData(f"{file}: found the category id {number!r} twice, expected each once")
        found[number] = fields.take("name", name)
    return dict(sorted(found.items(), key=lambda pair: (isinstance(pair[0], str), pair[0])))


def _id_or_none(annotation: Any) -> Id | None:
    """The category that an annotation names; who reads the annotation complains of a bad one."""
    try:
        return identity(annotation.get("category_id")) if isinstance(annotation, Mapping) else None
    except Unread:
        return None


def _roots(
    content: Mapping[str, Any], names: Mapping[Id, str], owners: Set[Id]
) -> Iterator[tuple[Id, str]]:
    """Ids of the roots, each with what is said of it."""
    below: dict[str, dict[Id, str]] = defaultdict(dict)
    for entry in content["categories"]:
        above, number = entry.get("supercategory"), identity(entry["id"])
        if isinstance(above, str):
            below[plain_name(above)][number] = names[number]
    for number, called in names.items():
        others = [other for child, other in below[plain_name(called)].items() if child != number]
        if number not in owners and others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            owns = f"category {number!r} {shown(called)} owns no annotation"
            above = f"is the supercategory of {shown(others[0])}{more}"
            yield number, f"{owns} and {above}: left out, as a root that is no class"


def _joined(
    file: Path, names: Mapping[Id, str], merge: bool
) -> tuple[dict[Id, str], tuple[str, ...]]:
    """The names with those of one name spelled as the first is, and what was joined, in words.
    Raises BadData unless `merge`.
    """
    first: dict[str, Id] = {}
    joined, words = {}, []
    for number, called in names.items():
        other = first.setdefault(plain_name(called), number)
        joined[number] = names[other]
        if other == number:
            continue
        pair = f"{file}: categories {other!r} {shown(names[other])} and {number!r} {shown(called)}"
        if not merge:
            found = "found one name twice, expected each once"
            raise BadData(f"{pair}: {found}: rename one, or join them with --merge-names")
        words.append(f"{pair} are one")
    return joined, tuple(words)
