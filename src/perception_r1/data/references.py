"""What all layouts of referring expressions share: how they are declared (`RefOptions`), and one object with its phrases → samples.

How a row writes its box is declared (`BOXES`), never guessed from the numbers; a wrong declaration shows, since boxes must
lie in their image. Boxes are in the pixels of the image as stored, before any EXIF rotation.
"""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from ..records import BadData, Sample
from .numbers import Unread, four, shown, whole
from .rows import sample_from_row
from .samples import UNREADABLE, LeftOut, image_size, replacing
from .written_boxes import BOXES, in_pixels, placed

_COCO_NAME = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12}\.jpg)")


@dataclass(frozen=True, kw_only=True)
class RowForm:
    """How a file of rows is written: the names of its columns, and what stands in them."""

    image: str = "image"
    """Column of the image: a path, or what the hub stores (`{"bytes", "path"}`)."""
    text: str = "sent"
    """Column of the phrase: a text, a list of texts, or a list of `{"sent": text}`."""
    box: str = "bbox"
    """Column of the box: four numbers, or their JSON text; null where nothing matches the phrase."""
    id: str = ""
    """Column of an id that no other row has; by default rows are numbered."""
    split: str = "split"
    """Column of the split, where there is one; a shard's name says it otherwise."""
    thousandths: str = ""
    """Column of the same box in thousandths of the image; where a row has it, it must agree."""
    boxes: str = ""
    """How the box is written, one of BOXES."""
    template: str = ""
    """The sentence in which the phrase stands for `{}`; by default the phrase stands alone."""


FORMS = {
    "rows": RowForm(),
    "vlm-r1": RowForm(
        text="problem",
        box="solution",
        thousandths="normalized_solution",
        boxes="xyxy",
        template="Please provide the bounding box coordinate of the region this sentence describes: {}.",
    ),
    "pr1": RowForm(text="problem", box="solution", thousandths="normalized_solution"),
}
"""Published forms: `vlm-r1` is also that of RefCOCOS; `pr1` has pixels in its evaluation files and thousandths in others, so say which."""


