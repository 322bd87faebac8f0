"""Credit per token: returns, GAE, whitening and the value model's loss."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from melete.functional import aggregate as agg
from melete.functional.value import (
    adapted_kl_coef,
    explained_variance,
    gae,
    returns_to_go,
    token_rewards,
    value_loss,
    whiten,
)

seeds = st.integers(0, 10**6)
unit = st.sampled_from([0.0, 0.5, 0.9, 1.0])


def row(*numbers: float) -> Tensor:
    return tensor([numbers], dtype=torch.float64)


def drawn(seed: int, num_rows: int = 3, num_tokens: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and a mask with holes."""
    torch.manual_seed(seed)
    shape = (num_rows, num_tokens)
    return torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64), torch.rand(shape) < 0.6


def gae_by_loop(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float, bootstrap: Tensor
) -> tuple[Tensor, Tensor]:
    """The slow twin: cut the tokens of the mask out of each row, then A[i] = sum_j (gamma lambda)^(j-i) delta[j]."""
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    for b in range(len(values)):
        at = [t for t in range(values.shape[1]) if mask[b, t]]
        r, v = [float(rewards[b, t]) for t in at], [float(values[b, t]) for t in at] + [float(bootstrap[b])]
        for i, t in enumerate(at):
            deltas = [r[j] + gamma * v[j + 1] - v[j] for j in range(i, len(at))]
            advantages[b, t] = math.fsum((gamma * gae_lambda) ** k * delta for k, delta in enumerate(deltas))
            returns[b, t] = advantages[b, t] + v[i]
    return advantages, returns


# rewards of tokens


def test_the_penalty_is_paid_at_every_token_and_the_reward_at_the_last() -> None:
    mask = tensor([[False, True, True, False, True, False], [False] * 6])
    kl = tensor([[9.0, 1.0, 2.0, 9.0, 3.0, 9.0], [9.0] * 6])
    expected = tensor([[0.0, -0.5, -1.0, 0.0, 2.5, 0.0], [0.0] * 6])
    assert torch.equal(token_rewards(tensor([4.0, 5.0]), kl, mask, kl_coef=0.5), expected)
    assert torch.equal(token_rewards(tensor([4.0, 5.0]), kl, mask.float(), kl_coef=0.5), expected)


def test_without_a_penalty_there_is_only_the_reward_at_the_last_token() -> None:
    assert token_rewards(tensor([4.0]), None, tensor([[True, True, False]]), kl_coef=0.5).tolist() == [[0.0, 4.0, 0.0]]


def test_the_kl_in_the_reward_is_a_constant_and_is_masked() -> None:
    """I20, I21: no gradient, and what stands outside the mask is not read."""
    kl = tensor([[math.nan, 1.0, math.inf]], requires_grad=True)
    got = token_rewards(tensor([1.0], requires_grad=True), kl, tensor([[False, True, False]]), kl_coef=0.25)
    assert not got.requires_grad
    assert got.tolist() == [[0.0, 0.75, 0.0]]


@settings(max_examples=30, deadline=None)
@given(seed=seeds, kl_coef=st.floats(0, 2))
def test_token_rewards_sum_to_the_reward_minus_the_masked_kl(seed: int, kl_coef: float) -> None:
    """I21: the penalty in the returns is the masked sum that is logged."""
    kl, rewards, mask = drawn(seed)
    got = token_rewards(rewards[:, 0], kl, mask, kl_coef=kl_coef)
    expected = [float(rewards[b, 0] - kl_coef * kl[b][mask[b]].sum()) if mask[b].any() else 0.0 for b in range(3)]
    torch.testing.assert_close(got.sum(dim=1), tensor(expected, dtype=torch.float64))


# generalised advantage estimation


def test_gae_of_three_tokens_is_the_sequence_worked_by_hand() -> None:
    """I22: gamma = lambda = 1/2. Deltas 1 + 2 - 2 = 1, 0 + 1 - 4 = -3, 6 + 0 - 2 = 4; 4, -3 + 4/4, 1 - 2/4."""
    got, returns = gae(row(1, 0, 6), row(2, 4, 2), row(1, 1, 1), gamma=0.5, gae_lambda=0.5)
    assert got.tolist() == [[0.5, -2.0, 4.0]]
    assert returns.tolist() == [[2.5, 2.0, 6.0]]


