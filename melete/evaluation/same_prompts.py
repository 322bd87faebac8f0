"""The same problems answered by several models: which ones are shown, by a rule and not by taste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from melete.evaluation.evaluate import EvaluationResult
from melete.types import Problem


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's first sample on a problem; `correct` and `score` are `None` where the grader failed."""

    problem: Problem
    text: str
    correct: bool | None
    score: float | None
    num_tokens: int


def first_answers(result: EvaluationResult) -> list[Answer]:
    """The first sample of every problem, in the order of the problems."""
    found = []
    for problem in result.problems:
        sample = problem.samples[0]
        grade = sample.judgement.reward.parts["accuracy"]
        found.append(Answer(problem.problem, sample.rollout.text, sample.judgement.correct, grade, sample.num_tokens))
    return found


def choose_prompts(first: Sequence[Answer], final: Sequence[Answer], count: int) -> list[int]:
    """Numbers of the problems to show, by the rule that `rule` tells.

    Raises `ValueError` when the two did not answer the same problems.
    """
    if [answer.problem for answer in first] != [answer.problem for answer in final]:
        raise ValueError("the two models did not answer the same problems")
    outcomes = [(one.correct, other.correct) for one, other in zip(first, final, strict=True)]
    learnt = [number for number, outcome in enumerate(outcomes) if outcome == (False, True)]
    return list(dict.fromkeys([*learnt, *range(len(first))]))[:count]


def rule(first: str, final: str, count: int) -> str:
    """How the problems were chosen, in words."""
    problems = "problem" if count == 1 else f"{count} problems"
    if first == final:
        return f"Of each task the first {problems}, in the order of the held-out set."
    return (
        f"Of each task the first {problems}, in the order of the held-out set, where the first sample of {first} is"
        f" wrong and that of {final} is right; where there are fewer, the first problems of the set."
    )
