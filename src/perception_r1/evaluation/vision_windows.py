"""Qwen2.5-VL's vision tower looks within windows; here all windows of a layer are one call of attention.

transformers calls its attention once a window, in a Python loop: 2,272 times for a picture of a
million pixels, which a GPU spends waiting. Windows are at most 64 patches and nearly all are full, so
they are laid side by side, the short ones padded, and what is padding is not looked at.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

MOST_PADDING = 2
"""How many times the patches there are may be computed; where it would be more, the loop is left."""


def batch_windows(model: nn.Module) -> int:
    """Lets the vision tower of `model` attend to all windows at once, in place; returns in how many layers.

    Other families have no windows, and flash attention takes windows as they are: 0 layers then.
    """
    layers: list[Any] = [layer for layer in model.modules() if type(layer) is qwen.Qwen2_5_VLVisionAttention]
    layers = [layer for layer in layers if layer.config._attn_implementation == "sdpa"]
    for layer in layers:
        layer.forward = _Windows(layer)
    return len(layers)


class _Windows:
    """The forward of one layer of the tower: hidden_states (T, width), windows from cu_seqlens[k] up to cu_seqlens[k + 1]."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **kwargs: Any
    ) -> Tensor:
        lengths = cu_seqlens.diff()
        count, longest = len(lengths), int(lengths.max())
        few = count < 2 or count * longest > MOST_PADDING * len(hidden_states)
        if few:  # one picture, or pictures of very different sizes in a layer without windows
            loop = type(self.layer).forward
            return loop(self.layer, hidden_states, cu_seqlens, position_embeddings, **kwargs)
        qkv = self.layer.qkv(hidden_states).unflatten(1, (3, self.layer.num_heads, -1))
        query, key, value = qkv.unbind(1)
        query, key = qwen.apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        mask, source, target = None, None, None
        if count * longest != len(hidden_states):
            place = torch.arange(longest, device=lengths.device)
            mask = (place < lengths[:, None])[:, None, None]
            source = (cu_seqlens[:-1, None] + place).clamp(max=len(hidden_states) - 1).flatten()
            target = mask.flatten().nonzero()[:, 0]
        states = []
        for rows in (query, key, value):
            # index_select, whose gradient is a sum; that of rows[source] would sort the indices first
            padded = rows if source is None else rows.index_select(0, source)
            states.append(padded.unflatten(0, (count, longest)).transpose(1, 2))
        seen = nn.functional.scaled_dot_product_attention(
            *states, attn_mask=mask, scale=self.layer.scaling
        )
        seen = seen.transpose(1, 2).flatten(0, 1)
        seen = seen if target is None else seen.index_select(0, target)
        return self.layer.proj(seen.flatten(1))
