"""Whether files of tensors can be loaded, and are nothing but that: read without their numbers, before anything is built on them."""

import json
import pickle
import struct
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_pt_utils import safe_globals

from ..records import BadData

NOT_WHOLE = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    struct.error,
)
"""What torch raises for a file that is cut off or is no file of tensors: its reader follows whatever the bytes say."""

BINARIES = ("pytorch_model*.bin", "adapter_model.bin")
"""Weights as torch.save writes them."""
STATES = ("optimizer*.pt", "optimizer*.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth")
"""What a checkpoint holds beside the weights, in the same form."""
OLDER = "copy it again, or delete the folder of this checkpoint: --resume true then takes the one before"


def check_weights(folder: Path) -> None:
    """Raises BadData for weights in a model folder that are broken, or that hold more than numbers. Other files are left alone."""
    if whole := sorted(folder.glob("*.safetensors")):
        for path in whole:
            _check_safetensors(path)
        return  # where there are both, transformers reads these
    check_pickles(path for name in BINARIES for path in folder.glob(name))


def check_checkpoint(folder: Path) -> None:
    """Raises BadData for a checkpoint of a training from which it cannot go on, or whose files would run code when loaded."""
    check_weights(folder)
    check_pickles(path for name in STATES for path in folder.glob(name))
    state = folder / "trainer_state.json"
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise BadData(f"{state}: expected JSON, found {problem}: {OLDER}") from problem


def _check_safetensors(path: Path) -> None:
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as problem:
        raise BadData(
            f"{path}: found a broken file ({problem}), expected safetensors: copy or save it again"
        ) from problem


def check_pickles(paths: Iterable[Path]) -> None:
    """Raises BadData for the first of these files of torch that is not whole, or that would run code when it is loaded."""
    for path in sorted(paths):
        allowed = (
            safe_globals() if path.name.startswith("rng_state") else nullcontext()
        )  # NumPy's state is there
        try:
            with allowed, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd files torch says more than it raises
                torch.load(path, map_location="meta", weights_only=True, mmap=is_zipfile(path))
        except pickle.UnpicklingError as problem:
            reason = next(
                (line for line in str(problem).splitlines() if "GLOBAL" in line),
                "it holds more than numbers",
            ).strip()
            raise BadData(
                f"{path}: refused, since loading it could run code ({reason}): expected tensors and plain values alone"
            ) from problem
        except NOT_WHOLE as problem:
            reason = (str(problem).splitlines() or [type(problem).__name__])[0][:120]
            raise BadData(
                f"{path}: found a broken file ({reason}), expected what torch.save wrote: copy or save it again"
            ) from problem
