"""The table of rewards, by the name a recipe uses; `package.module:function` names one of your own.

rules.py        rules on tags, answers and length
shape.py        rules on the shape of a completion: length, repetition, language, steps
mathematics.py  whether two answers say the same
code.py         programs, run in a sandbox
judge.py        verdicts of a language model
grade.py        parts, gates, scales and sums
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from melete.errors import RecipeError
from melete.imports import import_path
from melete.rewards.rules import (
    AnyReward,
    ConcurrentReward,
    Grade,
    ReadBy,
    RewardFunction,
    accuracy,
    format_tags,
    random_reward,
    soft_overlong,
)
from melete.rewards.shape import (
    cosine_length,
    language_consistency,
    length_penalty,
    reasoning_steps,
    repetition_penalty,
    tag_count,
)
from melete.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class RewardContext:
    """What a reward may need to know: the task's grader, the run's seed, and whether the template opens `<think>`.

    `reading`: where answers stand, see `answer_of`. `slow_grade`: the task's grader waits
    for something outside this process, and `graded_by` says what that is.
    """

    grade: Grade
    seed: int
    thought_opened: bool = False
    reading: ReadBy = "tags"
    max_new_tokens: int = 0
    slow_grade: bool = False
    graded_by: str = ""


def _accuracy(context: RewardContext) -> AnyReward:
    reward = _right(context)
    return ConcurrentReward(reward, graded_by=context.graded_by) if context.slow_grade else reward


def _right(context: RewardContext) -> RewardFunction:
    return accuracy(context.grade, thought_opened=context.thought_opened, reading=context.reading)


def _cosine_length(context: RewardContext, *, max_tokens: int = 0) -> AnyReward:
    return cosine_length(_right(context), max_tokens or context.max_new_tokens)


def _repetition(context: RewardContext, *, size: int = 3, max_penalty: float = -1.0) -> AnyReward:
    return repetition_penalty(size=size, max_penalty=max_penalty)


def _reasoning_steps(context: RewardContext, *, enough: int = 3) -> AnyReward:
    return reasoning_steps(enough=enough, thought_opened=context.thought_opened)


def _language(context: RewardContext, *, wordless: float = 0.0) -> AnyReward:
    return language_consistency(wordless=wordless, thought_opened=context.thought_opened)


def _overlong(context: RewardContext, *, cache_share: float = 0.2) -> AnyReward:
    return soft_overlong(context.max_new_tokens, cache_share=cache_share)


def _math(context: RewardContext, *, bare_number: bool = False) -> AnyReward:
    from melete.rewards.mathematics import math_accuracy, math_pool

    reward = math_accuracy(thought_opened=context.thought_opened, bare_number=bare_number)
    return ConcurrentReward(reward, math_pool().size, graded_by="math-verify")


def _code(
    context: RewardContext, *, score: str = "all", at_least: str = "wasm", wall_s: float = 5.0, memory_mib: int = 256
) -> AnyReward:
    from melete.rewards.code import CodeReward
    from melete.sandbox import Limits

    if score not in ("all", "fraction"):
        raise ValueError(f'score is "all" or "fraction", not {score!r}')
    limits = Limits(wall_s=wall_s, cpu_s=wall_s, memory_bytes=memory_mib * 2**20)
    judge = CodeReward(at_least=at_least, limits=limits, score=score, thought_opened=context.thought_opened)
    return ConcurrentReward(judge, max_concurrent=2, graded_by=judge.executor_name)


# a factory of the context; its other parameters are the settings of the part
REWARDS: dict[str, Callable[..., AnyReward]] = {
    "accuracy": _accuracy,
    "code": _code,
    "cosine_length": _cosine_length,
    "format": lambda context: format_tags(thought_opened=context.thought_opened),
    "format_with_thought": lambda context: format_tags(thought_required=True, thought_opened=context.thought_opened),
    "language": _language,
    "length": lambda context: length_penalty(_right(context)),
    "math": _math,
    "overlong": _overlong,
    "random": lambda context: random_reward(seed=context.seed),
    "reasoning_steps": _reasoning_steps,
    "repetition": _repetition,
    "tag_count": lambda context: tag_count(thought_opened=context.thought_opened),
}


def make_rewards(names: Iterable[str], context: RewardContext) -> dict[str, AnyReward]:
    """Name -> function of a rollout.

    Raises `RecipeError` for a name that is neither in the table nor an importable "package.module:function".
    """
    return {name: make_reward(name, context, {}) for name in names}


def make_reward(name: str, context: RewardContext, settings: Mapping[str, Any]) -> AnyReward:
    """The reward of this name in the table or at this import path.

    Raises `RecipeError` for an unknown name, setting or value.
    """
    if name not in REWARDS:
        remedy = f"{did_you_mean(name, REWARDS)} or package.module:function"
        found = import_path(name, place=f"reward {name}", remedy=remedy)
        return found if not settings else found(**settings)
    known = reward_settings(name)
    for key in settings:
        if key not in known:
            raise RecipeError(f"reward {name} has no setting {key!r}", remedy=did_you_mean(key, known))
    try:
        return REWARDS[name](context, **settings)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"reward {name}: {error}", remedy="see its settings in docs/rewards.md") from error


def reward_settings(name: str) -> dict[str, Any]:
    """Settings of a reward of the table, with their defaults."""
    parameters = list(inspect.signature(REWARDS[name]).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}
