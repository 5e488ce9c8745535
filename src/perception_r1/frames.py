"""What size the model saw an image at: where a dialect writes pixels of the resized image, its
numbers mean nothing without it.

It is stated with the answer (`seen`), or with its sample, or follows from the processor's limits
when somebody names them. It is never assumed: an answer that needs it and has none is an error.
"""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from .dialects import Dialect, smart_resize
from .records import BadData, Frame, Sample

MIN_PIXELS, MAX_PIXELS = 3136, 12_845_056
"""The smallest and the largest image of Qwen's processors, as they are published."""
LARGEST = 10**9
"""No image has a longer side, in pixels."""

Size = tuple[int, int]
"""Width and height, in pixels."""


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, numpy's too; true and false are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def stated_size(value: Any, where: str) -> Size | None:
    """The field `seen` of an answer, or None for an absent one. Raises BadData that begins with
    `where`.
    """
    if value is None:
        return None
    pair = isinstance(value, list | tuple) and len(value) == 2
    if not pair or not all(is_whole(side) and 1 <= side <= LARGEST for side in value):
        expected = "[width, height] of the image as the model saw it, whole numbers of pixels"
        raise BadData(f"{where}: found seen {value!r:.60}, expected {expected}")
    return int(value[0]), int(value[1])


def size_matters(sample: Sample, dialect: Dialect, completion: str | None = None) -> bool:
    """Whether what an answer says depends on the size seen: not a page's text, and not an empty
    completion. None is a completion that may be any.
    """
    written = completion is None or bool(completion.strip())
    return dialect.reads_size_seen and sample.truth.text is None and written


@dataclass(frozen=True, kw_only=True)
class PixelLimits:
    """Between which numbers of pixels a processor resizes. Raises BadData for what cannot be
    limits.
    """

    min_pixels: int | None = None
    """None: MIN_PIXELS."""
    max_pixels: int | None = None
    """None: nobody said, so that no size can be computed."""

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels"):
            value = getattr(self, name)
            if value is not None and not (is_whole(value) and value >= 1):
                raise BadData(f"{name}: found {value!r:.40}, expected a whole number of at least 1")
        if self.max_pixels is not None and self.least > self.max_pixels:
            found = f"min_pixels {self.least} and max_pixels {self.max_pixels}"
            raise BadData(f"found {found}, expected 1 <= min <= max: name both")

    @property
    def least(self) -> int:
        """The smallest image, in pixels."""
        return MIN_PIXELS if self.min_pixels is None else self.min_pixels

    def frame(
        self,
        sample: Sample,
        dialect: Dialect,
        seen: Size | None = None,
        completion: str | None = None,
    ) -> Frame:
        """The frame of an answer: what it states itself (`seen`) goes before what its sample
        states, and that before what the limits give. Raises BadData where the size matters
        and nothing says it.
        """
        size = seen or sample.seen
        if size is None and size_matters(sample, dialect, completion):
            size = self.size(sample, dialect)
        width, height = size or (sample.width, sample.height)
        return Frame(width=sample.width, height=sample.height, seen_width=width, seen_height=height)

    def size(self, sample: Sample, dialect: Dialect) -> Size:
        """To what the dialect's processor resizes the sample's image. Raises BadData without a
        limit.
        """
        if self.max_pixels is None or dialect.factor is None:
            raise BadData(f"sample {sample.id!r}: {unknown_size(dialect)}")
        return self.resized(sample.width, sample.height, dialect.factor, self.max_pixels)

    def resized(self, width: int, height: int, factor: int, most: int) -> Size:
        """The size that an image of `width` x `height` becomes, `most` being the largest, in
        pixels.
        """
        limits = {"min_pixels": self.least, "max_pixels": most}
        return smart_resize(width, height, factor=factor, **limits)


class ScaledBefore(PixelLimits):
    """EasyR1's: a picture is scaled into the limits first, in whole pixels, and then resized by a
    processor with limits of its own. Source: `process_image` of its verl/utils/dataset.py.
    """

    def resized(self, width: int, height: int, factor: int, most: int) -> Size:
        if width * height > most:
            width, height = _scaled(width, height, most)
        if self.min_pixels is not None and width * height < self.min_pixels:
            width, height = _scaled(width, height, self.min_pixels)
        return PixelLimits().resized(width, height, factor, MAX_PIXELS)


def _scaled(width: int, height: int, pixels: int) -> Size:
    scale = math.sqrt(pixels / (width * height))
    return int(width * scale), int(height * scale)


def unknown_size(dialect: Dialect) -> str:
    """What is wrong where an answer needs the size seen and nothing says it, with the remedy."""
    remedy = 'expected "seen": [width, height] with the answer'
    if dialect.factor is not None:
        remedy += ", or the limit of the model's processor: --max-pixels (max_pixels in Python)"
    return (
        f"{dialect.name} writes pixels of the resized image, "
        f"and nothing says to what size it was resized: {remedy}"
    )


@dataclass(kw_only=True)
class Sizes:
    """How many answers whose size matters stated it, and for how many it followed from the
    limits.
    """

    limits: PixelLimits
    stated: int = 0
    computed: int = 0
    first: str = ""
    """The id of the first sample whose answer did not state it."""

    def count(self, sample: Sample, dialect: Dialect, completion: str, seen: Size | None) -> None:
        if not size_matters(sample, dialect, completion):
            return
        if seen or sample.seen:
            self.stated += 1
        else:
            self.computed += 1
            self.first = self.first or sample.id

    def about(self) -> dict[str, Any]:
        """What metrics.json says of them."""
        used = self.limits if self.computed else None
        least, most = (used.least, used.max_pixels) if used else (None, None)
        counts = {"stated": self.stated, "computed": self.computed}
        return {"min_pixels": least, "max_pixels": most, "needed": bool(self.computed), **counts}

    def note(self) -> str | None:
        """The same in words; None where no answer's size matters."""
        between = f"{self.limits.least:,} and {self.limits.max_pixels or 0:,} pixels"
        computed = f"{self.computed:,} computed, between {between} (--max-pixels)"
        parts = [f"{self.stated:,} stated (seen)"] if self.stated else []
        parts += [computed] if self.computed else []
        return f"sizes at which the model saw the images: {', '.join(parts)}" if parts else None
