"""What a check before the first step has measured: whether the model is sometimes right, and groups would teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from statistics import fmean
from typing import Any

from melete.schema.health import SupportSettings


def dead_chance(num_right: int, num_tries: int, group_size: int) -> float:
    """Chance that `group_size` answers are all right or all wrong, by `num_tries` answers of which `num_right` are.

        (C(right, G) + C(tries - right, G)) / C(tries, G)

    Without bias for p^G + (1 - p)^G: the share of groups drawn from the tries that are so. With as many tries as the
    group has, it is 1 or 0: whether the tries themselves are. Putting right / tries for p would say too much.
    Raises `ValueError` for fewer tries than the group has.

    >>> dead_chance(1, 8, 8), dead_chance(0, 8, 8), dead_chance(1, 4, 2)
    (0.0, 1.0, 0.5)
    """
    if not 0 <= num_right <= num_tries or not 1 <= group_size <= num_tries:
        raise ValueError(f"{num_right} right of {num_tries} tries says nothing of groups of {group_size}")
    wrong = num_tries - num_right
    return (comb(num_right, group_size) + comb(wrong, group_size)) / comb(num_tries, group_size)


@dataclass(frozen=True, slots=True)
class Support:
    """What was measured on `num_problems` problems, `group_size` answers each.

    `pass_rates`: mean accuracy of each problem that has one, empty where no part of the reward is accuracy.
    `accuracy_share`: its share of the weights. `dead_share`: measured share of groups whose total rewards are all
    equal, None without siblings. `max_draws`: how often dynamic sampling may draw others for them.
    """

    num_problems: int
    group_size: int
    pass_rates: Sequence[float] = field(default_factory=tuple)
    accuracy_share: float = 0.0
    dead_share: float | None = None
    max_draws: int = 1
    grader_failures: int = 0
    reason: str = ""  # of one failure

    @property
    def mean_pass_rate(self) -> float | None:
        return fmean(self.pass_rates) if self.pass_rates else None

    @property
    def expected_dead_share(self) -> float | None:
        """By accuracy alone: the mean of p^G + (1 - p)^G over problems, each from its own tries, without bias."""
        if not self.pass_rates or self.group_size < 2:
            return None
        size = self.group_size
        return fmean(dead_chance(round(rate * size), size, size) for rate in self.pass_rates)

    @property
    def histogram(self) -> list[int]:
        """Problems with 0, 1, ... `group_size` right answers; partly right ones are rounded.

        >>> Support(3, 2, pass_rates=(0.0, 0.5, 0.5)).histogram
        [1, 2, 0]
        """
        right = [round(rate * self.group_size) for rate in self.pass_rates]
        return [right.count(count) for count in range(self.group_size + 1)] if right else []

    def unfilled_share(self) -> float | None:
        """The part of a step that stays without anything to learn from after all draws."""
        return None if self.dead_share is None else max(1 - self.max_draws * (1 - self.dead_share), 0.0)

    def refusals(self, settings: SupportSettings) -> list[str]:
        """Why training would teach little; empty where it can work."""
        if self.grader_failures >= self.num_problems * self.group_size > 0:
            return [f"no answer could be graded ({self.reason})"]
        found = []
        rate, unfilled = self.mean_pass_rate, self.unfilled_share()
        # where other parts weigh more, they can teach while nothing is right yet
        if rate is not None and rate < settings.min_pass_rate and self.accuracy_share >= 0.5:
            found.append(f"{rate:.1%} of the answers are right, at least {settings.min_pass_rate:.1%} should be")
        if unfilled is not None and unfilled > settings.max_dead_share:
            drawn = f" after {self.max_draws} draws" if self.max_draws > 1 else ""
            found.append(
                f"in {unfilled:.0%} of the groups all {self.group_size} rewards are equal{drawn}, "
                f"at most {settings.max_dead_share:.0%} should be"
            )
        return found

    def help(self) -> str:
        """What would help."""
        if self.grader_failures >= self.num_problems * self.group_size:
            return "mend the grader; melete tasks play shows what it says"
        rate = self.mean_pass_rate
        if rate is not None and rate > 0.5:
            return "harder problems in [stage.task]: this model knows these"
        more = f"more siblings (group_size = {2 * self.group_size})" if self.group_size > 1 else "more prompts per step"
        return f"easier problems in [stage.task], {more}, or an sft stage first"

    def as_dict(self, settings: SupportSettings) -> dict[str, Any]:
        """As `summary.json` holds it."""
        return {
            "num_problems": self.num_problems,
            "group_size": self.group_size,
            "num_with_accuracy": len(self.pass_rates),
            "mean_pass_rate": self.mean_pass_rate,
            "pass_rates": list(self.pass_rates),
            "histogram": self.histogram,
            "dead_share": self.dead_share,
            "expected_dead_share": self.expected_dead_share,
            "unfilled_share": self.unfilled_share(),
            "grader_failures": self.grader_failures,
            "min_pass_rate": settings.min_pass_rate,
            "max_dead_share": settings.max_dead_share,
            "refusals": self.refusals(settings),
            "help": self.help() if self.refusals(settings) else "",
        }
