"""The annotations of an instances JSON, each put into its picture: checked, and never dropped
silently.

An annotation that cannot be right is an error: an unreadable number, an image or category that is
not there, a box that is not in its image. It names all of them by kind, the first one in full, and
where most are bad what their boxes look like. With `skipped` they are left out and counted instead.
A box without area is left out and counted either way, unless most are so.
"""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..records import BadData
from .categories import Categories, Id, read_categories
from .image_list import listed_images
from .instances import entries, read_instances
from .numbers import Fields, Unread, flag, four, identity, name, number, shown, whole
from .rows import EDGE, LARGEST
from .samples import LeftOut, Skipped
from .written_boxes import like_per_cent, likeness, placed

ORPHAN = "orphan"
"""Why an annotation of an image or a category that is not in the file is left out."""
PER_CENT = (
    "found no number above 100 in any box: they look like per cent of the image's sides, "
    "expected pixels"
)
REMEDY = "correct the file, or leave such annotations out with --skip-bad"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image with its annotations, checked."""

    id: Id
    file: str
    width: int
    height: int
    names: list[str] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    """xyxy in pixels, as are the lists beside it one for each object."""
    crowd: list[bool] = field(default_factory=list)
    area: list[float] = field(default_factory=list)
    uncountable: set[str] = field(default_factory=set)
    """Names of which this image holds an unknown number."""


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """What an instances JSON says."""

    categories: Categories
    pictures: tuple[Picture, ...]
    report: Mapping[str, int]
    problems: tuple[str, ...]
    """What was left out or joined without being an error, the first of it, in words."""


def read_annotated(
    file: Path,
    *,
    ids: Path | str | None = None,
    merge_names: bool = False,
    skipped: Skipped | None = None,
) -> Annotated:
    """The pictures of an instances JSON, or those of them that the file `ids` lists, in the file's
    order. Raises BadData.
    """
    content = read_instances(file)
    categories = read_categories(file, content, merge=merge_names)
    every = read_pictures(file, content)
    listed = (
        listed_images(ids, {picture.id: picture.file for picture in every.values()})
        if ids
        else every.keys()
    )
    notes = _Notes(every, listed, categories.names)
    faults = Skipped() if skipped is None else skipped
    before = faults.count
    for fields in entries(file, content, "annotations"):
        try:
            notes.add(fields)
        except BadData as problem:
            faults.add(problem)
    bad = faults.count - before
    if skipped is None:
        _refuse(file, content, notes, faults)
    said = _most(file, content, notes, bad) if bad else []
    if notes.like_per_cent():
        said.append(f"{file}: {PER_CENT}")
    report = {"images": len(listed), **notes.report()}
    report |= {"not_listed": len(every) - len(listed)} if ids else {}
    report |= {"root_categories": len(categories.roots)} if categories.roots else {}
    report |= {"merged_categories": len(categories.merged)} if categories.merged else {}
    problems = (*categories.roots, *categories.merged, *said, *notes.empty.problems)
    pictures = tuple(picture for picture in every.values() if picture.id in listed)
    return Annotated(categories=categories, pictures=pictures, report=report, problems=problems)


def _refuse(file: Path, content: Mapping[str, Any], notes: "_Notes", faults: Skipped) -> None:
    """Raises BadData where an annotation cannot be right, where most boxes have no area, and where
    all look like per cent.
    """
    total = notes.counts["annotations"]
    if faults.count == 1 < total:
        raise BadData(f"{faults.problems[0]}: {REMEDY}")
    if faults.count:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in faults.reasons.items())
        looks = _looks(content, notes)
        found = f"{faults.count:,} of {total:,} annotations cannot be right ({reasons}){looks}"
        raise BadData(f"{file}: {found}; the first: {faults.problems[0]}: {REMEDY}")
    if 2 * notes.empty.count > total:
        found = f"{notes.empty.count:,} of {total:,} boxes have no area"
        raise BadData(f"{file}: {found}; the first: {notes.empty.problems[0]}: {REMEDY}")
    if notes.like_per_cent():
        raise BadData(f"{file}: {PER_CENT}; --skip-bad takes them as they are")


def _most(file: Path, content: Mapping[str, Any], notes: "_Notes", bad: int) -> list[str]:
    """What is said where most annotations were left out. Raises BadData where all were."""
    total = notes.counts["annotations"]
    if 2 * bad <= total:
        return []
    found = f"{file}: {bad:,} of {total:,} annotations cannot be right{_looks(content, notes)}"
    if bad + notes.empty.count == total:
        raise BadData(f"{found}; expected at least one that can be used")
    return [f"{found}: left out, and the others may be as wrong"]


def _looks(content: Mapping[str, Any], notes: "_Notes") -> str:
    """What the boxes of a file look like where most are not where they can be; "" elsewhere."""
    if 2 * notes.counts["misplaced"] <= notes.counts["annotations"]:
        return ""
    boxes, sizes = list[list[float]](), list[tuple[int, int]]()
    for entry in content["annotations"]:
        try:
            picture = notes.every.get(identity(entry["image_id"]))
            box = four(entry["bbox"])
        except (KeyError, TypeError, Unread):
            continue  # it has been counted for that
        if picture is not None:
            boxes.append(box)
            sizes.append((picture.width, picture.height))
    words = likeness(np.array(boxes).reshape(-1, 4), np.array(sizes).reshape(-1, 2))
    return f": their boxes look like {words}" if words else ""


def read_pictures(file: Path, content: Mapping[str, Any]) -> dict[Id, Picture]:
    """The images of an instances JSON by id, in the file's order. Raises BadData."""
    pictures: dict[Id, Picture] = {}
    for fields in entries(file, content, "images"):
        key, called = fields.take("id", identity), fields.take("file_name", name)
        if key in pictures:
            both = f"{shown(pictures[key].file)} and {shown(called)}"
            found = f"the image id {key!r} twice, of {both}"
            raise BadData(f"{file}: found {found}, expected each once")
        pictures[key] = Picture(
            id=key,
            file=called,
            width=fields.take("width", pixels),
            height=fields.take("height", pixels),
        )
    return pictures


