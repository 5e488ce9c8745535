"""COCO instances JSON → detection samples (one an image) or counting samples (one an image and category).

Boxes `xywh` become `xyxy` and are clipped to the image, as rounding lets some stick out. A crowd region (`iscrowd`) covers an
unknown number of objects: a detection sample keeps it with its flag, for the evaluator to ignore matches with it and for
the reward to leave out; a counting pair that has one is left out, since its true number is unknown. A box without area is
left out and counted in the report; a counting pair that had one is left out too. Images without annotations stay.
"""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..records import BadData, Sample, Truth
from ..tasks.detection import COCO_NAMES
from .samples import read_json

FILES = ("instances*.json", "annotations/instances*.json")
"""Where an annotation file is looked for below a root."""

KEPT = ("id", "file_name", "width", "height", "image_id", "category_id", "bbox", "area", "iscrowd", "name")
"""Fields of images, annotations and categories that are read; the polygons alone would take gigabytes."""

PIECE = 1 << 20
"""Characters of an annotation file that are read at a time."""

_SPACE = re.compile(r"[ \t\n\r]*+")
_ENDS = re.compile(r"[ \t\n\r,:\]}]")


@dataclass(frozen=True, kw_only=True)
class Coco:
    """Samples of a COCO data set, and what happened to its annotations on the way."""

    samples: list[Sample]
    report: Mapping[str, int]
    """Numbers of `images`, `annotations`, `crowd` annotations, `zero_area` boxes left out and `uncountable` pairs left out."""
    files: tuple[Path, ...] = ()
    """The annotation file, and the list of images where there is one."""


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """One image with its annotations, checked."""

    id: int | str
    file: str
    width: int
    height: int
    names: list[str] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    area: list[float] = field(default_factory=list)
    uncountable: set[str] = field(default_factory=set)
    """Names of which this image holds an unknown number."""


def coco_samples(
    root: Path | str,
    task: str = "detection",
    *,
    split: str | None = None,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    ids: Path | str | None = None,
    absent: int = 0,
    seed: int = 0,
) -> Coco:
    """Samples of the COCO data set below `root`, for `detection` or `counting`. No image is opened.

    The annotation file is the only `instances*.json` in `root` or `root/annotations`, or that of `split` (`val2017`); the
    images lie in `images/`, in a folder called as the split is, or in `root` itself. `annotations` and `images`, relative to
    `root`, say it outright. `ids`: a file that lists the images to take, such as minival (see `listed_images`). `absent`: so many
    categories an image that it does not show, for counting to zero, drawn with `seed`. Categories are listed in a detection
    sample unless they are COCO's own 80. Raises BadData.
    """
    if task not in ("detection", "counting"):
        raise BadData(f"coco: found task {task!r}, expected detection or counting")
    if absent < 0:
        raise BadData(f"coco: found absent {absent}, expected a number of categories of at least 0")
    root = Path(root)
    file = root / annotations if annotations else _annotation_file(root, split)
    categories, pictures, report = _read(file, ids)
    files = (file, Path(ids)) if ids else (file,)
    folder = root / images if images else _image_folder(root, file, pictures[0].file)
    names = tuple(categories.values())
    if task == "detection":
        listed = None if set(names) == set(COCO_NAMES) else names
        return Coco(samples=[_detection(picture, folder, listed) for picture in pictures], report=report, files=files)
    numbers = {name: number for number, name in categories.items()}
    samples = [sample for picture in pictures for sample in _counting(picture, folder, numbers, absent, seed)]
    if not samples:
        raise BadData(f"{file}: found no category whose objects can be counted, expected annotations that are not crowds")
    return Coco(samples=samples, report=report, files=files)


def _annotation_file(root: Path, split: str | None) -> Path:
    if not root.is_dir():
        raise BadData(f"coco: {root}: found {'a file' if root.exists() else 'no such folder'}, expected the folder of a COCO data set")
    there = sorted(path for pattern in FILES for path in root.glob(pattern))
    files = [path for path in there if split is None or path.stem == f"instances_{split}"]
    if len(files) != 1:
        found = ", ".join(str(path.relative_to(root)) for path in there) or "none"
        expected = " or ".join(FILES) if split is None else f"instances_{split}.json"
        remedy = "name one with split=val2017 or annotations=FILE" if split is None else "leave split out or name it with annotations=FILE"
        raise BadData(f"coco: {root}: found annotation files: {found}; expected one {expected}: {remedy}")
    return files[0]


