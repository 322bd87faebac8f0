"""Rows that are longer than a model reads: refused with their number, left out or cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from melete.batch import MaskedRow
from melete.datasets.encode import longest_row
from melete.datasets.formats import Row
from melete.errors import DataError

TooLong = Literal["refuse", "drop", "truncate"]
_Kind = TypeVar("_Kind", bound=Row)


def context_length(config: Any) -> int | None:
    """Tokens that a model reads at most, by its configuration; None where it does not say."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def limit_of(max_tokens: int, config: Any) -> int | None:
    """The longest row that is wanted: `max_tokens`, or what the model reads where that is 0 or less."""
    return min((limit for limit in (max_tokens or None, context_length(config)) if limit), default=None)


def that_fit(lengths: Sequence[int], limit: int | None, too_long: TooLong, place: str) -> list[int]:
    """The numbers of the rows that are no longer than `limit`; all of them where long ones are to be cut.

    Raises `DataError` with how many are too long, if they are to be refused or nothing else is left.
    """
    fitting = [number for number, length in enumerate(lengths) if limit is None or length <= limit]
    num_long = len(lengths) - len(fitting)
    if not num_long or too_long == "truncate":
        return list(range(len(lengths)))
    if too_long == "refuse" or not fitting:
        what = f"{num_long} of {len(lengths)} rows are longer than {limit} tokens; the longest has {max(lengths)}"
        remedy = 'too_long = "drop" leaves them out, "truncate" cuts them where a stage can'
        raise DataError(what, place=place, remedy=remedy if fitting else "shorter rows, or a larger max_tokens")
    return fitting


def fitting(
    rows: Sequence[_Kind],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    too_long: Literal["refuse", "drop"],
    place: str,
) -> list[_Kind]:
    """The pairs, rankings or labelled rows of which no completion is longer, with its prompt, than `limit`."""
    kept = that_fit([longest_row(tokenizer, row) for row in rows], limit, too_long, place)
    return [rows[number] for number in kept]


def fitting_rows(rows: Sequence[MaskedRow], limit: int | None, too_long: TooLong, place: str) -> list[MaskedRow]:
    """The rows that are learnt from, none longer than `limit`.

    One that is cut loses its end: so the end of its last turn is not learnt. A row of which nothing is left to learn is
    left out. Raises `DataError` as `that_fit`.

    >>> fitting_rows([([7, 8, 5, 2], [False, False, True, True])], 3, "truncate", "")
    [([7, 8, 5], [False, False, True])]
    """
    kept = that_fit([len(tokens) for tokens, _ in rows], limit, too_long, place)
    cut = [(rows[number][0][:limit], rows[number][1][:limit]) for number in kept]
    found = [(tokens, mask) for tokens, mask in cut if any(mask[1:])]
    if not found:
        what = f"nothing of the answers lies within the first {limit} tokens of any row"
        raise DataError(what, place=place, remedy="a larger max_tokens")
    return found
