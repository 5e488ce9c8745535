"""The frozen records that cross rooms: Sample, Truth, Frame, Answer, Score, and the one expected failure, Malformed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike


class Malformed(ValueError):
    """Model text that holds no readable answer. The only exception that becomes a low score instead of an error."""


class BadData(ValueError):
    """Our own data (a truth, a sample row, a setting) is broken: always an error for the user, never a score."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Sizes of one image: as stored (`width`, `height`) and as the model saw it (`seen_width`, `seen_height`), in pixels."""

    width: int
    height: int
    seen_width: int
    seen_height: int

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.seen_width, self.seen_height) < 1:
            raise BadData(f"image sizes must be at least 1 pixel, found {self}")


def _boxes(values: ArrayLike) -> np.ndarray:
    boxes_M4 = np.asarray(values, dtype=np.float64).reshape(-1, 4) if np.size(values) else np.zeros((0, 4))
    if not np.isfinite(boxes_M4).all():
        raise BadData("boxes: expected finite numbers")
    if len(boxes_M4) and not ((boxes_M4[:, 0] < boxes_M4[:, 2]) & (boxes_M4[:, 1] < boxes_M4[:, 3])).all():
        raise BadData("boxes: expected x1 < x2 and y1 < y2 in every box [x1, y1, x2, y2]")
    return boxes_M4


TRUTHS = ("boxes", "points", "text", "count")
"""What a truth may be."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What is really in the image: `boxes` (M, 4) xyxy or `points` (M, 2), with M `labels`; or a page's `text`; or a bare `count`.

    Coordinates are pixels of the original image, float64, x right, y down, continuous edges. A count says how many objects
    there are and not where: answers can be measured against it, and earn no reward (docs/decisions/0007).
    """

    boxes: np.ndarray | None = None
    points: np.ndarray | None = None
    labels: tuple[str, ...] = ()
    text: str | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        kinds = [name for name in TRUTHS if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise BadData(f"truth: expected exactly one of {', '.join(TRUTHS)}; found {' and '.join(kinds) or 'none'}")
        if self.count is not None and self.count < 0:
            raise BadData(f"count: expected a whole number of at least 0, found {self.count}")
        if self.boxes is not None:
            object.__setattr__(self, "boxes", _boxes(self.boxes))
        if self.points is not None:
            points_M2 = np.asarray(self.points, dtype=np.float64).reshape(-1, 2)
            if not np.isfinite(points_M2).all():
                raise BadData("points: expected finite numbers")
            object.__setattr__(self, "points", points_M2)
        placed = len(self) if self.kind in ("boxes", "points") else 0
        if len(self.labels) != placed:
            raise BadData(f"labels: expected {placed}, one for each object that has a place, found {len(self.labels)}")

    @property
    def kind(self) -> str:
        """Which of TRUTHS it is."""
        return next(name for name in TRUTHS if getattr(self, name) is not None)

    def needed_boxes(self) -> np.ndarray:
        """The boxes (M, 4). Raises BadData where the truth is of another kind."""
        if self.boxes is None:
            raise BadData(f"truth: expected boxes, found {self.kind}")
        return self.boxes

    def __len__(self) -> int:
        objects = self.boxes if self.boxes is not None else self.points
        return self.count or 0 if objects is None else len(objects)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One question about one image, with its truth. `image` is a path; `query` is the phrase, class or '' that the prompt names."""

    id: str
    task: str
    image: str
    width: int
    height: int
    query: str
    truth: Truth
    source: str | None = None
    categories: tuple[str, ...] | None = None
    """The label set a detection prompt lists; None means COCO's 80."""
    seen: tuple[int, int] | None = None
    """Width and height of the image as the model saw it, in pixels, when known."""
    crowd: tuple[bool, ...] | None = None
    """For each true object, whether it is a COCO crowd region (evaluation ignores matches with it; rewards leave it out)."""
    area: tuple[float, ...] | None = None
    """For each true object, its segment's area in square pixels, as COCO's size classes use it."""
    root: Path = field(default=Path("."), compare=False)
    """Folder that a relative `image` path starts from."""

    @property
    def image_path(self) -> Path:
        return self.root / self.image


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a completion says: `boxes` (N, 4) in original pixels with N `labels`, or `text`.

    `scores` (N,) are a detector's confidences; None where there are none, as language models write none.
    `bad` counts items that were written but cannot be a box; each is a prediction that matches nothing.
    `exact` tells whether the completion was the demanded structure and nothing else.
    """

    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    labels: tuple[str, ...] = ()
    scores: np.ndarray | None = None
    bad: int = 0
    exact: bool = True
    text: str = ""

    @property
    def count(self) -> int:
        """Number of predictions N, bad items included."""
        return len(self.boxes) + self.bad


@dataclass(frozen=True, kw_only=True)
class Score:
    """Weighted reward terms of one completion and, when it was malformed, the reason."""

    terms: Mapping[str, float]
    problem: str | None = None

    @property
    def total(self) -> float:
        return math.fsum(self.terms.values())
