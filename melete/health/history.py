"""The rows of a stage so far, as the rules look at them: means over windows, and changes with their noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from melete.schema.health import HealthSettings

VERIFIERS = ("accuracy", "math", "code")
FORMATS = ("format", "format_with_thought", "tag_count")
OWN_BASELINE = ("ppo", "reinforce_plus_plus")  # a critic, or the mean over the whole step
_TWO_SIDED = 2 * 1.96  # standard errors in the width of a 95 % interval


@dataclass(frozen=True, slots=True)
class Change:
    """A mean before and after, and the standard error of the difference."""

    before: float
    after: float
    error: float

    @property
    def gain(self) -> float:
        return self.after - self.before

    def rose(self, least: float = 0.0, errors: float = 2.0) -> bool:
        """Whether it rose by more than `least` and than chance explains: so many standard errors."""
        return self.gain > max(least, errors * self.error)


def change_of(before: Sequence[float], after: Sequence[float]) -> Change:
    """From one window to another, whose values are taken as independent.

    >>> change = change_of([0.0, 1.0], [1.0, 2.0])
    >>> change.gain, change.error
    (1.0, 0.5)
    """
    error = math.sqrt(_variance(before) / len(before) + _variance(after) / len(after))
    return Change(fmean(before), fmean(after), error)


def _variance(values: Sequence[float]) -> float:
    """Of the population; the exact one of `statistics` is slow, and every step asks for several."""
    mean = fmean(values)
    return fmean((value - mean) * (value - mean) for value in values)


class History:
    """`settings` are those of the stage as plain values, `limits` their table `health`."""

    def __init__(self, settings: Mapping[str, Any], limits: HealthSettings) -> None:
        self.settings, self.limits = settings, limits
        self.rows: list[Mapping[str, Any]] = []
        self.evaluations: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """One row of `metrics.jsonl`."""
        kind = row.get("kind")
        if kind == "evaluation":  # a quick one is too small to tell
            self.evaluations.append(row)
        elif kind is None:
            self.rows.append(row)

    def setting(self, name: str, default: Any) -> Any:
        """A setting of the stage; what is not there has its default."""
        value = self.settings.get(name)
        return default if value is None else value

    def algorithm_setting(self, name: str, default: Any) -> Any:
        return self.setting("algorithm_settings", {}).get(name, default)

    @property
    def compares_siblings(self) -> bool:
        """Whether the reward is compared within groups; a teacher or a critic does without."""
        has_own = self.settings.get("teacher") or self.setting("algorithm", "grpo") in OWN_BASELINE
        return self.setting("group_size", 8) > 1 and not has_own

    def last(self, name: str, count: int | None = None) -> list[float]:
        """The numbers of the last `count` rows (a window if not given); none before there are so many."""
        wanted = count or self.limits.window
        return known(self.rows[-wanted:], name) if len(self.rows) >= wanted else []

    def mean(self, name: str) -> float | None:
        """Mean over the last window."""
        values = self.last(name)
        return fmean(values) if values else None

    def first_mean(self, name: str) -> float | None:
        """Mean over the first window, once it is over."""
        wanted = self.limits.window
        values = known(self.rows[:wanted], name) if len(self.rows) >= 2 * wanted else []
        return fmean(values) if values else None

    def change(self, name: str) -> Change | None:
        """From the first two windows to the last two; None while they overlap or hold no number."""
        span = 2 * self.limits.window
        if len(self.rows) < 2 * span:
            return None
        before, after = known(self.rows[:span], name), known(self.rows[-span:], name)
        return change_of(before, after) if before and after else None

    def verifier(self) -> str | None:
        """The metric of the part that a program checks."""
        names = parts_of(self.settings, VERIFIERS)
        return f"reward/{names[0]}" if names else None

    @property
    def ends_a_window(self) -> bool:
        """Whether this step ends a window; rules that look at all rows wait for it, as every step would be slow."""
        return bool(self.rows) and len(self.rows) % self.limits.window == 0

    def verified_change(self) -> Change | None:
        """How accuracy has changed: in training where a part of the reward is accuracy, else on held-out problems."""
        if name := self.verifier():
            return self.change(name)
        scores = [found for row in self.evaluations if (found := score(row))]
        if len(scores) < 2:
            return None
        (first, first_error), (final, final_error) = scores[0], scores[-1]
        return Change(first, final, math.hypot(first_error, final_error))

    @property
    def step(self) -> int:
        """The step that was fed last."""
        return int(self.rows[-1].get("step", len(self.rows) - 1)) if self.rows else 0


def parts_of(settings: Mapping[str, Any], rewards: Iterable[str]) -> list[str]:
    """The names, in a stage, of the parts of the reward that are one of `rewards` of the table.

    >>> parts_of({"rewards": {"right": 1.0, "format": 0.1}, "reward_parts": {"right": {"reward": "math"}}}, ["math"])
    ['right']
    """
    own, models = settings.get("reward_parts") or {}, learned_parts(settings)
    kinds = {name: own.get(name, {}).get("reward") or name for name in settings.get("rewards") or {}}
    return [name for name, kind in kinds.items() if kind in rewards and name not in models]


def learned_parts(settings: Mapping[str, Any]) -> list[str]:
    """The parts of the reward that a trained model gives."""
    return [*(settings.get("reward_models") or {}), *(settings.get("reward_judges") or {})]


def known(rows: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """The numbers of this name; what is missing or null (not finite when it was logged) is left out."""
    return [float(value) for row in rows if (value := number(row.get(name))) is not None]


def number(value: Any) -> float | None:
    """A finite number, or None.

    >>> number(2), number(float("nan")), number(None), number("2")
    (2.0, None, None, None)
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def score(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Held-out score and its standard error, read from the 95 % interval."""
    name = "score" if number(row.get("score")) is not None else "pass@1"
    value, low, high = (number(row.get(f"{name}{end}")) for end in ("", "/low", "/high"))
    if value is None:
        return None
    return value, (high - low) / _TWO_SIDED if low is not None and high is not None else 0.0
