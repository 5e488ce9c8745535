"""A checkpoint and its processor: what they are, what is wrong with them, and what limits its images."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from ..dialects import smart_resize
from ..policy import SETTINGS_FILE, model_folder
from ..records import BadData, Frame, Sample
from .adapters import Base, base_of, is_adapter, load_merged
from .asking import folder_revision
from .model_files import PROCESSOR_FILES, TOKENIZER_FILES, check_model_folder, has_any
from .stored_tensors import check_weights

NARROW = 100
"""Longer over shorter side from which on an image is looked at closely; Qwen's refuse 200."""


def read_settings(model_dir: str | Path) -> dict[str, Any]:
    """What a checkpoint's perception_r1.json says (task, dialect, prompt, thinking); {} when there is none."""
    path = Path(model_dir) / SETTINGS_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadData(f"{path}: expected JSON, found {error}: write it again with `perception-r1 grpo` or delete it") from error
    if not isinstance(found, dict):
        raise BadData(f"{path}: expected a JSON object with task, dialect, prompt, thinking; found {type(found).__name__}")
    return found


def load_adapted(adapter: str | Path, base: Base, dtype: torch.dtype) -> Any:
    """The model that an adapter and its base make. Raises BadData for a base that is none."""
    check_model_folder(base.name)
    check_weights(Path(base.name))
    known_config(base.name, **base.options())
    return loaded(f"{adapter} on {base.name}", lambda: load_merged(adapter, base, dtype))


def processor_of(adapter: str | Path, base: Base) -> Any:
    """The processor beside an adapter, which knows the run's image limits; else its base's."""
    if has_any(adapter, PROCESSOR_FILES) and has_any(adapter, TOKENIZER_FILES):
        return load_processor(str(adapter))
    check_model_folder(base.name)
    return load_processor(base.name, **base.options())


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of that name. Raises BadData."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise BadData(f"dtype {name!r} is not known: expected float32, bfloat16 or float16")
    return found


def loaded(name: str, load: Callable[[], Any]) -> Any:
    """What `load` gives of the model called `name`. Raises BadData in one line where its files do not allow it."""
    try:
        return load()
    except BadData:  # a ValueError that has said what is wrong
        raise
    except RuntimeError as error:
        if "mismatch" not in str(error):  # out of memory, say
            raise
        found = f"model {name!r}: found weights of other sizes than config.json says"
        raise BadData(f"{found}: expected the config and the weights of one model") from error
    except UnpicklingError as error:
        found = f"model {name!r}: refused, since loading its weights could run code"
        raise BadData(f"{found}: expected safetensors, or tensors alone") from error
    except (OSError, ValueError, SafetensorError) as error:
        if "custom code" in str(error):
            found = f"model {name!r} needs code that comes with it, which is never run"
            raise BadData(f"{found}: expected a model that transformers itself knows") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadData(f"model {name!r} could not be loaded: {reason}: expected a folder with config, weights and processor, or a hub id") from error


def known_config(name: str, **options: Any) -> Any:
    """The config of a model (folder or hub id) of images and text. Raises BadData for any other.

    Whoever loads the model after this is never asked on the terminal whether to run such code.
    """
    read = transformers.AutoConfig.from_pretrained
    config = loaded(name, lambda: read(name, trust_remote_code=False, **options))
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        found = f"model {name!r}: found model_type {config.model_type!r}"
        expected = "expected a model of images and text that transformers itself knows"
        raise BadData(f"{found}, {expected}")
    return config


def load_processor(name: str, **options: Any) -> Any:
    """The processor of images and text of a model (folder or hub id). Raises BadData for any."""
    read = transformers.AutoProcessor.from_pretrained
    processor = loaded(name, lambda: read(name, trust_remote_code=False, **options))
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        found = type(processor).__name__
        raise BadData(f"model {name!r}: found {found}, expected a processor of images and text: copy its base model's processor files")
    return processor


def check_sides(model: str | Path, samples: Iterable[Sample]) -> None:
    """Raises BadData for an image that is too narrow for a model's processor, which is loaded where
    one may be.
    """
    if not (narrow := [sample for sample in samples if _is_narrow(sample)]):
        return
    processor = _processor_named(model_folder(model))
    for sample in narrow:
        try:
            frame_by_processor(processor, sample.width, sample.height)
        except BadData as problem:
            found = f"{sample.image_path} of sample {sample.id!r}"
            raise BadData(f"{found}: {problem}") from problem


def _processor_named(name: str) -> Any:
    """The processor of a model, or of an adapter."""
    if is_adapter(name):
        return processor_of(name, base_of(name, read_settings(name)))
    return load_processor(name)


def _is_narrow(sample: Sample) -> bool:
    return max(sample.width, sample.height) > NARROW * min(sample.width, sample.height)


def revision_of(name: str, config: Any, base: Base | None = None) -> str | None:
    """Which weights these are: a hub model's commit, a sha256 of what a folder's answers depend on.

    Those of an adapter are its own and its base's, whose `config` is given.
    """
    if base:
        return f"{folder_revision(Path(name))} on {revision_of(base.name, config)}"
    return folder_revision(Path(name)) if Path(name).is_dir() else getattr(config, "_commit_hash", None)


def image_limits(processor: Any) -> dict[str, Any]:
    """To what a processor resizes images: its smallest and largest number of pixels, or its one size."""
    images = processor.image_processor
    if hasattr(images, "merge_size"):
        return {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}
    return {"size": {name: value for name, value in dict(images.size).items() if value is not None}}


def pixel_limits(processor: Any) -> dict[str, int]:
    """A processor's limits, for vLLM's `mm_processor_kwargs`; {} where it resizes to one size."""
    limits = image_limits(processor)
    return limits if "max_pixels" in limits else {}


def limit_pixels(processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
    """Sets the smallest and largest image, in pixels, to which a processor resizes; None leaves its own limit."""
    if min_pixels is None and max_pixels is None:
        return
    images = processor.image_processor
    if not hasattr(images, "merge_size"):
        raise BadData(f"pixel limits: {type(images).__name__} resizes to a fixed size: leave out min_pixels and max_pixels")
    low, high = min_pixels or images.size["shortest_edge"], max_pixels or images.size["longest_edge"]
    if low > high:
        raise BadData(f"pixel limits: found min_pixels {low} above max_pixels {high}, expected at most that")
    images.size = {"shortest_edge": low, "longest_edge": high}


def frame_by_processor(processor: Any, width: int, height: int) -> Frame:
    """The frame of an image of that size in pixels: original size, and the size to which this processor resizes it.

    A processor without `merge_size` resizes to a fixed size; as in `frames_from_inputs`, that size does not matter.
    """
    images, seen = processor.image_processor, (width, height)
    if hasattr(images, "merge_size"):
        limits = {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}
        seen = smart_resize(width, height, factor=images.patch_size * images.merge_size, **limits)
    return Frame(width=width, height=height, seen_width=seen[0], seen_height=seen[1])
