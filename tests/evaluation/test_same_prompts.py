"""Which problems are read side by side: by the rule that is told, whatever looks best."""

import pytest

from melete.evaluation.same_prompts import Answer, choose_prompts, rule
from melete.types import Message, Problem


def answers(*scores: float | None) -> list[Answer]:
    asked = [Problem(f"p/{index}", "p", (Message("user", "?"),), "1") for index in range(len(scores))]
    return [
        Answer(problem, "", None if score is None else score == 1.0, score, 3)
        for problem, score in zip(asked, scores, strict=True)
    ]


def test_problems_that_went_from_wrong_to_right_come_first_in_their_order() -> None:
    assert choose_prompts(answers(1, 0, 0, 0), answers(0, 0, 1, 1), 2) == [2, 3]


def test_where_there_are_fewer_the_first_problems_fill_up() -> None:
    assert choose_prompts(answers(1, 1, 0), answers(0, 1, 1), 2) == [2, 0]
    assert choose_prompts(answers(0.5, 0.2), answers(0.6, 0.9), 2) == [0, 1]


def test_a_grader_failure_is_neither_wrong_nor_right() -> None:
    assert choose_prompts(answers(None, 0, 0), answers(1, None, 1), 3) == [2, 0, 1]


def test_fewer_problems_than_wanted_are_all_shown_and_none_for_none() -> None:
    assert choose_prompts(answers(0), answers(1), 5) == [0]
    assert choose_prompts(answers(0), answers(1), 0) == []


def test_answers_to_different_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="the same problems"):
        choose_prompts(answers(0), answers(0, 1), 1)


def test_the_rule_names_the_two_models_it_looks_at() -> None:
    assert "the first sample of base is wrong and that of R1 is right" in rule("base", "R1", 2)
    assert "the first problem," in rule("base", "R1", 1)
    assert rule("base", "base", 2) == "Of each task the first 2 problems, in the order of the held-out set."
