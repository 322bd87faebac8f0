"""Rows of tokens laid out for the trunk: no padding, and what several rows begin with only once."""

from __future__ import annotations

from collections import Counter
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

    @property
    def is_there(self) -> Tensor:
        """[R, W]: whether there is a token at a place."""
        return torch.arange(self.width, device=self.lengths.device) < self.lengths[:, None]

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

    The beginnings of its rows have up to `width` tokens: none, if its rows share nothing with others.
    """

    grid: Grid
    beginning_of: Tensor  # [R]
    starts: Tensor  # [R] lengths of the beginnings
    width: int

    def mask(self) -> Tensor | None:
        """[R, 1, W, L + W]: which of the L places of its beginning and of its own W places a token may look at.

        None if each looks at all up to itself. Of row b those are its beginning's `starts[b]` tokens, and its own.
        """
        if not self.width:
            return None
        device, size = self.starts.device, self.grid.width
        own = torch.ones(size, size, dtype=torch.bool, device=device).tril().expand(len(self.starts), -1, -1)
        begun = torch.arange(self.width, device=device) < self.starts[:, None]
        return torch.cat([begun[:, None].expand(-1, size, -1), own], dim=2)[:, None]

    def to(self, device: torch.device) -> Bucket:
        """The same on another device."""
        return Bucket(self.grid.to(device), self.beginning_of.to(device), self.starts.to(device), self.width)


@dataclass(frozen=True, slots=True)
class Layout:
    """P different beginnings, then what is left of each of B rows, bucket by bucket: N tokens, M of them asked for.

    Rows with the same beginning share it, so it is computed once; a row that is alone with its own may be left whole,
    with a beginning of no tokens. The last `num_idle` tokens belong to no row, and no token looks at them: they round N
    up, so that products meet few different numbers of rows.
    """

    tokens: Tensor  # [N]
    positions: Tensor  # [N]
    counts: Tensor  # [N], how many rows a token belongs to
    beginnings: Grid
    rests: tuple[Bucket, ...]
    wanted: Tensor  # [M] numbers of flat tokens, in the order of the rows; a shared one may come several times
    num_idle: int
    texts: tuple[tuple[int, ...], ...]  # the beginnings
    rows: tuple[tuple[int, ...], ...]  # the rests, each with its beginning, bucket by bucket

    @classmethod
    def of(cls, tokens: Tensor, where: Tensor, *, multiple: int = 1, parts_all: bool = False) -> Layout:
        """For rows [B, T] whose states are asked for where `where` [B, T] is True; N is a multiple of `multiple`.

        A row begins with its tokens up to the first that is asked for, and ends with the last that is. With `parts_all`
        it is parted there even if no other row begins so.
        """
        device = tokens.device
        rows, asked = tokens.cpu(), where.cpu()
        columns = torch.arange(rows.shape[1])
        has_any = asked.any(dim=1)
        first = torch.where(has_any, asked.int().argmax(dim=1), -1)
        ends = (torch.where(has_any, (asked * columns).amax(dim=1), -1) + 1).tolist()
        texts = rows.tolist()
        begun = [tuple(text[:begin]) for text, begin in zip(texts, (first + 1).tolist(), strict=True)]
        num_begun = Counter(begun)
        begun = [text if parts_all or num_begun[text] > 1 else () for text in begun]
        begins = [len(text) for text in begun]
        numbers: dict[tuple[int, ...], int] = {}
        beginning_of = [numbers.setdefault(text, len(numbers)) for text in begun]
        beginnings, of = Grid.of(_lengths(list(numbers))), torch.tensor(beginning_of, dtype=torch.long)
        rests = [text[begin:end] for text, begin, end in zip(texts, begins, ends, strict=True)]
        shared = [len(rest) if begin else 0 for rest, begin in zip(rests, begins, strict=True)]
        whole = [0 if begin else len(rest) for rest, begin in zip(rests, begins, strict=True)]
        buckets = [*buckets_of(shared, beginnings.width), *buckets_of(whole, 0)]
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
            tuple(bucket.to(device) for bucket in self.rests),
            self.wanted.to(device),
            self.num_idle,
            self.texts,
            self.rows,
        )


@dataclass(frozen=True, slots=True)
class Sequences:
    """The beginnings and rests of a layout, its first M tokens, as S sequences for a kernel that wants no padding.

    Each sees so many tokens, the last of which are its own; a token looks at those up to itself.
    """

    ends: Tensor  # [S + 1] int32, from 0: where each ends among the M tokens
    seen_ends: Tensor  # [S + 1] int32, from 0: where what each sees ends in `seen`
    seen: Tensor | None  # numbers of tokens, sequence by sequence; None if each sees its own alone
    num_tokens: int
    longest: int
    most_seen: int

    @classmethod
    def of(cls, layout: Layout) -> Sequences:
        """On the device of the layout."""
        beginnings = layout.beginnings.lengths.cpu()
        own = torch.cat([beginnings, *(bucket.grid.lengths.cpu() for bucket in layout.rests)])
        # the beginning of each sequence, of a length and with a first token: none for the beginnings themselves
        of = torch.cat([beginnings.new_empty(0), *(bucket.beginning_of.cpu() for bucket in layout.rests)])
        nothing = torch.zeros_like(beginnings)
        begun = torch.cat([nothing, beginnings[of]])
        first_begun = torch.cat([nothing, (beginnings.cumsum(0) - beginnings)[of]])
        lengths = torch.stack([begun, own], dim=1).flatten()
        firsts = torch.stack([first_begun, own.cumsum(0) - own], dim=1).flatten()
        within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        seen = torch.repeat_interleave(firsts, lengths) + within if int(begun.sum()) else None
        is_there = own > 0
        device = layout.tokens.device
        return cls(
            ends=_ends(own[is_there]).to(device),
            seen_ends=_ends((begun + own)[is_there]).to(device),
            seen=None if seen is None else seen.to(device),
            num_tokens=int(own.sum()),
            longest=int(own.max()),
            most_seen=int((begun + own).max()),
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
    return Bucket(grid, beginning_of, starts, int(starts.max()))


def _ends(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()


def _lengths(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([len(row) for row in rows], dtype=torch.long)
