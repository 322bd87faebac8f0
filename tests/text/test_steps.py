"""Steps of a completion: its lines in text, and where they end in tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tokenizer

from melete.text.chat import decode_completion
from melete.text.steps import split_steps, step_ends
from melete.types import Completion, Message, Problem, Rollout

PROBLEM = Problem("p", "p", (Message("user", "?"),), "1")


def rollout(tokens: list[int]) -> Rollout:
    completion = Completion(tuple(tokens), (-1.0,) * len(tokens), "stop", 0)
    return Rollout(PROBLEM, 0, (1,), completion, decode_completion(tokenizer(), tokens))


def encoded(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", []),
        ("one", ["one"]),
        ("one\n", ["one\n"]),
        ("one\ntwo", ["one\n", "two"]),
        ("one\n\n \ntwo\n\n", ["one\n\n \n", "two\n\n"]),
        ("one\r\ntwo", ["one\r\n", "two"]),
        ("\n\none\n", ["\n\none\n"]),
        (" \n", [" \n"]),
        (
            "<think>\none\n</think>\n\n<answer>\n3\n</answer>\n",
            ["<think>\none\n", "</think>\n\n<answer>\n3\n</answer>\n"],
        ),
        ("<think>1+2=3\n</think><answer>3</answer>", ["<think>1+2=3\n", "</think><answer>3</answer>"]),
    ],
)
def test_a_step_is_a_line_that_says_something_with_the_blank_lines_after_it(text: str, steps: list[str]) -> None:
    assert split_steps(text) == steps


@given(st.text(st.sampled_from("ab1 \n\r\t"), max_size=20))
@settings(max_examples=50)
def test_steps_join_to_the_whole_and_none_is_blank(text: str) -> None:
    steps = split_steps(text)
    assert "".join(steps) == text
    assert all(step.strip() for step in steps) or not text.strip()


@pytest.mark.parametrize("is_ended", [True, False])
def test_the_end_of_a_step_is_its_last_token(is_ended: bool) -> None:
    """The end-of-turn token belongs to the last step."""
    lines = ["<think>1+2=3\n", "3+1=4\n\n", "</think><answer>4</answer>"]
    pieces = [encoded(line) for line in lines]
    tokens = [token for piece in pieces for token in piece] + [tokenizer().eos_token_id] * is_ended
    lengths = [len(piece) for piece in pieces]
    assert step_ends(tokenizer(), rollout(tokens)) == [lengths[0] - 1, lengths[0] + lengths[1] - 1, len(tokens) - 1]


def test_a_completion_of_nothing_has_no_step() -> None:
    assert step_ends(tokenizer(), rollout([])) == []
    assert step_ends(tokenizer(), rollout([tokenizer().eos_token_id])) == []


TEXTS = st.lists(
    st.sampled_from(["one", " and", "12", "+", "=", "\n", "\n\n", " ", "<think>", "</answer>"]), max_size=14
)


@given(TEXTS.map("".join))
@settings(max_examples=50)
def test_ends_are_those_of_a_loop_over_all_prefixes(text: str) -> None:
    found = rollout([*encoded(text), tokenizer().eos_token_id])
    tokens, wanted, bound = found.completion.tokens, [], 0
    for step in split_steps(text):
        bound += len(step)
        wanted.append(
            next(n for n in range(len(tokens)) if len(decode_completion(tokenizer(), tokens[: n + 1])) >= bound)
        )
    wanted[-1:] = [len(tokens) - 1] * bool(wanted)
    assert step_ends(tokenizer(), found) == wanted


def test_there_is_one_end_for_each_step_and_they_never_go_back() -> None:
    for tokens in ([6, 7, 8], encoded("\n1\n\n2\n"), list(range(6, 60))):
        found = rollout(tokens)
        ends = step_ends(tokenizer(), found)
        assert len(ends) == len(split_steps(found.text))
        assert ends == sorted(ends) and all(0 <= end < len(tokens) for end in ends)
