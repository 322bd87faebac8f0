"""Rows of tokens laid out for the trunk: no padding, and what several rows begin with only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LITTLE = 2048  # places to look at, of one head, that cost less than a product of their own


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

    def to(self, device: torch.device) -> Grid:
        """The same on another device."""
        return Grid(self.num_rows, self.width, self.slots.to(device), self.places.to(device), self.lengths.to(device))

    def flat(self, padded: Tensor) -> Tensor:
        """[R, W, ...] as [N, ...]."""
        joined = padded.reshape(self.num_rows * self.width, *padded.shape[2:])
        return joined if self.is_full else joined.index_select(0, self.places)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of similar length, whose attention is one product: what is padded in it is little.

    `mask` [R, 1, W, L + W] tells which of the L places of its beginning and of its own W places a token may look at.
    """

    grid: Grid
    beginning_of: Tensor  # [R]
    mask: Tensor

    def to(self, device: torch.device) -> Bucket:
        """The same on another device."""
        return Bucket(self.grid.to(device), self.beginning_of.to(device), self.mask.to(device))


@dataclass(frozen=True, slots=True)
class Layout:
    """P different beginnings, then what is left of each of B rows, bucket by bucket: N tokens, M of them asked for.

    Rows with the same beginning share it, so it is computed once. The last `num_idle` tokens belong to no row, and no
    token looks at them: they round N up, so that products meet few different numbers of rows.
    """

    tokens: Tensor  # [N]
    positions: Tensor  # [N]
    counts: Tensor  # [N], how many rows a token belongs to
    beginnings: Grid
    causal: Tensor  # [1, 1, L, L]
    rests: tuple[Bucket, ...]
    wanted: Tensor  # [M] numbers of flat tokens, in the order of the rows; a shared one may come several times
    num_idle: int
    texts: tuple[tuple[int, ...], ...]  # the beginnings
    rows: tuple[tuple[int, ...], ...]  # the rests, each with its beginning, bucket by bucket

    @classmethod
    def of(cls, tokens: Tensor, where: Tensor, *, multiple: int = 1) -> Layout:
        """For rows [B, T] whose states are asked for where `where` [B, T] is True; N is a multiple of `multiple`.

        A row begins with its tokens up to the first that is asked for, and ends with the last that is.
        """
        device = tokens.device
        rows, asked = tokens.cpu(), where.cpu()
        columns = torch.arange(rows.shape[1])
        has_any = asked.any(dim=1)
        first = torch.where(has_any, asked.int().argmax(dim=1), -1)
        ends = (torch.where(has_any, (asked * columns).amax(dim=1), -1) + 1).tolist()
        begins = (first + 1).tolist()
        texts = rows.tolist()
        numbers: dict[tuple[int, ...], int] = {}
        beginning_of = [
            numbers.setdefault(tuple(text[:begin]), len(numbers)) for text, begin in zip(texts, begins, strict=True)
        ]
        beginnings, of = Grid.of(_lengths(list(numbers))), torch.tensor(beginning_of, dtype=torch.long)
        rests = [text[begin:end] for text, begin, end in zip(texts, begins, ends, strict=True)]
        buckets = buckets_of([len(rest) for rest in rests], beginnings.width)
        in_order = [row for bucket in buckets for row in bucket]
        lengths = _lengths([rests[row] for row in in_order])
        num_beginning = int(beginnings.lengths.sum())
        # where each row's rest begins among the flat tokens, and the place of each flat token in its row's rest
        offsets = torch.zeros(len(rests), dtype=torch.long)
        offsets[in_order] = num_beginning + lengths.cumsum(0) - lengths
        row_of_rest = torch.repeat_interleave(torch.tensor(in_order, dtype=torch.long), lengths)
        starts = beginnings.lengths[of]
        within = torch.arange(num_beginning, num_beginning + len(row_of_rest)) - offsets[row_of_rest]
        positions = torch.cat([beginnings.places % max(beginnings.width, 1), within + starts[row_of_rest]])
        uses = torch.bincount(of, minlength=len(numbers))
        num_idle = -(num_beginning + len(row_of_rest)) % multiple
        idle = torch.zeros(num_idle, dtype=torch.long)
        counts = [torch.repeat_interleave(uses, beginnings.lengths), torch.ones_like(row_of_rest), idle]
        flat = [token for part in (*numbers, *(rests[row] for row in in_order)) for token in part]
        row, column = asked.nonzero(as_tuple=True)
        in_beginning = (beginnings.lengths.cumsum(0) - beginnings.lengths)[of[row]] + column
        layout = cls(
            tokens=torch.cat([torch.tensor(flat, dtype=torch.long), idle]),
            positions=torch.cat([positions, idle]),
            counts=torch.cat(counts),
            beginnings=beginnings,
            causal=torch.ones(beginnings.width, beginnings.width, dtype=torch.bool).tril()[None, None],
            rests=tuple(_bucket([rests[row] for row in bucket], of[bucket], starts[bucket]) for bucket in buckets),
            wanted=torch.where(column < starts[row], in_beginning, offsets[row] + column - starts[row]),
            num_idle=num_idle,
            texts=tuple(numbers),
            rows=tuple(tuple(texts[row][: ends[row]]) for row in in_order),
        )
        return layout if device.type == "cpu" else layout.to(device)

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""
        return Layout(
            self.tokens.to(device),
            self.positions.to(device),
            self.counts.to(device),
            self.beginnings.to(device),
            self.causal.to(device),
            tuple(bucket.to(device) for bucket in self.rests),
            self.wanted.to(device),
            self.num_idle,
            self.texts,
            self.rows,
        )


def buckets_of(lengths: Sequence[int], beginning: int) -> list[list[int]]:
    """Numbers of the rows with any tokens, longest first, in buckets whose attention is done at once.

    A row joins a bucket while padding it to the longest is at most a quarter of what is computed for it, or so little
    that another product would cost more. A row of W tokens looks at W * (`beginning` + W) places.

    >>> buckets_of([200, 0, 20, 190, 180], 100)
    [[0, 3, 4], [2]]
    """
    buckets: list[list[int]] = []
    area = 0
    for row in sorted((row for row in range(len(lengths)) if lengths[row]), key=lambda row: -lengths[row]):
        own = lengths[row] * (beginning + lengths[row])
        if not buckets or (3 * area > 4 * own and area - own > LITTLE):
            buckets.append([])
            area = own
        buckets[-1].append(row)
    return buckets


def _bucket(rests: Sequence[Sequence[int]], beginning_of: Tensor, starts: Tensor) -> Bucket:
    grid = Grid.of(_lengths(rests))
    return Bucket(grid, beginning_of, _mask(starts, int(starts.max()), grid.width))


def _lengths(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([len(row) for row in rows], dtype=torch.long)


def _mask(starts: Tensor, beginning_width: int, rest_width: int) -> Tensor:
    """Of row b: all of its beginning's `starts[b]` tokens, and its own up to itself [B, 1, W, L + W]."""
    own = torch.ones(rest_width, rest_width, dtype=torch.bool).tril().expand(len(starts), -1, -1)
    begun = (torch.arange(beginning_width) < starts[:, None])[:, None].expand(-1, rest_width, -1)
    return torch.cat([begun, own], dim=2)[:, None]
