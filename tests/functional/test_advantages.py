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


# forms that look at several rewards of a row, at its steps or at its tokens


def with_tokens(drawn: list[tuple[float, int, bool]], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, ids, valid, and a mask of five tokens with holes."""
    generator = torch.Generator().manual_seed(seed)
    return *tensors(drawn), torch.rand(len(drawn), 5, generator=generator) < 0.6


def part_rewards(rewards: Tensor) -> Tensor:
    """Three parts: the rewards, another one on a larger scale, and one that is the same everywhere."""
    return torch.stack([rewards, (4 * rewards).remainder(3) * 50, torch.full_like(rewards, 0.1)], dim=1)


def whitened_by_loop(values: list[list[float]], counted: Tensor, epsilon: float) -> Tensor:
    kept = [x for line, flags in zip(values, counted, strict=True) for x, ok in zip(line, flags, strict=True) if ok]
    out = torch.zeros(counted.shape, dtype=torch.float64)
    if len(set(kept)) > 1:
        mean, std = statistics.mean(kept), statistics.stdev(kept)
        for b, t in counted.nonzero().tolist():
            out[b, t] = (values[b][t] - mean) / (std + epsilon)
    return out


def gdpo(rewards: Tensor, ids: Tensor, valid: Tensor, mask: Tensor) -> Tensor:
    return credits.per_reward_group_mean_std(part_rewards(rewards), tensor([1.0, 0.5, 2.0]), ids, valid)[:, None]


def process(rewards: Tensor, ids: Tensor, valid: Tensor, mask: Tensor) -> Tensor:
    return credits.process_mean_std(rewards[:, None] + torch.arange(5) % 2, mask, ids, valid)


def to_go(rewards: Tensor, ids: Tensor, valid: Tensor, mask: Tensor) -> Tensor:
    return credits.batch_whitened_returns(rewards[:, None] * (torch.arange(5) % 3), mask, valid)


WIDE = [gdpo, process, to_go, credits.group_mean_batch_whitened]
wide = pytest.mark.parametrize("function", WIDE)


def test_gdpo_of_one_common_and_one_rare_reward_keeps_them_apart() -> None:
    """Parts 1, 0 | 0, 1 and 0, 0 | 9, 9: +-sqrt(1/2) each, and 0 for the part that is equal in its group.

    s = (h, -h, h, -h) with h = sqrt(1/2): std sqrt(4 h^2 / 3) = sqrt(2/3), and h over that is sqrt(3/4).
    """
    parts = tensor([[1.0, 0.0], [0.0, 0.0], [9.0, 5.0], [9.0, 2.0]])
    ids, valid, weights = tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool), torch.ones(2)
    h = math.sqrt(0.75)
    got = credits.per_reward_group_mean_std(parts, weights, ids, valid, std_epsilon=0.0)
    torch.testing.assert_close(got, tensor([h, -h, h, -h]))


def test_gdpo_weighs_the_normalised_parts_whatever_their_scale() -> None:
    """In place of a sum that is drowned by its widest part."""
    ids, valid, weights = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool), tensor([2.0, 1.0])
    parts = tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    got = credits.per_reward_group_mean_std(parts, weights, ids, valid)
    scaled = credits.per_reward_group_mean_std(parts * tensor([1.0, 1000.0]) + 7, weights, ids, valid)
    torch.testing.assert_close(scaled, got, rtol=1e-4, atol=1e-5)
    assert got.argsort().tolist() == [3, 1, 0, 2]
    none = credits.per_reward_group_mean_std(parts, tensor([1.0, 0.0]), ids, valid)
    assert none[0] == none[2] and none[1] == none[3]


@settings(max_examples=40, deadline=None)
@given(drawn=rows)
def test_gdpo_equals_the_loop_over_parts_and_rows(drawn: list) -> None:
    """I27, I28."""
    rewards, ids, valid = tensors(drawn)
    parts, weights = part_rewards(rewards), tensor([1.0, 0.5, 2.0])
    columns = [by_loop("group_mean_std", parts[:, k], ids, valid) for k in range(3)]
    total = [
        [math.fsum(float(w) * float(c[b]) for w, c in zip(weights, columns, strict=True))] for b in range(len(ids))
    ]
    expected = whitened_by_loop(total, valid[:, None], 1e-6)[:, 0].float()
    got = credits.per_reward_group_mean_std(parts, weights, ids, valid)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(drawn=rows, value=st.floats(-100, 100, width=32))
def test_a_part_that_is_equal_in_every_group_adds_exactly_nothing(drawn: list, value: float) -> None:
    """I25: and rows without any signal stay exactly 0 after the whitening."""
    rewards, ids, valid = tensors(drawn)
    alone = credits.per_reward_group_mean_std(rewards[:, None], torch.ones(1), ids, valid)
    both = torch.stack([rewards, torch.full_like(rewards, value) + ids], dim=1)
    assert torch.equal(credits.per_reward_group_mean_std(both, torch.ones(2), ids, valid), alone)
    assert alone[credits.zero_signal_groups(rewards, ids, valid)].eq(0).all()


def test_reinforce_plus_plus_whitens_the_returns_of_all_tokens() -> None:
    """Returns 3, 2 and 1: mean 2, std 1; the penalty of -1 at the first row's first token counts before it only."""
    token_rewards, mask = tensor([[1.0, 9.0, 2.0], [0.0, 1.0, 9.0]]), tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    got = credits.batch_whitened_returns(token_rewards, mask, tensor([True, True]), std_epsilon=0.0)
    torch.testing.assert_close(got, tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))


