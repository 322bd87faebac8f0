"""The table of rewards, by the name a recipe uses; `package.module:function` names one of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from melete.imports import import_path
from melete.rewards.rules import Grade, RewardFunction, accuracy, format_tags, random_reward, soft_overlong
from melete.suggest import did_you_mean


@dataclass(frozen=True, slots=True)
class RewardContext:
    """What a reward may need to know: the task's grader, the run's seed, and whether the template opens `<think>`.

    `plain`: the answer is the text without its thought, and no tags are expected.
    """

    grade: Grade
    seed: int
    thought_opened: bool = False
    plain: bool = False
    max_new_tokens: int = 0


REWARDS: dict[str, Callable[[RewardContext], RewardFunction]] = {
    "accuracy": lambda context: accuracy(context.grade, thought_opened=context.thought_opened, plain=context.plain),
    "format": lambda context: format_tags(thought_opened=context.thought_opened),
    "format_with_thought": lambda context: format_tags(thought_required=True, thought_opened=context.thought_opened),
    "overlong": lambda context: soft_overlong(context.max_new_tokens),
    "random": lambda context: random_reward(seed=context.seed),
}


def make_rewards(names: Iterable[str], context: RewardContext) -> dict[str, RewardFunction]:
    """Name -> function of a rollout.

    Raises `RecipeError` for a name that is neither in the table nor an importable "package.module:function".
    """
    return {name: REWARDS[name](context) if name in REWARDS else _imported(name) for name in names}


def _imported(path: str) -> RewardFunction:
    remedy = f"{did_you_mean(path, REWARDS)} or package.module:function"
    return import_path(path, place=f"reward {path}", remedy=remedy)