def _image_folder(root: Path, file: Path, first: str) -> Path:
    split = file.stem.removeprefix("instances").lstrip("_") or "images"
    tried = list(dict.fromkeys((root / split, root / "images" / split, root / "images", root)))
    holding = [folder for folder in tried if (folder / first).is_file()]
    if len(holding) != 1:
        found = ", ".join(map(str, holding)) or "it in none of " + ", ".join(map(str, tried))
        raise BadData(f"coco: {root}: looked for {first}, found {found}; expected one folder of images: name it with images=FOLDER")
    return holding[0]


def read_instances(file: Path) -> dict[str, Any]:
    """The lists `images` (at least one), `annotations` and `categories` of an instances JSON, each entry with its fields
    `KEPT` alone. Memory grows with the number of boxes, not with the size of the file. Raises BadData.
    """
    content: dict[str, Any] = {}
    try:
        with file.open("rb") as start:
            encoding = json.detect_encoding(start.read(4))
        with file.open(encoding=encoding) as text:
            for name, entries in Pieces(text).lists():
                content[name] = None if entries is None else [_kept(entry) for entry in entries]
    except (FileNotFoundError, IsADirectoryError) as problem:
        raise BadData(f"{file}: found no such file, expected COCO's instances JSON") from problem
    except (ValueError, RecursionError) as problem:
        raise BadData(f"{file}: found no JSON object ({problem}), expected COCO's instances JSON") from problem
    if not all(isinstance(content.get(part), list) for part in ("images", "annotations", "categories")):
        raise BadData(f"{file}: expected COCO's instances JSON with the lists images, annotations and categories")
    if not content["images"]:
        raise BadData(f"{file}: found no image, expected at least one")
    return content


def _kept(entry: Any) -> Any:
    return {key: entry[key] for key in KEPT if key in entry} if isinstance(entry, dict) else entry


class Pieces:
    """A text file with one JSON object, of which no more than a piece and a value are in memory. Raises ValueError."""

    def __init__(self, file: TextIO, piece: int = PIECE) -> None:
        self.file, self.piece = file, piece
        self.text, self.at, self.before = "", 0, 0
        self.parse = json.JSONDecoder().raw_decode

    def lists(self) -> Iterator[tuple[str, Iterator[Any] | None]]:
        """Yields each name with its list, whose entries are to be taken before the next name, or None for what is no list."""
        self._take("{")
        for _ in self._members("}"):
            name = self._value()
            if not isinstance(name, str):
                raise ValueError(f"{name!r:.40} at character {self.before + self.at}, expected a name")
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
            raise ValueError(f"{found!r} at character {self.before + self.at}, expected {' or '.join(expected)}")
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
            if whole or not self._more(size):  # not whole: a number, say, may go on in the next piece
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


def listed_images(ids: Path | str, images: Sequence[Mapping[str, Any]]) -> set[Any]:
    """Ids of those `images` (of an instances JSON) that the file `ids` lists: a JSON list, or a text with one on each line.

    An entry is an image's id, its file name, or a path that ends in its file name. Raises BadData for an entry that names no
    image of the data set, or one that was named before.
    """
    ids, known = Path(ids), dict[str, Any]()
    for image in images:
        known |= dict.fromkeys((str(image["id"]), str(image["file_name"]), Path(str(image["file_name"])).name), image["id"])
    entries = read_json(ids, "a list of images") if ids.suffix == ".json" else _lines(ids)
    if not isinstance(entries, list) or not entries:
        raise BadData(f"{ids}: found {str(entries)[:60]}, expected a list of ids or file names of images, at least one")
    found = [known.get(str(entry), known.get(Path(str(entry)).name)) for entry in entries]
    if unknown := [entry for entry, image in zip(entries, found, strict=True) if image is None]:
        first = f"{len(unknown):,} of {len(entries):,} entries name no image of the data set, the first {str(unknown[0])[:60]!r}"
        raise BadData(f"{ids}: {first}; expected ids or file names of its images")
    if len(set(found)) < len(found):
        counted = Counter(found)
        twice = next(entry for entry, image in zip(entries, found, strict=True) if counted[image] > 1)
        raise BadData(f"{ids}: found image {str(twice)[:60]!r} twice, expected each once")
    return set(found)


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as problem:
        raise BadData(f"{file}: found no text, expected an id or file name of an image on each line") from problem


