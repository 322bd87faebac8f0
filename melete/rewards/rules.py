"""Rewards that a program can verify. Each takes a problem and a completion's text and returns a number in [0, 1]."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from melete.text.answers import parse_completion
from melete.text.final_answer import Reading, answer_of
from melete.types import Problem, Rollout

RewardFunction = Callable[[Rollout], float]


@dataclass(frozen=True, slots=True)
class BatchReward:
    """A reward that is cheaper for many rollouts at once, such as a model's score.

    An exception in the place of a score says that this one rollout could not be graded.
    """

    scores: Callable[[Sequence[Rollout]], Sequence[float | Exception]]

    def __call__(self, rollouts: Sequence[Rollout]) -> Sequence[float | Exception]:
        return self.scores(rollouts)


@dataclass(frozen=True, slots=True)
class ConcurrentReward:
    """A reward that waits for something outside this process: a sandbox, a pool of graders, a judge.

    It may be called from `max_concurrent` threads, and is, as soon as a rollout is written, while others still are.
    `graded_by` says for the record what it is that is waited for.
    """

    function: RewardFunction
    max_concurrent: int = 4
    graded_by: str = ""

    def __call__(self, rollout: Rollout) -> float:
        return self.function(rollout)


def one_by_one(reward: BatchReward, max_concurrent: int, graded_by: str = "") -> ConcurrentReward:
    """A batch reward asked about single rollouts, as soon as each is written."""

    def single(rollout: Rollout) -> float:
        (value,) = reward([rollout])
        if isinstance(value, Exception):
            raise value
        return value

    return ConcurrentReward(single, max_concurrent, graded_by)


AnyReward = RewardFunction | BatchReward | ConcurrentReward


Grade = Callable[[Problem, str], float]
ReadBy = Reading | Callable[[Problem], Reading]


def accuracy(grade: Grade, *, thought_opened: bool = False, reading: ReadBy = "tags") -> RewardFunction:
    """The task's own grade of the answer, read as `answer_of` says; 0 where there is none.

    In a mixture the reading may depend on the problem.
    """

    def reward(rollout: Rollout) -> float:
        how = reading(rollout.problem) if callable(reading) else reading
        answer = answer_of(rollout.text, how, thought_opened=thought_opened)
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


def soft_overlong(max_new_tokens: int, *, cache_share: float = 0.2) -> RewardFunction:
    """DAPO's soft overlong punishment (Yu et al. 2025, eq. 13), from 0 down to -1 over the last tokens of the limit.

    With L_cache = `cache_share` L_max (DAPO: 4,096 of 20,480): 0 up to L_max - L_cache, then falling evenly to -1.
    """
    cache = max(1, round(cache_share * max_new_tokens))

    def reward(rollout: Rollout) -> float:
        over = len(rollout.completion.tokens) - (max_new_tokens - cache)
        return -min(1.0, max(0.0, over / cache))

    return reward


def random_reward(*, seed: int) -> RewardFunction:
    """A coin toss that knows nothing of the answer: the control of every claim about learning."""

    def reward(rollout: Rollout) -> float:
        key = f"{seed}/{rollout.problem.problem_id}/{rollout.sibling}/{rollout.completion.policy_version}"
        return float(hashlib.blake2b(key.encode(), digest_size=1).digest()[0] & 1)

    return reward
