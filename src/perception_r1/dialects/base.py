"""What the dialects share: the grid, reading and writing, and what a scanner says that it found."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..primitives.numbers import number_in
from ..records import Answer, BadData, Frame, Malformed

OUTSIDE = 1.0
"""A box may reach this many original pixels outside the image (rounding) and still be a box."""

MOST_ITEMS = 10_000
"""An answer with more items than this is malformed: no response limit in use allows so many."""

DEEPEST = 8
"""Special tokens spelled inside one another are taken out this many levels deep."""

NUMBER = r"[+-]?+\.?+[0-9][0-9.]*+"
LOOSE_ROW = rf"(?<![0-9.]){NUMBER}(?:\s*+,\s*+{NUMBER}){{3}}"
"""Pattern (ASCII) of four numbers in a row, outside of any brackets."""


@dataclass(kw_only=True)
class Found:
    """What a scanner saw: rows of four numbers (None for a bad item) with labels.

    `exact` tells whether nothing else was there, `empty` whether the written empty answer was.
    Raises Malformed past MOST_ITEMS, which keeps reading and matching of hostile text fast.
    """

    rows: list[tuple[float, ...] | None] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    exact: bool = True
    empty: bool = False

    def add(self, numbers: str, label: str) -> None:
        """An item: four numbers with commas between them, if they are that."""
        self._make_room(1)
        self.rows.append(_four_numbers(numbers))
        self.labels.append(label)

    def add_bad(self, count: int = 1) -> None:
        """Items that cannot be boxes."""
        self._make_room(count)
        self.rows += [None] * count
        self.labels += [""] * count

    def _make_room(self, count: int) -> None:
        if len(self.rows) + count > MOST_ITEMS:
            raise Malformed(f"expected at most {MOST_ITEMS} boxes")


def _four_numbers(text: str) -> tuple[float, ...] | None:
    values = [number_in(part) for part in text.split(",", 4)]
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) == 4 else None


def last_line(text: str) -> str:
    """What of the text before a box can name it: its last line."""
    return (text.splitlines() or [""])[-1]


def without_broken(text: str, broken: re.Pattern[str]) -> tuple[str, int]:
    """What follows the last broken item in a text between boxes, and how many there are."""
    count, end = 0, 0
    for item in broken.finditer(text):
        count, end = count + 1, item.end()
    return text[end:], count


def one_line(labels: Sequence[str]) -> list[str]:
    """The labels with every run of white space as one space, for families that cannot quote."""
    return [" ".join(label.split()) for label in labels]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One family's way of writing boxes.

    `units` gives the grid's steps along width and height for a frame. `scan` gets the text without
    special tokens. `join` writes rows of numbers with labels.
    """

    name: str
    units: Callable[[Frame], tuple[int, int]]
    scan: Callable[[str], Found]
    join: Callable[[Sequence[Sequence[str]], Sequence[str]], str]
    divisor: int = 1
    """Written numbers are grid steps over this (LLaVA writes 0.123 for step 123 of 1,000)."""
    nothing: str = "none"
    """How it writes that nothing is there."""
    quotes_labels: bool = False
    """Whether any label can be written as it is."""
    special_tokens: re.Pattern[str] | None = None
    """The tokenizer's special tokens: most engines strip them, so they say nothing."""
    model_types: tuple[str, ...] = ()
    """`model_type` values of Hugging Face configs that speak it."""
    factor: int | None = None
    """patch × merge of the family's processor when it resizes by `smart_resize`."""

    @property
    def reads_size_seen(self) -> bool:
        """Whether its numbers depend on the size at which the model saw the image."""
        small = Frame(width=1, height=1, seen_width=1, seen_height=1)
        large = Frame(width=1, height=1, seen_width=2, seen_height=2)
        return self.units(small) != self.units(large)

    def _steps(self, frame: Frame) -> np.ndarray:
        return np.array(self.units(frame) * 2, dtype=np.float64)

    def _pixels_per_step(self, frame: Frame) -> np.ndarray:
        return np.array([frame.width, frame.height] * 2) / self._steps(frame)

    def bare(self, text: str) -> str:
        """The text as engines give it that strip the family's special tokens.

        Texts with and without them are read as one, so a score does not depend on the engine. A
        token may come to light where another was taken out; nesting deeper
        than DEEPEST is Malformed.
        """
        if self.special_tokens is None or "<" not in text:
            return text
        for _ in range(DEEPEST):
            text, removed = self.special_tokens.subn("", text)
            if not removed:
                return text
        if self.special_tokens.search(text):
            raise Malformed("expected no special tokens spelled inside one another")
        return text

    def quantise(self, boxes_N4: np.ndarray, frame: Frame) -> np.ndarray:
        """Integer grid steps (N, 4) nearest to boxes (N, 4) in original pixels.

        A side that would collapse keeps one step.
        """
        limit_4 = self._steps(frame)
        exact_N4 = boxes_N4 / self._pixels_per_step(frame)
        grid_N4 = np.clip(np.rint(exact_N4), 0, limit_4)
        flat_N2 = grid_N4[:, :2] >= grid_N4[:, 2:]
        low_N2 = np.clip(np.floor(exact_N4[:, :2]), 0, limit_4[:2] - 1)
        grid_N4[:, :2] = np.where(flat_N2, low_N2, grid_N4[:, :2])
        grid_N4[:, 2:] = np.where(flat_N2, low_N2 + 1, grid_N4[:, 2:])
        return grid_N4.astype(np.int64)

    def snap(self, boxes_N4: np.ndarray, frame: Frame) -> np.ndarray:
        """The boxes (N, 4), in original pixels, that `read(write(boxes))` gives."""
        return self._to_pixels(self.quantise(boxes_N4, frame) / self.divisor, frame)

    def _to_pixels(self, written_N4: np.ndarray, frame: Frame) -> np.ndarray:
        with np.errstate(over="ignore"):  # 1e308 becomes infinite, which is outside every image
            return written_N4 * self.divisor * self._pixels_per_step(frame)

    def write(self, boxes_N4: np.ndarray, labels: Sequence[str], frame: Frame) -> str:
        """Text of boxes (N, 4) in original pixels with N labels.

        Raises BadData for a label that could not be read back, or too many boxes.
        """
        if not len(boxes_N4):
            return self.nothing
        if len(boxes_N4) > MOST_ITEMS:
            raise BadData(
                f"boxes: expected at most {MOST_ITEMS} in one answer, found {len(boxes_N4)}: "
                "split the sample"
            )
        if not self.quotes_labels:
            labels = one_line(labels)
        steps_N4 = self.quantise(boxes_N4, frame)
        text = self.join([self._numbers(row) for row in steps_N4], labels)
        if not self._reads_back(text, labels):
            raise BadData(
                f"labels {list(labels)!r:.200} cannot be written in dialect {self.name}: "
                "they hold its own punctuation"
            )
        return text

    def _reads_back(self, text: str, labels: Sequence[str]) -> bool:
        try:
            found = self.scan(self.bare(text))
        except Malformed:  # a label with boxes by the thousand
            return False
        return found.labels == list(labels) and found.exact

    def _numbers(self, steps_4: np.ndarray) -> list[str]:
        if self.divisor == 1:
            return [str(step) for step in steps_4]
        return [f"{step / self.divisor:.3f}" for step in steps_4]

    def read(self, text: str, frame: Frame) -> Answer:
        """The answer in model text, boxes in original pixels. Raises Malformed when there is none."""
        said = self.bare(text).strip()
        if said == self.nothing:
            return Answer()
        if said.casefold().removesuffix(".") == self.nothing:
            return Answer(exact=False)
        found = self.scan(said)
        if found.empty and not found.rows:
            return Answer(exact=found.exact)
        numbers_N4 = np.array([row or (0.0,) * 4 for row in found.rows], dtype=np.float64)
        boxes_N4 = self._to_pixels(numbers_N4.reshape(-1, 4), frame)
        good = _inside(boxes_N4, frame)
        good &= (boxes_N4[:, :2] < boxes_N4[:, 2:]).all(1)  # a bad item's stand-in has no area
        if not good.any():
            raise Malformed(f"expected boxes as {self.name} writes them, found {said[:60]!r}")
        labels = tuple(found.labels[n] for n in np.flatnonzero(good))
        bad = int((~good).sum())
        return Answer(boxes=boxes_N4[good], labels=labels, bad=bad, exact=found.exact and not bad)


def _inside(boxes_N4: np.ndarray, frame: Frame) -> np.ndarray:
    limit_2 = np.array([frame.width, frame.height]) + OUTSIDE
    inside_N2 = (boxes_N4[:, :2] >= -OUTSIDE) & (boxes_N4[:, 2:] <= limit_2)
    return np.asarray(inside_N2.all(axis=1))
