"""Whether files of tensors are whole, and nothing else: looked at beforehand, numbers unread."""

import json
import pickle
import struct
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
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
"""What torch raises for a file that is cut off or none of tensors: its reader follows any bytes."""

BINARIES = ("pytorch_model*.bin", "adapter_model.bin")
"""Weights as torch.save writes them."""
STATES = ("optimizer*.pt", "optimizer*.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth")
"""What a checkpoint holds beside the weights, in the same form."""
OLDER = "copy it again, or delete this checkpoint: --resume true then takes the one before"


def check_weights(folder: Path) -> None:
    """Raises BadData for weights in a model folder that are broken, or hold more than numbers."""
    if whole := sorted(folder.glob("*.safetensors")):
        for path in whole:
            _check_safetensors(path)
        return  # where there are both, transformers reads these
    check_pickles(path for name in BINARIES for path in folder.glob(name))


def check_checkpoint(folder: Path) -> None:
    """Raises BadData for a checkpoint with a broken file, or one that would run code."""
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
        found = f"{path} could not be loaded: found a broken file ({problem})"
        raise BadData(f"{found}, expected safetensors: copy or save it again") from problem


def check_pickles(paths: Iterable[Path]) -> None:
    """Raises BadData for the first file of torch that is not whole, or would run code if loaded."""
    for path in sorted(paths):
        try:
            with _allowed(path), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd files torch says more than it raises
                torch.load(path, map_location="meta", weights_only=True, mmap=is_zipfile(path))
        except pickle.UnpicklingError as problem:
            lines = [line.strip() for line in str(problem).splitlines() if "GLOBAL" in line]
            reason = lines[0] if lines else "it holds more than numbers"
            found = f"{path}: refused, since loading it could run code ({reason})"
            raise BadData(f"{found}: expected tensors and plain values alone") from problem
        except NOT_WHOLE as problem:
            reason = (str(problem).splitlines() or [type(problem).__name__])[0][:120]
            found = f"{path}: found a broken file ({reason})"
            raise BadData(f"{found}, expected what torch.save wrote: save it again") from problem


def _allowed(path: Path) -> AbstractContextManager[Any]:
    """What may be in a file besides tensors: NumPy's state where random numbers are kept."""
    return safe_globals() if path.name.startswith("rng_state") else nullcontext()
