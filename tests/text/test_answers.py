"""Taking completions apart."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melete.text.answers import ParsedCompletion, parse_completion
from melete.text.numbers import parse_integer


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>3+5=8</think><answer>8</answer>", "3+5=8", "8"),
        ("  <think>\n3+5\n</think>\n\n<answer> 8 </answer>\n", "3+5", "8"),
        ("<answer>8</answer>", None, "8"),
        ("<think></think><answer></answer>", "", ""),
        ("<think>a < b > c</think><answer><b>8</b></answer>", "a < b > c", "<b>8</b>"),
        ("<think>zwölf\nund\neins</think><answer>13</answer>", "zwölf\nund\neins", "13"),
        ("<think>x</think>\u00a0<answer>8</answer>", "x", "8"),
        ("<think><THINK></think><answer>8</answer>", "<THINK>", "8"),
    ],
)
def test_one_thought_at_most_then_one_answer_is_well_formed(text: str, thought: str | None, answer: str) -> None:
    assert parse_completion(text) == ParsedCompletion(thought, answer, True)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("", None, None),
        ("8", None, None),
        ("<think>a", "a", None),
        ("<think>a</think>", "a", None),
        ("<think>a</think>8", "a", None),
        ("<think>a</think><answer>8", "a", None),
        ("<think>a</think>8</answer>", "a", None),
        ("hm <think>a</think><answer>8</answer>", "a", "8"),
        ("<think>a</think> so <answer>8</answer>", "a", "8"),
        ("<think>a</think><answer>8</answer>!", "a", "8"),
        ("<answer>8</answer>.", None, "8"),
        ("a</think><answer>8</answer>", None, "8"),
        ("<think>a</think>b</think><answer>8</answer>", "a</think>b", "8"),
        ("</think><answer>8</answer></think>", None, None),
        ("<answer>8</answer><answer>9</answer>", None, None),
        ("<think>a</think><answer>8</answer><answer>8</answer>", "a", None),
        ("<answer>8</answer><think>a</think>", "a", None),
        ("<think>is it <answer>7</answer>?</think><answer>8</answer>", "is it <answer>7</answer>?", "8"),
        ("<think>a <answer>8</answer>", "a <answer>8</answer>", None),
        ("</answer>8<answer>", None, None),
        ("<Think>a</Think><Answer>8</Answer>", None, None),
        ("< answer >8< /answer >", None, None),
    ],
)
def test_anything_else_is_not_but_a_single_answer_after_the_thought_counts(
    text: str, thought: str | None, answer: str | None
) -> None:
    assert parse_completion(text) == ParsedCompletion(thought, answer, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a</think><answer>8</answer>", ParsedCompletion("a", "8", True)),
        ("<answer>8</answer>", ParsedCompletion("<answer>8</answer>", None, False)),
        ("<think>a</think><answer>8</answer>", ParsedCompletion("<think>a", "8", False)),
        ("a", ParsedCompletion("a", None, False)),
    ],
)
def test_a_thought_that_the_prompt_opened_needs_only_to_be_closed(text: str, expected: ParsedCompletion) -> None:
    assert parse_completion(text, thought_opened=True) == expected


TAGS = ["<think>", "</think>", "<answer>", "</answer>", "a", "8", " ", "\n", "<"]


@given(st.lists(st.sampled_from(TAGS), max_size=12).map("".join), st.booleans())
def test_any_order_of_tags_is_parsed_and_only_the_one_order_is_well_formed(text: str, thought_opened: bool) -> None:
    parsed = parse_completion(text, thought_opened=thought_opened)
    whole = "<think>" * thought_opened + text
    if parsed.well_formed:
        assert parsed.answer is not None
        assert whole.count("<answer>") == whole.count("</answer>") == 1
        assert whole.count("<think>") == whole.count("</think>") == int(parsed.thought is not None)
        thought = "" if parsed.thought is None else f"<think>{parsed.thought}</think>"
        assert "".join(whole.split()) == "".join(f"{thought}<answer>{parsed.answer}</answer>".split())
    if parsed.answer is not None:
        assert "</answer>" in text


@given(st.text(max_size=30))
def test_text_without_tags_is_neither_thought_nor_answer(text: str) -> None:
    if not any(tag in text for tag in TAGS[:4]):
        assert parse_completion(text) == ParsedCompletion(None, None, False)


def test_a_long_malformed_completion_is_parsed_at_once() -> None:
    """I41: no backtracking without end."""
    assert parse_completion("<answer>" * 1000).answer is None
    assert parse_completion("<think>" * 20000 + "</think>" * 20000).answer is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("42", 42), (" 42 ", 42), ("42.", 42), ("-7", -7), ("+7", 7), ("-0", 0), ("007", 7), ("9" * 18, 10**18 - 1)],
        *[("", None), (".", None), ("-", None), ("4 2", None), ("7 or 8", None), ("4.5", None), ("1e3", None)],
        *[("9" * 19, None), ("10**10", None), ("0x10", None), ("٤٢", None), ("1,000", None), ("1_000", None)],
        *[("--7", None), ("7..", None), ("seven", None), ("²", None)],
    ],
)
def test_an_integer_is_one_number_and_nothing_else(text: str, value: int | None) -> None:
    """I41: nothing is evaluated."""
    assert parse_integer(text) == value


def test_hostile_tags_are_read_in_linear_time():
    """I41: a hundred thousand unclosed answers are refused at once."""
    started = time.process_time()
    assert parse_completion("<answer>" * 100_000).answer is None
    assert time.process_time() - started < 2
