"""Several rows in one sequence, none of which sees another: what padding would cost is learnt from instead.

Positions begin anew with each row, and a mask lets a token see its own row up to itself. So a row's numbers are those
that it has alone, up to the order of sums, and whatever stands beside it leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from melete.errors import ModelError
from melete.forward.architectures import has_full_attention

Run = Callable[..., Tensor]  # (input_ids, attention_mask, position_ids) -> what a model says of each token [S, L, ...]
PROBE_LENGTHS = (4, 7, 3)  # the first and the last share a sequence


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """The rows, longest first, each put into the first sequence that has room for it (first-fit decreasing).

    >>> first_fit([2, 5, 3, 1], 5)
    [[1], [2, 0], [3]]
    """
    sequences: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        number = next((number for number, left in enumerate(room) if left >= lengths[row]), None)
        if number is None:
            number = len(sequences)
            sequences.append([])
            room.append(max(capacity, lengths[row]))
        sequences[number].append(row)
        room[number] -= lengths[row]
    return sequences


def packed(run: Run, tokens: Tensor, where: Tensor, dtype: torch.dtype) -> Tensor:
    """What `run` says of the tokens of right-padded rows [B, T] where `where` [B, T] is True, row by row [N, ...].

    A sequence is as long as the longest row, so that attention costs no more than without packing. Tokens behind the
    last one that is asked for are left out: nothing that is asked for sees them.
    """
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    lengths = [int(length) for length in torch.where(where, places, 0).amax(dim=1).unbind()]
    asked = [row for row, length in enumerate(lengths) if length]
    longest = max(lengths, default=0)
    sequences = [[asked[one] for one in rows] for rows in first_fit([lengths[row] for row in asked], longest)]
    shape = (max(len(sequences), 1), max(longest, 1))  # a batch that asks for nothing still goes through the model
    ids, positions = tokens.new_zeros(shape), tokens.new_zeros(shape)
    rows_at = tokens.new_full(shape, -1)
    index = torch.zeros_like(tokens)
    for number, rows in enumerate(sequences):
        begin = 0
        for row in rows:
            count = torch.arange(lengths[row], device=tokens.device)
            part = slice(begin, begin + lengths[row])
            ids[number, part], positions[number, part], rows_at[number, part] = tokens[row, : lengths[row]], count, row
            index[row, : lengths[row]] = number * shape[1] + begin + count
            begin += lengths[row]
    mask = _mask(rows_at, dtype)
    said = run(input_ids=ids, attention_mask=mask, position_ids=positions)
    return said.flatten(0, 1).index_select(0, index[where])


def _mask(rows_at: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a token may look and -inf elsewhere [S, 1, L, L]: at its own row, up to itself."""
    same = rows_at[:, :, None] == rows_at[:, None, :]
    seen = same & torch.ones_like(same[0]).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None]


@torch.no_grad()
def refuse_unpackable(model: PreTrainedModel) -> None:
    """Raises `ModelError` for a model whose rows would not be the same packed as alone.

    Windows and recurrent states are told from the configuration; for the rest, three short rows are tried both ways.
    """
    name, remedy = type(model).__name__, "packing = false"
    if not has_full_attention(model.config):
        what = f"{name} does not see all tokens before a token (a window or a recurrent state), so it cannot be packed"
        raise ModelError(what, place="packing", remedy=remedy)
    trunk: Any = model.base_model
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config(decoder=True).vocab_size
    tokens = torch.randint(size, (len(PROBE_LENGTHS), max(PROBE_LENGTHS)), generator=generator).to(model.device)
    ends = torch.tensor(PROBE_LENGTHS, device=tokens.device)[:, None]
    where = torch.arange(tokens.shape[1], device=tokens.device) < ends
    alone = trunk(input_ids=tokens, use_cache=False).last_hidden_state[where].float()
    try:
        together = packed(states_of(trunk), tokens, where, model.dtype).float()
    except Exception as error:  # a model that takes no mask of this form, or no positions
        raise ModelError(f"{name} cannot be packed: {error}", place="packing", remedy=remedy) from error
    allowed = 1e-3 if model.dtype.itemsize >= 4 else 0.1
    if not bool(((together - alone).abs().max() <= allowed * alone.abs().max()).item()):
        what = f"{name} cannot be packed: with its kind of attention, rows in one sequence change each other"
        raise ModelError(what, place="packing", remedy=remedy)


def states_of(trunk: Any) -> Run:
    """The trunk's last hidden states."""
    return lambda **inputs: trunk(**inputs, use_cache=False).last_hidden_state
