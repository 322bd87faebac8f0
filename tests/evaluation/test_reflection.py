import pytest

from melete.evaluation.reflection import LONG_PHRASES, R1_WORDS, count_words, reflection


def test_the_published_lists_are_complete() -> None:
    assert len(R1_WORDS) == 10
    assert len(LONG_PHRASES) == 15


def test_words_count_whole_in_any_case() -> None:
    assert count_words("WAIT, wait. Awaiting, waiter; button, checked") == {"wait": 2}


def test_the_longer_phrase_is_not_counted_twice() -> None:
    assert count_words("check again", ["check", "check again"]) == {"check again": 1}


def test_hits_are_per_thousand_tokens_and_shares_per_completion() -> None:
    counted = reflection(["Wait, 7. But check.", "8", "no, wait"], 400)
    assert counted.per_1k == pytest.approx(10.0)
    assert counted.share == pytest.approx(2 / 3)
    assert counted.by_word == {"wait": 5.0, "but": 2.5, "check": 2.5}


def test_repeating_the_same_texts_changes_no_rate() -> None:
    texts = ["Wait, 7.", "8"]
    assert reflection(texts, 30) == reflection(texts * 5, 150)


def test_nothing_written_is_a_rate_of_zero() -> None:
    assert reflection([], 0).per_1k == reflection([], 0).share == 0.0
