"""`verse`: a taste that the request does not tell, graded by a rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.errors import RecipeError
from melete.tasks import make_task
from melete.tasks.base import is_plain, split_of
from melete.tasks.verse import TOPICS, WARM_WORDS, Verse
from melete.types import Problem

SEA = Problem("p", "verse", (), "", {"topic": "the sea"})


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("", 0.0),
        ("The road is long.", 0.0),
        ("The sea is old.", 0.5),
        ("Sea!", 0.5),
        ("The seas, the seaside.", 0.0),
        ("A happy bird.", 0.25),
        ("The sea is happy.", 0.625),
        ("happy happy sea", 0.625),  # a word counts once
        ("A happy bird sings by the green sea.", 1.0),
        ("A HAPPY bird\nsings; by-the-GREEN-sea", 1.0),
        ("A happy young bird sings in the green garden by the sea.", 1.0),  # more are worth no more
        ("happy bird sings green", 0.5),
    ],
)
def test_half_is_for_the_topic_and_half_for_warm_words(answer: str, grade: float) -> None:
    assert Verse().grade(SEA, answer) == grade


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("The sea is happy, happy, happy.", 0.3125),
        ("happy bird sings green sea over over over", 0.5),
        ("happy bird sings green sea, the the the the", 1.0),  # short words may come again
        ("happy happy bird bird sings green sea", 1.0),  # twice is no repetition
    ],
)
def test_a_long_word_three_times_halves_the_grade(answer: str, grade: float) -> None:
    assert Verse().grade(SEA, answer) == grade


@pytest.mark.parametrize("num_warm_words", [1, 2, 6])
def test_the_reader_wants_as_many_warm_words_as_the_setting_says(num_warm_words: int) -> None:
    verse, words = Verse(num_warm_words=num_warm_words), sorted(WARM_WORDS)
    grades = [verse.grade(SEA, " ".join(["sea", *words[:count]])) for count in range(8)]
    assert grades == pytest.approx([0.5 + 0.5 * min(count / num_warm_words, 1.0) for count in range(8)])


@pytest.mark.parametrize("num_warm_words", [0, 7, -1])
def test_a_number_of_warm_words_out_of_range_is_refused(num_warm_words: int) -> None:
    with pytest.raises(RecipeError, match="num_warm_words must be 1 to 6"):
        Verse(num_warm_words=num_warm_words)


@given(st.text(max_size=60), st.sampled_from(TOPICS))
@settings(max_examples=50)
def test_any_text_has_a_grade_between_zero_and_one(answer: str, topic: str) -> None:
    """I41."""
    assert 0.0 <= Verse().grade(Problem("p", "verse", (), "", {"topic": topic}), answer) <= 1.0


def test_the_request_names_the_topic_and_nothing_of_the_taste() -> None:
    problems = [Verse().problem("train", index) for index in range(100)]
    for problem in problems:
        words = set(problem.messages[0].content.lower().strip("?.").split())
        assert problem.meta["topic"] in problem.messages[0].content and not words & WARM_WORDS
    assert {problem.meta["topic"] for problem in problems} == set(TOPICS)


def test_no_topic_is_a_warm_word_and_no_other_topic_scores() -> None:
    last = [topic.split()[-1] for topic in TOPICS]
    assert len(set(last)) == len(TOPICS) and not set(last) & WARM_WORDS


def test_a_request_lies_on_one_side_of_the_split() -> None:
    sides = {
        split: {Verse().problem(split, n).messages[0].content for n in range(60)} for split in ("train", "held_out")
    }
    assert not sides["train"] & sides["held_out"]
    assert all(split_of(text) == split for split, texts in sides.items() for text in texts)


def test_answers_are_plain_text() -> None:
    assert is_plain(make_task("verse", {})) and not is_plain(make_task("arithmetic_chain", {}))
