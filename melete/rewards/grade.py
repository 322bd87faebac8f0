"""From rollouts to graded groups: named parts, their weighted sum, and failures kept as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from melete.rewards.rules import BatchReward, RewardFunction
from melete.types import Reward, Rollout, RolloutGroup


def grade_rollout(rollout: Rollout, functions: Mapping[str, RewardFunction], weights: Mapping[str, float]) -> Reward:
    """The weighted sum of the parts; a part that raises or is not finite makes the reward `None`, with the reason."""
    parts: dict[str, float | None] = {}
    reason = ""
    for name, function in functions.items():
        try:
            value = float(function(rollout))
        except Exception as error:  # a grader's failure is data: whatever it raises must not end the run
            parts[name], reason = None, f"{name}: {type(error).__name__}: {error}"
            continue
        if math.isfinite(value):
            parts[name] = value
        else:
            parts[name], reason = None, f"{name}: not finite ({value})"
    known = [weights[name] * value for name, value in parts.items() if value is not None]
    return Reward(sum(known) if len(known) == len(parts) else None, parts, reason)


def grade_groups(
    rollouts: Sequence[Sequence[Rollout]],
    functions: Mapping[str, RewardFunction | BatchReward],
    weights: Mapping[str, float],
) -> list[RolloutGroup]:
    """One `RolloutGroup` per non-empty list of siblings; a `BatchReward` sees all of them at once.

    Raises `ValueError` when a part has no weight or a weight no part.
    """
    if functions.keys() != weights.keys():
        raise ValueError(f"reward parts {sorted(functions)} and weights {sorted(weights)} differ")
    everything = [rollout for siblings in rollouts for rollout in siblings]
    single = {name: _looked_up(f, everything) if isinstance(f, BatchReward) else f for name, f in functions.items()}
    return [
        RolloutGroup(
            group_id=siblings[0].problem.problem_id,
            problem=siblings[0].problem,
            rollouts=tuple(siblings),
            rewards=tuple(grade_rollout(rollout, single, weights) for rollout in siblings),
        )
        for siblings in rollouts
    ]


def _looked_up(function: BatchReward, rollouts: Sequence[Rollout]) -> RewardFunction:
    """The reward of one rollout out of those of all; a failure of the whole batch is each one's failure."""
    try:
        values = function(rollouts)
        if len(values) != len(rollouts):
            raise ValueError(f"{len(values)} scores for {len(rollouts)} rollouts")
    except Exception as error:  # a grader's failure is data
        failure = error

        def failed(_rollout: Rollout) -> float:
            raise failure

        return failed
    found = {id(rollout): value for rollout, value in zip(rollouts, values, strict=True)}
    return lambda rollout: found[id(rollout)]
