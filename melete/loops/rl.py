"""Reinforcement learning: the loop, short enough to read in one sitting.

problems -> sample -> grade -> annotate -> credit -> update -> push
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from melete.algorithms import Algorithm
from melete.batch import Annotations, Batch, TrainBatch
from melete.credit import credit
from melete.errors import TrainingError
from melete.functional.value import adapted_kl_coef
from melete.learning.protocol import Critic, Learner
from melete.loops.rl_metrics import step_metrics
from melete.loops.rl_rollouts import Collected, SampleSettings, collect
from melete.loops.rl_update import UpdateSettings, update_policy
from melete.rewards.grade import RewardPart
from melete.sampling.protocol import Sampler
from melete.text.chat import pad_token
from melete.types import Problem, RolloutGroup

# what the learner, a critic, a teacher or a grader of steps says of a batch: a stream [B, T]
Annotator = Callable[[Batch, Sequence[RolloutGroup]], Tensor]
OnRefused = Callable[[int, Sequence[RolloutGroup], TrainingError], None]


@dataclass(frozen=True, slots=True)
class RLSettings:
    """`max_staleness`: the sampler's weights are at most so many steps behind; 0 is synchronous training."""

    sampling: SampleSettings
    update: UpdateSettings = field(default_factory=UpdateSettings)
    reference_refresh_steps: int = 0
    max_staleness: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did: metrics are a function of recipe and seed, timings (seconds) are not.

    `kl_coef` is the weight that the next step begins with.
    """

    number: int
    groups: Sequence[RolloutGroup]
    update: TrainBatch
    metrics: Mapping[str, float]
    timings: Mapping[str, float]
    kl_coef: float


def train(
    *,
    start: int,
    stop: int,
    settings: RLSettings,
    problems: Callable[[int, int], Sequence[Problem]],
    sampler: Sampler,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    rewards: Mapping[str, RewardPart],
    algorithm: Algorithm,
    on_step: Callable[[Step], None],
    on_refused: OnRefused = lambda _step, _groups, _error: None,
    critic: Critic | None = None,
    annotators: Mapping[str, Annotator] | None = None,
) -> None:
    """Runs steps `start` to `stop - 1`; `on_step` hears of each after the update and may stop by raising.

    `on_refused` hears of a step with a loss, gradient or reward that is not finite, before its `TrainingError` goes on.

    `problems(step, draw)` are those of a step; with dynamic sampling there may be several draws. `annotators` give the
    streams that learner and critic do not have, such as teacher_logprobs.
    """
    known = _annotators(learner, critic) | dict(annotators or {})
    for step in range(start, stop):
        clock = [time.perf_counter()]
        with learner.remembering():
            found = collect(sampler, tokenizer, problems, step, settings.sampling, rewards, algorithm)
        clock.append(time.perf_counter())
        weights = {name: part.weight for name, part in rewards.items()}
        try:
            update = _credited(found, pad_token(tokenizer), algorithm, known, weights, settings)
            stats = update_policy(update, algorithm, learner, critic, settings.update, step)
        except TrainingError as error:
            on_refused(step, found.all_groups, error)
            raise
        algorithm = _with_adapted_kl(algorithm, stats, num_rollouts=sum(len(g.rollouts) for g in found.groups))
        if settings.reference_refresh_steps and (step + 1) % settings.reference_refresh_steps == 0:
            learner.refresh_reference()
        if (step + 1) % (settings.max_staleness + 1) == 0:
            sampler.load_weights(learner.weights(), version=step + 1)
        clock.append(time.perf_counter())
        spans = (after - before for before, after in itertools.pairwise(clock))
        timings: dict[str, float] = dict(zip(("sample_seconds", "update_seconds"), spans, strict=True))
        timings |= found.timings
        metrics = step_metrics(found, stats, step=step, thought_opened=settings.sampling.thought_opened)
        metrics |= {"kl_coef": algorithm.kl_coef} if algorithm.settings.kl_target is not None else {}
        on_step(Step(step, found.groups, update, metrics, timings, algorithm.kl_coef))


def _annotators(learner: Learner, critic: Critic | None) -> dict[str, Annotator]:
    known: dict[str, Annotator] = {
        "old_logprobs": lambda batch, _groups: learner.logprobs(batch),
        "ref_logprobs": lambda batch, _groups: learner.ref_logprobs(batch),
    }
    return known | ({"values": lambda batch, _groups: critic.values(batch)} if critic else {})


def _credited(
    found: Collected,
    pad_token_id: int,
    algorithm: Algorithm,
    annotators: Mapping[str, Annotator],
    reward_weights: Mapping[str, float],
    settings: RLSettings,
) -> TrainBatch:
    """Rows with advantages; only the streams that are asked for are computed.

    Raises `ValueError` for a stream that nobody gives.
    """
    batch = Batch.from_groups(found.groups, pad_token_id)
    is_only_update = settings.update.num_updates == 1 and settings.max_staleness == 0
    wanted = algorithm.needs - (algorithm.optional if is_only_update else frozenset())
    if missing := sorted(wanted - annotators.keys()):
        raise ValueError(f"{algorithm.name} needs {', '.join(missing)}, and nobody gives it")
    streams = {name: annotators[name](batch, found.groups) for name in sorted(wanted)}
    return credit(batch, Annotations(streams), algorithm, reward_weights)


def _with_adapted_kl(algorithm: Algorithm, stats: Mapping[str, float], *, num_rollouts: int) -> Algorithm:
    settings = algorithm.settings
    if settings.kl_target is None or "kl" not in stats:
        return algorithm
    kl_coef = adapted_kl_coef(
        settings.kl_coef,
        stats["kl"],
        kl_target=settings.kl_target,
        kl_horizon=settings.kl_horizon,
        num_rollouts=num_rollouts,
    )
    return replace(algorithm, settings=replace(settings, kl_coef=kl_coef))