@settings(max_examples=40, deadline=None)
@given(seed=seeds, gamma=unit, gae_lambda=unit)
def test_gae_equals_the_double_sum_over_the_tokens_of_the_mask(seed: int, gamma: float, gae_lambda: float) -> None:
    """I27."""
    rewards, values, mask = drawn(seed)
    bootstrap = torch.randn(3, dtype=torch.float64)
    got = gae(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda, bootstrap_values=bootstrap)
    torch.testing.assert_close(got, gae_by_loop(rewards, values, mask, gamma, gae_lambda, bootstrap))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, gamma=unit)
def test_lambda_one_is_the_return_minus_the_value(seed: int, gamma: float) -> None:
    """I22: Monte Carlo; the returns do not depend on the values at all."""
    rewards, values, mask = drawn(seed)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, gae_lambda=1.0)
    to_go = returns_to_go(rewards, mask, gamma=gamma)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, torch.where(mask, to_go - values, 0.0))


@settings(max_examples=30, deadline=None)
@given(seed=seeds, gamma=unit)
def test_lambda_zero_is_the_error_of_one_step(seed: int, gamma: float) -> None:
    """I22: temporal difference."""
    rewards, values, _ = drawn(seed)
    got, _ = gae(rewards, values, torch.ones_like(values), gamma=gamma, gae_lambda=0.0)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(got, rewards + gamma * following - values)


def test_a_reward_k_tokens_ahead_counts_gamma_to_the_k() -> None:
    """I22: gamma composes, and over the tokens of the mask only."""
    assert returns_to_go(row(0, 0, 0, 8), row(1, 1, 1, 1), gamma=0.5).tolist() == [[1.0, 2.0, 4.0, 8.0]]
    assert returns_to_go(row(0, 7, 0, 8), row(1, 0, 1, 1), gamma=0.5).tolist() == [[2.0, 0.0, 4.0, 8.0]]


@pytest.mark.parametrize("junk", [5.0, math.nan, math.inf])
def test_padding_on_either_side_never_bootstraps(junk: float) -> None:
    """I4, I6, I22: the values and rewards of padding are not read."""
    rewards, values = row(1, 0, 6), row(2, 4, 2)
    alone = gae(rewards, values, row(1, 1, 1), gamma=0.9, gae_lambda=0.8)
    side = row(junk, junk)
    padded = gae(
        torch.cat([side, rewards, side], dim=1),
        torch.cat([side, values, side], dim=1),
        row(0, 0, 1, 1, 1, 0, 0),
        gamma=0.9,
        gae_lambda=0.8,
    )
    for got, expected in zip(padded, alone, strict=True):
        assert torch.equal(got[:, 2:5], expected)
        assert got[:, [0, 1, 5, 6]].eq(0).all()


@settings(max_examples=40, deadline=None)
@given(seed=seeds, places=st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_inserted_observations_change_no_advantage(seed: int, places: list[int]) -> None:
    """I23: tokens that a tool wrote are transparent, wherever they stand and whatever their value."""
    rewards, values, _ = drawn(seed, num_rows=1, num_tokens=5)
    settings_ = {"gamma": 0.9, "gae_lambda": 0.7, "bootstrap_values": tensor([0.3], dtype=torch.float64)}
    alone = gae(rewards, values, torch.ones_like(values), **settings_)
    columns = [(float(r), float(v), 1.0) for r, v in zip(rewards[0], values[0], strict=True)]
    for place in places:
        columns.insert(place, (100.0, -50.0, 0.0))
    longer, longer_values, mask = (row(*stream) for stream in zip(*columns, strict=True))
    for got, expected in zip(gae(longer, longer_values, mask, **settings_), alone, strict=True):
        torch.testing.assert_close(got[mask.bool()], expected[0])
        assert got[~mask.bool()].eq(0).all()


def test_a_row_cut_off_carries_its_value_and_a_row_that_ended_does_not() -> None:
    """I29: after the last token of the mask, also where padding follows."""
    rewards, values = tensor([[0.0, 1.0, 9.0]] * 2), tensor([[1.0, 2.0, 9.0]] * 2)
    mask, bootstrap = tensor([[1.0, 1.0, 0.0]] * 2), tensor([0.0, 4.0])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, gae_lambda=0.0, bootstrap_values=bootstrap)
    assert advantages.tolist() == [[0.0, -1.0, 0.0], [0.0, 1.0, 0.0]]
    assert returns[:, 1].tolist() == [1.0, 3.0]
    assert torch.equal(advantages[:1], gae(rewards, values, mask, gamma=0.5, gae_lambda=0.0)[0][:1])


