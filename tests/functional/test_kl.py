"""KL estimators against enumeration of a small vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from melete.functional.kl import ESTIMATORS, exact, k1, k2, k3, k3_straight_through

logit_lists = st.lists(st.floats(-3, 3), min_size=5, max_size=5)


def enumerated(estimator: Callable[[Tensor, Tensor], Tensor], logits: Tensor, ref_logits: Tensor) -> Tensor:
    """E_p[estimator]: every token of the vocabulary, weighted by its (constant) probability."""
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(ref_logits, -1)
    return (log_p.exp().detach() * estimator(log_p[None], log_q[None])[0]).sum()


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


def test_the_three_estimators_at_one_half_against_one_quarter() -> None:
    policy, ref = tensor([[0.5]]).log(), tensor([[0.25]]).log()
    log2 = math.log(2)
    torch.testing.assert_close(k1(policy, ref), tensor([[log2]]))
    torch.testing.assert_close(k2(policy, ref), tensor([[log2**2 / 2]]))
    torch.testing.assert_close(k3(policy, ref), tensor([[0.5 - 1 + log2]]))


def test_exact_kl_of_a_coin() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = log 2 / 2 + log(2/3) / 2."""
    got = exact(tensor([0.5, 0.5]).log(), tensor([0.25, 0.75]).log())
    torch.testing.assert_close(got, tensor(math.log(2) / 2 + math.log(2 / 3) / 2))


def test_exact_kl_ignores_tokens_that_the_policy_cannot_write() -> None:
    got = exact(tensor([0.0, -math.inf]), tensor([0.0, 0.0]))
    torch.testing.assert_close(got, tensor(math.log(2)))


@settings(max_examples=40, deadline=None)
@given(a=logit_lists, b=logit_lists)
def test_k1_and_k3_are_unbiased_and_k2_and_k3_never_negative(a: list[float], b: list[float]) -> None:
    """I18."""
    logits, ref = tensor(a, dtype=torch.float64), tensor(b, dtype=torch.float64)
    truth = exact(logits, ref)
    assert truth >= -1e-12
    torch.testing.assert_close(enumerated(k1, logits, ref), truth)
    torch.testing.assert_close(enumerated(k3, logits, ref), truth)
    log_p, log_q = torch.log_softmax(logits, -1)[None], torch.log_softmax(ref, -1)[None]
    assert (k3(log_p, log_q) >= -1e-12).all()
    assert (k2(log_p, log_q) >= 0).all()


@settings(max_examples=40, deadline=None)
@given(a=logit_lists, b=logit_lists)
def test_the_bias_of_k2_is_of_third_order(a: list[float], b: list[float]) -> None:
    """I18: |E[k2] - KL| = |E[d^2/2 + e^-d - 1 + ... ]| <= E[|d|^3 max(1, e^-d)] / 6, d the log-ratio (Taylor)."""
    logits, ref = tensor(a, dtype=torch.float64), tensor(b, dtype=torch.float64)
    log_p = torch.log_softmax(logits, -1)
    d = log_p - torch.log_softmax(ref, -1)
    bound = (log_p.exp() * d.abs() ** 3 * torch.exp(-d).clamp(min=1)).sum() / 6
    assert (enumerated(k2, logits, ref) - exact(logits, ref)).abs() <= bound + 1e-12


@settings(max_examples=40, deadline=None)
@given(a=logit_lists, b=logit_lists)
def test_as_a_loss_k1_pushes_nowhere_k2_to_reverse_kl_and_k3_to_forward_kl(a: list[float], b: list[float]) -> None:
    """I19: expected gradients over on-policy samples, by enumeration."""
    logits, ref = tensor(a, dtype=torch.float64, requires_grad=True), tensor(b, dtype=torch.float64)
    reverse = gradient(exact(logits, ref), logits)
    log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(ref, -1)
    forward = gradient((log_q.exp() * (log_q - log_p)).sum(), logits)
    torch.testing.assert_close(gradient(enumerated(k1, logits, ref), logits), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(gradient(enumerated(k2, logits, ref), logits), reverse)
    torch.testing.assert_close(gradient(enumerated(k3, logits, ref), logits), forward)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_with_the_score_term_k1_and_k3_give_the_reverse_kl_gradient(name: str) -> None:
    """I19: adding stop_gradient(estimate) * log p, as KL in the reward does, mends both."""
    torch.manual_seed(1)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(5, dtype=torch.float64)

    def with_score(log_p: Tensor, log_q: Tensor) -> Tensor:
        estimate = ESTIMATORS[name](log_p, log_q)
        return estimate + estimate.detach() * log_p

    got = gradient(enumerated(with_score, logits, ref), logits)
    torch.testing.assert_close(got, gradient(exact(logits, ref), logits))


@settings(max_examples=40, deadline=None)
@given(a=logit_lists, b=logit_lists)
def test_k3_straight_through_has_the_value_of_k3_and_the_gradient_of_reverse_kl(a: list[float], b: list[float]) -> None:
    """I18, I19: token by token k3's value, exactly, and k2's gradient; in expectation, KL and its gradient."""
    logits, ref = tensor(a, dtype=torch.float64, requires_grad=True), tensor(b, dtype=torch.float64)
    log_p, log_q = torch.log_softmax(logits, -1)[None].detach().requires_grad_(), torch.log_softmax(ref, -1)[None]
    value = k3_straight_through(log_p, log_q)
    assert torch.equal(value, k3(log_p, log_q))
    torch.testing.assert_close(gradient(value.sum(), log_p), gradient(k2(log_p, log_q).sum(), log_p))
    torch.testing.assert_close(enumerated(k3_straight_through, logits, ref), exact(logits, ref))
    got = gradient(enumerated(k3_straight_through, logits, ref), logits)
    torch.testing.assert_close(got, gradient(exact(logits, ref), logits))


@pytest.mark.parametrize("name", ["k2", "k3", "k3_straight_through"])
def test_a_token_far_beyond_the_bound_still_has_a_gradient_and_a_finite_value(name: str) -> None:
    """I20."""
    policy = tensor([[-200.0, 0.0]], requires_grad=True)
    value = ESTIMATORS[name](policy, tensor([[0.0, -200.0]]))
    value.sum().backward()
    assert policy.grad is not None
    assert value.isfinite().all()
    assert policy.grad.isfinite().all()
    assert policy.grad[0, 0] < 0  # the policy is pulled up to the reference
    assert policy.grad[0, 1] > 0  # and down to it


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_the_reference_gets_no_gradient(name: str) -> None:
    """I20."""
    ref = tensor([[-1.0]], requires_grad=True)
    assert not ESTIMATORS[name](tensor([[-2.0]]), ref).requires_grad
