"""Policy-gradient losses, and the loss of demonstrations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from melete.functional.policy import clip_fraction, clipped, reinforce
from melete.functional.supervised import negative_log_likelihood

log_ratios = st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=6)


def row(values: list[float]) -> Tensor:
    return tensor([values], dtype=torch.float64)


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
@given(logs=log_ratios, seed=st.integers(0, 10**6), low=st.floats(0.05, 0.5), high=st.floats(0.05, 0.5))
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
