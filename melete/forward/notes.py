"""Where the writing of rows puts down what it computes of each token, for who wants to go on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

_LEAST_SHARE = 1e-30  # of its own key that a token still sees well enough for the sum to be read off it


class Fields(NamedTuple):
    """What is kept of one layer: C places, one for each token."""

    state: Tensor  # [C, d], before the layer
    heads: Tensor  # [C, H + 2 K, D], rotated queries and keys, and values, as the lean layer makes them
    taken: Tensor  # [C, H * D], what each head took
    sums: Tensor  # [C, H], log of the sum of each head's exponentials


@dataclass(eq=False)
class Notes:
    """One lane's part of the memory: the places from `start` to `end`, of which the next to be written is `at`."""

    layers: list[Fields]
    last: Tensor  # [C, d], after the last layer
    at: int
    end: int

    def turn(self, num_tokens: int) -> Page | None:
        """Places for so many tokens; None where there is no room."""
        if self.at + num_tokens > self.end:
            return None
        begin, self.at = self.at, self.at + num_tokens
        return Page(self, slice(begin, self.at))


class Page(NamedTuple):
    """The places of some tokens."""

    notes: Notes
    places: slice

    def keep(self, layer: int, state: Tensor, heads: Sequence[Tensor], taken: Tensor, sums: Tensor) -> None:
        """Of R tokens: `heads` are queries, keys and values [R, ., D]."""
        fields, places = self.notes.layers[layer], self.places
        fields.state[places] = state
        at = 0
        for part in heads:
            fields.heads[places, at : at + part.shape[1]] = part
            at += part.shape[1]
        fields.taken[places] = taken.flatten(1)
        fields.sums[places] = sums.flatten(1)

    def keep_last(self, state: Tensor) -> None:
        """The state [R, d] after the last layer."""
        self.notes.last[self.places] = state


def log_sums(scores: Tensor, shares: Tensor) -> Tensor:
    """log sum exp of scores [..., T] whose softmax `shares` is known; a token's own key comes last."""
    own = shares[..., -1]
    if float(own.min()) > _LEAST_SHARE:
        return scores[..., -1] - own.log()
    return scores.amax(dim=-1) - shares.amax(dim=-1).log()
