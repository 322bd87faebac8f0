"""Which rows go through a model together: parts that hold no more than so many tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def beginnings(tokens: Tensor, loss_mask: Tensor) -> list[tuple[int, ...]]:
    """What each row [T] says before its first token under the mask: its prompt.

    >>> beginnings(torch.tensor([[7, 8, 5], [7, 6, 0]]), torch.tensor([[False, False, True], [False, True, False]]))
    [(7, 8), (7,)]
    """
    first = torch.where(loss_mask.any(dim=1), loss_mask.int().argmax(dim=1), 0)
    ends = [int(end) for end in first.unbind()]
    return [tuple(int(token) for token in row[:end]) for row, end in zip(tokens.cpu().numpy(), ends, strict=True)]


def row_parts(
    lengths: Tensor,
    max_tokens: int,
    *,
    together: Iterable[Sequence[int]] | None = None,
    beginnings: Sequence[tuple[int, ...]] | None = None,
) -> list[list[int]]:
    """Numbers of the rows, sorted by length, in parts of rows * longest row <= max_tokens.

    `together` lists rows that share a loss and stay in one part; rows that it does not name are left out. What is too
    large for `max_tokens` makes a part of its own. With `beginnings`, rows that begin alike stand together instead, and
    a part's tokens are counted without padding and with each beginning once.

    >>> row_parts(torch.tensor([5, 2, 3]), 6), row_parts(torch.tensor([5, 2, 3]), 10, together=[(0, 2)])
    ([[1, 2], [0]], [[0, 2]])
    >>> row_parts(torch.tensor([5, 4, 5]), 7, beginnings=[(1, 2, 3), (4, 5, 6), (1, 2, 3)])
    [[0, 2], [1]]
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    length_of = [int(length) for length in lengths.unbind()]
    if beginnings is not None:
        return _shared_parts(length_of, max_tokens, beginnings)
    alone = ((row,) for row in range(len(length_of)))
    units = [(max(length_of[row] for row in rows), rows) for rows in (alone if together is None else together)]
    parts: list[list[int]] = []
    for longest, rows in sorted(units, key=lambda unit: unit[0]):
        # ascending, so this unit's longest row is that of the part it joins
        if parts and (len(parts[-1]) + len(rows)) * longest <= max_tokens:
            parts[-1].extend(rows)
        else:
            parts.append(list(rows))
    return parts


def _shared_parts(lengths: Sequence[int], max_tokens: int, beginnings: Sequence[tuple[int, ...]]) -> list[list[int]]:
    numbers: dict[tuple[int, ...], int] = {}
    number_of = [numbers.setdefault(beginning, len(numbers)) for beginning in beginnings]
    parts: list[list[int]] = []
    room, held = 0, -1  # tokens that still fit, and the last beginning that the part has
    for row in sorted(range(len(lengths)), key=lambda row: (number_of[row], lengths[row])):
        rest = lengths[row] - len(beginnings[row])
        cost = rest if number_of[row] == held else lengths[row]
        if not parts or cost > room:
            parts.append([])
            room, cost = max_tokens, lengths[row]
        parts[-1].append(row)
        room, held = room - cost, number_of[row]
    return parts