@settings(max_examples=40, deadline=None)
@given(drawn=rows, seed=st.integers(0, 10**6))
def test_reinforce_plus_plus_equals_the_loop_over_tokens(drawn: list, seed: int) -> None:
    """I24, I27."""
    _, _, valid, mask = with_tokens(drawn, seed)
    token_rewards = torch.randint(-8, 9, mask.shape, generator=torch.Generator().manual_seed(seed)) / 4
    counted = mask & valid[:, None]
    returns = [[float(token_rewards[b, t:][mask[b, t:]].sum()) for t in range(5)] for b in range(len(valid))]
    got = credits.batch_whitened_returns(token_rewards, mask, valid)
    torch.testing.assert_close(got, whitened_by_loop(returns, counted, 1e-6).float(), rtol=1e-5, atol=1e-5)


def test_the_baseline_form_whitens_the_group_deviations_over_tokens() -> None:
    """Deviations -1.5 at one token and 1.5 at two: mean 1/2, std sqrt((4 + 1 + 1) / 2)."""
    mask, std = tensor([[1.0, 0.0], [1.0, 1.0]]), math.sqrt(3)
    got = credits.group_mean_batch_whitened(*one_group(0, 3), mask, std_epsilon=0.0)
    torch.testing.assert_close(got, tensor([[-2 / std, 0.0], [1 / std, 1 / std]]))


def test_the_baseline_form_shifts_a_group_without_signal_by_the_mean_over_tokens() -> None:
    """The longer row is the better one, so the mean is above 0; with rows of equal length it is 0."""
    rewards, ids, valid = tensor([0.0, 3.0, 1.0, 1.0]), tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)
    mask = tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    shifted = credits.group_mean_batch_whitened(rewards, ids, valid, mask)
    assert shifted[2, 0] == shifted[3, 0] < 0
    assert credits.group_mean_batch_whitened(rewards, ids, valid, torch.ones(4, 2))[2:].eq(0).all()


