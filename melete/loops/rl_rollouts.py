"""The first half of a step: problems to graded groups, drawn again where groups teach nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from melete.algorithms import Algorithm
from melete.rewards.grade import Grading, RewardPart
from melete.sampling.keys import rollout_key
from melete.sampling.protocol import Sampler
from melete.text.chat import decode_completion, prompt_tokens
from melete.types import Completion, Problem, Rollout, RolloutGroup, SampleRequest, SamplingSettings


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """`key_parts` (run seed, stage name) begin the key of every random number of the stage.

    `max_draws`: how often dynamic sampling may draw further problems for one step.
    """

    group_size: int
    sampling: SamplingSettings
    key_parts: tuple[int | str, ...]
    thought_opened: bool = False  # the template itself writes <think>
    max_draws: int = 4


@dataclass(frozen=True, slots=True)
class Collected:
    """The groups to learn from, all groups that were sampled for them, and the seconds that grading took."""

    groups: Sequence[RolloutGroup]
    all_groups: Sequence[RolloutGroup]
    timings: Mapping[str, float]


def collect(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    problems: Callable[[int, int], Sequence[Problem]],
    step: int,
    settings: SampleSettings,
    rewards: Mapping[str, RewardPart],
    algorithm: Algorithm,
) -> Collected:
    """One draw of problems, or with dynamic sampling as many as fill the step with groups of unequal rewards.

    DAPO, Yu et al. 2025 (2503.14476), section 3.2. After `max_draws` the step goes on with what there is.
    """
    everything: list[RolloutGroup] = []
    useful: list[RolloutGroup] = []
    num_wanted, grade_seconds, draw = 0, 0.0, 0
    while True:
        drawn = problems(step, draw)
        num_wanted = num_wanted or len(drawn)
        with Grading(rewards) as grading:
            rollouts = sample_rollouts(sampler, tokenizer, drawn, settings, step, on_rollout=grading.start)
            started = time.perf_counter()
            groups = grading.finish(rollouts)
            grade_seconds += time.perf_counter() - started
        everything += groups
        useful += [group for group in groups if has_signal(group)]
        draw += 1
        if not algorithm.settings.dynamic_sampling or len(useful) >= num_wanted or draw >= settings.max_draws:
            break
    kept = (useful[:num_wanted] or groups) if algorithm.settings.dynamic_sampling else everything
    return Collected(kept, everything, {"grade_seconds": grade_seconds})


def has_signal(group: RolloutGroup) -> bool:
    """Whether the raw rewards that are known differ."""
    return len({reward.total for reward in group.rewards if reward.total is not None}) > 1


def sample_rollouts(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    settings: SampleSettings,
    step: int,
    *,
    on_rollout: Callable[[Rollout], None] | None = None,
) -> list[list[Rollout]]:
    """`group_size` rollouts of each problem; `on_rollout` hears of each as soon as it is written."""
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
    made: dict[tuple[int, int], Rollout] = {}

    def written(number: int, sibling: int, completion: Completion) -> Rollout:
        if (number, sibling) not in made:
            text = decode_completion(tokenizer, completion.tokens)
            rollout = Rollout(problems[number], sibling, requests[number].prompt_tokens, completion, text)
            made[number, sibling] = rollout
            if on_rollout:
                on_rollout(rollout)
        return made[number, sibling]

    completions = sampler.sample(requests, settings.sampling, on_completion=written)
    # a sampler that says nothing before it is done is one too
    return [
        [written(number, sibling, completion) for sibling, completion in enumerate(siblings)]
        for number, siblings in enumerate(completions)
    ]
