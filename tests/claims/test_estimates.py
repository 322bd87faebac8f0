"""Intervals of one run and over seeds."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.claims.estimates import (
    STUDENT,
    Estimate,
    independent_cases,
    of_count,
    of_interval,
    of_length,
    of_share,
    of_values,
    pooled,
)

SHARES = st.floats(0, 1)
MEANS = st.lists(st.floats(-1, 1), min_size=2, max_size=12)


def test_errors_of_a_difference_add_in_squares() -> None:
    assert Estimate(0.9, 0.03) - Estimate(0.5, 0.04) == (pytest.approx(0.4), pytest.approx(0.05))


def test_an_interval_of_no_width_is_not_believed() -> None:
    # (60 + 2) / (60 + 4) = 0.96875; sqrt(0.96875 * 0.03125 / 64) = 0.02175
    assert of_interval([1.0, 1.0, 1.0], 60).error == pytest.approx(0.02175, abs=1e-5)


def test_siblings_that_are_all_alike_count_as_one_and_independent_ones_in_full() -> None:
    # p = 0.5: independent 4 x 25 samples have a standard error of 0.05, 25 problems alike in themselves of 0.1
    assert independent_cases([0.5, 0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05], 25, 4) == pytest.approx(100)
    assert independent_cases([0.5, 0.5 - 1.96 * 0.1, 0.5 + 1.96 * 0.1], 25, 4) == pytest.approx(25)


@given(SHARES, st.floats(0, 0.5), st.integers(1, 200), st.integers(1, 64))
@settings(max_examples=50, deadline=None)
def test_independent_cases_are_between_problems_and_samples(
    mean: float, half: float, num_problems: int, num_samples: int
) -> None:
    found = independent_cases([mean, mean - half, mean + half], num_problems, num_samples)
    assert num_problems * (1 - 1e-9) <= found <= num_problems * num_samples * (1 + 1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_error_of_a_share_bounds_that_of_any_mean_of_numbers_from_0_to_1(values: list[float]) -> None:
    mean = statistics.fmean(values)
    spread = math.sqrt(mean * (1 - mean) / len(values))
    assert statistics.pstdev(values) / math.sqrt(len(values)) <= spread + 1e-9


@given(st.lists(st.floats(0, 50), min_size=2, max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_error_of_a_length_bounds_the_spread_of_lengths_below_its_p95(lengths: list[float]) -> None:
    error = of_length(statistics.fmean(lengths), max(lengths), len(lengths)).error
    assert statistics.pstdev(lengths) / math.sqrt(len(lengths)) <= error + 1e-6


def test_a_count_of_nothing_is_as_unsure_as_one_event() -> None:
    assert of_count(0.0, 50) == (0.0, of_count(0.02, 50).error)


def test_values_have_the_standard_error_of_their_mean() -> None:
    assert of_values([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / math.sqrt(3)))


def test_one_run_has_its_own_interval() -> None:
    found = pooled([Estimate(0.4, 0.1)])
    assert (found.low, found.high) == (pytest.approx(0.204), pytest.approx(0.596))
    assert pooled([Estimate(0.4, 0.1)], looks=3).low == pytest.approx(0.4 - 0.2394)


def test_two_seeds_have_an_interval_of_thirteen_standard_errors() -> None:
    # standard deviation of 0.4 and 0.5: 0.0707; over sqrt(2): 0.05; times 12.706
    found = pooled([Estimate(0.4, 0.0), Estimate(0.5, 0.0)])
    assert found.error == pytest.approx(0.05)
    assert (found.mean, found.high - found.mean) == (pytest.approx(0.45), pytest.approx(0.6353))


def test_seeds_that_agree_by_chance_do_not_make_a_result_surer_than_each_of_them() -> None:
    found = pooled([Estimate(0.4, 0.1)] * 3)
    assert (found.mean, found.low) == (pytest.approx(0.4), pytest.approx(0.204))


@given(MEANS, st.floats(0, 0.2))
@settings(max_examples=50, deadline=None)
def test_looking_at_three_quantities_never_narrows_an_interval(means: list[float], error: float) -> None:
    estimates = [Estimate(mean, error) for mean in means]
    one, three = pooled(estimates), pooled(estimates, looks=3)
    assert three.low <= one.low <= one.mean <= one.high <= three.high


@pytest.mark.parametrize(("looks", "tail"), [(1, 0.025), (3, 0.05 / 6)])
def test_the_table_of_students_t_is_right(looks: int, tail: float) -> None:
    """The tail beyond each quantile, by Simpson's rule after t = sqrt(n) tan(angle)."""
    for degrees, quantile in STUDENT[looks].items():
        scale = math.gamma((degrees + 1) / 2) / (math.sqrt(math.pi) * math.gamma(degrees / 2))
        end, num = math.atan(quantile / math.sqrt(degrees)), 2000
        heights = [math.cos(end * i / num) ** (degrees - 1) for i in range(num + 1)]
        inside = end / num / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]))
        assert 0.5 - scale * inside == pytest.approx(tail, rel=2e-3)


def test_more_cases_make_a_share_surer() -> None:
    assert of_share(0.5, 400).error < of_share(0.5, 100).error == pytest.approx(0.049, abs=5e-4)
