"""What a run of mixed precision need not hold, or compute, in float32."""

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


def halve_linears(model: nn.Module, dtype: torch.dtype) -> int:
    """Holds the weights of the linear layers of a frozen `model` in `dtype`, in place; returns how many layers that are.

    Under an autocast of `dtype` the numbers are the same to the last bit, since each product casts these weights anyway.
    Norms and embeddings are computed in float32, so they stay; so does a head that is the embedding, and with it every
    layer that is more than a linear one (adapters, quantised weights).
    """
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    tied = embedding.weight if embedding is not None else None
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and layer.weight is not tied]
    for layer in layers:
        layer.to(dtype)
    return len(layers)
