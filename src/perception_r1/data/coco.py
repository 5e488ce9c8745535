"""COCO instances JSON → detection samples (one an image) or counting samples (one an image and category).

Boxes `xywh` become `xyxy` and are clipped to the image, as rounding lets some stick out. An
annotation that cannot be right (an unreadable number, an unknown image or category, a box that is
not in its image) is an error, or left out and counted. A crowd region (`iscrowd`) covers an unknown
number of objects: a detection sample keeps it with its flag, for the evaluator to ignore matches
with it and for the reward to leave out; a counting pair that has one is left out, since its true
number is unknown. A box without area is left out and counted in the report. A counting pair of
which any object was left out is left out too. Images without annotations stay.
"""

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..records import BadData, Sample, Truth
from ..tasks.detection import COCO_NAMES
from .annotations import Picture, read_annotated
from .categories import Categories, Id
from .numbers import Unread, identity
from .samples import Skipped

FILES = ("instances*.json", "annotations/instances*.json")
"""Where an annotation file is looked for below a root."""


@dataclass(frozen=True, kw_only=True)
class Coco:
    """Samples of a COCO data set, and what happened to its annotations on the way."""

    samples: list[Sample]
    report: Mapping[str, int]
    """Numbers of `images`, `annotations`, `crowd` annotations, `zero_area` boxes left out and
    `uncountable` pairs left out; where there are any, of images `not_listed`, boxes `clipped`,
    `root_categories` left out and `merged_categories`.
    """
    problems: tuple[str, ...] = ()
    """What was left out or joined, the first of it, in words."""
    files: tuple[Path, ...] = ()
    """The annotation file, and the list of images where there is one."""


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
    name: str = "coco",
    merge_names: bool = False,
    skipped: Skipped | None = None,
) -> Coco:
    """Samples of the COCO data set below `root`, for `detection` or `counting`. No image is opened.

    The annotation file is the only `instances*.json` in `root` or `root/annotations`, or that of `split` (`val2017`); the
    images lie in `images/`, in a folder called as the split is, or in `root` itself. `annotations` and `images`, relative to
    `root`, say it outright. `ids`: a file that lists the images to take, such as minival (see `listed_images`). `absent`: so many
    categories an image that it does not show, for counting to zero, drawn with `seed`. Categories are listed in a detection
    sample unless they are COCO's own 80. `name` begins every id and is the source. `merge_names`
    joins categories of one name. Raises BadData, also for annotations that cannot be right, unless
    `skipped` is given: they are left out and counted there.
    """
    if task not in ("detection", "counting"):
        raise BadData(f"coco: found task {task!r}, expected detection or counting")
    if absent < 0:
        raise BadData(f"coco: found absent {absent}, expected a number of categories of at least 0")
    if not name.strip():
        raise BadData(f"coco: found name {name!r}, expected what ids and source begin with")
    root = Path(root)
    file = root / annotations if annotations else _annotation_file(root, split)
    found = read_annotated(file, ids=ids, merge_names=merge_names, skipped=skipped)
    folder = root / images if images else _image_folder(root, file, found.pictures[0].file)
    maker = _Maker(name, folder, found.categories)
    if task == "detection":
        samples = [maker.detection(picture) for picture in found.pictures]
    else:
        samples = [
            sample for picture in found.pictures for sample in maker.counting(picture, absent, seed)
        ]
    if not samples:
        raise BadData(
            f"{file}: found no category whose objects can be counted, "
            "expected annotations that are not crowds"
        )
    files = (file, Path(ids)) if ids else (file,)
    return Coco(samples=samples, report=found.report, problems=found.problems, files=files)


def _annotation_file(root: Path, split: str | None) -> Path:
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise BadData(f"coco: {root}: found {found}, expected the folder of a COCO data set")
    there = sorted(path for pattern in FILES for path in root.glob(pattern))
    files = [path for path in there if split is None or path.stem == f"instances_{split}"]
    if len(files) != 1:
        found = ", ".join(str(path.relative_to(root)) for path in there) or "none"
        expected = " or ".join(FILES) if split is None else f"instances_{split}.json"
        remedy = (
            "name one with split=val2017 or annotations=FILE"
            if split is None
            else "leave split out or name it with annotations=FILE"
        )
        raise BadData(
            f"coco: {root}: found annotation files: {found}; expected one {expected}: {remedy}"
        )
    return files[0]


def _image_folder(root: Path, file: Path, first: str) -> Path:
    split = file.stem.removeprefix("instances").lstrip("_") or "images"
    tried = list(dict.fromkeys((root / split, root / "images" / split, root / "images", root)))
    holding = [folder for folder in tried if (folder / first).is_file()]
    if len(holding) != 1:
        found = ", ".join(map(str, holding)) or "it in none of " + ", ".join(map(str, tried))
        raise BadData(
            f"coco: {root}: looked for {first}, found {found}; expected one folder of images: "
            "name it with images=FOLDER"
        )
    return holding[0]


def coco_image(sample: Sample) -> Id:
    """The id of the image that a sample is about: its own id, without the source or `coco` and the
    hyphen that it begins with.
    """
    begins = next(
        (begin for begin in (sample.source, "coco") if begin and sample.id.startswith(f"{begin}-")),
        None,
    )
    rest = sample.id.removeprefix(f"{begins}-") if begins else sample.id
    try:
        return identity(rest)
    except Unread:  # such as nothing at all
        return rest


class _Maker:
    """Makes samples of pictures."""

    def __init__(self, name: str, folder: Path, categories: Categories) -> None:
        self.name, self.folder, self.numbers = name, folder, categories.numbers()
        self.listed = None if set(self.numbers) == set(COCO_NAMES) else tuple(self.numbers)

    def sample(self, picture: Picture, task: str, name: str, **fields: Any) -> Sample:
        return Sample(
            id=f"{self.name}-{name}",
            task=task,
            image=picture.file,
            width=picture.width,
            height=picture.height,
            root=self.folder,
            source=self.name,
            **fields,
        )

    def detection(self, picture: Picture) -> Sample:
        truth = Truth(boxes=np.array(picture.boxes), labels=tuple(picture.names))
        kept = {
            "crowd": tuple(picture.crowd),
            "area": tuple(picture.area),
            "categories": self.listed,
        }
        return self.sample(picture, "detection", str(picture.id), query="", truth=truth, **kept)

    def counting(self, picture: Picture, absent: int, seed: int) -> list[Sample]:
        boxes: dict[str, list[list[float]]] = defaultdict(list)
        for name, box in zip(picture.names, picture.boxes, strict=True):
            boxes[name].append(box)
        away = [
            name for name in self.numbers if name not in boxes and name not in picture.uncountable
        ]
        drawn = random.Random(f"{seed} {picture.id}").sample(away, min(absent, len(away)))
        asked = {*boxes, *drawn} - picture.uncountable
        return [
            self._counted(picture, name, boxes.get(name, []))
            for name in self.numbers
            if name in asked
        ]

    def _counted(self, picture: Picture, name: str, boxes: list[list[float]]) -> Sample:
        truth = Truth(boxes=np.array(boxes), labels=(name,) * len(boxes))
        return self.sample(
            picture, "counting", f"{picture.id}-{self.numbers[name]}", query=name, truth=truth
        )
