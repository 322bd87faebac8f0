"""What rows have written: the keys and values of their tokens, in memory without gaps between rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

LEAST_ROOM = 8


def room_behind(num_tokens: int) -> int:
    """How many places are made behind so many tokens: those that are free are read in vain, to make more is a copy.

    >>> room_behind(0), room_behind(40), room_behind(200), room_behind(1000)
    (8, 16, 32, 80)
    """
    return max(LEAST_ROOM, 8 * round(math.sqrt(6 * num_tokens) / 8))


class Written:
    """Of R rows, for each layer: keys [R, K, C, D] and values [R, K, C, E], or one tensor that holds both.

    The first `num` of C places are used. Those that are still free are read with them, for to pass them over would be a
    gap behind each row, and memory with gaps is read three times as slowly (LOG.md). They hold zeros.
    """

    def __init__(self) -> None:
        self.layers: list[list[Tensor]] = []
        self.num = 0
        self._buffers: list[list[Tensor]] = []  # in which they lie
        self._spare: Tensor | None = None  # of what was moved last: memory that is new has to be cleared by the system

    def put(self, number: int, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Writes a token of each row [R, K, D] to the next place of a layer; gives all that is there."""
        if number == len(self.layers):
            self._add([part[:, :, None][:, :, :0] for part in parts])
        layer = self.layers[number]
        for whole, part in zip(layer, parts, strict=True):
            whole.select(2, self.num).copy_(part)
        return layer

    def advance(self) -> None:
        """Goes on to the next place; there is one."""
        self.num += 1
        if self.num == self.layers[0][0].shape[2]:
            self._move(None, room_behind(self.num))

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows only."""
        self._move(rows, 0)

    def begin_with(self, beginnings: Sequence[Sequence[Tensor]], of_rows: Tensor) -> None:
        """Gives each row a copy of one of each layer's beginnings [P, K, L, D], as if it had written that."""
        self.num = beginnings[0][0].shape[2]
        for parts in beginnings:
            self._add([part.index_select(0, of_rows) for part in parts])

    def _add(self, parts: Sequence[Tensor]) -> None:
        """A layer of what is there [R, K, T, D], with room behind it."""
        room = room_behind(parts[0].shape[2])
        self.layers.append([])
        self._buffers.append([])
        for part in parts:
            whole = self._memory(part, part.shape[0], part.shape[2] + room)
            _fill(whole, part)
            self.layers[-1].append(whole)
            self._buffers[-1].append(cast(Tensor, self._spare))
            self._spare = None

    def _move(self, rows: Tensor | None, room: int) -> None:
        """Moves all that is there, or these rows of it, to where there is so much more room."""
        for layer, buffers in zip(self.layers, self._buffers, strict=True):
            for number, part in enumerate(layer):
                num_rows = len(part) if rows is None else len(rows)
                whole = self._memory(part, num_rows, part.shape[2] + room)
                if rows is None:
                    _fill(whole, part)
                else:
                    torch.index_select(part, 0, rows, out=whole)  # several times as fast as indexing
                layer[number] = whole
                buffers[number], self._spare = cast(Tensor, self._spare), buffers[number]

    def _memory(self, like: Tensor, num_rows: int, places: int) -> Tensor:
        """Room [R, K, C, D] in the spare memory, of which there is enough afterwards."""
        shape = (num_rows, like.shape[1], places, like.shape[3])
        size = math.prod(shape)
        if self._spare is None or self._spare.numel() < size:
            slack = size if like.device.type == "cpu" else 0  # what is not written to is not there
            self._spare = like.new_empty(size + slack)
        return self._spare[:size].view(shape)


def _fill(whole: Tensor, part: Tensor) -> None:
    """Puts `part` [R, K, T, D] at the beginning of `whole` [R, K, C, D], and zeros behind it."""
    whole[:, :, : part.shape[2]] = part
    whole[:, :, part.shape[2] :] = 0
