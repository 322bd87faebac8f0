"""Settings of the watch over reinforcement learning: the check before it, and the limits of each rule during it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import Field

from melete.schema.base import Count, CountOrNone, NotNegative, Problem, Settings, Share

HealthRule: TypeAlias = Literal[
    "dead_groups",
    "all_correct_groups",
    "truncation",
    "entropy_collapse",
    "kl",
    "approx_kl",
    "grader_failures",
    "format_hacking",
    "reward_model_hacking",
    "sampler_mismatch",
    "length_explosion",
    "clip_fraction",
    "gradient_norm",
    "flat_reward",
]
HEALTH_RULES: tuple[HealthRule, ...] = get_args(HealthRule)
TwoLimits: TypeAlias = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]
FALLING = ("entropy_share", "entropy_floor")  # limits of numbers that are bad when they are low


class HealthSettings(Settings):
    """Limits of the findings. A pair is where a finding becomes a warning, and where it becomes serious."""

    off: list[HealthRule] = []
    """Rules that say nothing."""
    window: Count = 5
    """Steps that are averaged before a limit is looked at."""
    dead_groups: TwoLimits = [0.5, 0.9]
    """Share of groups whose rewards are all equal without all being right."""
    all_correct_groups: TwoLimits = [0.5, 0.9]
    """Share of groups in which every answer is right; here the pair is note and warning."""
    truncated_share: TwoLimits = [0.1, 0.5]
    """Share of completions cut at max_new_tokens."""
    entropy_share: TwoLimits = [0.1, 0.03]
    """Entropy as a share of what it was at the start of the stage."""
    entropy_floor: TwoLimits = [0.01, 0.003]
    """Entropy in nats per token."""
    kl: TwoLimits = [1.0, 5.0]
    """KL per token to the reference."""
    approx_kl: TwoLimits = [0.2, 1.0]
    """KL per token that the updates of one step move the policy."""
    grader_failures: TwoLimits = [0.01, 0.1]
    """Share of completions whose grader failed; fewer are a note."""
    format_gain: TwoLimits = [0.2, 0.5]
    """Rise of the format part since the start, while accuracy has not risen."""
    verifier_fall: TwoLimits = [0.05, 0.15]
    """Fall of accuracy from its best, while a learned part of the reward has risen."""
    sampler_mismatch: TwoLimits = [0.05, 0.2]
    """Difference between the log-probs of sampler and learner that the updates do not explain, per token."""
    length_growth: TwoLimits = [2.0, 4.0]
    """Length as a multiple of that at the start, once it is half the limit and the reward has not risen."""
    clip_fraction: TwoLimits = [0.3, 0.6]
    """Share of tokens whose gradient the clip stops."""
    gradient_spike: Annotated[float, Field(gt=1)] = 10.0
    """A gradient norm that is so many times the usual one is a spike."""
    flat_steps: Count = 30
    """Steps without a rise of the reward after which nothing is learnt."""

    def problems(self) -> Iterator[Problem]:
        for name in type(self).model_fields:
            pair = getattr(self, name)
            if name == "off" or not isinstance(pair, list):
                continue
            falls = name in FALLING
            if (pair[1] > pair[0]) if falls else (pair[1] < pair[0]):
                yield name, f"is a warning first and serious later: {'falling' if falls else 'rising'}, not {pair}"


class SupportSettings(Settings):
    """The check before the first step: whether the model is sometimes right, so that there is something to learn."""

    num_problems: CountOrNone = 32
    """Training problems that are tried, group_size completions each; 0 for no check."""
    min_pass_rate: Share = 0.02
    """Least share of right answers."""
    max_dead_share: Share = 0.9
    """Largest share of groups in which all rewards are equal."""
    refuse: bool = True
    """Whether the stage ends there when a limit is missed; else it says so and goes on."""
