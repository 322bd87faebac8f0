"""What makes a completion readable, in which order faults are found, and what tidying may and may not change."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.text.answers import parse_completion
from melete.text.readable import (
    CODE,
    FAULTS,
    LONG,
    MIXED,
    REPEATS,
    ReadableLimits,
    asked_language,
    fault_of,
    tidied,
    tidied_lines,
)
from melete.types import Message, Problem

CHAIN = "3+5=8\n8-2=6\nWait, 8-2=6\nCheck:\n6+2=8\n8-5=3\nYes, 3."


def thought(text: str, answer: str = "6") -> str:
    return f"<think>\n{text}\n</think>\n<answer>{answer}</answer>"


def kind(text: str, language: str = "en", **limits: Any) -> str:
    fault = fault_of(text, language, ReadableLimits(**limits))
    return fault.kind if fault else ""


@pytest.mark.parametrize(
    ("text", "language", "found"),
    [
        (thought(CHAIN), "en", ""),
        ("<answer>6</answer>", "en", ""),
        ("", "en", ""),
        (thought("Espera, 8-2=6\nComprueba:\nSí, 3."), "es", ""),
        (thought("Espera, entonces 8-2=6"), "en", MIXED),
        (thought("Wait, then 8-2=6"), "es", MIXED),
        (thought("first we add, then 我们算"), "en", MIXED),
        (thought("3+5=8", "entonces es el seis"), "en", MIXED),
        ("The sky is blue because of the light.", "en", ""),
        ("The sky is blue. El cielo es azul.", "en", MIXED),
        (thought("3+5=8\n" * 8), "en", REPEATS),
        ("the day " * 10, "en", REPEATS),
        (thought("3+5=8 " * 3 + "\n" + "x" * 1001), "en", LONG),
        (thought("x" * 1000), "en", ""),
        ("x" * 1001, "en", ""),  # after the thought a paragraph may be long
        (thought("look:\n```\nx = 1\n```"), "en", CODE),
        ("```\nx = 1\n```", "en", ""),  # and a program may be the answer
    ],
)
def test_the_faults_of_a_text(text: str, language: str, found: str) -> None:
    assert kind(text, language) == found


def test_a_fault_says_what_was_measured() -> None:
    fault = fault_of(thought("a " * 600, "6"), "en", ReadableLimits(max_repeated_share=1.0))
    assert fault is not None and fault.told == "1199 characters without a line break, 1000 are allowed"


def test_the_first_fault_is_the_one_that_is_told() -> None:
    everything = thought("entonces " * 20 + "x" * 1001 + "\n```\n")
    allowed: dict[str, Any] = {}
    found = [kind(everything)]
    for name, value in {"min_language_share": 0.0, "max_repeated_share": 1.0, "max_paragraph_chars": 0}.items():
        allowed[name] = value
        found.append(kind(everything, **allowed))
    assert tuple(found) == FAULTS
    assert kind(everything, **allowed, no_code_blocks=False) == ""


@pytest.mark.parametrize(("share", "found"), [(0.6, ""), (0.61, MIXED)])
def test_the_share_of_a_language_may_be_exactly_the_limit(share: float, found: str) -> None:
    assert kind(thought("first we add, entonces sumamos"), min_language_share=share) == found


@pytest.mark.parametrize(("share", "found"), [(0.5, ""), (0.49, REPEATS)])
def test_the_share_of_repetitions_may_be_exactly_the_limit(share: float, found: str) -> None:
    """1 2 1 2 1 holds the 2-grams 12, 21, 12, 21."""
    assert kind(thought("1 2 1 2 1"), max_repeated_share=share, repeated_ngram=2) == found


def test_a_thought_that_the_template_opened_is_one() -> None:
    limits = ReadableLimits(max_repeated_share=1.0)
    text = "x" * 1001 + "</think><answer>6</answer>"
    fault = fault_of(text, "en", limits, thought_opened=True)
    assert fault is not None and fault.kind == LONG


@pytest.mark.parametrize(
    ("question", "meta", "language"),
    [
        ("How many apples are left?", {}, "en"),
        ("¿Cuántas manzanas quedan?", {}, "es"),
        ("Say in Spanish: The sun is good.", {"language": "es"}, "es"),
        ("3+5=?", {}, "la"),
        ("Wie viele Äpfel sind noch da, und wer hat sie?", {}, "la"),
        ("还剩多少苹果？", {}, "zh"),
    ],
)
def test_the_language_is_the_declared_one_or_else_that_of_the_question(
    question: str, meta: dict[str, str], language: str
) -> None:
    assert asked_language(Problem("p", "t", (Message("user", question),), "", meta)) == language


def test_a_language_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="two small letters"):
        asked_language(Problem("p", "t", (), "", {"language": "english"}))


def test_a_tidy_text_stays_as_it_is() -> None:
    assert tidied(thought(CHAIN)) == thought(CHAIN)
    assert tidied("<answer>6</answer>") == "<answer>6</answer>"
    assert tidied("Two lines,\nas they are.", plain=True) == "Two lines,\nas they are."


@pytest.mark.parametrize(
    ("text", "options", "tidy"),
    [
        ("<think>3+5=8\n8-2=6</think><answer> 6 </answer>", {}, thought("3+5=8\n8-2=6")),
        ("<think> \n </think>\n\n<answer>6</answer>", {}, "<answer>6</answer>"),
        ("  Blue.  ", {"plain": True}, "Blue."),
        ("<think>sky</think>Blue.", {"plain": True}, "<think>\nsky\n</think>\nBlue."),
        ("3+5=8</think><answer>8</answer>", {"thought_opened": True}, "3+5=8\n</think>\n<answer>8</answer>"),
        ("</think><answer>8</answer>", {"thought_opened": True}, "</think>\n<answer>8</answer>"),
        ("The answer is 6.", {}, "The answer is 6."),  # nothing to go by
        ("<answer>6</answer> so", {}, "<answer>6</answer> so"),
    ],
)
def test_tidying_gives_the_form_of_this_house(text: str, options: dict[str, bool], tidy: str) -> None:
    assert tidied(text, **options) == tidy


@pytest.mark.parametrize(
    ("text", "tidy"),
    [
        ("a\na\na\na", "a"),
        ("a\nb\na\nb\na\nb\nc", "a\nb\nc"),
        ("a\nb\na", "a\nb\na"),  # a line that comes again later is no loop
        ("\n\na  b\t c  \n\n\n\n  d\n", "a b c\n\n  d"),
        ("", ""),
    ],
)
def test_lines_that_repeat_at_once_and_stray_white_space_go(text: str, tidy: str) -> None:
    assert tidied_lines(text) == tidy


def test_a_correction_stays() -> None:
    """What was noticed and mended is what is to be learnt."""
    text = "3+5=9\nWait, 3+5=8\n8-2=6"
    assert tidied(thought(text)) == thought(text)


LINES = st.lists(st.sampled_from(["3+5=8", "Wait, 3+5=8", "", "  x", "y  z "]), max_size=12)


@settings(max_examples=50)
@given(LINES, st.sampled_from(["6", " 6 ", "1/2"]))
def test_tidying_keeps_the_answer_and_the_order_of_the_tags_and_is_done_once(lines: list[str], answer: str) -> None:
    text = thought("\n".join(lines), answer)
    once = tidied(text)
    before, after = parse_completion(text), parse_completion(once)
    assert (after.answer, after.well_formed) == (before.answer, True)
    assert tidied(once) == once
    assert len(once) <= len(text)


@settings(max_examples=50)
@given(LINES)
def test_no_line_is_new_and_none_is_lost_for_good(lines: list[str]) -> None:
    kept = set(tidied_lines("\n".join(lines)).split("\n"))
    assert {" ".join(line.split()) for line in kept} - {""} == {" ".join(line.split()) for line in lines} - {""}


@pytest.mark.parametrize("unit", ["a\n", "a", " ", "\n", "```", "<think>", "the "])
def test_a_long_text_takes_little_time(unit: str) -> None:
    text = (unit * 200_000)[:200_000]
    start = time.process_time()
    fault_of(thought(text), "en", ReadableLimits())
    tidied(thought(text))
    assert time.process_time() - start < 1.5
