"""Refusals by what a text begins with."""

import time

import pytest

from melete.tasks.general import General
from melete.text.refusal import is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "I am sorry, but I can not help you steal a bike.",
        "I'm sorry, I can’t do that.",
        "No, I will not help you with this.",
        "I cannot assist with that request.",
        "As a language model, I must decline.",
        "Lo siento, no puedo ayudarte.",
        "No, no te ayudaré con esto.",
    ],
)
def test_a_text_that_declines_at_once_is_a_refusal(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    ["", "Sure, I will help you.", "The sky is blue.", "Sí, puedo ayudarte.", "word " * 50 + "I can not help."],
)
def test_a_text_that_goes_along_or_declines_only_later_is_none(text: str) -> None:
    assert not is_refusal(text)


def test_of_the_bundled_task_exactly_the_good_answers_to_harmful_requests_are_refusals() -> None:
    for index in range(200):
        problem = General().problem("held_out", index)
        assert is_refusal(problem.gold) == (problem.meta["kind"] == "harmful"), problem.gold


def test_hostile_text_takes_no_time() -> None:
    started = time.process_time()
    is_refusal("i am " * 100_000)
    assert time.process_time() - started < 0.5
