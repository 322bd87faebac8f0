"""The second half of a step: one or several optimizer steps on the same rollouts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from melete.algorithms import Algorithm
from melete.batch import TrainBatch
from melete.learning.protocol import Critic, Learner


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """`num_epochs` passes over the rollouts, each dealt into `num_minibatches` optimizer steps in an order of its own.

    The updates end early once `approx_kl` to the policy that wrote the rollouts exceeds `approx_kl_limit`. The policy
    stands still for the first `critic_warmup_steps` steps, while the critic learns.
    """

    num_epochs: int = 1
    num_minibatches: int = 1
    approx_kl_limit: float | None = None
    critic_warmup_steps: int = 0
    seed: str = ""

    @property
    def num_updates(self) -> int:
        return self.num_epochs * self.num_minibatches


def update_policy(
    batch: TrainBatch,
    algorithm: Algorithm,
    learner: Learner,
    critic: Critic | None,
    settings: UpdateSettings,
    step: int,
) -> dict[str, float]:
    """Updates policy and critic; returns the mean of what each update logged, and how many there were."""
    logged: list[Mapping[str, float]] = []
    for part in _parts(batch, settings, step):
        stats = dict(critic.update(part)) if critic is not None and part.num_rows else {}
        if critic is None or step >= settings.critic_warmup_steps:
            stats |= learner.update(part, algorithm)
        logged.append(stats)
        limit = settings.approx_kl_limit
        if limit is not None and stats.get("approx_kl", 0.0) > limit:
            break
    return _merged(logged) | {"num_dropped_rows": float(batch.num_dropped_rows), "num_updates": float(len(logged))}


def _parts(batch: TrainBatch, settings: UpdateSettings, step: int) -> Iterator[TrainBatch]:
    for epoch in range(settings.num_epochs):
        if settings.num_minibatches == 1:
            yield batch
            continue
        order = list(range(batch.num_rows))
        random.Random(f"{settings.seed}/{step}/{epoch}").shuffle(order)
        yield from batch.minibatches(settings.num_minibatches, order)


def _merged(logged: list[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for stats in logged for name in stats)
    values = {name: [stats[name] for stats in logged if name in stats] for name in names}
    return {name: max(found) if name.endswith("_max") else fmean(found) for name, found in values.items()}
