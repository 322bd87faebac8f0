"""Curation: golden cases, and laws against slow twins that compare every pair."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.tasks.curation import (
    Curated,
    by_difficulty,
    decontaminated,
    jaccard,
    normal_text,
    question_of,
    shingles,
    without_duplicates,
)
from melete.types import Message, Problem

WORDS = ["".join(letters) for letters in itertools.product("abcdefghijklm", repeat=3)]  # no numbers: they matter
SHORT = st.lists(st.sampled_from(["a b c d", "A  b c d", "a b c e", "x", "3+5", "3-5", "3 + 5", ""]), max_size=12)
COUNTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=20)


def told(curated: Curated[str]) -> dict[str, str]:
    return {dropped.item: dropped.kind for dropped in curated.dropped}


def test_what_is_always_or_never_right_or_not_measured_is_dropped() -> None:
    measured = [("easy", 8, 8), ("hard", 0, 8), ("good", 4, 8), ("new", 0, 0), ("one right", 1, 8)]
    curated = by_difficulty(measured)
    assert curated.kept == ("good", "one right")
    assert told(curated) == {"easy": "too easy", "hard": "too hard", "new": "not measured"}
    assert curated.counts() == {"too easy": 1, "too hard": 1, "not measured": 1}
    assert "8 of 8" in curated.dropped[0].reason


def test_bounds_are_strict_and_few_tries_say_nothing() -> None:
    measured = [("a", 1, 5), ("b", 2, 5), ("c", 4, 5), ("d", 1, 2)]
    assert by_difficulty(measured, low=0.2, high=0.8, min_tries=3).kept == ("b",)


@given(COUNTS, st.floats(0, 0.4), st.floats(0.6, 1))
@settings(max_examples=50)
def test_kept_rates_lie_between_the_bounds_and_nothing_is_lost(
    counts: list[tuple[int, int]], low: float, high: float
) -> None:
    measured = [(number, min(pair), max(pair)) for number, pair in enumerate(counts)]
    curated = by_difficulty(measured, low=low, high=high)
    assert sorted([*curated.kept, *(dropped.item for dropped in curated.dropped)]) == list(range(len(counts)))
    for number, right, tries in measured:
        assert (number in curated.kept) == (tries > 0 and low * tries < right < high * tries)


@pytest.mark.parametrize("options", [{"low": 0.5, "high": 0.5}, {"low": -1}, {"high": 2}, {"min_tries": 0}])
def test_bounds_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        by_difficulty([], **options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("right", "tries"), [(3, 2), (-1, 2), (0, -1)])
def test_counts_that_cannot_be_are_refused(right: int, tries: int) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        by_difficulty([("a", right, tries)])


def test_duplicates_differ_in_case_spacing_and_forms_only_and_the_first_stays() -> None:
    curated = without_duplicates(["What is ３+5?", "what  is\n3+5?", "What is 3-5?"], str)
    assert curated.kept == ("What is ３+5?", "What is 3-5?")
    assert curated.dropped[0].kind == "exact duplicate" and "row 0" in curated.dropped[0].reason


def test_a_word_changed_in_a_long_text_is_a_near_duplicate_and_a_number_changed_is_not() -> None:
    text = " ".join(WORDS[:60]) + " costs 12 dollars"
    other_word, other_number = text.replace(f"{WORDS[30]} ", "else "), text.replace("12", "13")
    curated = without_duplicates([text, other_word, other_number], str)
    assert curated.kept == (text, other_number) and told(curated) == {other_word: "near duplicate"}
    assert without_duplicates([text, other_number], str, numbers_matter=False).kept == (text,)
    assert without_duplicates([text, other_word], str, threshold=1.1).kept == (text, other_word)


def test_known_texts_count_as_seen_and_alone_when_only_they_are_asked_about() -> None:
    texts = ["a b", "A B", "c d", "C d"]
    assert without_duplicates(texts, str, known=["c  D"]).kept == ("a b",)
    assert without_duplicates(texts, str, known=["c  D"], only_known=True).kept == ("a b", "A B")
    long = " ".join(WORDS[:50])
    near = [f"{long} one", f"{long} two"]
    assert without_duplicates(near, str, known=[long], only_known=True).kept == ()
    assert without_duplicates(near, str, known=["other"], only_known=True).kept == tuple(near)
    assert without_duplicates([near[0], near[0]], str, known=[long], only_known=True).kept == ()


@given(SHORT)
@settings(max_examples=50)
def test_removing_duplicates_twice_changes_nothing_and_keeps_each_text_once(texts: list[str]) -> None:
    once = without_duplicates(texts, str)
    assert without_duplicates(once.kept, str) == Curated(once.kept, ())
    kept = [normal_text(text) for text in once.kept]
    assert len(set(kept)) == len(kept)
    assert len(once.kept) + len(once.dropped) == len(texts)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95])
def test_bands_find_what_comparing_every_pair_finds(threshold: float) -> None:
    source = random.Random(0)
    bases = [source.choices(WORDS, k=30) for _ in range(12)]
    texts = [
        " ".join(source.choice(WORDS) if source.random() < rate else word for word in base)
        for base in bases
        for rate in (0, 0.01, 0.05, 0.1, 0.2)
    ]
    kept: list[str] = []  # the slow twin
    for text in texts:
        own = shingles(normal_text(text), 3)
        if all(jaccard(own, shingles(normal_text(other), 3)) < threshold for other in kept):
            kept.append(text)
    assert list(without_duplicates(texts, str, threshold=threshold).kept) == kept


def test_a_shared_run_of_ten_words_is_contamination_and_nine_are_not() -> None:
    held_out = " ".join(WORDS[:20])
    ten, nine = " ".join(["x", *WORDS[5:15], "y"]), " ".join(["x", *WORDS[5:14], "y"])
    curated = decontaminated([ten, nine, held_out.upper() + " !"], str, [held_out])
    assert curated.kept == (nine,)
    assert told(curated)[ten] == "contaminated" and " ".join(WORDS[5:15]) in curated.dropped[0].reason


def test_short_texts_are_compared_as_wholes() -> None:
    curated = decontaminated(["what is 3+5?", "What is 3-5?", "So what is 3+5?"], str, ["What is  3+5?"])
    assert curated.kept == ("What is 3-5?", "So what is 3+5?")
    assert told(curated) == {"what is 3+5?": "held out"}


@given(st.lists(st.text("ab ", max_size=30), max_size=8), st.lists(st.text("ab ", max_size=30), max_size=4))
@settings(max_examples=50)
def test_nothing_that_is_kept_shares_words_in_sequence(texts: list[str], held_out: list[str]) -> None:
    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}

    forbidden = set().union(*map(grams, held_out))
    wholes = {" ".join(text.split()) for text in held_out}
    expected = [text for text in texts if not grams(text) & forbidden and " ".join(text.split()) not in wholes]
    assert list(decontaminated(texts, str, held_out, ngram=3).kept) == expected


def test_the_question_of_a_problem_leaves_out_what_many_share() -> None:
    turns = (Message("system", "be brief"), Message("user", "1+1?"), Message("assistant", "2"), Message("user", "+1?"))
    assert question_of(Problem("p", "t", turns, "3")) == "1+1?\n2\n+1?"


def test_ten_thousand_rows_take_seconds_and_hostile_ones_no_longer() -> None:
    source = random.Random(0)
    rows = [" ".join(source.choices(WORDS, k=40)) for _ in range(9_990)]
    hostile = [
        "-" * 200_000,
        "1" * 200_000,
        "1." * 100_000,
        "\u0301" * 50_000,
        "=" + " " * 200_000 + "x",
    ]
    begin = time.process_time()
    assert len(without_duplicates(rows + hostile, str).kept) == len(rows) + len(hostile)
    assert len(decontaminated(rows + hostile, str, rows[:1000]).kept) == len(rows) + len(hostile) - 1000
    assert time.process_time() - begin < 20
