"""What a run of mixed precision need not hold, or compute, in float32."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type in which products are computed on `device` just now; None outside an autocast."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def as_attended(states: Tensor) -> Tensor:
    """Keys or values in the type in which attention will read them: a cache in float32 would be cast whole at each token."""
    dtype = autocast_dtype(states.device)
    return states if dtype is None else states.to(dtype)


@contextmanager
def cast_once(frozen: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, an autocast keeps what it has cast of `frozen` float32 weights, to its end.

    It keeps the casts of weights that require a gradient and of no others, so those under an
    adapter would be cast again for each token. Only for what is computed without gradients.
    """
    marked = [weights for weights in frozen if weights.dtype == torch.float32]
    for weights in marked:
        weights.requires_grad_(True)
    try:
        yield
    finally:
        for weights in marked:
            weights.requires_grad_(False)


def halve_linears(model: nn.Module, dtype: torch.dtype, *, float32_head: bool = False) -> int:
    """Holds the weights of the linear layers of a frozen `model` in `dtype`, in place.

    Returns how many layers that are. Under an autocast of `dtype` the numbers are the same to the
    last bit, since each product casts these weights anyway. Norms and embeddings are computed in
    float32, so they stay; so do a head that is the embedding, any head where `float32_head` says
    that it is computed outside the autocast, and every layer that is more than a linear one
    (adapters, quantised weights).
    """
    kept = [_weights(model, "get_input_embeddings")]
    if float32_head:
        kept.append(_weights(model, "get_output_embeddings"))
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    layers = [layer for layer in layers if not any(layer.weight is weights for weights in kept)]
    for layer in layers:
        layer.to(dtype)
    return len(layers)


def _weights(model: nn.Module, getter: str) -> Tensor | None:
    layer = getattr(model, getter, lambda: None)()
    return None if layer is None else layer.weight
