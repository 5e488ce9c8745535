"""A stand-in for the flash-attn packages, which need a GPU: their functions by their definition, causal from the bottom right."""

import importlib.machinery
import sys
import types
from typing import Any

import pytest
import torch
import transformers.modeling_flash_attention_utils as flash
from torch import Tensor
from transformers import PreTrainedModel


def _attend(query_THD: Tensor, key_SHD: Tensor, value_SHD: Tensor, scale: float | None, causal: bool) -> Tensor:
    repeats = query_THD.shape[1] // key_SHD.shape[1]
    key_SHD, value_SHD = (states.repeat_interleave(repeats, 1) for states in (key_SHD, value_SHD))
    scores = torch.einsum("thd,shd->hts", query_THD, key_SHD) * (scale or query_THD.shape[-1] ** -0.5)
    if causal:
        tokens, keys = scores.shape[1:]
        seen = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)
        scores = scores.masked_fill(~seen, float("-inf"))
    return torch.einsum("hts,shd->thd", scores.softmax(-1), value_SHD)


def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False, **_: Any) -> Tensor:
    return torch.stack([_attend(*rows, softmax_scale, causal) for rows in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: Any = None,
    causal: bool = False,
    **_: Any,
) -> Tensor:
    rows = []
    for number in range(len(cu_seqlens_q) - 1):
        own = slice(cu_seqlens_q[number], cu_seqlens_q[number + 1])
        seen = slice(cu_seqlens_k[number], cu_seqlens_k[number + 1])
        rows.append(_attend(q[own], k[seen], v[seen], softmax_scale, causal))
    return torch.cat(rows)


def install(monkeypatch: pytest.MonkeyPatch, version: int) -> str:
    """Puts the stand-in where transformers looks for flash attention 2 or 3; returns the name of that attention."""
    name = {2: "flash_attn", 3: "flash_attn_interface"}[version]
    module: Any = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.flash_attn_func = flash_attn_func
    module.flash_attn_varlen_func = flash_attn_varlen_func
    module.flash_attn_with_kvcache = None
    padding: Any = types.ModuleType("flash_attn.bert_padding")
    padding.pad_input, padding.unpad_input = flash._pad_input, flash._unpad_input
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(flash, f"is_flash_attn_{version}_available", lambda **_: True)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda self, *_, **__: True)
    return f"flash_attention_{version}"
