"""Log-probabilities of the G completions of each prompt from one forward in which the prompt stands once.

A prompt (about 1,300 visual tokens) and its G completions (about 40 tokens each) are packed into one row:

    [prefix | last c1 c2 … | last c1 c2 … | …]        prefix = the prompt without its last token; one suffix a completion

The prefix attends to itself, causally. A suffix attends to the prefix and, causally, to itself: never to another suffix. Every
suffix starts again at the prompt's end, in attention and in rotary positions (M-RoPE), and begins with the prompt's last token,
so a completion's first token is predicted as any other. The numbers are those of G separate rows; the work is that of one
prompt and G completions. `share_prefix` teaches a model such rows, `pack` makes them, `shared_logps` reads them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Model types whose rotary positions and attention are known, and tested, to allow it."""
ATTENTIONS = ("sdpa", "flash_attention_2", "flash_attention_3")


def why_not(model: PreTrainedModel) -> str | None:
    """The reason for which `model` cannot share a prompt, in words; None when it can."""
    config = model.config.get_text_config()
    if model.config.model_type not in FAMILIES:
        return f"the architecture {model.config.model_type} is not one of {', '.join(FAMILIES)}"
    if attention_of(model) not in ATTENTIONS:
        return f"the attention {attention_of(model)} is not one of {', '.join(ATTENTIONS)}"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "its text layers attend within a sliding window"
    return None


def attention_of(model: PreTrainedModel) -> str:
    """The name of the attention of its text layers."""
    return str(model.config.get_text_config()._attn_implementation)


def share_prefix(model: PreTrainedModel) -> None:
    """Lets the text layers of `model` take packed rows. Every other row, of any model, goes on as before.

    The attention that it uses is wrapped under its own name in transformers' registry: flash attention is imported by that name.
    """
    name = attention_of(model)
    attend = ALL_ATTENTION_FUNCTIONS[name]
    if not (isinstance(attend, partial) and attend.func is _attention):
        AttentionInterface.register(name, partial(_attention, attend, "flash" in name))


