"""Policy-gradient losses, and the loss of demonstrations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from melete.functional.policy import (
    cispo,
    clip_fraction,
    clipped,
    reinforce,
    sequence_clip_fraction,
    sequence_clipped,
)
from melete.functional.supervised import negative_log_likelihood

log_ratios = st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=6)
seeds = st.integers(0, 10**6)


def row(values: list[float]) -> Tensor:
    return tensor([values], dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(loss, at)[0]


def clipped_by_loop(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    out = torch.zeros_like(ratio)
    for t, (r, a) in enumerate(zip(ratio[0].tolist(), advantages[0].tolist(), strict=True)):
        cut = min(max(r, 1 - low), 1 + high)
        out[0, t] = max(-r * a, -cut * a)
    return out


def test_a_ratio_beyond_the_bounds_is_cut_only_where_it_flatters() -> None:
    """Ratios 1.5 and 0.5 with advantage 2 and -2: -min(3, 2.4), -min(-3, -2.4), -min(1, 1.6), -min(-1, -1.6)."""
    ratio, advantages = row([1.5, 1.5, 0.5, 0.5]), row([2.0, -2.0, 2.0, -2.0])
    torch.testing.assert_close(clipped(ratio.log(), row([0.0] * 4), advantages), row([-2.4, 3.0, -1.0, 1.6]))
    assert clip_fraction(ratio.log(), row([0.0] * 4), advantages).tolist() == [[1.0, 0.0, 0.0, 1.0]]


def test_reinforce_is_minus_advantage_times_logprob() -> None:
    torch.testing.assert_close(reinforce(row([-2.0, -1.0]), row([0.5, -3.0])), row([1.0, -3.0]))


def test_the_loss_of_demonstrations_is_minus_their_logprob() -> None:
    torch.testing.assert_close(negative_log_likelihood(row([-0.5, -2.0])), row([0.5, 2.0]))


@settings(max_examples=40, deadline=None)
@given(logs=log_ratios, seed=seeds, low=st.floats(0.05, 0.5), high=st.floats(0.05, 0.5))
def test_clipped_equals_the_loop_over_tokens(logs: list[float], seed: int, low: float, high: float) -> None:
    """I27."""
    advantages = torch.randn(1, len(logs), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    got = clipped(row(logs), torch.zeros_like(row(logs)), advantages, clip_low=low, clip_high=high)
    torch.testing.assert_close(got, clipped_by_loop(row(logs).exp(), advantages, low, high))


def test_finite_differences_match_the_gradient_on_both_sides_of_both_bounds() -> None:
    """I11: ratios inside, above 1.28 and below 0.8, advantages of both signs."""
    logs = row([0.1, 0.1, 0.5, 0.5, -0.5, -0.5]).requires_grad_()
    advantages = row([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    assert torch.autograd.gradcheck(
        lambda x: clipped(x, torch.zeros_like(x), advantages, clip_low=0.2, clip_high=0.28), (logs,)
    )


def test_the_gradient_stops_only_on_the_harmful_side_and_each_bound_is_its_own() -> None:
    """I11: with 0.2 / 0.28, a good token stops above 1.28 (not at 1.25), a bad one below 0.8 (not at 0.85)."""
    ratio = row([1.25, 1.30, 0.85, 0.75, 1.30, 0.75])
    advantages = row([1.0, 1.0, -1.0, -1.0, -1.0, 1.0])
    logs = ratio.log().requires_grad_()
    clipped(logs, torch.zeros_like(ratio), advantages, clip_low=0.2, clip_high=0.28).sum().backward()
    assert logs.grad is not None
    assert (logs.grad != 0).tolist() == [[True, False, True, False, True, True]]
    stopped = clip_fraction(logs, torch.zeros_like(ratio), advantages, clip_low=0.2, clip_high=0.28)
    assert torch.equal(stopped == 0, logs.grad != 0)


def test_the_first_update_of_a_step_is_reinforce() -> None:
    """I10: old log-probs equal the current ones, so the ratio is 1, nothing is cut, the gradient is REINFORCE's."""
    torch.manual_seed(0)
    logs, advantages = torch.randn(2, 5).requires_grad_(), torch.randn(2, 5)
    losses = clipped(logs, logs.detach(), advantages)
    torch.testing.assert_close(losses, -advantages)
    assert clip_fraction(logs, logs.detach(), advantages).sum() == 0
    (surrogate,) = torch.autograd.grad(losses.sum(), logs)
    (plain,) = torch.autograd.grad(reinforce(logs, advantages).sum(), logs)
    torch.testing.assert_close(surrogate, plain)


