"""PixMo-Count → counting samples, with points as their truth, since the data set has no boxes, or a bare count.

Its Parquet has the columns `image_url`, `image_sha256`, `count`, `points` ({"x": [...], "y": [...]}) and `label`. The
publisher states points in pixels; an edition in per cent of the image's sides is read with `unit="percent"`. Points count
pixels as stored, before any EXIF rotation. An image is the one whose bytes have the stated hash, or there is none: rows
without it, rows without points, and rows whose count is not the number of their points are left out, and counted by reason.
Validation and test are published without points: with `truth="count"` their counts are the truth, for evaluation alone.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..records import BadData, Sample, Truth
from .downloads import Link, Track, as_they_are, file_sha256, is_sha256, local_images
from .numbers import Unread, number, whole
from .rows import EDGE, Row
from .samples import LeftOut, Skipped, as_rgb, read_rows, stored_image
from .subsets import draw
from .written_boxes import NEAR, like_per_cent

UNITS = ("pixels", "percent")
KINDS = ("points", "count")
"""What is taken as the truth."""
REASONS = ("bad_row", "no_points", "count_differs", "no_image", "wrong_hash", "unreadable", "outside", "duplicate")
"""Why a row is left out: a field is broken; nobody says where the objects are; `count` is not the number of points; the image
is not in the folder, has other bytes, does not open, or does not hold all points; the image and label were there before."""


@dataclass(frozen=True, kw_only=True)
class Pixmo:
    """Samples of PixMo-Count, and what happened to its rows on the way."""

    samples: list[Sample]
    report: Mapping[str, int]
    """Numbers of `rows`, of `exif_rotated` and `hash_differs` images used, and of rows left out for each of REASONS; with `drawn`,
    of sound rows `not_drawn`."""
    problems: tuple[str, ...]
    """The first rows left out, in words."""
    files: tuple[Path, ...]
    """The Parquet files that were read."""


@dataclass(frozen=True, kw_only=True)
class _Count:
    """One row, checked; its image is not."""

    where: str
    link: Link
    label: str
    count: int
    points: np.ndarray | None
    """(M, 2) x and y, in the file's unit; None where the count is the truth."""


def pixmo_samples(
    source: Path | str,
    images: Path | str,
    *,
    split: str | None = None,
    unit: str = "pixels",
    truth: str = "points",
    check_hash: bool = True,
    drawn: tuple[int, int] | None = None,
    track: Track = as_they_are,
) -> Pixmo:
    """Counting samples of the PixMo-Count file, or folder of Parquet shards, `source`; every image is opened.

    Images lie anywhere below the folder `images`, named `<image_sha256>.<suffix>`. `split` (train) chooses among a folder's
    shards. `unit`: pixels or percent. `truth`: points, or count, which leaves points aside. `check_hash=False` takes an image
    whose bytes changed since the data set was made, as picture hosts re-encode them, but never one that came for several
    different images. `drawn`, a number and a seed, takes so many of the sound rows (as `pixmo_links` does), whether or not
    their images are there: nothing replaces those that are not.
    Raises BadData where a file cannot be read, where no row is left, and where points that should be pixels all look like per cent.
    """
    for name, value, known in (("unit", unit, UNITS), ("truth", truth, KINDS)):
        if value not in known:
            raise BadData(f"pixmo: found {name} {value!r}, expected one of {', '.join(known)}")
    if not Path(images).is_dir():
        raise BadData(f"pixmo: {images}: found no such folder, expected the images, named <image_sha256>.<suffix>: download them first")
    skipped, extra = Skipped(), Counter[str](rows=0, exif_rotated=0, hash_differs=0)
    rows = list(_rows(source, split, truth, skipped))
    extra["rows"], sound = len(rows) + skipped.count, len(rows)
    if drawn:
        rows = _drawn(rows, *drawn)
        extra["not_drawn"] = sound - len(rows)
    finder = _Finder(Path(images), sorted({row.link.sha256 for row in rows}), check_hash, track)
    samples: dict[str, Sample] = {}
    for row in track(rows, "reading images", len(rows)):
        try:
            sample, rotated = _sample(row, finder, unit)
            if sample.id in samples:
                raise LeftOut("duplicate", f"{row.where}: image {row.link.sha256} with label {row.label!r} is there twice, expected it once")
        except LeftOut as problem:
            skipped.add(problem)
            continue
        samples[sample.id] = sample
        extra["exif_rotated"] += rotated
        extra["hash_differs"] += finder.differs(row.link.sha256)
    report = {**extra} | {reason: skipped.reasons[reason] for reason in REASONS}
    if not samples:
        counted = ", ".join(f"{name} {number}" for name, number in report.items() if number)
        remedy = ": to evaluate counts without points, say truth=count" if skipped.reasons["no_points"] else ""
        raise BadData(f"{source}: found no row that can be used ({counted}), expected at least one; the first: {skipped.problems[:1]}{remedy}")
    if unit == "pixels" and truth == "points":
        _refuse_percent(source, samples.values())
    files = tuple(_files(Path(source), split))
    return Pixmo(samples=list(samples.values()), report=report, problems=tuple(skipped.problems), files=files)