def test_gae_gives_constants_in_the_dtype_of_the_values() -> None:
    values = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    for got in gae(torch.ones(1, 2, requires_grad=True), values, torch.ones(1, 2)):
        assert got.dtype == torch.bfloat16
        assert not got.requires_grad


def test_no_rows_and_no_tokens_are_fine() -> None:
    for shape in ((0, 3), (2, 0)):
        empty = torch.zeros(shape)
        assert all(got.shape == shape for got in gae(empty, empty, empty))
        assert whiten(empty, empty).shape == shape
        assert token_rewards(torch.zeros(shape[0]), empty, empty, kl_coef=1.0).shape == shape


@pytest.mark.parametrize("setting", ["gamma", "gae_lambda"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_discount_outside_zero_to_one_is_refused(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be from 0 to 1"):
        gae(row(0), row(0), row(1), **{setting: value})


# whitening


def test_whitening_two_tokens_puts_them_half_the_root_of_two_apart() -> None:
    """Mean 2, std sqrt(2)."""
    half = math.sqrt(0.5)
    torch.testing.assert_close(whiten(row(1, 9, 3), row(1, 0, 1), epsilon=0.0), row(-half, 0, half))
    kept = whiten(row(1, 9, 3), row(1, 0, 1), epsilon=0.0, shift_mean=False)
    torch.testing.assert_close(kept, row(2 - half, 0, 2 + half))


@settings(max_examples=40, deadline=None)
@given(seed=seeds, shift_mean=st.booleans(), scale=st.sampled_from([1e-4, 1.0, 1e4]), offset=st.sampled_from([0, 1e3]))
def test_whitening_equals_the_loop_even_for_a_tiny_spread_on_a_large_offset(
    seed: int, shift_mean: bool, scale: float, offset: float
) -> None:
    """I24, I27."""
    values, _, mask = drawn(seed)
    values = values * scale + offset
    kept = [float(x) for x, counted in zip(values.flatten(), mask.flatten(), strict=True) if counted]
    mean, std = (statistics.mean(kept), statistics.stdev(kept)) if len(kept) > 1 else (sum(kept), 1.0)
    expected = (values - mean) / (std + 1e-8) + (0 if shift_mean else mean)
    got = whiten(values, mask, shift_mean=shift_mean)
    torch.testing.assert_close(got, torch.where(mask, expected, 0.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("junk", [1e30, math.nan, math.inf])
def test_whitening_reads_only_the_mask(junk: float) -> None:
    """I6, I24."""
    got = whiten(tensor([[1.0, junk], [junk, 4.0]]), tensor([[True, False], [False, True]]))
    assert torch.equal(got, whiten(tensor([[1.0, 0.0], [0.0, 4.0]]), tensor([[True, False], [False, True]])))
    assert got[0, 1] == 0 and got[1, 0] == 0


def test_whitening_takes_the_whole_step_together() -> None:
    """I24: a micro-batch whitened by itself is another thing."""
    values, mask = tensor([[0.0, 1.0], [10.0, 11.0]]), torch.ones(2, 2)
    whole = whiten(values, mask)
    assert whole[0].max() < 0 < whole[1].min()
    assert not torch.allclose(whole[:1], whiten(values[:1], mask[:1]))


@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
@pytest.mark.parametrize("values", [(0.1,), (0.1, 0.1, 0.1), ()])
def test_one_token_or_equal_ones_whiten_to_exactly_zero(values: tuple[float, ...], epsilon: float) -> None:
    """The mean of equal floats may be off by one bit; 0 / 0 is not NaN here."""
    numbers = row(*values, 7.0)
    mask = tensor([[1.0] * len(values) + [0.0]])
    assert whiten(numbers, mask, epsilon=epsilon).eq(0).all()
    unshifted = whiten(numbers, mask, epsilon=epsilon, shift_mean=False)
    torch.testing.assert_close(unshifted, numbers * mask)


def test_whitened_values_are_constants() -> None:
    assert not whiten(torch.randn(2, 3, requires_grad=True), torch.ones(2, 3)).requires_grad


# the value model's loss


def test_the_value_loss_is_half_the_larger_of_two_squares() -> None:
    """I30: the old value 0 holds 1 at 0.2, so 0.5 * 0.8^2; towards a return of 0 the clipped one is the smaller."""
    values, old, returns = row(1, 1, 0.1), row(0, 0, 0), row(1, 0, 1)
    torch.testing.assert_close(value_loss(values, old, returns), row(0.32, 0.5, 0.405))
    torch.testing.assert_close(value_loss(values, old, returns, value_clip=None), row(0, 0.5, 0.405))


def test_the_value_clip_is_around_the_old_values() -> None:
    """I30: not around the returns, and not around the values themselves."""
    values, returns = row(1.0), row(1.0)
    losses = [float(value_loss(values, row(old), returns)) for old in (1.0, 0.9, 0.5, 0.0)]
    assert losses == pytest.approx([0.0, 0.0, 0.5 * 0.3**2, 0.5 * 0.8**2])


@settings(max_examples=40, deadline=None)
@given(seed=seeds, value_clip=st.none() | st.floats(0.05, 2.0))
def test_the_value_loss_equals_the_loop_over_tokens(seed: int, value_clip: float | None) -> None:
    """I27, I30."""
    values, old, _ = drawn(seed)
    returns = torch.randn_like(values)
    expected = torch.zeros_like(values)
    for b, t in torch.cartesian_prod(torch.arange(3), torch.arange(7)).tolist():
        v, o, r = float(values[b, t]), float(old[b, t]), float(returns[b, t])
        expected[b, t] = (v - r) ** 2 / 2
        if value_clip is not None:
            cut = min(max(v, o - value_clip), o + value_clip)
            expected[b, t] = max((v - r) ** 2, (cut - r) ** 2) / 2
    torch.testing.assert_close(value_loss(values, old, returns, value_clip=value_clip), expected)


def test_finite_differences_match_the_gradient_of_the_value_loss() -> None:
    """I30: inside the clip, and beyond it on the side where the gradient stops and on the side where it does not."""
    values = row(0.1, 1.0, 1.0, -1.0).requires_grad_()
    old, returns = row(0, 0, 0, 0), row(1, 2, -1, -2)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, returns), (values,))
    value_loss(values, old, returns).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, row(0.1 - 1, 0, 1 + 1, 0))


def test_at_the_start_of_the_update_the_gradient_is_value_minus_return() -> None:
    """I30: old values equal the current ones, nothing is cut; old values and returns carry no gradient."""
    values, old, returns = (row(0.5, -1.0, 2.0).requires_grad_() for _ in range(3))
    target = returns + 1.0
    value_loss(values, old, target).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, -torch.ones_like(values))
    assert old.grad is None and returns.grad is None


@settings(max_examples=30, deadline=None)
@given(seed=seeds, cut=st.integers(1, 2))
def test_the_value_loss_does_not_depend_on_the_split_into_micro_batches(seed: int, cut: int) -> None:
    """I1, I30: per-token losses, so the one aggregation adds up."""
    values, old, mask = drawn(seed)
    returns = torch.randn_like(values)
    totals = agg.denominators(mask, "token_mean")
    whole = agg.aggregate(value_loss(values, old, returns), mask, "token_mean", totals)
    parts = [
        agg.aggregate(value_loss(values[rows], old[rows], returns[rows]), mask[rows], "token_mean", totals)
        for rows in (slice(None, cut), slice(cut, None))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


@pytest.mark.parametrize("value_clip", [0.0, -0.2, math.nan])
def test_a_value_clip_that_is_not_above_zero_is_refused(value_clip: float) -> None:
    with pytest.raises(ValueError, match="value_clip must be above 0, or None"):
        value_loss(row(0), row(0), row(0), value_clip=value_clip)


# explained variance


def test_values_that_miss_by_half_explain_three_quarters() -> None:
    """Returns 0 and 4: variance 4; errors 1 and -1... of values 1 and 3: variance 1."""
    assert float(explained_variance(row(1, 3, 99), row(0, 4, -99), row(1, 1, 0))) == pytest.approx(0.75)


def test_a_perfect_value_explains_all_a_constant_nothing_and_its_negative_less() -> None:
    returns, mask = row(1, 2, 4), row(1, 1, 1)
    explained = [float(explained_variance(values, returns, mask)) for values in (returns, row(5, 5, 5), -returns)]
    assert explained == pytest.approx([1.0, 0.0, -3.0])


@settings(max_examples=30, deadline=None)
@given(seed=seeds, offset=st.sampled_from([0, 1e4]))
def test_explained_variance_equals_the_standard_library(seed: int, offset: float) -> None:
    """I27."""
    values, returns, mask = drawn(seed)
    mask[:, :2] = True
    values, returns = values + offset, returns + offset
    left = statistics.pvariance((returns - values)[mask].tolist())
    expected = 1 - left / statistics.pvariance(returns[mask].tolist())
    assert float(explained_variance(values, returns, mask)) == pytest.approx(expected, rel=1e-5)


def test_equal_returns_one_token_and_no_token_explain_nothing() -> None:
    for mask in (row(1, 1, 0), row(1, 0, 0), row(0, 0, 0)):
        assert float(explained_variance(row(1, 2, math.nan), row(0.1, 0.1, math.nan), mask)) == 0.0


# the controller of the KL coefficient


def test_the_controller_moves_by_a_fifth_of_the_share_of_the_horizon_at_most() -> None:
    """Ten in a hundred rollouts: half too much is cut to 0.2, a tenth is not cut."""
    moved = [
        adapted_kl_coef(0.5, observed, kl_target=2.0, kl_horizon=100.0, num_rollouts=10)
        for observed in (3.0, 2.2, 2.0, 1.8, 0.0, math.inf)
    ]
    assert moved == pytest.approx([0.51, 0.505, 0.5, 0.495, 0.49, 0.51])


@settings(max_examples=40, deadline=None)
@given(observed=st.floats(-1, 20), target=st.floats(0.01, 10), rollouts=st.integers(1, 400))
def test_the_controller_moves_the_right_way(observed: float, target: float, rollouts: int) -> None:
    """I21: more weight on the KL after too much of it, less after too little, and never a change of sign."""
    coef = adapted_kl_coef(0.1, observed, kl_target=target, kl_horizon=100.0, num_rollouts=rollouts)
    assert coef > 0
    assert (coef > 0.1) if observed > 1.001 * target else (coef <= 0.1 if observed < target else coef >= 0.1)


def test_the_controller_settles_at_its_target() -> None:
    """I21: a policy whose KL is 1 / coefficient ends where that is the target."""
    coef = 1.0
    for _ in range(200):
        coef = adapted_kl_coef(coef, 1 / coef, kl_target=4.0, kl_horizon=100.0, num_rollouts=50)
    assert 1 / coef == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"kl_target": 0.0}, "kl_target must be above 0"),
        ({"kl_horizon": 0.0}, "kl_horizon must be above"),
        ({"num_rollouts": 500}, "kl_horizon must be above"),
        ({"observed_kl": math.nan}, "observed_kl must be a number"),
    ],
)
def test_a_controller_that_could_not_steer_is_refused(changed: dict[str, float], complaint: str) -> None:
    settings_ = {"observed_kl": 1.0, "kl_target": 1.0, "kl_horizon": 100.0, "num_rollouts": 10, **changed}
    with pytest.raises(ValueError, match=complaint):
        adapted_kl_coef(0.1, **settings_)


# every declared setting


def test_every_setting_changes_the_result() -> None:
    """I16."""
    rewards, values, _ = drawn(0)
    mask = torch.ones_like(values)
    plain = gae(rewards, values, mask)[0]
    assert not torch.equal(gae(rewards, values, mask, gamma=0.9)[0], plain)
    assert not torch.equal(gae(rewards, values, mask, gae_lambda=0.9)[0], plain)
    assert not torch.equal(whiten(values, mask, epsilon=0.5), whiten(values, mask))
    assert not torch.equal(
        value_loss(values, rewards, 2 * rewards, value_clip=0.5), value_loss(values, rewards, 2 * rewards)
    )
