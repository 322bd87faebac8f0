"""Advantages of a group's completions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from melete.functional import advantages as credits

EVERY = [credits.group_mean, credits.group_mean_std, credits.leave_one_out, credits.batch_std]
every = pytest.mark.parametrize("function", EVERY)

rows = st.lists(
    st.tuples(st.integers(-20, 20).map(lambda n: n / 4), st.integers(-2, 2), st.booleans()), min_size=1, max_size=14
)


def tensors(drawn: list[tuple[float, int, bool]]) -> tuple[Tensor, Tensor, Tensor]:
    rewards, ids, valid = zip(*drawn, strict=True)
    return tensor(rewards), tensor(ids), tensor(valid)


def one_group(*rewards: float) -> tuple[Tensor, Tensor, Tensor]:
    n = len(rewards)
    return tensor(rewards, dtype=torch.float32), torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool)


def by_loop(name: str, rewards: Tensor, ids: Tensor, valid: Tensor, epsilon: float = 1e-6) -> Tensor:
    """The slow twin, with the standard library's statistics (exact fractions)."""
    out = []
    kept = [float(r) for r, ok in zip(rewards, valid, strict=True) if ok]
    for i in range(len(rewards)):
        group = [float(rewards[j]) for j in range(len(rewards)) if ids[j] == ids[i] and valid[j]]
        if not valid[i] or len(group) < 2 or len(set(group)) == 1:
            out.append(0.0)
            continue
        centred = float(rewards[i]) - statistics.mean(group)
        if name == "group_mean_std":
            centred /= statistics.stdev(group) + epsilon
        if name == "batch_std":
            centred /= statistics.stdev(kept) + epsilon
        if name == "leave_one_out":
            centred = float(rewards[i]) - (math.fsum(group) - float(rewards[i])) / (len(group) - 1)
        out.append(centred)
    return tensor(out)


def test_grpo_of_one_and_three_is_half_the_root_of_two_apart() -> None:
    """mean 2, std sqrt(2) with n - 1, and 1 with n."""
    half = math.sqrt(0.5)
    torch.testing.assert_close(credits.group_mean_std(*one_group(1, 3), std_epsilon=0.0), tensor([-half, half]))
    by_n = credits.group_mean_std(*one_group(1, 3), std_epsilon=0.0, std_correction=0)
    torch.testing.assert_close(by_n, tensor([-1.0, 1.0]))


def test_dr_grpo_of_one_right_in_four_is_three_quarters() -> None:
    torch.testing.assert_close(credits.group_mean(*one_group(1, 0, 0, 0)), tensor([0.75, -0.25, -0.25, -0.25]))


def test_rloo_of_one_right_in_three_compares_with_the_other_two() -> None:
    torch.testing.assert_close(credits.leave_one_out(*one_group(1, 0, 0)), tensor([1.0, -0.5, -0.5]))


def test_batch_std_divides_by_the_deviation_of_all_rows() -> None:
    """Rewards 0, 2 | 1, 1: mean 1, squares 1 + 1 over 3; group means 1 and 1."""
    ids, valid = tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)
    got = credits.batch_std(tensor([0.0, 2.0, 1.0, 1.0]), ids, valid, std_epsilon=0.0)
    torch.testing.assert_close(got, tensor([-math.sqrt(1.5), math.sqrt(1.5), 0.0, 0.0]))


def test_demonstrations_count_alike_whatever_they_earned() -> None:
    got = credits.uniform(tensor([0.0, 5.0, math.nan]), tensor([0, 0, 1]), tensor([True, True, False]))
    assert got.tolist() == [1.0, 1.0, 0.0]


@every
@settings(max_examples=40, deadline=None)
@given(drawn=rows)
def test_advantages_equal_the_loop_over_rows(function: Callable[..., Tensor], drawn: list) -> None:
    """I27, I28: ids in any order, partial groups, groups of one, invalid rows."""
    args = tensors(drawn)
    torch.testing.assert_close(function(*args), by_loop(function.__name__, *args), rtol=1e-5, atol=1e-5)


