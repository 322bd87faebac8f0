"""How good is a sampler of answers? pass@k, majority voting and the uncertainty of both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

NUM_SUBSETS = 256
NUM_RESAMPLES = 2000


class Interval(NamedTuple):
    """A mean over problems and its bootstrap interval."""

    mean: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that at least one of k samples is right, estimated without bias from n samples of which c are.

        pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_(i = n-c+1..n) (1 - k / i)

    Chen et al. 2021 (Codex), eq. 1; the product never forms a large number.

    >>> [round(pass_at_k(10, 3, k), 4) for k in (1, 5, 8)]
    [0.3, 0.9167, 1.0]
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be in 1..{num_samples} (the number of samples), not {k}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} right out of {num_samples} is not possible")
    if num_samples - num_correct < k:
        return 1.0
    all_wrong = 1.0
    for i in range(num_samples - num_correct + 1, num_samples + 1):
        all_wrong *= 1 - k / i
    return 1 - all_wrong


def majority_at_k(
    answers: Sequence[str | None],
    correct: Sequence[bool],
    k: int,
    num_subsets: int = NUM_SUBSETS,
    rng: np.random.Generator | None = None,
) -> float:
    """The chance that the most frequent answer among k samples is right (maj@k, also cons@k).

    Averaged over every subset of k samples where there are at most `num_subsets`, else over that many random ones.
    `None` (no answer could be read) does not vote; where nobody votes, the answer is wrong. A tie counts as what
    breaking it at random would give on average: the share of right answers among those that tie. An answer that was
    judged both right and wrong is right in the share of times it was.
    Wang et al. 2022 (self-consistency).

    >>> majority_at_k(["6", "6", "7", None], [True, True, False, False], 4)
    1.0
    >>> majority_at_k(["6", "7"], [True, False], 2)    # a tie
    0.5
    """
    num_samples = len(answers)
    if len(correct) != num_samples:
        raise ValueError(f"{num_samples} answers but {len(correct)} judgements")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be in 1..{num_samples} (the number of samples), not {k}")
    candidates = sorted({answer for answer in answers if answer is not None})
    if not candidates:
        return 0.0
    votes = np.array([[answer == candidate for candidate in candidates] for answer in answers], dtype=np.int64)
    rightness = (votes * np.asarray(correct, dtype=np.float64)[:, None]).sum(0) / votes.sum(0)
    counts = votes[_subsets(num_samples, k, num_subsets, rng)].sum(1)
    winners = (counts == counts.max(1, keepdims=True)) & (counts > 0)
    return float((winners @ rightness / np.maximum(winners.sum(1), 1)).mean())


def _subsets(num_samples: int, k: int, num_subsets: int, rng: np.random.Generator | None) -> np.ndarray:
    if comb(num_samples, k) <= num_subsets:
        return np.array(list(combinations(range(num_samples), k)))
    rng = rng or np.random.default_rng(0)
    return rng.random((num_subsets, num_samples)).argsort(1)[:, :k]


def win_rate(grades: Sequence[float], against: Sequence[float]) -> float:
    """The chance that a random sample is graded above a random one of another policy, equal grades counted half.

        mean over i, j of [a_i > b_j] + 1/2 [a_i = b_j]

    The probability of superiority (Mann and Whitney 1947): only the order of grades counts, not their distance.

    >>> win_rate([1.0, 0.5], [0.5, 0.0])    # three pairs won, one tied
    0.875
    """
    if not grades or not against:
        raise ValueError("a win rate needs at least one grade on each side")
    ours, theirs = np.asarray(grades)[:, None], np.asarray(against)[None, :]
    return float(((ours > theirs) + 0.5 * (ours == theirs)).mean())


def bootstrap_interval(
    values: Sequence[float],
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """The mean of one value per problem, and the range it would have over other draws of as many problems.

    Problems are resampled, not samples: siblings of one problem are not independent (Efron 1979, percentile form).

    >>> bootstrap_interval([0.5, 0.5], rng=np.random.default_rng(0))
    Interval(mean=0.5, low=0.5, high=0.5)
    """
    if not len(values):
        raise ValueError("no problems: an interval needs at least one value")
    observed = np.asarray(values, dtype=np.float64)
    means = observed[rng.integers(len(observed), size=(num_resamples, len(observed)))].mean(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(observed.mean()), float(low), float(high))