def pixmo_links(source: Path | str, *, split: str | None = None, truth: str = "points", drawn: tuple[int, int] | None = None) -> list[Link]:
    """What `download_images` needs for the rows of `source` that can become samples; each image once. Raises BadData.

    `drawn`, a number and a seed: of so many of those rows alone.
    """
    rows = list(_rows(source, split, truth, Skipped()))
    return sorted({row.link for row in (_drawn(rows, *drawn) if drawn else rows)})


def _drawn(rows: Sequence[_Count], number: int, seed: int) -> list[_Count]:
    """A random `number` of the rows, each label with its share. Raises BadData when there are fewer."""
    return [rows[index] for index in draw([row.label for row in rows], number, seed)]


def _rows(source: Path | str, split: str | None, truth: str, skipped: Skipped) -> Iterator[_Count]:
    for file in _files(Path(source), split):
        for where, row in read_rows(file):
            try:
                if isinstance(row, BadData):
                    raise row
                yield _count(where, row, truth)
            except BadData as problem:
                skipped.add(problem)


def _files(source: Path, split: str | None) -> list[Path]:
    """The file itself, or the shards `data/<split>-*.parquet` of a folder as published."""
    if not source.is_dir():
        return [source]
    shards: dict[str, list[Path]] = defaultdict(list)
    for path in sorted([*source.glob("*.parquet"), *source.glob("data/*.parquet")]):
        shards[path.name.partition("-")[0]].append(path)
    chosen = [name for name in shards if split in (None, name)]
    if len(chosen) != 1:
        remedy = "name one with split=train" if chosen else "expected <split>-*.parquet there or in data/"
        raise BadData(f"pixmo: {source}: found the splits {', '.join(shards) or 'none'}: {remedy}")
    return shards[chosen[0]]


def _count(where: str, row: Row, truth: str) -> _Count:
    """The row with its fields checked. Raises BadData, LeftOut where the row is sound but cannot be used."""
    url, sha256, label, count = (row.get(name) for name in ("image_url", "image_sha256", "label", "count"))
    for name, value in (("image_url", url), ("image_sha256", sha256), ("label", label)):
        if not isinstance(value, str) or not value.strip():
            raise BadData(f"{where}: field {name}: found {value!r:.80}, expected a text")
    if not is_sha256(str(sha256).lower()):
        raise BadData(f"{where}: field image_sha256: found {sha256!r:.80}, expected 64 hexadecimal digits")
    count = _read_count(where, count)
    points_M2 = _points(where, row.get("points"))
    if truth == "points" and count and not len(points_M2):
        raise LeftOut("no_points", f"{where}: found count {count} and no points, expected one for each object")
    if len(points_M2) not in ((count,) if truth == "points" else (0, count)):
        raise LeftOut("count_differs", f"{where}: found count {count} and {len(points_M2)} points, expected as many")
    link = Link(sha256=str(sha256).lower(), url=str(url))
    return _Count(where=where, link=link, label=str(label).strip(), count=count, points=points_M2 if truth == "points" else None)


def _points(where: str, points: Any) -> np.ndarray:
    """(M, 2) from {"x": [...], "y": [...]}, or from [{"x", "y"}, ...] as PixMo-Points writes it; (0, 2) for none."""
    if isinstance(points, list) and all(isinstance(point, Mapping) for point in points):
        points = {axis: [point.get(axis) for point in points] for axis in ("x", "y")}
    if points is None:
        return np.zeros((0, 2))
    x, y = (points.get(axis) or [] if isinstance(points, Mapping) else None for axis in ("x", "y"))
    found = f"{where}: field points: found {points!r:.80}"
    expected = f'{found}, expected {{"x": [...], "y": [...]}}, as many finite numbers in both'
    if not (isinstance(x, list) and isinstance(y, list) and len(x) == len(y)):
        raise BadData(expected)
    try:
        return np.array(
            [[number(value) for value in axis] for axis in (x, y)], dtype=np.float64
        ).T.reshape(-1, 2)
    except Unread as problem:
        raise BadData(expected) from problem


