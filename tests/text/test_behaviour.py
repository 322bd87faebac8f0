"""What thoughts do: against the corpus that writes them, by hand, and with text that means harm."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.corpus.traces import TraceSettings, think_chain, think_countdown
from melete.tasks.arithmetic import draw_chain
from melete.tasks.countdown import draw_puzzle
from melete.text.behaviour import Behaviour, behaviour

SLIPPING = TraceSettings(slip=0.3, slip_noticed=0.5, slip_in_check=0.1, check=0.6)


def counts(text: str) -> tuple[int, int]:
    found = behaviour(text)
    return found.verifications, found.backtracks


def corrected(text: str) -> list[tuple[str, int, int]]:
    return [(one.before.term, one.before.result, one.after.result) for one in behaviour(text).corrections]


@pytest.mark.parametrize(
    ("thought", "expected"),
    [
        ("3+5=8\n8-2=6", (0, 0)),
        ("3+5=8\n8-2=5\nWait, 8-2=6", (0, 1)),
        ("3+5=8\n8-2=5\nEspera, 8-2=6", (0, 1)),
        ("3+5=8\nCheck:\n8-5=3\nYes, 3.", (1, 0)),
        ("3+5=8\nComprueba:\n8-5=3\nSí, 3.", (1, 0)),
        ("3+5=9\nCheck:\n9-5=4\nWait, 4 is not 3.\n3+5=8", (1, 1)),
        ("3+5=9\nComprueba:\n9-5=4\nEspera, 4 no es 3.\n3+5=8", (1, 1)),
        ("3-5=-2\nCheck:\nWait, -2 is not 3.", (1, 1)),
        ("3+4=7\nNo, not 24.\n3*8=24\nYes, 24.", (2, 1)),
        ("3+4=7\nNo, no 24.\n3*8=24\nSí, 24.", (2, 1)),
        ("3+5=8\nCheck:\n8-5=3", (0, 0)),
        ("<think>\n3+5=8\nWait, 3+5=8\n</think>\n<answer>8</answer>", (0, 1)),
    ],
)
def test_the_grammar_of_the_bundled_thoughts_is_counted_line_by_line(thought: str, expected: tuple[int, int]) -> None:
    assert counts(thought) == expected


@pytest.mark.parametrize(
    ("thought", "expected"),
    [
        ("So it is 7. Wait, that is too small. Let me check the sum again. It is 8.", (1, 1)),
        ("We get 7. But wait, I forgot one. Hmm, wait. No, that's wrong. So 8.", (0, 1)),
        ("First we add. Let's verify: 3 + 5 = 8, as it should be.", (1, 0)),
        ("Da 7. Espera, falta uno. Vamos a comprobar el resultado.", (1, 1)),
        ("- **Wait**, that is not it.", (0, 0)),
        ("We start.\n- **Wait**, that is not it.", (0, 1)),
        ("We start.\nCheck:\nthe sum of both is what was asked for.", (1, 0)),
        ("We wait for the bus, but there is a mistake. However, the checkers play on.", (0, 0)),
        ("No, I will not help you. Yes, 3 apples are left.", (0, 0)),
        ("7 + 1 = 8. 8 is not 9.", (1, 1)),
        ("", (0, 0)),
    ],
)
def test_other_text_is_told_by_how_its_sentences_begin(thought: str, expected: tuple[int, int]) -> None:
    assert counts(thought) == expected


@pytest.mark.parametrize("language", ["en", "es"])
def test_written_chains_are_counted_as_a_naive_reader_of_lines_does(language: str) -> None:
    source = random.Random(language)
    for _ in range(200):
        thought, _ = think_chain(draw_chain(source, 6, 15, 60), source, SLIPPING, language)
        lines = thought.splitlines()
        fails = sum(" is not " in line or " no es " in line for line in lines)
        waits = sum(line.startswith(("Wait", "Espera")) for line in lines)
        agrees = sum(line.startswith(("Yes", "Sí")) for line in lines)
        checks = sum(line in ("Check:", "Comprueba:") for line in lines)
        found = behaviour(thought)
        assert (found.verifications, found.backtracks, found.num_checks) == (fails + agrees, waits, checks)
        assert found.reflects == bool(waits or checks)


def test_every_try_of_a_written_countdown_is_one_comparison() -> None:
    source = random.Random(0)
    for _ in range(100):
        numbers, target, gold = draw_puzzle(source, 3, 10, 30)
        thought = think_countdown(numbers, gold, target, source)
        misses = thought.count("No, not")
        assert counts(thought) == (misses + 1, misses)


def test_a_correction_pairs_the_result_that_was_taken_back_with_the_one_for_the_same_term() -> None:
    assert corrected("3+5=8\n8-2=5\nWait, 8-2=6\n6+1=7") == [("-2", 5, 6)]
    assert corrected("8-2=5\nWait, 8-2=7\nWait, 8-2=6") == [("-2", 5, 7), ("-2", 7, 6)]
    assert corrected("8-2=5\nWait. Hmm, wait.\n8 - 2 = 6") == [("-2", 5, 6)]
    assert corrected("8 − 2 = 5. Wait, 8 − 2 = 6.") == [("-2", 5, 6)]


def test_a_failed_check_takes_back_the_last_result_of_the_chain_and_not_that_of_the_check() -> None:
    redone = "3+5=9\n9-2=7\nCheck:\n7+2=9\n9-5=4\nWait, 4 is not 3.\n3+5=8\n8-2=6"
    assert corrected(redone) == [("-2", 7, 6)]


def test_a_marker_without_a_result_before_or_after_corrects_nothing() -> None:
    assert corrected("Wait, 8-2=6") == []
    assert corrected("8-2=5\nWait, no") == []
    assert corrected("8-2=5\nWait\n<answer>8-2=6</answer>") == [], "an answer is no step"
    assert behaviour("Wait, 8-2=6") == Behaviour(0, 0, 0, ()), "there is no path to leave yet"


@pytest.mark.parametrize(
    "text",
    [
        "Wait " * 60_000, "9" * 300_000, "- " * 150_000, "wait.\n" * 50_000, "1+1=1\nwait\n" * 25_000, "no, " * 75_000,
        "Check:\n" * 40_000, " " * 300_000 + "x", "<a" * 150_000, ". " * 150_000, "8-2" * 100_000, "1 is not " * 30_000,
        "*" * 300_000, "let me " * 40_000,
    ],
    ids=lambda text: text[:8].strip() or "spaces",
)  # fmt: skip
def test_hostile_text_takes_linear_time(text: str) -> None:
    started = time.process_time()
    behaviour(text)
    assert time.process_time() - started < 2


@given(st.text(alphabet="Wait, 8-2=6\nCheck:YsNo.<>think/ñí", max_size=200))
@settings(max_examples=50)
def test_any_text_is_counted(text: str) -> None:
    found = behaviour(text)
    assert min(found.verifications, found.backtracks, found.num_checks) >= 0
    assert len(found.corrections) <= found.backtracks
