"""Somebody's format → `Sample`. An adapter converts once; nothing downstream knows RefCOCO from COCO."""

from .mixture import Mixture, load_data
from .samples import Skipped, open_image, read_samples, write_samples

__all__ = ["Mixture", "Skipped", "load_data", "open_image", "read_samples", "write_samples"]
