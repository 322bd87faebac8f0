"""From rollouts to graded groups: named parts, their gates, scales and weighted sum, and failures kept as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean, pstdev
from types import TracebackType
from typing import Literal

from melete.rewards.errors import GradingError
from melete.rewards.rules import AnyReward, BatchReward, ConcurrentReward, RewardFunction
from melete.types import Problem, Reward, Rollout, RolloutGroup

Normalise = Literal["none", "group", "step"]
_Graded = float | Exception | None  # None where a part does not count


class NotFinite(GradingError):
    """A grader gave infinity or no number at all."""


@dataclass(frozen=True, slots=True)
class RewardPart:
    """One part of a reward and how it joins the sum.

    `gate` names another part: where that is not above 0, this one counts as 0. `normalise` takes off the mean and
    divides by the deviation (population) of what is known in the group, or in the whole step; equal values become 0.
    `tasks` are those whose problems the part counts for, all where empty; elsewhere it is neither asked nor recorded.
    """

    function: AnyReward
    weight: float = 1.0
    gate: str = ""
    normalise: Normalise = "none"
    tasks: frozenset[str] = frozenset()

    def counts_for(self, problem: Problem) -> bool:
        """Whether the problem's task, or a part of a mixture on the way to it, is one of `tasks`."""
        return not self.tasks or not self.tasks.isdisjoint(problem.task.split("/"))


def grade_rollout(rollout: Rollout, functions: Mapping[str, RewardFunction], weights: Mapping[str, float]) -> Reward:
    """The weighted sum of the parts; a part that raises or is not finite makes the reward `None`, with the reason."""
    parts = {name: RewardPart(function, weights[name]) for name, function in functions.items()}
    return grade_groups([[rollout]], parts)[0].rewards[0]


def grade_groups(rollouts: Sequence[Sequence[Rollout]], parts: Mapping[str, RewardPart]) -> list[RolloutGroup]:
    """One `RolloutGroup` per non-empty list of siblings; `Reward.parts` are the parts as they were graded.

    Raises `ValueError` for a gate that is no part.
    """
    with Grading(parts) as grading:
        return grading.finish(rollouts)


class Grading:
    """Grades a step's rollouts. What waits for something outside may begin while others are still being written.

    >>> with Grading({"length": RewardPart(lambda rollout: len(rollout.text))}) as grading:
    ...     grading.finish([])
    []
    """

    def __init__(self, parts: Mapping[str, RewardPart]) -> None:
        for name, part in parts.items():
            if part.gate and part.gate not in parts:
                raise ValueError(f"the gate of {name} is {part.gate!r}, which is none of {', '.join(parts)}")
        self.parts = parts
        self.started: dict[tuple[str, int], tuple[Rollout, Future[_Graded]]] = {}
        limits = [p.function.max_concurrent for p in parts.values() if isinstance(p.function, ConcurrentReward)]
        self.threads = ThreadPoolExecutor(sum(limits), "grading") if limits else None

    def __enter__(self) -> Grading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.threads is not None:
            self.threads.shutdown(cancel_futures=True)

    def start(self, rollout: Rollout) -> None:
        """Begins the parts of this rollout that can wait in a thread."""
        for name, part in self.parts.items():
            if not part.counts_for(rollout.problem):
                continue
            if self.threads is not None and isinstance(part.function, ConcurrentReward):
                # the rollout is kept beside its future, so that its identity is not given to another
                future = self.threads.submit(_one, part.function, rollout)
                self.started[name, id(rollout)] = rollout, future

    def finish(self, rollouts: Sequence[Sequence[Rollout]]) -> list[RolloutGroup]:
        """The graded groups; what was not started is graded now."""
        groups = [list(siblings) for siblings in rollouts if siblings]
        everything = [rollout for siblings in groups for rollout in siblings]
        graded = {name: self._graded(name, part, everything) for name, part in self.parts.items()}
        counted = {name: _counted(self.parts[name], values, graded, groups) for name, values in graded.items()}
        rewards = [_reward(self.parts, graded, counted, row) for row in range(len(everything))]
        found, row = [], 0
        for siblings in groups:
            problem, own = siblings[0].problem, tuple(rewards[row : row + len(siblings)])
            found.append(RolloutGroup(problem.problem_id, problem, tuple(siblings), own))
            row += len(siblings)
        return found

    def _graded(self, name: str, part: RewardPart, rollouts: Sequence[Rollout]) -> list[_Graded]:
        counted = [rollout for rollout in rollouts if part.counts_for(rollout.problem)]
        values = iter(self._asked(name, part, counted) if counted else [])
        return [next(values) if part.counts_for(rollout.problem) else None for rollout in rollouts]

    def _asked(self, name: str, part: RewardPart, rollouts: Sequence[Rollout]) -> list[_Graded]:
        if isinstance(part.function, BatchReward):
            return _together(part.function, rollouts)
        if not isinstance(part.function, ConcurrentReward):
            return [_one(part.function, rollout) for rollout in rollouts]
        for rollout in rollouts:
            if (name, id(rollout)) not in self.started:
                self.start(rollout)
        return [self.started[name, id(rollout)][1].result() for rollout in rollouts]


