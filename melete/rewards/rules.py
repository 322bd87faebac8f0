"""Rewards that a program can verify. Each takes a problem and a completion's text and returns a number in [0, 1]."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from melete.text.answers import parse_completion
from melete.types import Problem, Rollout

RewardFunction = Callable[[Rollout], float]
Grade = Callable[[Problem, str], float]


def accuracy(grade: Grade, *, thought_opened: bool = False) -> RewardFunction:
    """The task's own grade of what is inside `<answer>` after the thought; 0 where there is no answer."""

    def reward(rollout: Rollout) -> float:
        answer = parse_completion(rollout.text, thought_opened=thought_opened).answer
        return 0.0 if answer is None else grade(rollout.problem, answer)

    return reward


def format_tags(*, thought_required: bool = False, thought_opened: bool = False) -> RewardFunction:
    """1 when the tags are in order and the turn was ended, else 0.

    A thought is optional unless `thought_required`: then thinking itself is paid for, as in DeepSeek-R1-Zero. When it
    is optional, a model that learns to think does so because its answers get better.
    """

    def reward(rollout: Rollout) -> float:
        parsed = parse_completion(rollout.text, thought_opened=thought_opened)
        complete = parsed.well_formed and rollout.completion.finish_reason == "stop"
        return float(complete and (parsed.thought is not None or not thought_required))

    return reward


def random_reward(*, seed: int) -> RewardFunction:
    """A coin toss that knows nothing of the answer: the control of every claim about learning."""

    def reward(rollout: Rollout) -> float:
        key = f"{seed}/{rollout.problem.problem_id}/{rollout.sibling}/{rollout.completion.policy_version}"
        return float(hashlib.blake2b(key.encode(), digest_size=1).digest()[0] & 1)

    return reward
