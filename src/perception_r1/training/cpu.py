"""Training on a CPU: what costs more there than small models' arithmetic. Memory returned to the kernel, weights laid out for large batches."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tells glibc's malloc not to return freed memory to the kernel; whether it did. Elsewhere than on Linux: nothing, False.

    Seen on 2 cores with the tiny policy: a supervised step of 32 conversations takes 0.7 s instead of 1.1 s, half of which
    went into page faults.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(name, value) for name, value in ((_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28), (_MMAP_MAX, 0)))


@contextmanager
def packed_linears(model: nn.Module, rows: int) -> Iterator[None]:
    """Inside, linear layers of float32 on a CPU multiply through oneDNN with weights packed for about `rows` rows, when first used.

    A decoding step reads every weight for a few rows, and BLAS rearranges the weight each time. Seen on 2 cores with 8 rows and 30 M
    weights: 12 ms a step, packed 6 ms. Weights must not change inside. Other layers, and a torch without oneDNN, are left alone.
    """
    layers: list[Any] = [layer for layer in model.modules() if _can_pack(layer)] if torch.backends.mkldnn.is_available() else []
    for layer in layers:
        layer.forward = _PackedLinear(layer, rows)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _can_pack(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    return type(layer.weight) is nn.Parameter and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32


class _PackedLinear:
    """The forward of one linear layer, without gradient."""

    def __init__(self, layer: nn.Linear, rows: int) -> None:
        self.layer, self.rows, self.weight = layer, rows, None

    def __call__(self, states: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):  # asked here, since accelerate enters its autocast inside the model's forward
            return nn.functional.linear(states, self.layer.weight, self.layer.bias)
        packed: Any = torch.ops.mkldnn
        if self.weight is None:
            self.weight = packed._reorder_linear_weight(self.layer.weight.detach(), self.rows)
        return packed._linear_pointwise(states, self.weight, self.layer.bias, "none", [], "")
