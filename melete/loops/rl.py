"""Reinforcement learning with verifiable rewards: the loop, short enough to read in one sitting.

problems -> sample -> grade -> annotate -> credit -> update -> push
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from melete.algorithms import Algorithm
from melete.batch import Annotations, Batch, TrainBatch
from melete.credit import credit
from melete.learning.protocol import Learner
from melete.loops.rl_metrics import step_metrics
from melete.rewards.grade import grade_groups
from melete.rewards.rules import RewardFunction
from melete.sampling.keys import rollout_key
from melete.sampling.protocol import Sampler
from melete.text.chat import decode_completion, pad_token, prompt_tokens
from melete.types import Problem, Rollout, RolloutGroup, SampleRequest, SamplingSettings


@dataclass(frozen=True, slots=True)
class RLSettings:
    """`key_parts` (run seed, stage name) begin the key of every random number of the stage."""

    group_size: int
    sampling: SamplingSettings
    key_parts: tuple[int | str, ...]
    reference_refresh_steps: int = 0
    thought_opened: bool = False  # the template itself writes <think>


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did: metrics are a function of recipe and seed, timings (seconds) are not."""

    number: int
    groups: Sequence[RolloutGroup]
    update: TrainBatch
    metrics: Mapping[str, float]
    timings: Mapping[str, float]


def train(
    *,
    start: int,
    stop: int,
    settings: RLSettings,
    problems: Callable[[int], Sequence[Problem]],
    sampler: Sampler,
    learner: Learner,
    tokenizer: PreTrainedTokenizerBase,
    rewards: Mapping[str, RewardFunction],
    reward_weights: Mapping[str, float],
    algorithm: Algorithm,
    on_step: Callable[[Step], None],
) -> None:
    """Runs steps `start` to `stop - 1`; `on_step` hears of each after the update and may stop by raising."""
    for step in range(start, stop):
        clock = [time.perf_counter()]
        rollouts = sample_rollouts(sampler, tokenizer, problems(step), settings, step)
        clock.append(time.perf_counter())
        groups = grade_groups(rollouts, rewards, reward_weights)
        batch = Batch.from_groups(groups, pad_token(tokenizer))
        clock.append(time.perf_counter())
        update = credit(batch, annotate(batch, learner, algorithm), algorithm)
        stats = learner.update(update, algorithm)
        if settings.reference_refresh_steps and (step + 1) % settings.reference_refresh_steps == 0:
            learner.refresh_reference()
        sampler.load_weights(learner.weights(), version=step + 1)
        clock.append(time.perf_counter())
        spans = (after - before for before, after in itertools.pairwise(clock))
        timings: dict[str, float] = dict(zip(("sample_seconds", "grade_seconds", "update_seconds"), spans, strict=True))
        on_step(
            Step(step, groups, update, step_metrics(groups, stats, thought_opened=settings.thought_opened), timings)
        )


def sample_rollouts(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    settings: RLSettings,
    step: int,
) -> list[list[Rollout]]:
    """`group_size` rollouts of each problem."""
    requests = [
        SampleRequest(
            prompt_tokens(tokenizer, problem.messages),
            tuple(
                rollout_key(*settings.key_parts, step, problem.problem_id, sibling)
                for sibling in range(settings.group_size)
            ),
        )
        for problem in problems
    ]
    completions = sampler.sample(requests, settings.sampling)
    return [
        [
            Rollout(
                problem, sibling, request.prompt_tokens, completion, decode_completion(tokenizer, completion.tokens)
            )
            for sibling, completion in enumerate(siblings)
        ]
        for problem, request, siblings in zip(problems, requests, completions, strict=True)
    ]


def annotate(batch: Batch, learner: Learner, algorithm: Algorithm) -> Annotations:
    """The log-probs that the algorithm asks for and nothing else."""
    streams = {}
    if "ref_logprobs" in algorithm.needs:
        streams["ref_logprobs"] = learner.ref_logprobs(batch)
    return Annotations(streams)
