"""What the model remembers of the rows that are written together; rows come and go between tokens.

The rows are kept dense, 0 to B-1: who leaves is replaced by the last. Keys and values lie in buffers [B, H, C, D] that
double when rows or positions run out and are given back when no row is left. A row begins at position 0 of its slot
whatever the others do, so its numbers are those that it would have alone.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from melete.forward.architectures import has_full_attention

_BLOCK = 128  # positions are added in such blocks


def make_rows(model: PreTrainedModel) -> "SharedRows | SeparateRows":
    """Rows that take one step together, where every layer of the model is full attention; else one after another."""
    is_shared = has_full_attention(model.config) and model.config._attn_implementation == "sdpa"
    return SharedRows(model) if is_shared else SeparateRows(model)


def cache_argument(model: PreTrainedModel) -> str:
    """What the model calls its cache."""
    return "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"


class _Slots(DynamicLayer):
    """One layer's buffers. A step writes each row's key and value at that row's own length."""

    def __init__(self, rows: "SharedRows") -> None:
        super().__init__()
        self.rows = rows
        self.key_slots = self.value_slots = torch.empty(0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        count, width = len(self.rows), self.rows.width
        rows, places = torch.arange(count, device=key_states.device), self.rows.lengths
        self.key_slots[rows, :, places] = key_states[:, :, 0]
        self.value_slots[rows, :, places] = value_states[:, :, 0]
        return self.key_slots[:count, :, :width], self.value_slots[:count, :, :width]

    def get_seq_length(self) -> int:
        return self.rows.width - 1


class SharedRows:
    """Rows in common buffers, one forward pass for all."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.argument = model, cache_argument(model)
        self.lengths = torch.zeros(0, dtype=torch.long, device=model.device)  # [B]
        self.num_slots = self.capacity = self.width = 0
        num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self.layers = [_Slots(self) for _ in range(num_layers)]
        self.cache = Cache(layers=list(self.layers))

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, prompt: Cache, length: int) -> None:
        """A row that goes on from a prompt of that length."""
        row = len(self)
        self._make_room(prompt, row + 1, length + 1)
        layers: list[Any] = prompt.layers
        for layer, filled in zip(self.layers, layers, strict=True):
            for slots, states in ((layer.key_slots, filled.keys), (layer.value_slots, filled.values)):
                slots[row, :, :length] = states[0, :, :length]
                slots[row, :, length:] = 0  # what is masked is multiplied by 0, so it has to be a number
        self.lengths = torch.cat([self.lengths, self.lengths.new_tensor([length])])

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token [B] of each row."""
        self.width = int(self.lengths.max()) + 1
        self._make_room(None, len(self), self.width)
        shared = bool((self.lengths == self.lengths[0]).all())
        places = torch.arange(self.width, device=self.lengths.device)
        mask = None if shared else (places <= self.lengths[:, None])[:, None, None, :]
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=self.lengths[:, None],
            use_cache=True,
            logits_to_keep=1,
            **{self.argument: self.cache},
        )
        self.lengths = self.lengths + 1
        return output.logits[:, -1]

    def remove(self, row: int) -> None:
        """Lets a row go; the last takes its number."""
        last = len(self) - 1
        if row != last:
            for layer in self.layers:
                for slots in (layer.key_slots, layer.value_slots):
                    slots[row] = slots[last]
            self.lengths[row] = self.lengths[last]
        self.lengths = self.lengths[:last].clone()
        if last == 0:
            self.clear()

    def clear(self) -> None:
        """Lets all rows go, and their memory."""
        self.lengths = self.lengths[:0].clone()
        self.num_slots = self.capacity = 0
        for layer in self.layers:
            layer.key_slots = layer.value_slots = torch.empty(0)

    def _make_room(self, like: Cache | None, num_rows: int, positions: int) -> None:
        if num_rows <= self.num_slots and positions <= self.capacity:
            return
        while self.num_slots < num_rows:
            self.num_slots = max(1, 2 * self.num_slots)
        if positions > self.capacity:
            self.capacity = -(-max(positions, self.capacity * 5 // 4) // _BLOCK) * _BLOCK
        for number, layer in enumerate(self.layers):
            filled: Any = like.layers[number] if like else None
            layer.key_slots = self._grown(layer.key_slots, filled.keys if filled else layer.key_slots)
            layer.value_slots = self._grown(layer.value_slots, filled.values if filled else layer.value_slots)

    def _grown(self, slots: Tensor, like: Tensor) -> Tensor:
        room = like.new_zeros(self.num_slots, like.shape[1], self.capacity, like.shape[-1])
        if slots.numel():
            room[: slots.shape[0], :, : slots.shape[2]] = slots
        return room


class SeparateRows:
    """A cache for each row and a forward pass for each: for layers with a window or a state."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.argument = model, cache_argument(model)
        self.caches: list[tuple[Cache, int]] = []

    def __len__(self) -> int:
        return len(self.caches)

    def add(self, prompt: Cache, length: int) -> None:
        """A row that goes on from a prompt of that length."""
        # transformers has no copy of a cache; its layers are plain objects that hold tensors
        self.caches.append((copy.deepcopy(prompt), length))

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token [B] of each row."""
        found = []
        for row, (cache, length) in enumerate(self.caches):
            output = self.model(
                input_ids=tokens[row][None, None],
                position_ids=torch.full((1, 1), length, device=tokens.device),
                use_cache=True,
                logits_to_keep=1,
                **{self.argument: cache},
            )
            found.append(output.logits[:, -1])
            self.caches[row] = (cache, length + 1)
        return torch.cat(found)

    def remove(self, row: int) -> None:
        """Lets a row go; the last takes its number."""
        self.caches[row] = self.caches[-1]
        self.caches.pop()

    def clear(self) -> None:
        """Lets all rows go."""
        self.caches.clear()


class Prompt:
    """A prompt that is read in chunks, so that the rows that are being written wait no longer than one."""

    def __init__(self, model: PreTrainedModel, tokens: tuple[int, ...], *, chunk: int, all_logits: bool) -> None:
        self.model, self.tokens, self.chunk, self.all_logits = model, tokens, chunk, all_logits
        self.cache = DynamicCache(config=model.config)
        self.argument = cache_argument(model)
        self.num_read = 0

    @property
    def is_read(self) -> bool:
        """Whether the whole prompt has been read."""
        return self.num_read == len(self.tokens)

    def read_on(self) -> Tensor:
        """Logits [1, V] after one more chunk; [chunk, V] of each of its tokens where all are wanted."""
        part = self.tokens[self.num_read : self.num_read + self.chunk]
        device = self.model.device
        output = self.model(
            input_ids=torch.tensor([part], device=device),
            position_ids=torch.arange(self.num_read, self.num_read + len(part), device=device)[None],
            use_cache=True,
            logits_to_keep=0 if self.all_logits else 1,
            **{self.argument: self.cache},
        )
        self.num_read += len(part)
        return output.logits[0]
