"""A cache of keys and values that is written in place: no copy per token, doubled when it is full."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from melete.forward.architectures import has_full_attention


class PreallocatedLayer(DynamicLayer):
    """Keys and values [B, H, capacity, D] of which the first `length` positions are in use."""

    def __init__(self, spare: int) -> None:
        super().__init__()
        self.length, self.spare = 0, spare
        self.key_buffer = self.value_buffer = torch.empty(0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.key_buffer, self.value_buffer = self._room(key_states), self._room(value_states)
        elif self.length > self.key_buffer.shape[-2]:
            used = (buffer[..., :start, :] for buffer in (self.key_buffer, self.value_buffer))
            self.spare = self.length
            self.key_buffer, self.value_buffer = (self._copied(buffer) for buffer in used)
        self.key_buffer[..., start : self.length, :] = key_states
        self.value_buffer[..., start : self.length, :] = value_states
        return self._view()

    def _room(self, states: Tensor) -> Tensor:
        rows, heads, _, width = states.shape
        return states.new_empty(rows, heads, self.length + self.spare, width)

    def _copied(self, used: Tensor) -> Tensor:
        room = self._room(used)
        room[..., : used.shape[-2], :] = used
        return room

    def _view(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self.key_buffer[..., : self.length, :], self.value_buffer[..., : self.length, :]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.key_buffer, self.value_buffer = self.key_buffer[beam_idx], self.value_buffer[beam_idx]
        self._view()


def make_cache(config: PreTrainedConfig, spare: int) -> Cache:
    """A cache for this model with room for `spare` tokens after the prompt.

    Models with other than full attention in some layer get transformers' own cache, which knows their layers.
    """
    if not has_full_attention(config):
        return DynamicCache(config=config)
    num_layers = config.get_text_config(decoder=True).num_hidden_layers
    return Cache(layers=[PreallocatedLayer(spare) for _ in range(num_layers)])


def select_rows(cache: Cache, rows: Tensor) -> None:
    """Keeps these rows of the cache, in this order; a row that is named several times is copied."""
    cache.reorder_cache(cast(torch.LongTensor, rows))  # the one selection that layers with a state have too
