"""The rules: each looks at the rows so far and says what is wrong now, with the likely cause and the setting to try."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from statistics import fmean, median

from melete.health.hacking import format_hacking, reward_model_hacking
from melete.health.history import History, change_of, known, number
from melete.health.signs import BEST_OF_MANY, LEAST_GAIN, NEARLY_ALWAYS_RIGHT, Sign, high, low
from melete.schema.health import HealthRule

NEARLY_NEVER_RIGHT = 0.1  # accuracy at which most groups of eight are all wrong
HALF_THE_LIMIT = 0.5  # of max_new_tokens: shorter completions have not exploded
SPIKE_WINDOW = 20  # rows that the usual gradient norm is the median of
SPIKES_FOR_WARNING = 3
ONE_RATIO_PER_ROW = ("gspo",)  # a clip of whole rows stops many more tokens, by design


Rule = Callable[[History], Sign | None]


def dead_groups(seen: History) -> Sign | None:
    """Groups that teach nothing although not everything is right."""
    dead = seen.mean("dead_groups")
    if dead is None or not seen.compares_siblings:
        return None
    value = max(dead - (seen.mean("all_correct_groups") or 0.0), 0.0)
    level = high(value, seen.limits.dead_groups)
    size, verifier = seen.setting("group_size", 8), seen.verifier()
    cause, remedy = _why_dead(seen, size)
    known_wrong = " without all being right" if verifier else ""
    return level and Sign(
        *level,
        says=f"In {value:.0%} of the groups all {size} rewards are equal{known_wrong}: they teach nothing.",
        cause=cause,
        remedy=remedy,
    )


def _why_dead(seen: History, size: int) -> tuple[str, str]:
    """Cause and remedy of dead groups: the problems, or siblings that have become alike."""
    easier = f"easier problems in [stage.task], group_size = {2 * size}, or an sft stage first"
    rate = seen.mean(seen.verifier() or "")
    if rate is not None and rate < NEARLY_NEVER_RIGHT:
        return f"The problems are too hard for the model: {rate:.1%} of its answers are right.", easier
    start = seen.first_mean("dead_groups")
    if start is not None and start < seen.limits.dead_groups[0] / 2:
        return (
            "It was not so at the start: the siblings have become alike, or the reward cannot get any higher.",
            f"fewer steps, lr = {_half(seen, 'lr')}, or other problems in [stage.task]",
        )
    return "The problems are too hard, or the reward hardly differs from one answer to another.", easier


def all_correct_groups(seen: History) -> Sign | None:
    """Groups that teach nothing because everything is right: no fault, but wasted work."""
    value = seen.mean("all_correct_groups")
    if value is None or not seen.compares_siblings:
        return None
    level = high(value, seen.limits.all_correct_groups, ("note", "warning"))
    return level and Sign(
        *level,
        says=f"In {value:.0%} of the groups every answer is right: there is nothing left to learn from them.",
        cause="The problems have become too easy for the model.",
        remedy=(
            'harder problems in [stage.task], fewer steps, or algorithm = "dapo", which draws other problems for them'
        ),
    )


def truncation(seen: History) -> Sign | None:
    """Completions that were cut, so that their answer is missing."""
    value = seen.mean("truncated_share")
    level = None if value is None else high(value, seen.limits.truncated_share)
    if value is None or level is None:
        return None
    tokens = seen.setting("max_new_tokens", 128)
    change = seen.change("length_mean")
    grows = change is not None and change.after > 1.5 * change.before
    return Sign(
        *level,
        says=f"{value:.0%} of the completions are cut at {tokens} tokens, before they have given an answer.",
        cause=(
            "The completions have grown up to the limit; read some: a loop looks the same as a long thought."
            if grows
            else "The limit is lower than an answer needs, or the model does not know how to end its turn."
        ),
        remedy=f"max_new_tokens = {2 * tokens}, or rewards.overlong = 0.5 against loops",
    )


def entropy_collapse(seen: History) -> Sign | None:
    """A policy that always writes the same, so that siblings no longer differ."""
    value, start = seen.mean("entropy"), seen.first_mean("entropy")
    if value is None:
        return None
    share, floor = seen.limits.entropy_share, seen.limits.entropy_floor
    starts = (start or 0.0, start or 0.0)  # before the first window is over only the floor counts
    bounds = [max(part * begin, least) for part, begin, least in zip(share, starts, floor, strict=True)]
    level = low(value, bounds)
    if level is None:
        return None
    accuracy = seen.mean(seen.verifier() or "")
    if accuracy is not None and accuracy >= NEARLY_ALWAYS_RIGHT:
        level = ("note", *level[1:])  # it is sure because it knows
    before = f" (at the start {start:.3f})" if start is not None else ""
    return Sign(
        *level,
        says=f"The entropy is {value:.4f} nats per token{before}: all samples of a problem are nearly the same.",
        cause="The updates are too large, or go on after everything learnable is learnt; the model explores no more.",
        remedy=f"lr = {_half(seen, 'lr')}, algorithm_settings.clip_high = 0.28, or entropy_coef = 0.001",
    )


def kl(seen: History) -> Sign | None:
    """A policy far from its reference."""
    value = seen.mean("kl")
    level = None if value is None else high(value, seen.limits.kl)
    coef = seen.algorithm_setting("kl_coef", 0.0)
    return level and Sign(
        *level,
        says=f"The policy is {value:.2f} nats per token from its reference.",
        cause="The updates are too large, or the pull back to the reference is too weak.",
        remedy=f"lr = {_half(seen, 'lr')}, or algorithm_settings.kl_coef = {10 * coef or 0.001:g}",
    )


def approx_kl(seen: History) -> Sign | None:
    """Updates that move the policy too far at once."""
    value = seen.mean("approx_kl")
    level = None if value is None else high(value, seen.limits.approx_kl)
    return level and Sign(
        *level,
        says=f"The updates of one step move the policy by {value:.2f} nats per token.",
        cause="The learning rate is too high for so many updates on the same rollouts.",
        remedy=f"lr = {_half(seen, 'lr')}, fewer num_epochs or num_minibatches, or approx_kl_limit = 0.05",
    )


def grader_failures(seen: History) -> Sign | None:
    """Completions that nobody could grade; they are left out, and nobody would notice."""
    if not seen.rows:
        return None
    rows = seen.rows[-seen.limits.window :]
    failed = fmean(known(rows, "grader_failures") or [0.0])
    if failed == 0:
        return None
    groups = fmean(known(rows, "num_sampled_groups") or [float(seen.setting("prompts_per_step", 16))])
    value = min(failed / (groups * seen.setting("group_size", 8)), 1.0)
    level = high(value, seen.limits.grader_failures) or ("note", value, 0.0)
    return Sign(
        *level,
        says=f"{value:.1%} of the completions could not be graded ({failed:.1f} a step); they teach nothing.",
        cause="A grader raised an error, took too long or gave no number; rollouts.jsonl holds the reason of each.",
        remedy="mend the grader; a judge may need timeout_s = 120 or a lower concurrency",
    )


def sampler_mismatch(seen: History) -> Sign | None:
    """Sampler and learner give the same token different probabilities."""
    measured, updates = seen.mean("sampler_mismatch"), seen.mean("num_updates") or 1.0
    moved = seen.mean("approx_kl")
    if measured is None or (moved is None and updates > 1):
        return None
    # k3 is about half the squared change of the log-prob, so the updates themselves explain at most this much
    value = max(measured - math.sqrt(2 * max(moved or 0.0, 0.0)), 0.0)
    level = high(value, seen.limits.sampler_mismatch)
    stale = seen.setting("max_staleness", 0)
    return level and Sign(
        *level,
        says=f"Sampler and learner differ by {value:.3f} in the log-prob of a token, beyond what the updates explain.",
        cause=(
            f"The sampler's weights may be {stale} steps old."
            if stale
            else "They run with other weights, another precision, temperature or kernel."
        ),
        remedy=(f"max_staleness = {stale - 1}, or " if stale else "the same precision and temperature for both, or ")
        + 'algorithm_settings.correction = "token_weights"',
    )


def length_explosion(seen: History) -> Sign | None:
    """Completions that grow without earning more."""
    length, start, reward = seen.mean("length_mean"), seen.first_mean("length_mean"), seen.change("reward")
    tokens = seen.setting("max_new_tokens", 128)
    if length is None or not start or reward is None or length < HALF_THE_LIMIT * tokens:
        return None
    level = high(length / start, seen.limits.length_growth)
    if level is None or reward.rose(LEAST_GAIN):
        return None
    return Sign(
        *level,
        says=(
            f"Completions grew from {start:.0f} to {length:.0f} tokens (limit {tokens}), and the reward did not: "
            f"{reward.before:.2f} to {reward.after:.2f}."
        ),
        cause="Length pays where wrong long answers cost less per token than short ones, or the text has become loops.",
        remedy='algorithm = "dr_grpo", rewards.overlong = 0.5 or rewards.repetition = 0.5, or a lower lr',
    )


def clip_fraction(seen: History) -> Sign | None:
    """Most of the gradient is cut away."""
    value = seen.mean("clip_fraction")
    if value is None or seen.setting("algorithm", "grpo") in ONE_RATIO_PER_ROW:
        return None
    level = high(value, seen.limits.clip_fraction)
    return level and Sign(
        *level,
        says=f"The clip stops the gradient of {value:.0%} of the tokens.",
        cause="The policy moves so far within a step that most of its later updates are thrown away.",
        remedy=f"lr = {_half(seen, 'lr')}, or fewer num_epochs or num_minibatches",
    )


def gradient_norm(seen: History) -> Sign | None:
    """Sudden large gradients, or none that are numbers."""
    if not seen.rows:
        return None
    limit, remedy = seen.limits.gradient_spike, f"lr = {_half(seen, 'lr')}, or max_grad_norm = 0.5"
    broken = [name for name in ("loss", "grad_norm") if name in seen.rows[-1] and number(seen.rows[-1][name]) is None]
    if broken:
        return Sign(
            "serious",
            1.0,
            0.0,
            says=f"{' and '.join(broken)} of step {seen.step} {'is' if len(broken) == 1 else 'are'} not a number.",
            cause="The learning rate is too high, or a reward is broken.",
            remedy=remedy,
        )
    norms = known(seen.rows[-2 * SPIKE_WINDOW :], "grad_norm")
    sizes = [_times_usual(norms, at) for at in range(max(len(norms) - SPIKE_WINDOW, SPIKE_WINDOW // 2), len(norms))]
    # what is below twice the cut is scaled down by less than a half: no harm is done
    harmless = 2 * seen.setting("max_grad_norm", 1.0)
    spikes = [size for size, norm in zip(sizes, norms[len(norms) - len(sizes) :], strict=True) if norm > harmless]
    spikes = [size for size in spikes if size > limit]
    if not sizes or not spikes or sizes[-1] != spikes[-1]:
        return None  # the last row is none
    return Sign(
        "warning" if len(spikes) >= SPIKES_FOR_WARNING else "note",
        spikes[-1],
        limit,
        says=f"The gradient norm of step {seen.step} is {spikes[-1]:.0f} times the usual one ({norms[-1]:.2g}).",
        cause="A few rollouts of very low probability weigh too much, or training has become unstable.",
        remedy=remedy,
    )


def _times_usual(norms: list[float], at: int) -> float:
    usual = median(norms[max(at - SPIKE_WINDOW, 0) : at])
    return norms[at] / usual if usual > 0 else 0.0


def flat_reward(seen: History) -> Sign | None:
    """Nothing is learnt: the reward has never been higher than at the start."""
    steps, span = len(seen.rows), 2 * seen.limits.window
    if steps < max(seen.limits.flat_steps, 2 * span) or not seen.ends_a_window or seen.settings.get("teacher"):
        return None
    edges = range(steps % span, steps + 1, span)
    windows = [known(seen.rows[begin:end], "reward") for begin, end in itertools.pairwise(edges)]
    first = known(seen.rows[:span], "reward")
    accuracy = known(seen.rows[:span], seen.verifier() or "")
    if not first or not all(windows) or (accuracy and fmean(accuracy) >= NEARLY_ALWAYS_RIGHT):
        return None
    changes = [change_of(first, window) for window in windows]
    change = changes[-1]
    if change.rose(LEAST_GAIN) or any(one.rose(LEAST_GAIN, errors=BEST_OF_MANY) for one in changes):
        return None
    return Sign(
        "warning",
        float(steps),
        float(seen.limits.flat_steps),
        says=f"In {steps} steps the reward has not risen: {change.before:.3f} at the start, {change.after:.3f} now.",
        cause="The reward does not depend on what the model can change, the updates are too small, or it knows it all.",
        remedy=f"lr = {2 * seen.setting('lr', 2e-4):g}, problems of another difficulty, or melete audit of the reward",
    )


RULES: Mapping[HealthRule, Rule] = {
    "dead_groups": dead_groups,
    "all_correct_groups": all_correct_groups,
    "truncation": truncation,
    "entropy_collapse": entropy_collapse,
    "kl": kl,
    "approx_kl": approx_kl,
    "grader_failures": grader_failures,
    "format_hacking": format_hacking,
    "reward_model_hacking": reward_model_hacking,
    "sampler_mismatch": sampler_mismatch,
    "length_explosion": length_explosion,
    "clip_fraction": clip_fraction,
    "gradient_norm": gradient_norm,
    "flat_reward": flat_reward,
}


def _half(seen: History, name: str) -> str:
    return f"{seen.setting(name, 2e-4) / 2:g}"
