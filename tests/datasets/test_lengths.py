"""Rows that are too long: refused with their number, left out or cut, never passed on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny_models import llama, tokenizer

from melete.datasets.encode import longest_row, pair_rows, step_row
from melete.datasets.lengths import context_length, fitting, fitting_rows, limit_of, that_fit
from melete.errors import DataError
from melete.types import Demonstration, LabelledCompletion, LabelledSteps, Message, PreferencePair

ASKED = (Message("user", "what is one"),)
SHORT, LONG = ([7, 8, 5, 2], [False, False, True, True]), ([7, 8, 5, 5, 5, 2], [False, False, True, True, True, True])


def test_the_context_is_read_from_the_configuration() -> None:
    assert context_length(llama().config) == 256
    assert context_length(SimpleNamespace()) is None and context_length(None) is None
    assert limit_of(0, llama().config) == 256 and limit_of(100, llama().config) == 100
    assert limit_of(1000, llama().config) == 256 and limit_of(0, None) is None and limit_of(9, None) == 9


def test_rows_that_are_too_long_are_refused_with_how_many() -> None:
    with pytest.raises(DataError, match="1 of 2 rows are longer than 5 tokens; the longest has 6") as refusal:
        fitting_rows([SHORT, LONG], 5, "refuse", "a.jsonl")
    assert refusal.value.place == "a.jsonl" and "drop" in refusal.value.remedy
    assert fitting_rows([SHORT, LONG], 6, "refuse", "") == [SHORT, LONG]
    assert fitting_rows([SHORT, LONG], None, "refuse", "") == [SHORT, LONG]


def test_long_rows_are_left_out_or_lose_their_end() -> None:
    assert fitting_rows([SHORT, LONG], 5, "drop", "") == [SHORT]
    assert fitting_rows([SHORT, LONG], 5, "truncate", "") == [SHORT, (LONG[0][:5], LONG[1][:5])]
    assert fitting_rows([SHORT, ([7] * 9, [False] * 8 + [True])], 5, "truncate", "") == [SHORT]


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_data_of_which_nothing_is_left_are_refused(too_long) -> None:
    with pytest.raises(DataError):
        fitting_rows([LONG], 2, too_long, "a.jsonl")


def test_a_pair_counts_by_its_longer_side() -> None:
    words = tokenizer()
    pair = PreferencePair("a", ASKED, "one", "one and two and three")
    length = max(len(tokens) for tokens, _ in pair_rows(words, pair))
    assert longest_row(words, pair) == length
    assert fitting([pair], words, length, "refuse", "") == [pair]
    short = PreferencePair("b", ASKED, "one", "two")
    assert fitting([pair, short], words, length - 1, "drop", "") == [short]
    assert that_fit([3, 4], 3, "drop", "") == [0]


def test_every_kind_of_row_has_a_length() -> None:
    words = tokenizer()
    steps = LabelledSteps("a", ASKED, ("one ", "two"), (True, False))
    assert longest_row(words, steps) == len(step_row(words, steps)[0][0])
    one = longest_row(words, Demonstration("a", ASKED, "one"))
    assert one == longest_row(words, LabelledCompletion("a", ASKED, "one", True))