@dataclass(frozen=True, kw_only=True)
class RefOptions:
    """What to read, and how."""

    split: str = ""
    """Only this split (train, val, testA, testB, test, as the data names it); needed where there are several. `all` for every one."""
    by: tuple[str, ...] = ()
    """Whose split of the refer layout, where there are several: unc, google or umd. The one that is there of those named."""
    images: tuple[Path | str, ...] = ()
    """Folders of images, the first one that has it wins. By default those of its layout; for rows the file's folder and its `images`."""
    name: str = ""
    """What samples' `source` and ids begin with; by default the name of the folder or file."""
    form: str = "rows"
    """One of FORMS."""
    boxes: str = ""
    """How rows write their box, one of BOXES, where the form does not say it."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Other names of columns than the form's, by field of RowForm: `{"text": "answer"}`."""
    template: str = ""
    """Another sentence than the form's in which the phrase stands; `{}` when it stands alone."""
    null_is_empty: bool = False
    """Whether a row without a box says that nothing matches; RefCOCOS says it itself (`empty_case`)."""
    extract: Path | None = None
    """Folder to which images that lie inside the rows are written."""

    def __post_init__(self) -> None:
        columns = [entry.name for entry in fields(RowForm)][:6]
        for what, found, known in (("form", self.form, FORMS), ("boxes", self.boxes or "xyxy", BOXES)):
            if found not in known:
                raise BadData(f"refcoco: {what} {found!r} is not known: expected one of {', '.join(known)}")
        if unknown := [name for name in self.columns if name not in columns]:
            raise BadData(f"refcoco: column {unknown[0]!r} is not known: expected one of {', '.join(columns)}, as text=answer")
        if self.template and self.template.count("{}") != 1:
            raise BadData(f"refcoco: found template {self.template!r}, expected one {{}} in it, where the phrase stands")

    def row_form(self) -> RowForm:
        """The form with what the options change. Raises BadData when nobody says how boxes are written."""
        form = FORMS[self.form]
        form = replace(form, boxes=self.boxes or form.boxes, template=self.template or form.template, **self.columns)
        if not form.boxes:
            ways = "; ".join(f"{name}: {meaning}" for name, meaning in BOXES.items())
            raise BadData(f"refcoco: nobody says how the boxes are written, and it is not guessed: name it with --boxes ({ways})")
        return form


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One object of one image, with its phrases, as it was read: nothing checked yet but that it is there."""

    where: str
    split: str
    phrases: Sequence[tuple[str, Any]]
    """Id and phrase."""
    image: Any
    box: Any
    boxes: str
    declared: bool = True
    """Whether the user says how boxes are written, and may have said it wrong."""
    size: tuple[int, int] | None = None
    """Width and height that the data set states; None to ask the image itself."""
    stated: tuple[Any, Any] = (None, None)
    """Width and height that a row states; the image must agree."""
    thousandths: Any = None


class Maker:
    """Makes samples of references; finds images and counts."""

    def __init__(self, options: RefOptions, folders: Sequence[Path], name: str) -> None:
        self.name, self.extract, self.report, self.lost = name, options.extract, Counter[str](), set[str]()
        self.find, self.size = cache(lambda file: _find(file, folders)), cache(image_size)

    def sample(self, reference: Reference, name: str, phrase: Any) -> Sample:
        path = self._image(reference)
        width, height = reference.size or self._stored_size(path, reference.where)
        stated = _stated(reference, (width, height))
        if stated != (width, height):
            raise BadData(
                f"{reference.where}: found {stated[0]}x{stated[1]}, "
                f"expected the {width}x{height} pixels of {path}, as stored, "
                "before any EXIF rotation"
            )
        box = None if reference.box is None else self._pixels(reference, width, height)
        row = {"id": name, "task": "grounding", "image": path.name, "width": width, "height": height, "query": phrase}
        row |= {"truth": {"boxes": [] if box is None else [box]}, "source": "/".join(filter(None, (self.name, reference.split)))}
        sample = sample_from_row(row, path.parent, reference.where)
        self.report["no_target"] += box is None
        return sample

    def _stored_size(self, path: Path, where: str) -> tuple[int, int]:
        try:
            return self.size(path)
        except BadData as problem:
            raise LeftOut("unreadable", f"{where}: {problem}") from problem

    def full_report(self, samples: Sequence[Sample]) -> dict[str, int]:
        counts = {name: self.report[name] for name in ("expressions", "no_target", "clipped")}
        return counts | {"images": len({sample.image_path for sample in samples}), "missing_images": len(self.lost)}

    def _image(self, reference: Reference) -> Path:
        image = reference.image
        if isinstance(image, Mapping):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes):
            return _extracted(image, self.extract, reference.where)
        if not (isinstance(image, str) and image.strip()):
            raise BadData(
                f"{reference.where}: found the image {shown(image)}, expected a path, or its bytes"
            )
        path = self.find(image)
        if path is None:
            self.lost.add(image)
            raise LeftOut("missing_image", f"{reference.where}: found no image {image}")
        return path

    def _pixels(self, reference: Reference, width: int, height: int) -> list[float]:
        """The box xyxy in pixels, clipped to its image."""
        numbers = _numbers(reference.box, reference.boxes, reference.where)
        exact = in_pixels(numbers, reference.boxes, width, height)
        if reference.thousandths is not None:
            _expect_same(reference, exact, width, height)
        try:
            box = placed(numbers, reference.boxes, width, height)
        except LeftOut as problem:
            if problem.reason == "zero_area":
                raise LeftOut("zero_area", f"{reference.where}: {problem}") from problem
            remedy = (
                ": are the boxes written otherwise? Name it with --boxes"
                if reference.declared
                else ""
            )
            raise BadData(f"{reference.where}: {problem}{remedy}") from problem
        self.report["clipped"] += box != exact
        return box


def _numbers(values: Any, boxes: str, where: str) -> list[float]:
    try:
        return four(values)
    except Unread as problem:
        raise BadData(
            f"{where}: found the box {shown(values)}, expected {problem}: {BOXES[boxes]}"
        ) from problem


def _stated(reference: Reference, stored: tuple[int, int]) -> tuple[int, int]:
    """The size that a row states, the stored one's for a side of which it says nothing. Raises
    BadData.
    """
    sides = list(stored)
    for place, (name, side) in enumerate(zip(("width", "height"), reference.stated, strict=True)):
        if side is None:
            continue
        try:
            sides[place] = whole(side)
        except Unread as problem:
            raise BadData(
                f"{reference.where}: found {name} {shown(side)}, expected {problem} of pixels"
            ) from problem
    return sides[0], sides[1]


def _expect_same(reference: Reference, exact: Sequence[float], width: int, height: int) -> None:
    """Raises BadData unless the row's box in thousandths is the other one."""
    numbers = _numbers(reference.thousandths, "xyxy1000", reference.where)
    other = in_pixels(numbers, "xyxy1000", width, height)
    if any(
        abs(a - b) * 1000 > 1.01 * side
        for a, b, side in zip(exact, other, (width, height) * 2, strict=True)
    ):
        found = f"{reference.box} as {reference.boxes} and {reference.thousandths}"
        raise BadData(f"{reference.where}: found {found}, expected the same box")


def _find(file: str, folders: Sequence[Path]) -> Path | None:
    """The image in the first folder that has it: by its path, or, for an image of COCO, by its name of 2014 or 2017 (the same pictures)."""
    coco = _COCO_NAME.fullmatch(Path(file).name)
    names = dict.fromkeys((file, *((coco[0], coco[1]) if coco else ())))
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _extracted(data: bytes, folder: Path | None, where: str) -> Path:
    """The file in `folder` that holds these bytes of an image, named by their hash."""
    if folder is None:
        raise BadData(f"{where}: found an image inside the row, expected a folder to write such images to: name it with extract=FOLDER")
    try:
        with Image.open(io.BytesIO(data)) as image:
            suffix = (image.format or "png").lower().replace("jpeg", "jpg")
    except UNREADABLE as problem:
        raise BadData(f"{where}: found {len(data)} bytes that are no image ({problem}), expected an image") from problem
    path = folder / f"{sha256(data).hexdigest()[:32]}.{suffix}"
    if not path.is_file():
        with replacing(path) as part:
            part.write_bytes(data)
    return path
