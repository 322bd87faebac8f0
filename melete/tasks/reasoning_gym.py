"""`reasoning_gym/<name>`: the procedural data sets of the library reasoning-gym (extra `envs`), as tasks.

The library runs in processes of its own (`reasoning_gym_worker`), for three reasons: some of its data sets draw in the
order of Python's hashes, so their process has PYTHONHASHSEED=0; some of its scorers run sympy on untrusted text, which
may hang; and importing it takes seconds and matplotlib.

An item is a function of (data set, config, item seed). Item seeds are drawn from (seed, split, index), and an item
belongs to the split that the hash of its question says. It is passed over when its own gold answer does not score 1.

What a score is: 1 where the scorer gives full marks, else 0, or with `partial_credit` what the scorer gives. An
exception inside the scorer is a wrong answer, because the gold answer of this very item has been scored without one; a
scorer that does not end in time, or ends its process, says nothing (`GradingError`). Where a scorer pays nonsense, only
the gold answer itself is right. Data sets without an answer of their own cannot prove their scorer and are refused.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from melete.errors import RecipeError
from melete.rewards.errors import GradingError
from melete.rewards.pool import Pool
from melete.tasks.base import Split
from melete.types import Message, Problem

PREFIX = "reasoning_gym/"
MAX_ANSWER = 20_000  # characters
DRAW_SECONDS = 300.0  # for one problem: a held-out item of a slow data set takes ten tries of half a second
SCORE_SECONDS = 20.0
_WORKER = "melete.tasks.reasoning_gym_worker"
_WORKER_MEMORY = 4 * 2**30  # bytes of address space


@dataclass(frozen=True, slots=True)
class ReasoningGym:
    """One data set; `config` holds the settings of the library's own config, by its names.

    Raises `RecipeError` for a data set or config that cannot be, and when the library is missing.
    """

    dataset: str
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    partial_credit: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        refused = _call("check", [self.dataset, _as_json(self.config, self.name)])
        if refused:
            raise RecipeError(f"task {self.name}: {refused['what']}", remedy=refused["remedy"])

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.dataset}"

    @property
    def waits(self) -> bool:
        """The scorers run in worker processes."""
        return True

    def problem(self, split: Split, index: int) -> Problem:
        """The `index`-th problem of a split. Raises `RecipeError` when the config leaves the split without problems."""
        drawn = _draw(self.dataset, _as_json(self.config, self.name), self.seed, split, index)
        return Problem(
            f"{self.name}/{split}/{self.seed}/{index}",
            self.name,
            (Message("user", drawn["question"]),),
            drawn["gold"],
            {"item_seed": drawn["item_seed"], "exact": drawn["exact"], **drawn["meta"]},
        )

    def grade(self, problem: Problem, answer: str) -> float:
        """See the head of this module. Raises `GradingError` when the scorer does not end or ends its process."""
        if len(answer) > MAX_ANSWER:
            return 0.0
        item = [self.dataset, _as_json(self.config, self.name), problem.meta["item_seed"]]
        score = _pool().call(f"{_WORKER}:score", [*item, answer], SCORE_SECONDS)
        return score if self.partial_credit else float(score >= 1.0)


def make_reasoning_gym(name: str, settings: Mapping[str, Any]) -> ReasoningGym:
    """The task of this name ("reasoning_gym/gcd"); settings are those of the data set, `seed` and `partial_credit`.

    Raises `RecipeError` for an unknown data set or setting, naming the nearest.
    """
    config = dict(settings)
    own = {"partial_credit": config.pop("partial_credit", False), "seed": config.pop("seed", 0)}
    for key, value in own.items():
        wanted = type(ReasoningGym.__dataclass_fields__[key].default)
        if type(value) is not wanted:
            raise RecipeError(f"task {name}: {key} must be {wanted.__name__}, not {value!r}")
    return ReasoningGym(name.removeprefix(PREFIX), config, **own)


def dataset_names() -> list[str]:
    """All data sets of the installed library that can be tasks. Raises `RecipeError` when the library is missing."""
    return list(_call("names", []))


def refused_datasets() -> dict[str, str]:
    """The data sets that cannot be tasks, each with the reason."""
    return dict(_call("refused", []))


def _call(function: str, args: list[Any]) -> Any:
    """A question about the library itself, not about an answer: failing is the setting's fault."""
    try:
        return _pool().call(f"{_WORKER}:{function}", args, DRAW_SECONDS)
    except GradingError as error:
        raise RecipeError(f"reasoning-gym: {error}", remedy="an easier config, or another data set") from error


@lru_cache(maxsize=4096)
def _draw(dataset: str, config: str, seed: int, split: Split, index: int) -> dict[str, Any]:
    drawn = _call("draw", [dataset, config, seed, split, index])
    if "what" in drawn:
        raise RecipeError(f"task {PREFIX}{dataset}: {drawn['what']}", remedy=drawn["remedy"])
    return drawn


@lru_cache(maxsize=1)
def _pool() -> Pool:
    if importlib.util.find_spec("reasoning_gym") is None:  # importing it here would take seconds
        raise RecipeError("reasoning_gym is not installed", remedy="pip install 'melete[envs]'")
    return Pool(2, setup=f"{_WORKER}:set_up", memory=_WORKER_MEMORY)


def _as_json(config: Mapping[str, Any], name: str) -> str:
    try:
        return json.dumps(dict(config), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"task {name}: the config is not plain data: {error}") from error
