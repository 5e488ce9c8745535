"""Decoding steps of fixed shapes, so that one token of every row is one CUDA graph.

A decoding step of a 2 B model is about 1,200 kernels, and a GPU waits for a CPU that launches them one
by one. A graph launches them at once, but it repeats what was recorded: the same kernels on the same
memory. So nothing here changes its shape or its place from token to token. Keys and values lie in
buffers of fixed length, a tensor says where the next ones go, and a mask says which are there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

ALIGNED = 16
"""Memory-efficient attention wants masks of a multiple of this."""


class _FixedLayer(DynamicLayer):
    """Keys and values (rows, heads, length, D) in place; `slot` (1,) says where the next token's go."""

    keys: Any
    values: Any

    def __init__(self, keys: Tensor, values: Tensor, length: int, slot: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.slot = slot
        self.filled = keys.shape[2]
        self.keys = _longer(keys, length)
        self.values = _longer(values, length)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        self.keys.index_copy_(2, self.slot, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.slot, value_states.to(self.values.dtype))
        return self.keys, self.values

    def get_seq_length(self) -> int:  # asked before a graph is recorded: it must not look at the GPU
        return self.filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0


def _longer(states: Tensor, length: int) -> Tensor:
    room = states.new_zeros(*states.shape[:2], length, states.shape[3])
    room[:, :, : states.shape[2]] = states
    return room


class StaticSteps:
    """One token a call for every row, from the cache of a prefilled prompt.

    keys and values of a layer: (rows, heads, T, D). mask (rows, T) is 0 where a row has padding.
    positions (rows,) is the rotary position of the next token. Where the buffers end they are made
    `ROOM` longer, and twice that the next time, so a long limit costs nothing until it is reached.
    """

    ROOM = 256
    """Tokens for which there is room at first."""

    def __init__(
        self,
        model: Callable[..., Any],
        layers: Sequence[tuple[Tensor, Tensor]],
        mask: Tensor,
        positions: Tensor,
        *,
        most: int,
    ) -> None:
        self.model = model
        self.most = most
        self.room = 0
        self.filled = mask.shape[1]
        self.layers = layers
        self.seen = mask.bool()[:, None, None]
        self.token = torch.zeros(len(mask), 1, dtype=torch.long, device=mask.device)
        self.positions = positions[None, :, None].repeat(3, 1, 1)
        self.slot = torch.tensor([self.filled], device=mask.device)
        self.left = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (rows, 1, vocabulary) after `tokens` (rows, 1). The next call overwrites them."""
        if self.left == 0:
            self._grow()
        self.left -= 1
        self.filled += 1
        self.token.copy_(tokens)
        return self.replay()

    def keep(self, rows: Tensor) -> Tensor:
        """Rows that have finished stay, since shapes are fixed; returns all rows."""
        return torch.arange(len(self.token), device=rows.device)

    def _grow(self) -> None:
        self.room = max(self.ROOM, 2 * self.room)
        self.left = min(self.room, self.most)
        self.most -= self.left
        length = -(-(self.filled + self.left) // ALIGNED) * ALIGNED
        seen = self.seen.new_zeros(*self.seen.shape[:3], length)
        seen[..., : self.filled] = self.seen[..., : self.filled]
        self.seen = seen
        fixed = []
        for keys, values in self.layers:
            states = keys[:, :, : self.filled], values[:, :, : self.filled]
            fixed.append(_FixedLayer(*states, length, self.slot))
        self.cache = Cache(layers=fixed)
        self.layers = [(layer.keys, layer.values) for layer in fixed]
        self.replay = self._recorded() if self.token.is_cuda else self._step

    def _step(self) -> Tensor:
        self.seen.index_fill_(3, self.slot, True)
        logits = self.model(
            input_ids=self.token,
            attention_mask=self.seen,
            position_ids=self.positions,
            past_key_values=self.cache,
        ).logits
        self.slot.add_(1)
        self.positions.add_(1)
        return logits

    def _recorded(self) -> Callable[[], Tensor]:
        """A step as a CUDA graph. Recording runs nothing; the warm-up before it runs, and is undone."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._step()
                self.slot.sub_(1)
                self.positions.sub_(1)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._step()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