def _read_count(where: str, value: Any) -> int:
    try:
        count = whole(value)
    except Unread:
        count = -1
    if count < 0:
        raise BadData(
            f"{where}: field count: found {value!r:.80}, expected a whole number of at least 0"
        )
    return count


class _Finder:
    """The images of a folder by hash. An image that several different hashes got is a placeholder, and none of them."""

    def __init__(self, folder: Path, wanted: Sequence[str], check_hash: bool, track: Track) -> None:
        there, self.folder, self.check_hash = local_images(folder), folder, check_hash
        tracked = track(wanted, "hashing images", len(wanted))
        self.found = {sha256: {file_sha256(path): path for path in there.get(sha256, [])} for sha256 in tracked}
        self.holders: dict[str, int] = defaultdict(int)
        for digests in self.found.values():
            for digest in digests:
                self.holders[digest] += 1

    def path(self, row: _Count) -> Path:
        """The row's image. Raises LeftOut."""
        sha256, digests = row.link.sha256, self.found[row.link.sha256]
        if sha256 in digests:
            return digests[sha256]
        if not digests:
            raise LeftOut("no_image", f"{row.where}: found no image named {sha256}, expected it in the folder of images ({row.link.url})")
        digest, path = next(iter(digests.items()))
        if self.check_hash:
            raise LeftOut("wrong_hash", f"{row.where}: {path}: found SHA-256 {digest}, expected that of its name ({row.link.url})")
        if self.holders[digest] > 1:
            found = f"the same bytes for {self.holders[digest]} images"
            raise LeftOut("wrong_hash", f"{row.where}: {path}: found {found}, expected each once: a placeholder ({row.link.url})")
        return path

    def differs(self, sha256: str) -> bool:
        return sha256 not in self.found[sha256]


def _sample(row: _Count, finder: _Finder, unit: str) -> tuple[Sample, bool]:
    """The row's sample, and whether its image asks to be shown rotated. Raises LeftOut."""
    path = finder.path(row)
    try:
        with stored_image(path, "an image of PixMo-Count") as file:
            as_rgb(file)
            size, rotated = file.size, file.getexif().get(0x0112, 1) != 1
    except BadData as problem:
        raise LeftOut("unreadable", f"{row.where}: {problem}") from problem
    sample = Sample(
        id=f"pixmo-{row.link.sha256[:16]}-{row.label}",
        task="counting",
        image=path.relative_to(finder.folder).as_posix(),
        width=size[0],
        height=size[1],
        query=row.label,
        truth=_truth(row, size, unit),
        source="pixmo-count",
        root=finder.folder,
    )
    return sample, rotated


def _truth(row: _Count, size: tuple[int, int], unit: str) -> Truth:
    """The row's points in pixels of an image of this size, or its count. Raises LeftOut for a point outside the image."""
    if row.points is None:
        return Truth(count=row.count)
    points_M2 = row.points * np.array(size) / 100 if unit == "percent" else row.points
    inside_M2 = np.clip(points_M2, 0, size)
    if np.abs(points_M2 - inside_M2).max(initial=0) > EDGE:
        found = points_M2[np.abs(points_M2 - inside_M2).argmax() // 2].round(2).tolist()
        raise LeftOut("outside", f"{row.where}: found point {found} in pixels, expected it inside its image of {size[0]}x{size[1]}")
    return Truth(points=inside_M2, labels=(row.label,) * len(inside_M2))


def _refuse_percent(source: Path | str, samples: Iterable[Sample]) -> None:
    """Raises BadData where points that are said to be pixels all lie near the corner, whatever the
    image's size.
    """
    placed = [(sample, np.asarray(sample.truth.points)) for sample in samples if len(sample.truth)]
    furthest = max((float(points_M2.max()) for _, points_M2 in placed), default=0.0)
    sides = ((sample.width, sample.height) for sample, points_M2 in placed for _ in points_M2)
    if like_per_cent(furthest, furthest, sides):
        found = f"every point within {NEAR} pixels of its image's top left corner"
        raise BadData(f"{source}: found {found}: if they are per cent, say unit=percent")