def _one(function: RewardFunction, rollout: Rollout) -> _Graded:
    try:
        return _finite(function(rollout))
    except Exception as error:  # a grader's failure is data: whatever it raises must not end the run
        return error


def _together(function: BatchReward, rollouts: Sequence[Rollout]) -> list[_Graded]:
    """A failure of the whole batch is each one's failure; an exception in the place of a score is that rollout's."""
    try:
        values = function(rollouts)
        if len(values) != len(rollouts):
            raise ValueError(f"{len(values)} scores for {len(rollouts)} rollouts")
        return [value if isinstance(value, Exception) else _finite(value) for value in values]
    except Exception as error:  # as above
        return [error] * len(rollouts)


def _finite(value: float) -> _Graded:
    number = float(value)
    return number if math.isfinite(number) else NotFinite(f"not finite ({number})")


def _counted(
    part: RewardPart,
    values: Sequence[_Graded],
    graded: Mapping[str, Sequence[_Graded]],
    groups: Sequence[Sequence[Rollout]],
) -> list[float | None]:
    """What of a part joins the sum: through its gate, then on its scale; None where it is not known or not counted."""
    gates = graded[part.gate] if part.gate else [1.0] * len(values)
    counted: list[float | None] = []
    for value, gate in zip(values, gates, strict=True):
        if value is None or isinstance(value, Exception) or isinstance(gate, Exception):
            counted.append(None)
        else:
            counted.append(0.0 if gate is not None and gate <= 0 else value)
    if part.normalise == "none":
        return counted
    if part.normalise == "step":
        return _on_scale(counted)
    scaled: list[float | None] = []
    for siblings in groups:
        scaled += _on_scale(counted[len(scaled) : len(scaled) + len(siblings)])
    return scaled


def _on_scale(values: Sequence[float | None]) -> list[float | None]:
    known = [value for value in values if value is not None]
    if len(set(known)) < 2:
        return [None if value is None else 0.0 for value in values]
    mean, deviation = fmean(known), pstdev(known)
    return [None if value is None else (value - mean) / deviation for value in values]


def _reward(
    parts: Mapping[str, RewardPart],
    graded: Mapping[str, Sequence[_Graded]],
    counted: Mapping[str, Sequence[float | None]],
    row: int,
) -> Reward:
    raw = {name: value for name in parts if (value := graded[name][row]) is not None}
    failures = [f"{name}: {_told(value)}" for name, value in raw.items() if isinstance(value, Exception)]
    known = [parts[name].weight * value for name in raw if (value := counted[name][row]) is not None]
    return Reward(
        sum(known) if len(known) == len(raw) else None,
        {name: None if isinstance(value, Exception) else value for name, value in raw.items()},
        failures[-1] if failures else "",
    )


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, GradingError) else f"{type(error).__name__}: {error}"
