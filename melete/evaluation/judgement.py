"""What a grader says about one completion, and the answer that it casts as a vote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from melete.rewards.grade import grade_rollout
from melete.rewards.rules import ReadBy, RewardFunction
from melete.text.answers import parse_completion, without_thought
from melete.text.final_answer import answer_of
from melete.text.numbers import parse_integer
from melete.text.refusal import is_refusal
from melete.types import Reward, Rollout

_TAG = re.compile(r"</?(?:think|answer)>")


@dataclass(frozen=True, slots=True)
class Judgement:
    """`reward.parts["accuracy"]` is 1.0 for a right answer and `None` when the grader failed.

    `answer` is the canonical answer that votes, `None` when none could be read. `refuses`: what a reader is shown
    declines what was asked.
    """

    reward: Reward
    answer: str | None
    has_thought: bool
    has_format: bool
    refuses: bool = False

    @property
    def correct(self) -> bool | None:
        accuracy = self.reward.parts["accuracy"]
        return None if accuracy is None else accuracy == 1.0


def judge(
    rollout: Rollout,
    functions: Mapping[str, RewardFunction],
    weights: Mapping[str, float],
    *,
    thought_opened: bool = False,
    reading: ReadBy = "tags",
) -> Judgement:
    """Grades a rollout with the given reward parts, of which one must be "accuracy", and reads thought and answer.

    The format holds when nothing but a thought and one answer is there and the turn was ended. For `reading` see
    `answer_of`.
    """
    parsed = parse_completion(rollout.text, thought_opened=thought_opened)
    shown = without_thought(rollout.text, thought_opened=thought_opened)
    how = reading(rollout.problem) if callable(reading) else reading
    in_order = bool(shown) and not _TAG.search(shown) if how == "text" else parsed.well_formed
    return Judgement(
        reward=grade_rollout(rollout, functions, weights),
        answer=canonical(answer_of(rollout.text, how, thought_opened=thought_opened)),
        has_thought=parsed.thought is not None,
        has_format=in_order and rollout.completion.finish_reason == "stop",
        refuses=is_refusal(shown),
    )


def canonical(answer: str | None) -> str | None:
    """One spelling for answers that are the same: numbers as integers, other text without white space.

    >>> canonical(" 06. "), canonical("(3 + 5) * 2"), canonical("  ")
    ('6', '(3+5)*2', None)
    """
    if answer is None:
        return None
    number = parse_integer(answer)
    return str(number) if number is not None else "".join(answer.split()) or None
