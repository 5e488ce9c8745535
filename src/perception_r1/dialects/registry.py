"""The list of dialects, which models speak them, and the frame of an image for each."""

import math

from ..records import BadData, Frame
from .base import Dialect
from .internvl import SPECIAL_TOKENS as INTERNVL_TOKENS
from .internvl import scan_internvl, write_internvl
from .json_boxes import scan_json, write_json
from .lines import scan_lines, write_lines
from .qwen2 import SPECIAL_TOKENS as QWEN_TOKENS
from .qwen2 import scan_qwen2, write_qwen2


def _thousand(frame: Frame) -> tuple[int, int]:
    return 1000, 1000


def _seen(frame: Frame) -> tuple[int, int]:
    return frame.seen_width, frame.seen_height


def _original(frame: Frame) -> tuple[int, int]:
    return frame.width, frame.height


QWEN2_VL = Dialect(
    name="qwen2-vl",
    units=_thousand,
    scan=scan_qwen2,
    join=write_qwen2,
    special_tokens=QWEN_TOKENS,
    model_types=("qwen2_vl",),
    factor=28,
)
QWEN25_VL = Dialect(
    name="qwen2.5-vl",
    units=_seen,
    scan=scan_json,
    join=write_json,
    nothing="[]",
    quotes_labels=True,
    special_tokens=QWEN_TOKENS,
    model_types=("qwen2_5_vl",),
    factor=28,
)
QWEN3_VL = Dialect(
    name="qwen3-vl",
    units=_thousand,
    scan=scan_json,
    join=write_json,
    nothing="[]",
    quotes_labels=True,
    special_tokens=QWEN_TOKENS,
    model_types=("qwen3_vl", "qwen3_vl_moe"),
    factor=32,
)
INTERNVL = Dialect(
    name="internvl",
    units=_thousand,
    scan=scan_internvl,
    join=write_internvl,
    special_tokens=INTERNVL_TOKENS,
    model_types=("internvl", "internvl_chat"),
)
LLAVA = Dialect(
    name="llava",
    units=_thousand,
    scan=scan_lines,
    join=write_lines,
    divisor=1000,
    model_types=("llava", "llava_next", "llava_onevision"),
)
PLAIN = Dialect(name="plain", units=_original, scan=scan_lines, join=write_lines)

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect for dialect in (QWEN2_VL, QWEN25_VL, QWEN3_VL, INTERNVL, LLAVA, PLAIN)
}


def dialect_named(name: str) -> Dialect:
    """The dialect called `name`; BadData lists the names when there is none."""
    if name not in DIALECTS:
        raise BadData(f"dialect {name!r} is not known: expected one of {', '.join(DIALECTS)}")
    return DIALECTS[name]


def dialect_of_model(model_type: str) -> Dialect:
    """The dialect that models of this Hugging Face `model_type` were trained to write."""
    for dialect in DIALECTS.values():
        if model_type in dialect.model_types:
            return dialect
    raise BadData(
        f"model type {model_type!r} has no known way of writing boxes: "
        f"name one with --dialect ({', '.join(DIALECTS)})"
    )


def smart_resize(
    width: int, height: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Width and height, in pixels, to which Qwen-VL processors resize an image.

    Multiples of `factor` within the limits. `factor` is patch × merge: 28 for Qwen2-VL and
    Qwen2.5-VL, 32 for Qwen3-VL. Source: Qwen2-VL's image processor.

    >>> smart_resize(640, 480, factor=28, min_pixels=3136, max_pixels=1_000_000)
    (644, 476)
    """
    if max(width, height) > 200 * min(width, height):
        raise BadData(
            f"image {width}x{height}: Qwen processors refuse an aspect ratio over 200: crop it first"
        )
    sides = [round(side / factor) * factor for side in (width, height)]
    if math.prod(sides) > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        sides = [
            max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)
        ]
    elif math.prod(sides) < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        sides = [math.ceil(side * grow / factor) * factor for side in (width, height)]
    return sides[0], sides[1]


def frame_of(
    width: int,
    height: int,
    dialect: Dialect,
    *,
    seen: tuple[int, int] | None = None,
    min_pixels: int = 3136,
    max_pixels: int = 1_000_000,
) -> Frame:
    """The frame of an image: `seen` when known, else what the dialect's processor makes of it.

    The defaults are Qwen's smallest image and the 1,000,000 pixels of the paper's code. Families
    that do not resize by `smart_resize` write relative or original coordinates, for which the size
    seen does not matter.
    """
    if seen is None and dialect.factor:
        seen = smart_resize(
            width, height, factor=dialect.factor, min_pixels=min_pixels, max_pixels=max_pixels
        )
    seen_width, seen_height = seen or (width, height)
    return Frame(width=width, height=height, seen_width=seen_width, seen_height=seen_height)
