"""From differences to verdicts. Pure: every test sees nothing but numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from melete.claims.estimates import Estimate, Pooled, pooled

Verdict: TypeAlias = Literal["holds", "does not hold", "not sure", "not measured"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "not sure", "not measured")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One number twice, in one seed: `before` is what `after` is held against."""

    name: str
    """What is compared, such as pass@1."""
    places: tuple[str, str]
    """Where `before` and `after` were measured, such as base and R1-Zero."""
    before: Estimate
    after: Estimate
    digits: int = 2

    @property
    def difference(self) -> Estimate:
        return self.after - self.before


class Missing(NamedTuple):
    """Why a comparison cannot be made; `arm` names the arm that is lacking, if it is one."""

    what: str
    arm: str = ""
    may_be_measured: bool = True


class Outcome(NamedTuple):
    """A test's verdict and, unless it holds, why."""

    verdict: Verdict
    why: str = ""


Test: TypeAlias = Callable[[Pooled], Outcome]
_INCLUDES_0 = "the interval includes 0"


def _undecided(found: Pooled) -> Outcome:
    signs = {math.copysign(1, difference.mean) for difference in found.differences if difference.mean}
    return Outcome("not sure", "the seeds disagree" if len(signs) > 1 else _INCLUDES_0)


def above(found: Pooled) -> Outcome:
    """The difference is above 0 for each seed, and so is its whole interval."""
    if found.low > 0 and all(difference.mean > 0 for difference in found.differences):
        return Outcome("holds")
    return Outcome("does not hold", "it does not rise") if found.high <= 0 else _undecided(found)


def below(found: Pooled) -> Outcome:
    """The difference is below 0 for each seed, and so is its whole interval."""
    if found.high < 0 and all(difference.mean < 0 for difference in found.differences):
        return Outcome("holds")
    return Outcome("does not hold", "it does not fall") if found.low >= 0 else _undecided(found)


def far_above(found: Pooled) -> Outcome:
    """The difference is more than 3 standard errors above 0 for each seed, and so is its mean between several seeds."""
    each = all(difference.mean > 3 * difference.error for difference in found.differences)
    if each and found.mean > 3 * found.error and found.mean > 0:
        return Outcome("holds")
    if found.high <= 0:
        return Outcome("does not hold", "it does not rise")
    return Outcome("not sure", "it is less than 3 standard errors") if found.low > 0 else _undecided(found)


def not_above(allowed: float = math.inf) -> Test:
    """No rise beyond chance; and the interval, which holds what chance may hide, must not reach a rise of `allowed`."""

    def test(found: Pooled) -> Outcome:
        if found.low > 0:
            return Outcome("does not hold", "it rises by more than chance")
        if found.high < allowed:
            return Outcome("holds")
        return Outcome("not sure", f"the interval is wide enough to hide a rise of {allowed:g}")

    return test


def not_below(allowed: float = 0.0) -> Test:
    """A mean fall of `allowed` at most; without it, none beyond chance."""

    def test(found: Pooled) -> Outcome:
        if found.high < -allowed:
            more = f"more than {allowed:g}" if allowed else "more than chance"
            return Outcome("does not hold", f"it falls by {more}")
        if allowed == 0 or found.mean >= -allowed:
            return Outcome("holds")
        return Outcome("not sure", f"the interval reaches a fall of more than {allowed:g}")

    return test


def changed(found: Pooled) -> Outcome:
    """The difference is not 0, up or down."""
    up, down = above(found), below(found)
    return up if up.verdict == "holds" else down if down.verdict == "holds" else _undecided(found)


def noted(found: Pooled) -> Outcome:
    """Told, and not judged."""
    return Outcome("holds")


@dataclass(frozen=True, slots=True)
class Finding:
    """A comparison over all seeds that have it, and what its test says; `comparisons` is empty where none has."""

    key: str
    comparisons: tuple[Comparison, ...]
    seeds: tuple[int, ...]
    pooled: Pooled | None
    outcome: Outcome
    is_noted: bool = False
    missing: Missing | None = None

    @classmethod
    def of(cls, key: str, by_seed: Mapping[int, Comparison | Missing], test: Test, *, looks: int = 1) -> Finding:
        """Pools what there is; a seed that lacks the comparison is left out, as `seeds` says."""
        found = {seed: made for seed, made in by_seed.items() if isinstance(made, Comparison)}
        is_noted = test is noted
        if not found:
            missing = next((made for made in by_seed.values() if isinstance(made, Missing)), Missing("a run"))
            return cls(key, (), (), None, Outcome("not measured"), is_noted, missing)
        together = pooled([made.difference for made in found.values()], looks=looks)
        return cls(key, tuple(found.values()), tuple(found), together, test(together), is_noted)

    @property
    def before(self) -> float:
        return _mean([made.before.mean for made in self.comparisons])

    @property
    def after(self) -> float:
        return _mean([made.after.mean for made in self.comparisons])

    def clause(self) -> str:
        """The numbers in words: pass@1 0.44 -> 0.91, +0.47 [+0.42, +0.52]."""
        assert self.pooled is not None
        first, digits = self.comparisons[0], self.comparisons[0].digits
        found = (self.pooled.mean, self.pooled.low, self.pooled.high)
        mean, low, high = (_signed(value, digits) for value in found)
        each = ", ".join(_signed(difference.mean, digits) for difference in self.pooled.differences)
        seeds = f"; by seed {each}" if len(self.comparisons) > 1 else ""
        values = f"{first.name} {self.before:.{digits}f} -> {self.after:.{digits}f}"
        is_exact = all(made.difference.error == 0 for made in self.comparisons)
        return values if is_exact else f"{values}, {mean} [{low}, {high}{seeds}]"

    def as_numbers(self) -> dict[str, Any]:
        """For JSON."""
        if self.pooled is None:
            return {"verdict": self.outcome.verdict}
        return {
            "what": self.comparisons[0].name,
            "places": list(self.comparisons[0].places),
            "before": self.before,
            "after": self.after,
            **self.pooled.as_numbers(),
            "seeds": list(self.seeds),
            "verdict": "noted" if self.is_noted else self.outcome.verdict,
        }


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # no -0.00


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def all_hold(findings: Sequence[Finding]) -> Outcome:
    """Each finding that is judged must hold; one that does not decides, even where another is lacking."""
    judged = [finding for finding in findings if not finding.is_noted]
    for verdict in ("does not hold", "not measured", "not sure"):
        for finding in judged:
            if finding.outcome.verdict == verdict:
                return Outcome(verdict, finding.outcome.why and f"{finding.comparisons[0].name}: {finding.outcome.why}")
    return Outcome("holds")