def test_the_bandit_gradient_is_the_closed_form() -> None:
    """Three arms: d/d logits of -E[R] = -p (R - E[R]), by enumeration of the arms."""
    logits = tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    rewards = tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp().detach()
    (p * reinforce(log_p[None], rewards[None])[0]).sum().backward()
    torch.testing.assert_close(logits.grad, -p * (rewards - (p * rewards).sum()))


@pytest.mark.parametrize("name", ["advantages", "old_logprobs"])
def test_only_the_current_logprobs_get_a_gradient(name: str) -> None:
    """I15, I20."""
    inputs = {"logprobs": row([-1.0]), "old_logprobs": row([-1.1]), "advantages": row([1.0])}
    inputs[name].requires_grad_()
    assert not clipped(inputs["logprobs"], inputs["old_logprobs"], inputs["advantages"]).requires_grad


def test_a_ratio_that_would_overflow_stays_finite_and_still_pulls_a_bad_token_down() -> None:
    """I20: fp32 exp(100) is infinite."""
    logs = tensor([[0.0]], requires_grad=True)
    loss = clipped(logs, tensor([[-100.0]]), tensor([[-1.0]]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logs.grad is not None
    assert logs.grad.isfinite().all()
    assert logs.grad > 0


def dual_clipped_by_loop(ratio: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float) -> Tensor:
    """Ye et al. 2020: for A < 0 the objective is max(min(r A, clip(r) A), c A)."""
    out = torch.zeros_like(ratio)
    for t, (r, a) in enumerate(zip(ratio[0].tolist(), advantages[0].tolist(), strict=True)):
        objective = min(r * a, min(max(r, 1 - low), 1 + high) * a)
        out[0, t] = -max(objective, dual_clip * a) if a < 0 else -objective
    return out


def two_sided_by_loop(ratio: Tensor, advantages: Tensor, low: float, high: float, delta: float) -> Tensor:
    """INTELLECT-2: the objective is min(min(r, delta) A, clip(r) A), whatever the sign of A."""
    out = torch.zeros_like(ratio)
    for t, (r, a) in enumerate(zip(ratio[0].tolist(), advantages[0].tolist(), strict=True)):
        out[0, t] = -min(min(r, delta) * a, min(max(r, 1 - low), 1 + high) * a)
    return out


def test_dual_clip_stops_a_bad_token_at_its_bound_and_leaves_a_good_one_alone() -> None:
    """I12: ratio 5, dual_clip 3: a bad token costs 3 instead of 5; a good one is cut at 1.2 either way."""
    ratio, advantages = row([5.0, 5.0, 2.0]), row([-1.0, 1.0, -1.0])
    got = clipped(ratio.log(), row([0.0] * 3), advantages, dual_clip=3.0)
    torch.testing.assert_close(got, row([3.0, -1.2, 2.0]))
    assert clip_fraction(ratio.log(), row([0.0] * 3), advantages, dual_clip=3.0).tolist() == [[1.0, 1.0, 0.0]]
    assert clip_fraction(ratio.log(), row([0.0] * 3), advantages).tolist() == [[0.0, 1.0, 0.0]]


@settings(max_examples=40, deadline=None)
@given(logs=log_ratios, seed=seeds, high=st.floats(0.05, 0.5), extra=st.floats(0, 3))
def test_dual_clip_and_the_two_sided_clip_are_one_function(
    logs: list[float], seed: int, high: float, extra: float
) -> None:
    """I12, I27: Ye's floor and INTELLECT-2's cap, for a bound of at least 1 + clip_high."""
    advantages, bound = noise(1, len(logs), seed=seed), 1 + high + extra
    got = clipped(row(logs), torch.zeros_like(row(logs)), advantages, clip_high=high, dual_clip=bound)
    torch.testing.assert_close(got, dual_clipped_by_loop(row(logs).exp(), advantages, 0.2, high, bound))
    torch.testing.assert_close(got, two_sided_by_loop(row(logs).exp(), advantages, 0.2, high, bound))


def test_below_one_plus_clip_high_the_dual_clip_is_the_floor_of_its_own_paper() -> None:
    """Ratio 1.15, bounds 1.2 and 1.1: Ye's floor stops at 1.1, INTELLECT-2's cap leaves 1.15 to the other product."""
    ratio, bad = row([1.15]), row([-1.0])
    got = clipped(ratio.log(), row([0.0]), bad, dual_clip=1.1)
    torch.testing.assert_close(got, dual_clipped_by_loop(ratio, bad, 0.2, 0.2, 1.1))
    torch.testing.assert_close(got, row([1.1]))
    torch.testing.assert_close(two_sided_by_loop(ratio, bad, 0.2, 0.2, 1.1), row([1.15]))


def test_beyond_the_dual_clip_only_bad_tokens_lose_their_gradient() -> None:
    """I12: without it the ratio of a bad token is unbounded above; finite differences agree on both sides."""
    logs = row([4.0, 2.5, 0.9, 4.0, 0.7]).log().requires_grad_()
    old, advantages = row([0.0] * 5), row([-1.0, -1.0, -1.0, 1.0, -1.0])
    grads = gradient(clipped(logs, old, advantages, dual_clip=3.0).sum(), logs)
    assert (grads != 0).tolist() == [[False, True, True, False, False]]
    stopped = clip_fraction(logs, old, advantages, dual_clip=3.0)
    assert torch.equal(stopped == 0, grads != 0)
    assert torch.autograd.gradcheck(lambda x: clipped(x, old, advantages, dual_clip=3.0), (logs,))
    assert gradient(clipped(logs, old, advantages).sum(), logs)[0, 0] > 0


@pytest.mark.parametrize("dual_clip", [1.0, 0.5, -3.0, math.nan])
def test_a_dual_clip_of_one_or_less_is_refused(dual_clip: float) -> None:
    """I12: c <= 1 would stop the token that has not moved."""
    logs = row([0.0])
    for function in (clipped, clip_fraction):
        with pytest.raises(ValueError, match="dual_clip must be above 1"):
            function(logs, logs, logs, dual_clip=dual_clip)


def sequence_objective(
    logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float
) -> Tensor:
    """GSPO, eq. 5: the mean over rows of min(s A, clip(s) A), differentiated through s, by a loop over rows."""
    objectives = []
    for i in range(len(mask)):
        at = mask[i]
        s = ((logprobs[i][at] - old[i][at]).sum() / at.sum()).exp()
        a = advantages[i][at][0]
        objectives.append(torch.minimum(s * a, s.clamp(1 - low, 1 + high) * a))
    return torch.stack(objectives).mean()


def test_a_row_shares_the_geometric_mean_of_its_ratios() -> None:
    """I14: ratios 4 and 1 make 2; 2 and 8 make 4, the third token being masked."""
    ratio, mask = row([4.0, 1.0, 9.0]), tensor([[True, True, False]])
    losses = sequence_clipped(ratio.log(), row([0.0] * 3), row([1.0] * 3), mask, clip_low=0.9, clip_high=9.0)
    torch.testing.assert_close(losses, row([-2.0, -2.0, 0.0]))
    losses = sequence_clipped(row([2.0, 8.0, 9.0]).log(), row([0.0] * 3), row([-1.0] * 3), mask, clip_high=1.0)
    torch.testing.assert_close(losses, row([4.0, 4.0, 0.0]))


@settings(max_examples=40, deadline=None)
@given(seed=seeds, low=st.floats(1e-3, 0.3), high=st.floats(1e-3, 0.3))
def test_the_token_form_has_the_value_and_gradient_of_the_sequence_objective(
    seed: int, low: float, high: float
) -> None:
    """I14, I27: four rows of 1 to 5 tokens, averaged per row, then over rows; the slow twin has no stop-gradient."""
    lengths = tensor([5, 3, 1, 2])
    mask = torch.arange(5) < lengths[:, None]
    logprobs, old = noise(4, 5, seed=seed).requires_grad_(), noise(4, 5, seed=seed) + 0.3 * noise(4, 5, seed=seed + 1)
    advantages = noise(4, 1, seed=seed + 2).expand(4, 5)
    losses = sequence_clipped(logprobs, old, advantages, mask, clip_low=low, clip_high=high)
    loss = (losses.sum(dim=1) / lengths).mean()
    direct = -sequence_objective(logprobs, old, advantages, mask, low, high)
    torch.testing.assert_close(loss, direct)
    grads = gradient(loss, logprobs)
    torch.testing.assert_close(grads, gradient(direct, logprobs))
    stopped = sequence_clip_fraction(logprobs, old, advantages, mask, clip_low=low, clip_high=high)
    assert torch.equal(stopped == 0, (grads != 0) | ~mask)


@settings(max_examples=30, deadline=None)
@given(logs=log_ratios, seed=seeds)
def test_a_row_of_one_token_is_clipped_as_a_token(logs: list[float], seed: int) -> None:
    """I14: value, gradient and clip fraction are those of `clipped`."""
    at, advantages = row(logs).T.requires_grad_(), noise(len(logs), 1, seed=seed)
    bounds, old, mask = {"clip_low": 0.2, "clip_high": 0.28}, torch.zeros_like(at), torch.ones_like(at)
    by_row, by_token = sequence_clipped(at, old, advantages, mask, **bounds), clipped(at, old, advantages, **bounds)
    torch.testing.assert_close(by_row, by_token)
    torch.testing.assert_close(gradient(by_row.sum(), at), gradient(by_token.sum(), at))
    fractions = clip_fraction(at, old, advantages, **bounds)
    assert torch.equal(sequence_clip_fraction(at, old, advantages, mask, **bounds), fractions)


def test_the_bounds_of_gspo_are_each_their_own_and_stop_the_whole_row() -> None:
    """I11, I14: 3e-4 below, 4e-4 above; a good row at 1.00035 goes on, a bad one at 0.99965 is stopped."""
    means = tensor([[0.00035], [0.00045], [-0.00025], [-0.00035]], dtype=torch.float64)
    logs, old = (means * tensor([[2.0, 0.0]])).requires_grad_(), torch.zeros(4, 2, dtype=torch.float64)
    advantages, mask = tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64).expand(4, 2), torch.ones(4, 2) > 0
    grads = gradient(sequence_clipped(logs, old, advantages, mask).sum(), logs)
    assert (grads != 0).tolist() == [[True, True], [False, False], [True, True], [False, False]]
    assert sequence_clip_fraction(logs, old, advantages, mask).tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
def test_what_stands_at_a_masked_position_reaches_neither_a_row_nor_its_gradient(hole: float) -> None:
    """I6: in every stream; a row that is masked throughout costs 0."""
    mask = tensor([[True, True, False], [False, False, False]])
    logs, old, advantages = (noise(2, 3, seed=i).masked_fill(~mask, hole) for i in range(3))
    logs.requires_grad_()
    losses = sequence_clipped(logs, old, advantages, mask, clip_low=0.9, clip_high=99.0)
    clean = [x.detach().masked_fill(~mask, 0.0) for x in (logs, old, advantages)]
    torch.testing.assert_close(losses, sequence_clipped(*clean, mask, clip_low=0.9, clip_high=99.0))
    assert (losses[~mask] == 0).all()
    grads = gradient(losses.sum(), logs)
    assert grads.isfinite().all()
    assert (grads[~mask] == 0).all()
    assert (sequence_clip_fraction(logs, old, advantages, mask)[~mask] == 0).all()


def test_cispo_cuts_the_weight_and_not_the_gradient() -> None:
    """I13: ratios 6, 0.5 and 2 with bounds 0 and 5 weigh 5, 0.5 and 2; the gradient is -weight * advantage."""
    logs = row([-1.0, -2.0, -3.0]).requires_grad_()
    old, advantages = logs.detach() - row([6.0, 0.5, 2.0]).log(), row([1.0, -2.0, 1.0])
    losses = cispo(logs, old, advantages)
    torch.testing.assert_close(losses, row([5.0, -2.0, 6.0]))
    torch.testing.assert_close(gradient(losses.sum(), logs), row([-5.0, 1.0, -2.0]))


@settings(max_examples=40, deadline=None)
@given(logs=log_ratios, seed=seeds, low=st.floats(0, 1), high=st.floats(0, 1))
def test_cispo_equals_the_loop_and_no_token_loses_its_gradient(
    logs: list[float], seed: int, low: float, high: float
) -> None:
    """I13, I27: the bounds may cut on both sides; only a weight of 0 could stop a token, and low < 1 excludes it."""
    at, advantages = (row(logs) - 2).requires_grad_(), noise(1, len(logs), seed=seed)
    losses = cispo(at, torch.full_like(at, -2.0), advantages, clip_low=low * 0.9, clip_high=high)
    weights = [min(max(math.exp(x), 1 - low * 0.9), 1 + high) for x in logs]
    expected = [-w * a * x for w, a, x in zip(weights, advantages[0].tolist(), at[0].tolist(), strict=True)]
    torch.testing.assert_close(losses, row(expected))
    grads = gradient(losses.sum(), at)
    torch.testing.assert_close(grads, -row(weights) * advantages)
    assert (grads != 0).all()


def test_without_drift_cispo_has_the_gradient_of_reinforce() -> None:
    """I10, I13."""
    logs, advantages = noise(2, 4).requires_grad_(), noise(2, 4, seed=1)
    got = gradient(cispo(logs, logs.detach(), advantages).sum(), logs)
    torch.testing.assert_close(got, gradient(reinforce(logs, advantages).sum(), logs))


@pytest.mark.parametrize("name", ["advantages", "old_logprobs"])
def test_no_loss_hands_a_gradient_to_what_it_is_given_as_a_constant(name: str) -> None:
    """I15, I17, I20."""
    given = {"old_logprobs": row([-1.1]), "advantages": row([1.0])}
    given[name].requires_grad_()
    logs, old, advantages, mask = row([-1.0]), given["old_logprobs"], given["advantages"], row([1.0])
    assert not sequence_clipped(logs, old, advantages, mask).requires_grad
    assert not cispo(logs, old, advantages).requires_grad


def test_ratios_that_would_overflow_stay_finite() -> None:
    """I20: fp32 exp(100) is infinite."""
    logs, old = tensor([[0.0, 0.0]], requires_grad=True), tensor([[-100.0, -100.0]])
    bad, mask = tensor([[-1.0, -1.0]]), tensor([[True, True]])
    for loss in (
        clipped(logs, old, bad, dual_clip=3.0),
        sequence_clipped(logs, old, bad, mask),
        cispo(logs, old, bad),
    ):
        assert loss.isfinite().all()
        assert gradient(loss.sum(), logs).isfinite().all()
