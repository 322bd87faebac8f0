"""The rules on rewards that rise for the wrong reason."""

from __future__ import annotations

import math
from statistics import fmean

from melete.health.history import FORMATS, Change, History, change_of, known, learned_parts, number, parts_of, score
from melete.health.signs import BEST_OF_MANY, LEAST_GAIN, NEARLY_ALWAYS_RIGHT, Sign, high


def format_hacking(seen: History) -> Sign | None:
    """The form of an answer is learnt, and what is in it is not."""
    verified = seen.verified_change()
    formats = {name: change for name in parts_of(seen.settings, FORMATS) if (change := seen.change(f"reward/{name}"))}
    if verified is None or not formats or verified.after >= NEARLY_ALWAYS_RIGHT:
        return None
    name, change = max(formats.items(), key=lambda item: item[1].gain)
    level = high(change.gain, seen.limits.format_gain, ("warning", "warning"))
    if level is None or not change.rose() or verified.gain > LEAST_GAIN:
        return None
    if -verified.gain > max(seen.limits.verifier_fall[0], 2 * verified.error):
        level = ("serious", *level[1:])
    weight = seen.setting("rewards", {}).get(name, 1.0)
    return Sign(
        *level,
        says=(
            f"{name} rose from {change.before:.2f} to {change.after:.2f}, but accuracy went from "
            f"{verified.before:.2f} to {verified.after:.2f}."
        ),
        cause="The tags are easier to earn than right answers, and the model stops there.",
        remedy=f"rewards.{name} = {weight / 2:g}, a gate on it (reward_parts.{name}.gate), or easier problems",
    )


def reward_model_hacking(seen: History) -> Sign | None:
    """A learned part of the reward rises while what can be checked gets worse."""
    worst: Sign | None = None
    for name in learned_parts(seen.settings):
        for found in (_fall_in_training(seen, name), _fall_held_out(seen, name)):
            if found is None:
                continue
            verified, learned, where = found
            level = high(-verified.gain, seen.limits.verifier_fall)
            if level is None or not learned.rose() or (worst and worst.value >= level[1]):
                continue
            worst = Sign(
                *level,
                says=(
                    f"{name}, the score of a model, rose from {learned.before:.2f} to {learned.after:.2f}, while "
                    f"{where} fell from {verified.before:.2f} to {verified.after:.2f}."
                ),
                cause="The policy has found what the reward model likes and people or programs do not.",
                remedy=(
                    f"fewer steps with it, rewards.{name} = "
                    f"{seen.setting('rewards', {}).get(name, 1.0) / 2:g}, or algorithm_settings.kl_coef = 0.05"
                ),
            )
    return worst


def _fall_in_training(seen: History, name: str) -> tuple[Change, Change, str] | None:
    """The last window against the one in which accuracy was best, among the rows that hold both numbers."""
    verifier, learned = seen.verifier(), f"reward/{name}"
    if verifier is None or not seen.ends_a_window:
        return None
    both = [row for row in seen.rows if number(row.get(learned)) is not None and number(row.get(verifier)) is not None]
    span = 2 * seen.limits.window
    both = both[len(both) % span :]
    blocks = [both[begin : begin + span] for begin in range(0, len(both), span)]
    if len(blocks) < 2:
        return None
    best = max(blocks[:-1], key=lambda block: fmean(known(block, verifier)))
    verified = change_of(known(best, verifier), known(blocks[-1], verifier))
    if -verified.gain <= BEST_OF_MANY * verified.error:
        return None
    return verified, change_of(known(best, learned), known(blocks[-1], learned)), "accuracy"


def _fall_held_out(seen: History, name: str) -> tuple[Change, Change, str] | None:
    """The last evaluation against the best one before it."""
    scores = [(row, found) for row in seen.evaluations if (found := score(row))]
    if len(scores) < 2:
        return None
    best = max(scores[:-1], key=lambda item: item[1][0])
    (first, (high, high_error)), (final, (low, low_error)) = best, scores[-1]
    verified = Change(high, low, math.hypot(high_error, low_error))
    learned = [_around(seen, f"reward/{name}", int(row.get("step", 0))) for row in (first, final)]
    if -verified.gain <= 2 * verified.error or not all(learned):
        return None
    return verified, change_of(*learned), "the held-out score"


def _around(seen: History, name: str, step: int) -> list[float]:
    """A window of rows that ends before `step`, or at the start of the stage begins with it."""
    window = seen.limits.window
    before = [row for row in seen.rows if row.get("step", 0) < step][-window:]
    return known(before or seen.rows[:window], name)
