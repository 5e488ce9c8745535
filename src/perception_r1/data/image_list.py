"""A file that lists the images of a data set to take, as those of minival: ids or file names."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..records import BadData
from .numbers import Unread, identity, shown
from .regular import expect_file
from .samples import read_json

Id = int | str


def listed_images(ids: Path | str, files: Mapping[Id, str]) -> set[Id]:
    """Ids of those images, whose file names are given by id, that the file `ids` lists: a JSON
    list, or a text with one on each line.

    An entry is an image's id, its file name, or a path that ends in its file name. Raises BadData,
    which names the file `ids`, for an entry that names no image of the data set, or several, or one
    that was named before.
    """
    ids, known = Path(ids), defaultdict[str, set[Id]](set)
    for number, file in files.items():
        for called in (str(number), file, Path(file).name):
            known[called].add(number)
    written = read_json(ids, "a list of images") if ids.suffix == ".json" else _lines(ids)
    if not isinstance(written, list) or not written:
        raise BadData(
            f"{ids}: found {shown(written)}, expected a list of ids or file names of images, "
            "at least one"
        )
    found = [
        known.get(called) or known.get(Path(called).name) or set()
        for called in (_called(ids, entry) for entry in written)
    ]
    return _each_once(ids, written, found)


def _each_once(ids: Path, written: list[Any], found: list[set[Id]]) -> set[Id]:
    """The one image of each entry. Raises BadData."""
    if unknown := [entry for entry, images in zip(written, found, strict=True) if not images]:
        number = f"{len(unknown):,} of {len(written):,} entries name no image of the data set"
        first = f"{number}, the first {shown(unknown[0])}"
        raise BadData(f"{ids}: {first}; expected ids or file names of its images")
    for entry, images in zip(written, found, strict=True):
        if len(images) > 1:
            which = ", ".join(map(repr, sorted(images, key=str)[:5]))
            raise BadData(
                f"{ids}: found {shown(entry)}, which {len(images)} images are called ({which}), "
                "expected what names one: its id"
            )
    counted = Counter(image for images in found for image in images)
    for entry, images in zip(written, found, strict=True):
        if counted[min(images)] > 1:
            raise BadData(f"{ids}: found image {shown(entry)} twice, expected each once")
    return set(counted)


def _called(ids: Path, entry: Any) -> str:
    try:
        return str(identity(entry))
    except Unread as problem:
        raise BadData(
            f"{ids}: found {shown(entry)}, expected {problem}, or a file name"
        ) from problem


def _lines(file: Path) -> list[str]:
    expect_file(file, "an id or file name of an image on each line")
    try:
        return [
            line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    except UnicodeDecodeError as problem:
        raise BadData(
            f"{file}: found no text, expected an id or file name of an image on each line"
        ) from problem