@every
def test_a_tiny_spread_on_a_large_offset_equals_the_loop(function: Callable[..., Tensor]) -> None:
    """I27: naive sum-of-squares variance in fp32 would be pure noise here."""
    rewards = tensor([1e6 + 0.25, 1e6, 1e6 + 0.5, 1e6 + 0.25], dtype=torch.float32)
    ids, valid = tensor([0, 0, 0, 0]), torch.ones(4, dtype=torch.bool)
    torch.testing.assert_close(function(rewards, ids, valid), by_loop(function.__name__, rewards, ids, valid))
    tiny = tensor([1e-4, 3e-4, 2e-4], dtype=torch.float64) + 1e3
    args = (tiny, tensor([0, 0, 0]), torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(function(*args).float(), by_loop(function.__name__, *args), rtol=1e-5, atol=1e-5)


@every
@settings(max_examples=40, deadline=None)
@given(value=st.floats(-1e6, 1e6, width=32), n=st.integers(1, 17))
def test_a_group_of_equal_rewards_gets_exactly_zero(function: Callable[..., Tensor], value: float, n: int) -> None:
    """I25: exactly, although the mean of equal floats may be off by one bit; a group of one is such a group."""
    assert function(*one_group(*[value] * n)).eq(0).all()


@pytest.mark.parametrize("function", [credits.group_mean_std, credits.batch_std])
def test_a_group_of_equal_rewards_gets_zero_even_without_an_epsilon(function: Callable[..., Tensor]) -> None:
    """I25: 0 / 0 is not NaN here."""
    assert function(*one_group(0.1, 0.1, 0.1), std_epsilon=0.0).tolist() == [0.0, 0.0, 0.0]


@every
@settings(max_examples=40, deadline=None)
@given(drawn=rows)
def test_advantages_of_a_group_sum_to_zero(function: Callable[..., Tensor], drawn: list) -> None:
    """I25."""
    rewards, ids, valid = tensors(drawn)
    got = function(rewards, ids, valid)
    for group in ids.unique():
        assert abs(float(got[ids == group].sum())) < 1e-4


@every
@settings(max_examples=40, deadline=None)
@given(drawn=rows, shift=st.integers(-1000, 1000))
def test_advantages_are_unmoved_by_a_shift_of_all_rewards(
    function: Callable[..., Tensor], drawn: list, shift: int
) -> None:
    """I25."""
    rewards, ids, valid = tensors(drawn)
    torch.testing.assert_close(function(rewards + shift, ids, valid), function(rewards, ids, valid))


def test_only_division_by_a_deviation_makes_advantages_blind_to_scale() -> None:
    """I25."""
    group, scaled = one_group(1, 0, 0.5, 0), one_group(10, 0, 5, 0)
    for function in (credits.group_mean_std, credits.batch_std):
        torch.testing.assert_close(function(*scaled), function(*group), rtol=1e-4, atol=0)
    for function in (credits.group_mean, credits.leave_one_out):
        torch.testing.assert_close(function(*scaled), 10 * function(*group))


@settings(max_examples=40, deadline=None)
@given(drawn=rows)
def test_leave_one_out_is_n_over_n_minus_one_times_the_deviation(drawn: list) -> None:
    """I26."""
    rewards, ids, valid = tensors(drawn)
    n = torch.stack([((ids == i) & valid).sum() for i in ids]).clamp(min=2)
    expected = credits.group_mean(rewards, ids, valid) * n / (n - 1)
    torch.testing.assert_close(credits.leave_one_out(rewards, ids, valid), expected)


@every
@settings(max_examples=40, deadline=None)
@given(drawn=rows, seed=st.integers(0, 10**6))
def test_rows_may_come_in_any_order(function: Callable[..., Tensor], drawn: list, seed: int) -> None:
    """I4, I28."""
    rewards, ids, valid = tensors(drawn)
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(function(rewards[order], ids[order], valid[order]), function(rewards, ids, valid)[order])


@every
@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
def test_a_failed_grader_changes_nothing_for_the_siblings(function: Callable[..., Tensor], junk: float) -> None:
    """I6, I28: whatever stands in the reward of a row that is not valid."""
    alone = function(*one_group(1, 0, 0))
    valid = tensor([True, True, False, True])
    got = function(tensor([1.0, 0.0, junk, 0.0]), torch.zeros(4, dtype=torch.long), valid)
    assert got[2] == 0
    torch.testing.assert_close(got[valid], alone)


@every
def test_a_group_of_failed_graders_and_an_empty_batch_are_fine(function: Callable[..., Tensor]) -> None:
    nothing = torch.zeros(2, dtype=torch.bool)
    assert function(tensor([math.nan, 1.0]), tensor([0, 0]), nothing).tolist() == [0.0, 0.0]
    empty = function(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool))
    assert empty.shape == (0,)


@pytest.mark.parametrize("function", [credits.group_mean_std, credits.batch_std])
def test_the_settings_of_the_deviation_are_used(function: Callable[..., Tensor]) -> None:
    """I16."""
    group = one_group(1, 0, 0)
    plain = function(*group)
    assert not torch.equal(partial(function, std_epsilon=0.5)(*group), plain)
    assert not torch.equal(partial(function, std_correction=0)(*group), plain)


def test_a_group_has_no_signal_when_valid_rewards_are_fewer_than_two_or_equal() -> None:
    """I28: dynamic sampling looks at raw rewards."""
    rewards = tensor([1.0, 1.0, 0.0, 1.0, 0.3, 0.0, 0.0])
    ids = tensor([5, 5, 2, 2, 9, 7, 7])
    valid = tensor([True, True, True, True, True, True, False])
    expected = [True, True, False, False, True, True, True]
    assert credits.zero_signal_groups(rewards, ids, valid).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(drawn=rows)
def test_zero_signal_equals_the_loop_over_groups(drawn: list) -> None:
    """I27, I28."""
    rewards, ids, valid = tensors(drawn)
    expected = [len({float(r) for r in rewards[(ids == i) & valid]}) < 2 for i in ids]
    assert credits.zero_signal_groups(rewards, ids, valid).tolist() == expected