@settings(max_examples=40, deadline=None)
@given(drawn=rows, seed=st.integers(0, 10**6))
def test_the_baseline_form_equals_the_loop_over_tokens(drawn: list, seed: int) -> None:
    """I24, I27, I28."""
    rewards, ids, valid, mask = with_tokens(drawn, seed)
    centred = by_loop("group_mean", rewards, ids, valid)
    got = credits.group_mean_batch_whitened(rewards, ids, valid, mask)
    expected = whitened_by_loop([[float(x)] * 5 for x in centred], mask & valid[:, None], 1e-6).float()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_token_earns_all_steps_that_end_at_or_after_it() -> None:
    """Steps 0, 1 and 2: mean 1, std 1, normalised -1, 0 and 1. The first row has two of them."""
    step_rewards = tensor([[9.0, 0.0, 9.0, 2.0, 9.0], [9.0, 9.0, 1.0, 9.0, 9.0]])
    ends = tensor([[0.0, 1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    ids, valid = tensor([3, 3]), tensor([True, True])
    got = credits.process_mean_std(step_rewards, ends, ids, valid, std_epsilon=0.0)
    torch.testing.assert_close(got, tensor([[0.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]))
    got = credits.process_mean_std(step_rewards, ends, ids, tensor([True, False]), std_epsilon=0.0)
    h = math.sqrt(0.5)
    torch.testing.assert_close(got, tensor([[0.0, 0.0, h, h, 0.0], [0.0] * 5]))


def test_one_step_at_the_end_of_each_row_is_outcome_supervision() -> None:
    rewards, ids, valid = tensor([1.0, 0.0, 0.0, 5.0]), tensor([0, 0, 0, 1]), torch.ones(4, dtype=torch.bool)
    ends = torch.zeros(4, 3)
    ends[:, -1] = 1
    got = credits.process_mean_std(rewards[:, None].expand(4, 3), ends, ids, valid)
    torch.testing.assert_close(got, credits.group_mean_std(rewards, ids, valid)[:, None].expand(4, 3))


@settings(max_examples=40, deadline=None)
@given(drawn=rows, seed=st.integers(0, 10**6))
def test_process_supervision_equals_the_loop_over_steps(drawn: list, seed: int) -> None:
    """I27, I28."""
    _, ids, valid, ends = with_tokens(drawn, seed)
    step_rewards = torch.randint(0, 4, ends.shape, generator=torch.Generator().manual_seed(seed)) / 2
    places = [(b, t) for b, t in ends.nonzero().tolist() if valid[b]]
    steps, owners = tensor([float(step_rewards[p]) for p in places]), tensor([int(ids[b]) for b, _ in places])
    normalised = by_loop("group_mean_std", steps, owners, torch.ones(len(places), dtype=torch.bool))
    expected = torch.zeros(ends.shape)
    for (b, end), value in zip(places, normalised, strict=True):
        expected[b, : end + 1] += value
    torch.testing.assert_close(credits.process_mean_std(step_rewards, ends, ids, valid), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [(0.1, 0.1, 0.1), (0.7,), ()])
def test_a_group_with_equal_steps_or_fewer_than_two_gets_exactly_zero(steps: tuple[float, ...]) -> None:
    """I25."""
    step_rewards = torch.full((1, 4), math.nan)
    step_rewards[0, : len(steps)] = tensor(steps)
    ends = torch.arange(4)[None] < len(steps)
    got = credits.process_mean_std(step_rewards, ends, tensor([0]), tensor([True]), std_epsilon=0.0)
    assert got.eq(0).all()


@wide
@settings(max_examples=30, deadline=None)
@given(drawn=rows, seed=st.integers(0, 10**6))
def test_rows_of_the_wide_forms_may_come_in_any_order_under_any_id(
    function: Callable[..., Tensor], drawn: list, seed: int
) -> None:
    """I4, I28."""
    args = with_tokens(drawn, seed)
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(seed))
    rewards, ids, valid, mask = (x[order] for x in args)
    torch.testing.assert_close(function(rewards, 7 - 100 * ids, valid, mask), function(*args)[order])


@wide
@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
def test_a_failed_grader_changes_nothing_for_the_wide_forms(function: Callable[..., Tensor], junk: float) -> None:
    """I6, I24, I28: the row leaves the whitening as well."""
    mask = tensor([[1.0, 1.0, 0.0, 1.0, 1.0]] * 4)
    alone = function(*one_group(1, 0, 0.5), mask[:3])
    valid = tensor([True, True, False, True])
    got = function(tensor([1.0, 0.0, junk, 0.5]), torch.zeros(4, dtype=torch.long), valid, mask)
    assert got[2].eq(0).all()
    torch.testing.assert_close(got[valid], alone)


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_what_stands_outside_the_mask_is_not_read(junk: float) -> None:
    """I6."""
    ids, valid, mask = tensor([0, 0]), tensor([True, True]), tensor([[True, False, True], [True, True, False]])
    numbers = tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    spoilt = torch.where(mask, numbers, junk)
    assert torch.equal(
        credits.batch_whitened_returns(spoilt, mask, valid), credits.batch_whitened_returns(numbers, mask, valid)
    )
    assert torch.equal(
        credits.process_mean_std(spoilt, mask, ids, valid), credits.process_mean_std(numbers, mask, ids, valid)
    )


@wide
def test_a_tiny_spread_on_a_large_offset_is_not_lost_in_the_wide_forms(function: Callable[..., Tensor]) -> None:
    """I27: the same advantages as without the offset, as far as the offset does not count as a reward of its own."""
    mask = torch.zeros(3, 5)
    mask[:, 2] = 1  # one token, one step: `to_go` weighs it by 2, `process` adds 0
    tiny = tensor([1e-2, 3e-2, 2e-2], dtype=torch.float64)
    args = (torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.bool), mask)
    if function is not gdpo:  # its second part is made by a remainder
        torch.testing.assert_close(function(tiny + 1e6, *args), function(tiny, *args), rtol=1e-4, atol=1e-5)
    parts, weights = torch.stack([tiny, 1 - tiny * tiny], dim=1), torch.tensor([1.0, 3.0])
    torch.testing.assert_close(
        credits.per_reward_group_mean_std(parts + 1e6, weights, *args[:2]),
        credits.per_reward_group_mean_std(parts, weights, *args[:2]),
        rtol=1e-4,
        atol=1e-5,
    )


@wide
def test_the_wide_forms_of_failed_graders_of_one_row_and_of_nothing_are_fine(function: Callable[..., Tensor]) -> None:
    ids = tensor([0, 0])
    nothing = torch.zeros(2, dtype=torch.bool)
    assert function(tensor([math.nan, 1.0]), ids, nothing, torch.ones(2, 5)).eq(0).all()
    assert function(tensor([1.0, 2.0]), ids, ~nothing, torch.zeros(2, 5)).isfinite().all()
    assert function(*one_group(1), tensor([[0.0, 0.0, 1.0, 0.0, 0.0]])).eq(0).all()
    assert len(function(torch.zeros(0), ids[:0], nothing[:0], torch.zeros(0, 5))) == 0


def test_the_settings_of_the_wide_forms_are_used() -> None:
    """I16."""
    rewards, ids, valid = one_group(1, 0, 0, 2)
    mask, parts, weights = torch.ones(4, 5), part_rewards(rewards), tensor([1.0, 0.5, 2.0])
    steps = rewards[:, None] + torch.arange(5)
    forms = [
        partial(credits.per_reward_group_mean_std, parts, weights, ids, valid),
        partial(credits.process_mean_std, steps, mask, ids, valid),
        partial(credits.batch_whitened_returns, steps, mask, valid),
        partial(credits.group_mean_batch_whitened, rewards, ids, valid, mask),
    ]
    for form in forms:
        assert not torch.equal(form(std_epsilon=0.5), form())
    for form in forms[:2]:
        assert not torch.equal(form(std_correction=0), form())
