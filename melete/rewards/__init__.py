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
from dataclasses import dataclass, field
from typing import Any

from melete.errors import RecipeError
from melete.imports import import_path
from melete.rewards.grade import Normalise, RewardPart
from melete.rewards.rules import AnyReward, ConcurrentReward, Grade, accuracy, format_tags, random_reward, soft_overlong
from melete.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class RewardContext:
    """What a reward may need to know: the task's grader, the run's seed, and whether the template opens `<think>`.

    `plain`: the answer is the text without its thought, and no tags are expected. `slow_grade`: the task's grader waits
    for something outside this process.
    """

    grade: Grade
    seed: int
    thought_opened: bool = False
    plain: bool = False
    max_new_tokens: int = 0
    slow_grade: bool = False


@dataclass(frozen=True, slots=True)
class PartSettings:
    """How a part of the reward is made and counted: `reward` is its name in the table, empty for the part's own."""

    reward: str = ""
    gate: str = ""
    normalise: Normalise = "none"
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


def _accuracy(context: RewardContext) -> AnyReward:
    reward = accuracy(context.grade, thought_opened=context.thought_opened, plain=context.plain)
    return ConcurrentReward(reward) if context.slow_grade else reward


def _overlong(context: RewardContext, *, cache_share: float = 0.2) -> AnyReward:
    return soft_overlong(context.max_new_tokens, cache_share=cache_share)


# a factory of the context; its other parameters are the settings of the part
REWARDS: dict[str, Callable[..., AnyReward]] = {
    "accuracy": _accuracy,
    "format": lambda context: format_tags(thought_opened=context.thought_opened),
    "format_with_thought": lambda context: format_tags(thought_required=True, thought_opened=context.thought_opened),
    "overlong": _overlong,
    "random": lambda context: random_reward(seed=context.seed),
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


def reward_parts(
    weights: Mapping[str, float], context: RewardContext, settings: Mapping[str, PartSettings] | None = None
) -> dict[str, RewardPart]:
    """The parts that `weights` names, made and counted as `settings` say.

    Raises `RecipeError` as `make_reward` does.
    """
    parts = {}
    for name, weight in weights.items():
        own = (settings or {}).get(name, PartSettings())
        function = make_reward(own.reward or name, context, own.settings)
        parts[name] = RewardPart(function, weight, own.gate, own.normalise)
    return parts