def pixels(value: Any) -> int:
    """A side of an image. Raises Unread."""
    expected = "a whole number of pixels of at least 1"
    try:
        found = whole(value)
    except Unread as problem:
        raise Unread(expected) from problem
    if not 1 <= found <= LARGEST:
        raise Unread(expected)
    return found


def _square_pixels(value: Any) -> float:
    expected = "a number of square pixels of at least 0"
    try:
        found = number(value)
    except Unread as problem:
        raise Unread(expected) from problem
    if not 0 <= found <= LARGEST:
        raise Unread(expected)
    return found


class _Notes:
    """Puts annotations into their pictures and counts."""

    def __init__(
        self, every: Mapping[Id, Picture], listed: Set[Id], names: Mapping[Id, str]
    ) -> None:
        self.every, self.listed, self.names = every, listed, names
        self.counts, self.empty = Counter[str](), Skipped()
        self.ids = set[Id]()
        self.largest, self.reach = 0.0, 0.0

    def add(self, fields: Fields) -> None:
        """Raises BadData for an annotation that cannot be right, LeftOut with the reason where
        there is a word for it.
        """
        self.counts["annotations"] += 1
        image = fields.take("image_id", identity)
        if image not in self.every:
            raise LeftOut(ORPHAN, fields.problem("image_id", _one_of("image", self.every)))
        if image not in self.listed:
            self.counts["annotations"] -= 1
            return
        picture = self.every[image]
        try:
            self._expect_new(fields)
        except BadData:
            picture.uncountable.update(self.names.values())  # it may be another object than the first
            raise
        try:
            called = self._category(fields)
        except BadData:
            picture.uncountable.update(self.names.values())  # whatever it is, it may be one of them
            raise
        try:
            self._put(picture, called, fields)
        except LeftOut as problem:
            picture.uncountable.add(called)
            if problem.reason != "zero_area":
                raise
            self.empty.add(problem)
        except BadData:
            picture.uncountable.add(called)
            raise

    def _expect_new(self, fields: Fields) -> None:
        """Raises LeftOut for an annotation whose id was there before; an id may be left out."""
        if fields.get("id") is None:
            return
        key = fields.take("id", identity)
        if key in self.ids:
            raise LeftOut("repeated_id", fields.problem("id", "an id that was not there before: renumber, or delete the copy"))
        self.ids.add(key)

    def _category(self, fields: Fields) -> str:
        category = fields.take("category_id", identity)
        if category not in self.names:
            raise LeftOut(ORPHAN, fields.problem("category_id", _one_of("category", self.names)))
        return self.names[category]

    def _put(self, picture: Picture, called: str, fields: Fields) -> None:
        written, crowd = fields.take("bbox", four), fields.optional("iscrowd", flag, False)
        area = fields.optional("area", _square_pixels, max(written[2] * written[3], 0.0))
        try:
            box = placed(written, "xywh", picture.width, picture.height)
        except LeftOut as problem:
            empty = problem.reason == "zero_area"
            self.counts["crowd"] += crowd and empty
            self.counts["misplaced"] += not empty
            raise LeftOut(
                problem.reason, f"{fields.where}: bbox of image {picture.id!r}: {problem}"
            ) from problem
        self.counts["crowd"] += crowd
        if crowd:
            picture.uncountable.add(called)
        self._measure(written, box)
        picture.names.append(called)
        picture.boxes.append(box)
        picture.crowd.append(crowd)
        picture.area.append(area)

    def _measure(self, written: list[float], box: list[float]) -> None:
        x, y, width, height = written
        cut = max(box[0] - x, box[1] - y, x + width - box[2], y + height - box[3])
        self.counts["clipped"] += cut > EDGE
        self.largest, self.reach = max(self.largest, *written), max(self.reach, box[2], box[3])

    def like_per_cent(self) -> bool:
        pictures = [self.every[image] for image in self.listed]
        sides = ((picture.width, picture.height) for picture in pictures for _ in picture.boxes)
        return like_per_cent(self.largest, self.reach, sides)

    def report(self) -> dict[str, int]:
        found = {
            "annotations": self.counts["annotations"],
            "crowd": self.counts["crowd"],
            "zero_area": self.empty.count,
        }
        found["uncountable"] = sum(len(self.every[image].uncountable) for image in self.listed)
        return found | ({"clipped": self.counts["clipped"]} if self.counts["clipped"] else {})


def _one_of(what: str, known: Mapping[Id, Any]) -> str:
    first = ", ".join(map(repr, list(known)[:5]))
    more = ", …" if len(known) > 5 else ""
    return f"the id of one of the file's {len(known):,} {what} entries ({first}{more})"
