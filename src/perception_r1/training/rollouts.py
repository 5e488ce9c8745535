"""Rollouts of a group from one prompt: prefilled once, its cache expanded to G, and rows that have finished cost nothing more.

It is a decoding method for transformers' `generate(custom_generate=…)`, so every sampling setting is transformers' own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from .cpu import packed_linears
from .precision import as_attended
from .shared_prefix import attention_of, why_not
from .static_decode import StaticSteps


@contextmanager
def prefill_once(model: Any, group: int) -> Iterator[None]:
    """Inside, `model.generate` answers every prompt `group` times: prompts (P, T) → (P·group, T + new)."""
    decode = partial(sample_groups, group=group, synced_gpus=_sharded(model))  # transformers tells its own methods only
    model.generate = partial(type(model).generate, model, custom_generate=decode)
    try:
        yield
    finally:
        del model.generate


def shared_prefill(model: Any, group: int) -> AbstractContextManager[None] | None:
    """`prefill_once` where the architecture of `model` allows it, else None."""
    return None if why_not(model) else prefill_once(model, group)


def _sharded(model: Any) -> bool:
    """Whether every call of `model` needs every process, because each holds a part of the weights."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return False
    return is_deepspeed_zero3_enabled() or any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules())


class _RoomyLayer(DynamicLayer):
    """Keys and values with room for the tokens to come, which are written in place: transformers' layer copies all of them a token."""

    ROOM = 64
    """Tokens by which it grows."""
    keys: Any
    values: Any

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._hold(keys, values)

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        shape = (*keys.shape[:2], keys.shape[2] + self.ROOM, keys.shape[3])
        self._room = keys.new_empty(shape), values.new_empty(shape)
        self.keys, self.values = (room[:, :, : states.shape[2]].copy_(states) for room, states in zip(self._room, (keys, values), strict=True))

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self._room[0].shape[2]:
            self._hold(self.keys, self.values)
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self._hold(self.keys[indices], self.values[indices])


def sample_groups(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    group: int = 1,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> Tensor:
    """Samples (or takes the best token of) `group` answers to each prompt (P, T), padded on the left: (P·group, T + new).

    Random numbers are drawn for all rows, finished or not, as transformers draws them: the same seed gives the same tokens.
    `synced_gpus`: keep calling the model until every process has finished (ZeRO-3, FSDP).
    """
    mask, cache = model_kwargs.pop("attention_mask"), model_kwargs.pop("past_key_values")
    mask = torch.ones_like(input_ids) if mask is None else mask  # transformers leaves it out where there is no padding
    positions = model_kwargs.pop("position_ids")[-3:]  # transformers puts a row of text positions before those of M-RoPE
    after = positions.masked_fill(mask == 0, 0).amax((0, 2)) + 1
    call: Any = partial(model, use_cache=True, logits_to_keep=1)
    given = {name: value for name, value in model_kwargs.items() if name not in ("use_cache", "logits_to_keep")}
    logits = call(input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, **given).logits
    layers = []
    for layer in cache.layers:
        keys, values = as_attended(layer.keys), as_attended(layer.values)
        layers.append((keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)))
    ids, mask, after, logits = (states.repeat_interleave(group, 0) for states in (input_ids, mask, after, logits))
    if can_record(model, synced_gpus):
        most = int(generation_config.max_length or 0) - ids.shape[1]  # transformers makes it of max_new_tokens
        steps: Any = StaticSteps(call, layers, mask, after, most=most)
    else:
        steps = _RoomySteps(call, layers, mask, after)
    _expand(logits_processor, group)
    live = torch.arange(len(ids), device=ids.device)
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    done, width = False, 0
    with nullcontext() if synced_gpus else packed_linears(model, len(ids)):
        while True:
            scores = logits[:, -1].float()
            if len(live) < len(ids):  # processors may keep a state a row, so they see every row
                scores = scores.new_zeros(len(ids), scores.shape[1]).index_copy(0, live, scores)
            scores = logits_processor(ids, scores)
            ids = torch.cat([ids, _next_tokens(scores, finished, generation_config)[:, None]], dim=1)
            width = width if done else ids.shape[1]  # what is added while others go on is no answer
            finished = finished | stopping_criteria(ids, None)
            done = bool(finished.all())
            if _everyone(done, synced_gpus, ids.device):
                return ids[:, :width]
            still = (~finished[live]).nonzero()[:, 0]
            if len(still) < len(live):
                still = still if len(still) else still.new_zeros(1)  # a process that waits for others keeps one row
                live = live[steps.keep(still)]
            logits = steps(ids[live, -1:])


def can_record(model: Any, synced_gpus: bool) -> bool:
    """Whether a decoding step of `model` can be one CUDA graph: on a GPU, not waiting for others, with attention that takes masks."""
    return model.device.type == "cuda" and not synced_gpus and attention_of(model) == "sdpa"


class _RoomySteps:
    """One token a call for every row that is left, from the cache of a prefilled prompt: shapes grow with each token.

    keys and values of a layer: (rows, heads, T, D). mask (rows, T) is 0 where a row has padding. positions (rows,) is the rotary
    position of the next token.
    """

    def __init__(self, call: Callable[..., Any], layers: Sequence[tuple[Tensor, Tensor]], mask: Tensor, positions: Tensor) -> None:
        self.call, self.mask, self.positions = call, mask, positions
        self.cache = Cache(layers=[_RoomyLayer(keys, values) for keys, values in layers])

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (rows, 1, vocabulary) after `tokens` (rows, 1)."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        positions = self.positions.expand(3, -1)[:, :, None]
        self.positions = self.positions + 1
        return self.call(past_key_values=self.cache, input_ids=tokens, attention_mask=self.mask, position_ids=positions).logits

    def keep(self, rows: Tensor) -> Tensor:
        """Leaves all rows but these out, which are numbered as they are now; returns which are left."""
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        return rows


def _expand(processors: LogitsProcessorList, group: int) -> None:
    """Lets the penalty of repetitions, which skips each prompt's padding, know of every row."""
    for processor in processors:
        padding = getattr(processor, "prompt_ignore_length", None)
        if isinstance(padding, Tensor):
            processor.prompt_ignore_length = padding.repeat_interleave(group)


def _next_tokens(scores: Tensor, finished: Tensor, config: GenerationConfig) -> Tensor:
    """A token for every row by its scores (rows, vocabulary); of finished rows the padding token."""
    tokens = torch.multinomial(scores.softmax(-1), num_samples=1)[:, 0] if config.do_sample else scores.argmax(-1)
    return tokens.masked_fill(finished, config.pad_token_id if config.pad_token_id is not None else 0)


def _everyone(done: bool, synced: bool, device: torch.device) -> bool:
    if not synced:
        return done
    waiting = torch.tensor(0.0 if done else 1.0, device=device)
    torch.distributed.all_reduce(waiting)
    return waiting.item() == 0