def _attention(
    attend: Callable[..., tuple[Tensor, Any]],
    flash: bool,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared_prefix: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Attention of packed rows through the model's own implementation `attend`, called twice; other rows go straight to it.

    query, key, value: (P, heads, T, D) with T = prefix + G·L. attention_mask: (P, 1, L, prefix + L), true where a suffix may look.
    """
    if shared_prefix is None or attention_mask is None:
        return attend(module, query, key, value, attention_mask, **kwargs)
    length = attention_mask.shape[2]
    prefix_BTHD, _ = attend(module, *(states[:, :, :shared_prefix] for states in (query, key, value)), None, **kwargs)
    query, own_key, own_value = (_by_suffix(states[:, :, shared_prefix:], length) for states in (query, key, value))
    group = len(query) // len(key)
    mask = attention_mask if len(key) == 1 and not flash else attention_mask.repeat_interleave(group, 0)
    if flash:  # its masks say which keys are there, and it is causal from the bottom right
        mask = mask[:, 0, -1]
    key, value = (
        torch.cat([states[:, :, :shared_prefix].repeat_interleave(group, 0), own], dim=2) for states, own in ((key, own_key), (value, own_value))
    )
    suffix_BTHD, _ = attend(module, query, key, value, mask, **kwargs)
    return torch.cat([prefix_BTHD, suffix_BTHD.reshape(len(prefix_BTHD), -1, *prefix_BTHD.shape[2:])], dim=1), None


def _by_suffix(states: Tensor, length: int) -> Tensor:
    """(P, heads, G·L, D) → (P·G, heads, L, D)."""
    return states.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Packed rows. With L = 1 + longest completion a row has T = prefix + G·L tokens."""

    inputs: dict[str, Any]
    """What the model is called with, besides its images."""
    labels: Tensor
    """(P, T): the token that each position is, where it belongs to a completion, else -100. The model shifts them."""
    group: int
    prefix: int

    def unpack(self, values: Tensor) -> Tensor:
        """(P, T-1, …), a value of each next token → (P, G, L-1, …), a value of each completion token."""
        own = torch.cat([values[:, self.prefix :], values[:, -1:]], dim=1)
        return own.unflatten(1, (self.group, -1))[:, :, :-1]


def _positions(model: nn.Module, prompt_ids: Tensor, prompt_mask: Tensor, types: Tensor, image_grid_thw: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rotary positions (3, P, T) of padded prompts, and (P,) the position of the token after each."""
    owner: Any = next(module for module in model.modules() if hasattr(module, "get_rope_index"))
    positions, _ = owner.get_rope_index(prompt_ids, mm_token_type_ids=types, image_grid_thw=image_grid_thw, attention_mask=prompt_mask)
    return positions, positions.masked_fill(prompt_mask == 0, 0).amax((0, 2)) + 1


def pack(
    model: nn.Module,
    *,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    mm_token_type_ids: Tensor,
    image_grid_thw: Tensor | None = None,
) -> Packed:
    """Packs prompts (P, T), padded on the left, with their completions (P, G, S), padded on the right.

    The masks are 1 on real tokens. `mm_token_type_ids` (P, T) is 1 on image tokens, `image_grid_thw` (images, 3) in their order.
    `model` is asked for rotary positions only; it may be wrapped.
    """
    length_P = prompt_mask.sum(1)
    width = int(length_P.max())
    column = torch.arange(width, device=prompt_ids.device)
    # Padded on the right, causal attention of the prefix needs no mask. Pads repeat the last token, which is no image.
    source = (prompt_ids.shape[1] - length_P[:, None] + column).clamp(max=prompt_ids.shape[1] - 1)
    prompt_ids, types = prompt_ids.gather(1, source), mm_token_type_ids.gather(1, source)
    positions, after_P = _positions(model, prompt_ids, (column < length_P[:, None]).long(), types, image_grid_thw)
    group, length = completion_ids.shape[1], completion_ids.shape[2] + 1
    last_3P1 = positions.gather(2, (length_P - 1)[None, :, None].expand(3, -1, 1))
    steps = (after_P[:, None] + torch.arange(length - 1, device=column.device)).expand(3, -1, -1)
    suffix_positions = torch.cat([last_3P1, steps], dim=2).repeat(1, 1, group)
    suffix_PGL = torch.cat([prompt_ids[:, -1:, None].expand(-1, group, 1), completion_ids], dim=2)
    label_PGL = torch.cat([torch.full_like(suffix_PGL[:, :, :1], -100), completion_ids.masked_fill(completion_mask == 0, -100)], dim=2)
    seen = (column[:-1] < length_P[:, None] - 1)[:, None, None].expand(-1, 1, length, -1)
    causal = torch.ones(length, length, dtype=torch.bool, device=column.device).tril().expand(len(prompt_ids), 1, -1, -1)
    return Packed(
        inputs={
            "input_ids": torch.cat([prompt_ids[:, :-1], suffix_PGL.flatten(1)], dim=1),
            "attention_mask": torch.cat([seen, causal], dim=3),
            "position_ids": torch.cat([positions[:, :, :-1], suffix_positions], dim=2),
            "shared_prefix": width - 1,
        },
        labels=torch.cat([torch.full_like(prompt_ids[:, :-1], -100), label_PGL.flatten(1)], dim=1),
        group=group,
        prefix=width - 1,
    )


def shared_logps(model: Any, packed: Packed, **images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (P, G, S) of packed completions, and entropies where the model's head computes them; zero on padding.

    `model` may be wrapped (DDP, FSDP2, DeepSpeed, PEFT). Its head must be TRL's fused one (`add_fused_lm_head`), which takes
    the log-softmax in chunks, so that the logits of a batch never exist at once. `images`: pixel_values, image_grid_thw.
    """
    outputs = model(**packed.inputs, **images, labels=packed.labels, fused_lm_head=True)
    return packed.unpack(outputs.log_probs), None if outputs.entropy is None else packed.unpack(outputs.entropy)
