"""Where the writing of rows puts down what it computes of each token, for who wants to go on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Fields(NamedTuple):
    """What is kept of L layers: C places, one for each token."""

    states: Tensor  # [L + 1, C, d], before each layer and after the last
    taken: Tensor  # [L, C, H * D], what each head took
    shares: Tensor  # [L, C, H], how much of that each head took from the token itself


class Page(NamedTuple):
    """The places of some tokens: fields without the dimension of layers."""

    places: slice
    states: Sequence[Tensor]
    taken: Sequence[Tensor]
    shares: Sequence[Tensor]


@dataclass(eq=False)
class Notes:
    """One lane's part of a memory: the places from `start` to `end`, of which `at` is the next to be written."""

    fields: Fields
    start: int
    end: int

    def __post_init__(self) -> None:
        self.at = self.start

    def turn(self, num_tokens: int) -> Page | None:
        """Places for so many tokens; None where there is no room."""
        if self.at + num_tokens > self.end:
            return None
        begin, self.at = self.at, self.at + num_tokens
        return Page(slice(begin, self.at), *(field[:, begin : self.at].unbind() for field in self.fields))
