"""Numbers with their uncertainty: one run's from its summary, several seeds' from how much they differ.

A summary holds no answers, so what two checkpoints have in common (the same problems) cannot be taken out of their
difference: both are treated as independent, which makes intervals wider than they need be. Numbers that come without
an interval get one from `independent_cases`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NORMAL = {1: 1.960, 3: 2.394}
"""Quantile of the normal distribution for a two-sided 95 % interval; 3: the same for three looked at together."""
STUDENT = {
    1: {
        1: 12.706,
        2: 4.303,
        3: 3.182,
        4: 2.776,
        5: 2.571,
        6: 2.447,
        7: 2.365,
        8: 2.306,
        9: 2.262,
        15: 2.131,
        30: 2.042,
    },
    3: {
        1: 38.188,
        2: 7.649,
        3: 4.857,
        4: 3.961,
        5: 3.534,
        6: 3.287,
        7: 3.128,
        8: 3.016,
        9: 2.933,
        15: 2.694,
        30: 2.536,
    },
}
"""The same of Student's t, by degrees of freedom: one less than the seeds."""


class Estimate(NamedTuple):
    """A number and its standard error."""

    mean: float
    error: float

    def __sub__(self, other: tuple[float, ...]) -> Estimate:
        mean, error = other
        return Estimate(self.mean - mean, math.hypot(self.error, error))


def of_interval(interval: Sequence[float], num_problems: int) -> Estimate:
    """From mean, low and high of a 95 % interval; one without width, where all problems came out alike, is too sure.

    >>> round(of_interval([0.5, 0.402, 0.598], 60).error, 9)
    0.05
    """
    mean, low, high = interval
    error = (high - low) / (2 * NORMAL[1])
    return Estimate(mean, error or of_share(mean, num_problems).error)


def independent_cases(interval: Sequence[float], num_problems: int, num_samples: int) -> float:
    """How many independent samples the samples of an evaluation are worth, siblings being alike.

    The design effect (Kish 1965): by how much the bootstrap over problems, given as the interval of pass@1, is wider
    than p (1 - p) / n of independent samples. Where it says nothing, siblings count as one.

    >>> independent_cases([0.5, 0.402, 0.598], 25, 4)      # 0.05**2 = 0.25 / 100
    100.0
    >>> independent_cases([1.0, 1.0, 1.0], 25, 4)
    25.0
    """
    mean, low, high = interval
    alike = num_problems * num_samples * ((high - low) / (2 * NORMAL[1])) ** 2
    if alike == 0 or not 0 < mean < 1:
        return float(num_problems)
    effect = min(max(alike / (mean * (1 - mean)), 1.0), num_samples)
    return num_problems * num_samples / effect


def of_share(share: float, num: float) -> Estimate:
    """A share of `num` independent cases: sqrt(p (1 - p) / n) with two successes and two failures added.

    Agresti and Coull 1998. It bounds the error of any mean of numbers from 0 to 1.

    >>> round(of_share(1.0, 12).error, 4)      # sqrt(0.875 * 0.125 / 16)
    0.0827
    """
    smoothed = (share * num + 2) / (num + 4)
    return Estimate(share, math.sqrt(smoothed * (1 - smoothed) / (num + 4)))


def of_count(mean: float, num: float) -> Estimate:
    """A mean count of rare events in `num` independent cases: sqrt(mean / n), as Poisson's, for at least one event.

    >>> of_count(0.25, 100), of_count(0.0, 100)
    (Estimate(mean=0.25, error=0.05), Estimate(mean=0.0, error=0.01))
    """
    return Estimate(mean, math.sqrt(max(mean, 1 / num) / num))


def of_length(mean: float, p95: float, num: float) -> Estimate:
    """A mean length: no spread of values between 0 and p95 with this mean is larger than sqrt(mean (p95 - mean)).

    Bhatia and Davis 2000. The bound leaves out the longest twentieth, and is far above the spread that lengths have.

    >>> of_length(20.0, 40.0, 100)
    Estimate(mean=20.0, error=2.0)
    """
    return Estimate(mean, math.sqrt(max(mean * (p95 - mean), mean) / num))


def of_values(values: Sequence[float]) -> Estimate:
    """The mean of two or more values and its standard error."""
    return Estimate(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates.

    >>> mean_of([Estimate(0.25, 0.03), Estimate(0.75, 0.04)])
    Estimate(mean=0.5, error=0.025)
    """
    error = math.hypot(*(estimate.error for estimate in estimates)) / len(estimates)
    return Estimate(statistics.fmean(estimate.mean for estimate in estimates), error)


@dataclass(frozen=True, slots=True)
class Pooled:
    """Differences of one or several seeds, their mean and its interval.

    `error` is the standard error between seeds, and of the one run where there is one.
    """

    differences: tuple[Estimate, ...]
    mean: float
    low: float
    high: float
    error: float

    def as_numbers(self) -> Mapping[str, Any]:
        """For JSON."""
        return {
            "difference": [self.mean, self.low, self.high],
            "by_seed": [difference.mean for difference in self.differences],
        }


def pooled(differences: Sequence[Estimate], *, looks: int = 1) -> Pooled:
    """One run: its normal interval. Several seeds: Student's interval over them, or the mean of theirs where wider.

    The second, because few seeds may agree by chance, and all are tried on the same problems. `looks` is the number of
    quantities of which one is enough: with three, intervals are wider (Bonferroni).

    >>> found = pooled([Estimate(0.4, 0.01), Estimate(0.5, 0.01), Estimate(0.6, 0.01)])
    >>> round(found.error, 4), round(found.low, 3), round(found.high, 3)      # 4.303 * 0.1 / sqrt(3) = 0.248
    (0.0577, 0.252, 0.748)
    """
    mean = statistics.fmean(difference.mean for difference in differences)
    within = statistics.fmean(difference.error for difference in differences)
    half, error = NORMAL[looks] * within, within
    if len(differences) > 1:
        error = statistics.stdev(difference.mean for difference in differences) / math.sqrt(len(differences))
        half = max(half, _student(len(differences) - 1, looks) * error)
    return Pooled(tuple(differences), mean, mean - half, mean + half, error)


def _student(degrees: int, looks: int) -> float:
    """The table's quantile; between its rows that of fewer degrees, which is larger."""
    table = STUDENT[looks]
    return table[max(known for known in table if known <= degrees)]
