"""Rows of tokens laid out for the trunk: no padding, and what several rows begin with only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grid:
    """Where N flat tokens stand in a padded grid [R, W] of rows, for attention, which is done row by row.

    `slots` [R * W] is the flat token of each place (0 where there is none), `places` [N] the place of each flat token.
    Where no place is empty the two layouts are one and nothing has to be moved.
    """

    num_rows: int
    width: int
    slots: Tensor
    places: Tensor
    lengths: Tensor  # [R]

    @classmethod
    def of(cls, lengths: Tensor) -> Grid:
        """Rows of these lengths [R], one after another."""
        width = int(lengths.max()) if len(lengths) else 0
        columns = torch.arange(width, device=lengths.device)
        is_there = columns < lengths[:, None]
        slots = ((lengths.cumsum(0) - lengths)[:, None] + columns).masked_fill(~is_there, 0)
        return cls(len(lengths), width, slots.flatten(), is_there.flatten().nonzero()[:, 0], lengths)

    @property
    def is_full(self) -> bool:
        return len(self.places) == self.num_rows * self.width

    def padded(self, flat: Tensor) -> Tensor:
        """[N, ...] as [R, W, ...]; what stands at an empty place is some other token's and must not be looked at."""
        spread = flat if self.is_full else flat.index_select(0, self.slots)
        return spread.reshape(self.num_rows, self.width, *flat.shape[1:])

    def flat(self, padded: Tensor) -> Tensor:
        """[R, W, ...] as [N, ...]."""
        joined = padded.reshape(self.num_rows * self.width, *padded.shape[2:])
        return joined if self.is_full else joined.index_select(0, self.places)


@dataclass(frozen=True, slots=True)
class Layout:
    """P different beginnings, then what is left of each of B rows: N tokens in all, of which M are asked for.

    Rows with the same beginning share it, so it is computed once. `mask` [B, 1, W, L + W] tells which of the L places
    of its beginning and of its own W places a token may look at.
    """

    tokens: Tensor  # [N]
    positions: Tensor  # [N]
    counts: Tensor  # [N], how many rows a token belongs to
    beginnings: Grid
    rests: Grid
    beginning_of: Tensor  # [B]
    mask: Tensor
    causal: Tensor  # [1, 1, L, L]
    wanted: Tensor  # [M] numbers of flat tokens, in the order of the rows; a shared one may come several times

    @classmethod
    def of(cls, tokens: Tensor, where: Tensor) -> Layout:
        """For rows [B, T] whose states are asked for where `where` [B, T] is True.

        A row begins with its tokens up to the first that is asked for, and ends with the last that is.
        """
        device = tokens.device
        rows, asked = tokens.cpu(), where.cpu()
        columns = torch.arange(rows.shape[1])
        has_any = asked.any(dim=1)
        first = torch.where(has_any, asked.int().argmax(dim=1), -1)
        ends = torch.where(has_any, (asked * columns).amax(dim=1), -1) + 1
        begins = (first + 1).tolist()
        texts = rows.tolist()
        numbers: dict[tuple[int, ...], int] = {}
        beginning_of = [
            numbers.setdefault(tuple(text[:begin]), len(numbers)) for text, begin in zip(texts, begins, strict=True)
        ]
        shared = list(numbers)
        rests = [text[begin:end] for text, begin, end in zip(texts, begins, ends.tolist(), strict=True)]
        beginning_grid, rest_grid = _grid(shared), _grid(rests)
        of = torch.tensor(beginning_of, dtype=torch.long)
        starts = beginning_grid.lengths[of]
        num_beginning = int(beginning_grid.lengths.sum())
        row_of_rest = torch.repeat_interleave(torch.arange(len(rests)), rest_grid.lengths)
        positions = torch.cat(
            [
                beginning_grid.places % max(beginning_grid.width, 1),
                rest_grid.places % max(rest_grid.width, 1) + starts[row_of_rest],
            ]
        )
        uses = torch.bincount(of, minlength=len(shared))
        counts = torch.cat(
            [torch.repeat_interleave(uses, beginning_grid.lengths), torch.ones(len(row_of_rest), dtype=torch.long)]
        )
        flat = [token for part in (*shared, *rests) for token in part]
        row, column = asked.nonzero(as_tuple=True)
        in_beginning = (beginning_grid.lengths.cumsum(0) - beginning_grid.lengths)[of[row]] + column
        in_rest = num_beginning + (rest_grid.lengths.cumsum(0) - rest_grid.lengths)[row] + column - starts[row]
        layout = cls(
            tokens=torch.tensor(flat, dtype=torch.long),
            positions=positions,
            counts=counts,
            beginnings=beginning_grid,
            rests=rest_grid,
            beginning_of=of,
            mask=_mask(starts, beginning_grid.width, rest_grid.width),
            causal=torch.ones(beginning_grid.width, beginning_grid.width, dtype=torch.bool).tril()[None, None],
            wanted=torch.where(column < starts[row], in_beginning, in_rest),
        )
        return layout if device.type == "cpu" else layout.to(device)

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""

        def moved(grid: Grid) -> Grid:
            return Grid(
                grid.num_rows, grid.width, grid.slots.to(device), grid.places.to(device), grid.lengths.to(device)
            )

        return Layout(
            self.tokens.to(device),
            self.positions.to(device),
            self.counts.to(device),
            moved(self.beginnings),
            moved(self.rests),
            self.beginning_of.to(device),
            self.mask.to(device),
            self.causal.to(device),
            self.wanted.to(device),
        )


def _grid(rows: Sequence[Sequence[int]]) -> Grid:
    return Grid.of(torch.tensor([len(row) for row in rows], dtype=torch.long))


def _mask(starts: Tensor, beginning_width: int, rest_width: int) -> Tensor:
    """Of row b: all of its beginning's `starts[b]` tokens, and its own up to itself [B, 1, W, L + W]."""
    own = torch.ones(rest_width, rest_width, dtype=torch.bool).tril().expand(len(starts), -1, -1)
    begun = (torch.arange(beginning_width) < starts[:, None])[:, None].expand(-1, rest_width, -1)
    return torch.cat([begun, own], dim=2)[:, None]