def _only(content: dict[str, Any], ids: Path | str) -> None:
    """Keeps the listed images, and of the annotations all but those of images that are there and not listed."""
    listed = listed_images(ids, content["images"])
    others = {image["id"] for image in content["images"]} - listed
    content["images"] = [image for image in content["images"] if image["id"] in listed]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] not in others]


def _read(file: Path, ids: Path | str | None) -> tuple[dict[int, str], list[_Picture], dict[str, int]]:
    """Category names by number, the pictures in the file's order, and the report. Raises BadData."""
    content = read_instances(file)
    place, entry, there = "images", None, len(content["images"])
    try:
        if ids:
            _only(content, ids)
        report = {"images": len(content["images"]), "annotations": len(content["annotations"]), "crowd": 0, "zero_area": 0, "uncountable": 0}
        report |= {"not_listed": there - len(content["images"])} if ids else {}
        place = "categories"
        categories = {entry["id"]: str(entry["name"]) for entry in sorted(content["categories"], key=lambda category: category["id"])}
        place = "images"
        pictures = {}
        for entry in content["images"]:
            pictures[entry["id"]] = _picture(entry)
        place = "annotations"
        for entry in content["annotations"]:
            _add(pictures[entry["image_id"]], categories[entry["category_id"]], entry, report)
    except (KeyError, TypeError, ValueError) as problem:
        raise BadData(f"{file}: {place}: {type(problem).__name__} {problem} in {str(entry)[:120]}, expected an entry as COCO defines it") from problem
    if len(set(categories.values())) != len(content["categories"]) or len(pictures) != len(content["images"]):
        raise BadData(f"{file}: found an image id, category id or category name twice, expected each once")
    report["uncountable"] = sum(len(picture.uncountable) for picture in pictures.values())
    return categories, list(pictures.values()), report


def _picture(entry: Mapping[str, Any]) -> _Picture:
    width, height = int(entry["width"]), int(entry["height"])
    if min(width, height) < 1:
        raise ValueError(f"image {entry['id']}: found {width}x{height} pixels")
    return _Picture(id=entry["id"], file=str(entry["file_name"]), width=width, height=height)


def _add(picture: _Picture, name: str, entry: Mapping[str, Any], report: dict[str, int]) -> None:
    x, y, width, height = map(float, entry["bbox"])
    area = float(entry.get("area", width * height))
    if not all(abs(value) < 1e9 for value in (x, y, width, height, area)):
        raise ValueError(f"bbox {entry['bbox']} or area is not finite")
    box = [max(x, 0.0), max(y, 0.0), min(x + width, float(picture.width)), min(y + height, float(picture.height))]
    crowd = bool(entry.get("iscrowd", 0))
    report["crowd"] += crowd
    if crowd:
        picture.uncountable.add(name)
    if not (box[0] < box[2] and box[1] < box[3]):
        report["zero_area"] += 1
        picture.uncountable.add(name)
        return
    picture.names.append(name)
    picture.boxes.append(box)
    picture.crowd.append(crowd)
    picture.area.append(max(area, 0.0))


def _sample(picture: _Picture, folder: Path, **fields: Any) -> Sample:
    return Sample(image=picture.file, width=picture.width, height=picture.height, root=folder, source="coco", **fields)


def _detection(picture: _Picture, folder: Path, categories: Sequence[str] | None) -> Sample:
    truth = Truth(boxes=np.array(picture.boxes), labels=tuple(picture.names))
    kept = {"crowd": tuple(picture.crowd), "area": tuple(picture.area)}
    listed = tuple(categories) if categories else None
    return _sample(picture, folder, id=f"coco-{picture.id}", task="detection", query="", truth=truth, categories=listed, **kept)


def _counting(picture: _Picture, folder: Path, numbers: Mapping[str, int], absent: int, seed: int) -> list[Sample]:
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    for name, box in zip(picture.names, picture.boxes, strict=True):
        boxes[name].append(box)
    away = [name for name in numbers if name not in boxes and name not in picture.uncountable]
    drawn = random.Random(f"{seed} {picture.id}").sample(away, min(absent, len(away)))
    asked = sorted({*boxes, *drawn} - picture.uncountable, key=lambda name: numbers[name])
    return [
        _sample(
            picture,
            folder,
            id=f"coco-{picture.id}-{numbers[name]}",
            task="counting",
            query=name,
            truth=Truth(boxes=np.array(boxes.get(name, [])), labels=(name,) * len(boxes.get(name, []))),
        )
        for name in asked
    ]
