"""Boxes as data sets write them: in pixels, clipped, and whether they can be right. One rule for
every reader.

A box that is the wrong way round, sticks out of its image by more than SLACK, or lies within its
image's first pixel is bad. What most boxes of a file look like is said in words (`likeness`,
`like_per_cent`), for people: nothing is read otherwise for it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .samples import LeftOut

BOXES = {
    "xywh": "x, y, width, height in pixels",
    "xyxy": "x1, y1, x2, y2 in pixels",
    "xyxy1000": "x1, y1, x2, y2 in thousandths of the image's width and height",
    "xyxy1": "x1, y1, x2, y2 as shares of the image's width and height",
}
"""The ways in which data sets write a box."""

SLACK = 2.0
"""A box may stick out of its image by this many pixels, and is clipped: what rounding does. More
means a wrong declaration.
"""

ONE = 1.01
"""Four numbers up to this, a hundredth for rounding, look like shares of an image's sides."""
SMALL = 10
"""In an image of no side above this many pixels, a box of one pixel is believed."""

NEAR = 100
"""No number of a place in per cent is above this."""
FEW = 20
"""With fewer objects than this, nothing is concluded from all of them lying near their images' top
left corners.
"""
MOST_TIMES = 20
"""Labels made for images so many times as large are said to look so; of more, nothing is said."""
NEARLY_ALL = 0.95
"""The share of a file's boxes that must fit what they are said to look like."""


EXPECTED = {
    "wrong_way_round": "a box inside it, the right way round",
    "outside": "a box inside it, the right way round",
    "zero_area": "a box with an area",
    "first_pixel": "pixels: these are numbers from 0 to 1",
}
"""What is expected of a box, by the one word for what is wrong with it."""


def in_pixels(values: Sequence[float], boxes: str, width: int, height: int) -> list[float]:
    """Four numbers, written as `boxes` says, as xyxy in pixels."""
    first, second, third, fourth = values
    if boxes == "xywh":
        return [first, second, first + third, second + fourth]
    across, down = {
        "xyxy": (1.0, 1.0),
        "xyxy1000": (width / 1000, height / 1000),
        "xyxy1": (width, height),
    }[boxes]
    return [first * across, second * down, third * across, fourth * down]


def placed(values: Sequence[float], boxes: str, width: int, height: int) -> list[float]:
    """The box xyxy in pixels, clipped to its image. Raises LeftOut, whose reason is a word of
    EXPECTED.
    """
    exact = x1, y1, x2, y2 = in_pixels(values, boxes, width, height)
    box = [max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))]
    reason = _fault(exact, box)
    if (
        not reason
        and boxes in ("xywh", "xyxy")
        and max(values) <= ONE
        and max(width, height) > SMALL
    ):
        reason = "first_pixel"
    if reason:
        found = f"found the box {[*values]} as {boxes} in an image of {width}x{height} pixels"
        raise LeftOut(reason, f"{found}, expected {EXPECTED[reason]}")
    return box


def _fault(exact: Sequence[float], box: Sequence[float]) -> str:
    """Why a box xyxy cannot be used, in one word, given what clipping leaves of it; "" for a good
    one.
    """
    x1, y1, x2, y2 = exact
    left, top, right, bottom = box
    if x1 > x2 or y1 > y2:
        return "wrong_way_round"
    if max(left - x1, top - y1, x2 - right, y2 - bottom) > SLACK:
        return "outside"
    return "zero_area" if left >= right or top >= bottom else ""


def likeness(xywh_N4: np.ndarray, sizes_N2: np.ndarray) -> str:
    """What nearly all boxes of a file look like; "" where nothing is known that they fit.

    Their numbers were said to be x, y, width, height in pixels of images with these widths and
    heights.
    """
    if not len(xywh_N4):
        return ""
    corner_N2, side_N2 = xywh_N4[:, :2], xywh_N4[:, 2:]
    least_N = xywh_N4.min(axis=1)
    if _nearly_all((least_N >= 1 - ONE) & (xywh_N4.max(axis=1) <= ONE)):
        return "shares of the image's sides, from 0 to 1"
    if np.mean((side_N2 < 0).any(axis=1)) > 0.5:
        return "numbers with a negative width or height"
    if not _nearly_all(least_N >= -SLACK):
        return ""
    ordered = _nearly_all((corner_N2 <= side_N2).all(axis=1))
    if ordered and _nearly_all((side_N2 <= sizes_N2 + SLACK).all(axis=1)):
        return "x1, y1, x2, y2 (xyxy), where COCO has x, y, width, height (xywh)"
    reach_N2 = side_N2 if ordered else corner_N2 + side_N2
    return " or ".join(_scales(reach_N2, sizes_N2))


def _scales(reach_N2: np.ndarray, sizes_N2: np.ndarray) -> list[str]:
    """The scales at which boxes that reach so far right and down lie in their images."""
    found, furthest = [], float(np.quantile(reach_N2, NEARLY_ALL))
    if 100 / 2 < furthest <= 100 + SLACK:  # some object lies on the far side
        found.append("per cent of the image's sides")
    elif 1000 / 2 < furthest <= 1000 + SLACK:
        found.append("thousandths of the image's sides")
    if _nearly_all((reach_N2 <= sizes_N2[:, ::-1] + SLACK).all(axis=1)):
        found.append("those of the images turned by 90 degrees")
    times = float((reach_N2 / sizes_N2).max())
    if times <= MOST_TIMES:
        found.append(f"labels at {times:.1f} times the image's scale")
    return found


def _nearly_all(fit_N: Any) -> bool:
    return bool(np.mean(fit_N) >= NEARLY_ALL)


def like_per_cent(largest: float, reach: float, sides: Iterable[tuple[int, int]]) -> bool:
    """Whether places said to be pixels look like per cent: no number above `largest` is above 100,
    and FEW of them or more lie in images far larger than the `reach` pixels to the right and down
    within which all lie. `sides`: width and height of the image of each object.
    """
    far = max(2 * NEAR, 2 * reach)
    return largest <= NEAR and sum(min(width, height) > far for width, height in sides) >= FEW
