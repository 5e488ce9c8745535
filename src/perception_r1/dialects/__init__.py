"""How each model family writes boxes: text ↔ boxes in pixels of the original image.

A dialect has a grid (`units`: how many steps the image's width and height are cut into), a writer,
and a scanner that finds every item in a text. The convention is declared, by name or by the model's
type, and never guessed from numbers. `base` is what they share; then one file a family; `registry`
has their list, and the frame of an image.
"""

from .base import MOST_ITEMS, OUTSIDE, Dialect, Found
from .registry import DIALECTS, dialect_named, dialect_of_model, frame_of, smart_resize

__all__ = [
    "DIALECTS",
    "MOST_ITEMS",
    "OUTSIDE",
    "Dialect",
    "Found",
    "dialect_named",
    "dialect_of_model",
    "frame_of",
    "smart_resize",
]
