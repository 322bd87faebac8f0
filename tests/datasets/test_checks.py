"""What is said about a data set, and rows as the model sees them."""

from __future__ import annotations

import pytest
from chat_kinds import qwen3, r1_distill
from tiny_models import tokenizer

from melete.datasets.checks import cells, described, findings, seen_rows, visible
from melete.datasets.encode import completion_row, demonstration_rows
from melete.datasets.formats import words_of
from melete.types import Demonstration, LabelledCompletion, LabelledSteps, Message, PreferencePair, RankedCompletions

ASKED = (Message("user", "what is 1+2?"),)
GOOD = Demonstration("a", ASKED, "3")


def test_each_kind_of_row_is_seen_as_it_is_learnt() -> None:
    words = tokenizer()
    row = completion_row(words, ASKED, "3")
    assert [(tuple(one.tokens), tuple(one.mask)) for one in seen_rows(words, GOOD)] == [tuple(map(tuple, row))]
    about = {
        "demonstration": GOOD,
        "chosen rejected": PreferencePair("a", ASKED, "3", "4"),
        "rank 1 rank 2 rank 3": RankedCompletions("a", ASKED, ("3", "4", "5")),
        "not good": LabelledCompletion("a", ASKED, "3", False),
        "steps +-": LabelledSteps("a", ASKED, ("one ", "two"), (True, False)),
    }
    for expected, one in about.items():
        assert " ".join(made.about for made in seen_rows(words, one)) == expected
    [steps] = seen_rows(words, about["steps +-"])
    assert sum(steps.mask) == 2


def test_a_conversation_whose_thoughts_leave_the_history_is_seen_in_parts() -> None:
    turns = (*ASKED, Message("assistant", "<think>\nsum\n</think>\n\n3"), Message("user", "so?"))
    row = Demonstration("a", turns, "yes")
    assert [one.about for one in seen_rows(qwen3(), row)] == ["part 1", "part 2"]
    assert len(seen_rows(qwen3(), row, last_turn_only=True)) == 1
    assert len(demonstration_rows(qwen3(), row)) == 2
    assert words_of(row) == ["<think>\nsum\n</think>\n\n3", "yes"]


def test_the_cells_join_to_the_row_and_a_character_is_in_one_cell() -> None:
    words = tokenizer()
    [row] = seen_rows(words, Demonstration("a", (Message("user", "¿三?"),), "☺ ok"))
    found = list(cells(words, row))
    assert "".join(text for text, _, _ in found) == words.decode(list(row.tokens))
    assert [token for _, _, ids in found for token in ids] == list(row.tokens)
    assert {"¿", "三"} <= {text.strip() for text, learnt, _ in found if not learnt}
    assert "☺" in {text for text, learnt, _ in found if learnt}
    assert sum(len(ids) for _, learnt, ids in found if learnt) == sum(row.mask)


@pytest.mark.parametrize(("text", "shown"), [("a\nb", "a\nb"), ("\x1b[31m", "\\x1b[31m"), ("\u202e", "\\u202e")])
def test_signs_that_direct_a_terminal_are_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_what_is_amiss_is_counted() -> None:
    rows = [
        GOOD,
        Demonstration("b", ASKED, "3"),
        Demonstration("c", ASKED, " \n"),
        Demonstration("d", ASKED, "<think>so"),
        Demonstration("e", ASKED, "3<|end|>4"),
        Demonstration("f", ASKED, "one and two and three " * 20),
    ]
    found = findings(rows, tokenizer(), 60)
    assert (found.num_rows, found.num_duplicates, found.num_empty) == (6, 1, 1)
    assert (found.num_unended_thoughts, found.num_with_end_inside, found.num_too_long) == (1, 1, 1)
    lengths = [len(completion_row(tokenizer(), row.messages, row.completion)[0]) for row in rows]
    assert found.max_length == max(lengths) == found.p95_length
    assert found.mean_length == pytest.approx(sum(lengths) / 6) and found.num_tokens == sum(lengths)
    told = described(found)
    assert told["too long"].startswith("1 refused") and "the limit is 60" in told["row length"]
    assert "equal answers" not in told


def test_a_clean_data_set_has_nothing_amiss() -> None:
    assert set(described(findings([GOOD], tokenizer(), None))) == {"rows", "tokens", "row length"}


def test_pairs_of_equal_answers_and_thoughts_behind_an_opened_one_are_counted() -> None:
    assert findings([PreferencePair("a", ASKED, "3", "3")], tokenizer(), None).num_equal_pairs == 1
    assert findings([GOOD], r1_distill(), None).num_unended_thoughts == 1
    ended = Demonstration("a", ASKED, "<think>\nsum\n</think>\n\n3")
    assert findings([ended], r1_distill(), None).num_unended_thoughts == 0
