"""Distances of a student's distribution from a teacher's, against enumeration of a small vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from melete.functional.distill import forward_kl, generalized_jsd, reverse_kl, sampled_reverse_kl_advantages
from melete.functional.kl import exact
from melete.functional.policy import reinforce

Divergence = Callable[..., Tensor]
EVERY: list[Divergence] = [forward_kl, reverse_kl, generalized_jsd]
every = pytest.mark.parametrize("divergence", EVERY)
logit_lists = st.lists(st.floats(-3, 3), min_size=5, max_size=5)


def f64(*values: float) -> Tensor:
    return tensor([values], dtype=torch.float64)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), logits)[0]


COIN, BIASED = f64(0.5, 0.5).log(), f64(0.25, 0.75).log()
OF_COIN, OF_BIASED = math.log(4 / 3) / 2, math.log(3) * 3 / 4 - math.log(2)  # KL(coin || biased), and the other way


def test_the_two_directions_of_a_coin_and_a_biased_one() -> None:
    """sum 1/2 log(1/2 / q) = log(4/3) / 2, and log(1/2) / 4 + 3 log(3/2) / 4 = 3 log(3) / 4 - log 2."""
    torch.testing.assert_close(forward_kl(BIASED, COIN), f64(OF_COIN)[0])
    torch.testing.assert_close(reverse_kl(BIASED, COIN), f64(OF_BIASED)[0])


def test_the_divergence_of_a_coin_and_a_certain_side_on_paper() -> None:
    """p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4): log(4/3) / 2 + (log(2/3) / 2 + log(2) / 2) / 2."""
    got = generalized_jsd(COIN, f64(0.0, -math.inf))
    torch.testing.assert_close(got, f64(math.log(4 / 3) / 2 + math.log(4 / 3) / 4)[0])


def test_weights_of_one_quarter_on_paper() -> None:
    """beta 1/4: m = (5/8, 3/8), so log(8/5) / 4 + 3/4 (log(4/5) + log(4/3)) / 2."""
    got = generalized_jsd(COIN, f64(0.0, -math.inf), jsd_beta=0.25)
    torch.testing.assert_close(got, f64(math.log(8 / 5) / 4 + 3 / 8 * math.log(16 / 15))[0])


def by_loop(name: str, student: list[float], teacher: list[float], beta: float, temperature: float) -> float:
    """The slow twin of one position."""

    def softmax(logits: list[float]) -> list[float]:
        powers = [math.exp(x / temperature) for x in logits]
        return [power / math.fsum(powers) for power in powers]

    def kl(a: list[float], b: list[float]) -> float:
        return math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    q, p = softmax(student), softmax(teacher)
    m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    return {
        "forward_kl": temperature**2 * kl(p, q),
        "reverse_kl": temperature**2 * kl(q, p),
        "generalized_jsd": beta * kl(p, m) + (1 - beta) * kl(q, m),
    }[name]


@every
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_every_divergence_is_that_of_a_loop(divergence: Divergence, temperature: float) -> None:
    student, teacher, name = noise(4, 6, seed=0), noise(4, 6, seed=1), divergence.__name__
    extra = {"jsd_beta": 0.3} if divergence is generalized_jsd else {}
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = f64(*(by_loop(name, s, t, 0.3, temperature) for s, t in rows))[0]
    torch.testing.assert_close(divergence(student, teacher, temperature=temperature, **extra), expected)


@every
@settings(max_examples=30, deadline=None)
@given(a=logit_lists, b=logit_lists)
def test_a_divergence_is_0_at_the_teacher_and_nowhere_negative(
    divergence: Divergence, a: list[float], b: list[float]
) -> None:
    student, teacher = f64(*a).requires_grad_(), f64(*b)
    assert (divergence(student, teacher) >= -1e-12).all()
    alike = divergence(student, student.detach())
    torch.testing.assert_close(alike, torch.zeros_like(alike))
    torch.testing.assert_close(gradient(alike, student), torch.zeros_like(student))


@every
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradients_are_those_of_finite_differences(divergence: Divergence, temperature: float) -> None:
    student, teacher = noise(2, 4, seed=2).requires_grad_(), noise(2, 4, seed=3)
    assert torch.autograd.gradcheck(lambda x: divergence(x, teacher, temperature=temperature), [student])


@every
def test_the_teacher_gets_no_gradient(divergence: Divergence) -> None:
    student, teacher = COIN.clone().requires_grad_(), BIASED.clone().requires_grad_()
    divergence(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert (student.grad != 0).any()


@every
def test_logits_count_up_to_a_constant(divergence: Divergence) -> None:
    student, teacher = noise(3, 5, seed=4), noise(3, 5, seed=5)
    torch.testing.assert_close(divergence(student + 50, teacher - 80), divergence(student, teacher))


def test_the_directions_are_each_other_with_the_roles_swapped_and_that_of_the_kl_penalty() -> None:
    student, teacher = noise(3, 5, seed=4), noise(3, 5, seed=5)
    torch.testing.assert_close(reverse_kl(student, teacher), forward_kl(teacher, student))
    torch.testing.assert_close(reverse_kl(student, teacher), exact(student, teacher))


@settings(max_examples=30, deadline=None)
@given(a=logit_lists, b=logit_lists, beta=st.floats(0.01, 0.99))
def test_the_divergence_is_symmetric_and_bounded_by_the_entropy_of_its_weights(
    a: list[float], b: list[float], beta: float
) -> None:
    student, teacher = 20 * f64(*a), 20 * f64(*b)
    got = generalized_jsd(student, teacher, jsd_beta=beta)
    torch.testing.assert_close(got, generalized_jsd(teacher, student, jsd_beta=1 - beta))
    assert (got <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12).all()


def test_the_ends_are_forward_and_reverse_kl_in_value_and_gradient() -> None:
    student, teacher = noise(3, 5, seed=6).requires_grad_(), noise(3, 5, seed=7)
    for beta, divergence in ((0.0, forward_kl), (1.0, reverse_kl)):
        at_end, expected = generalized_jsd(student, teacher, jsd_beta=beta), divergence(student, teacher)
        assert torch.equal(at_end, expected)
        assert torch.equal(gradient(at_end, student), gradient(expected, student))


def test_the_ends_are_limits_of_the_divergence_over_its_vanishing_weight() -> None:
    student, teacher, small = noise(3, 5, seed=6), noise(3, 5, seed=7), 1e-6
    near_0, near_1 = (generalized_jsd(student, teacher, jsd_beta=beta) / small for beta in (small, 1 - small))
    torch.testing.assert_close(near_0, forward_kl(student, teacher), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(near_1, reverse_kl(student, teacher), rtol=1e-4, atol=0.0)


def test_the_square_of_the_temperature_keeps_the_size_of_the_gradient() -> None:
    """T^2 KL tends to half the variance of the difference of the logits, whatever a high T is (Hinton 2015, eq. 4)."""
    student, teacher = noise(2, 5, seed=8).requires_grad_(), noise(2, 5, seed=9)
    for divergence in (forward_kl, reverse_kl):
        gap = student - teacher
        limit = (gap - gap.mean(dim=-1, keepdim=True)).square().mean(dim=-1) / 2
        got = divergence(student, teacher, temperature=1e4)
        torch.testing.assert_close(got, limit, rtol=1e-3, atol=0.0)
        torch.testing.assert_close(gradient(got, student), gradient(limit, student), rtol=1e-2, atol=1e-4)


@every
def test_every_setting_changes_the_divergence(divergence: Divergence) -> None:
    """I16, I34."""
    plain = divergence(COIN, BIASED)
    assert not torch.allclose(divergence(COIN, BIASED, temperature=2.0), plain)
    if divergence is generalized_jsd:
        assert not torch.allclose(generalized_jsd(COIN, BIASED, jsd_beta=0.3), plain)


@every
@pytest.mark.parametrize("jsd_beta", [0.0, 0.3, 1.0])
def test_a_token_that_neither_can_write_adds_nothing(divergence: Divergence, jsd_beta: float) -> None:
    """I6: the padded part of a vocabulary is -inf on both sides, and must not reach the gradient."""
    student, teacher = (torch.cat([x, f64(-math.inf)], dim=1) for x in (COIN, BIASED))
    extra = {"jsd_beta": jsd_beta} if divergence is generalized_jsd else {}
    student.requires_grad_()
    short = COIN.clone().requires_grad_()
    got, expected = divergence(student, teacher, **extra), divergence(short, BIASED, **extra)
    torch.testing.assert_close(got, expected)
    padded = torch.cat([gradient(expected, short), f64(0.0)], dim=1)
    torch.testing.assert_close(gradient(got, student), padded)


def test_a_token_that_only_the_student_can_write_is_infinitely_far_in_reverse_and_bounded_in_between() -> None:
    certain = f64(0.0, -math.inf)
    assert torch.equal(reverse_kl(COIN, certain), f64(math.inf)[0])
    torch.testing.assert_close(forward_kl(COIN, certain), f64(math.log(2))[0])
    student = COIN.clone().requires_grad_()
    between = generalized_jsd(student, certain)
    assert (between < math.log(2)).all()
    assert gradient(between, student).isfinite().all()


@every
def test_half_precision_logits_are_compared_in_single(divergence: Divergence) -> None:
    student, teacher = noise(2, 5, seed=8).bfloat16(), noise(2, 5, seed=9).bfloat16()
    got = divergence(student, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, divergence(student.float(), teacher.float()))


@every
def test_no_positions_give_no_values(divergence: Divergence) -> None:
    assert divergence(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)


@every
@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_of_0_or_less_is_refused(divergence: Divergence, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        divergence(COIN, BIASED, temperature=temperature)


@pytest.mark.parametrize("jsd_beta", [-0.1, 1.1])
def test_a_weight_outside_its_bounds_is_refused(jsd_beta: float) -> None:
    with pytest.raises(ValueError, match="jsd_beta"):
        generalized_jsd(COIN, BIASED, jsd_beta=jsd_beta)


def test_an_advantage_is_what_the_teacher_finds_likelier() -> None:
    student, teacher = tensor([[-2.0, -1.0]], requires_grad=True), tensor([[-0.5, -3.0]], requires_grad=True)
    got = sampled_reverse_kl_advantages(student, teacher)
    assert torch.equal(got, tensor([[1.5, -2.0]]))
    assert not got.requires_grad


@settings(max_examples=40, deadline=None)
@given(a=logit_lists, b=logit_lists)
def test_the_expected_policy_gradient_is_that_of_the_reverse_kl(a: list[float], b: list[float]) -> None:
    """By enumeration: every token of the vocabulary, weighted by the student's (constant) probability."""
    student, teacher = f64(*a).requires_grad_(), f64(*b)
    logprobs, teacher_logprobs = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    losses = reinforce(logprobs, sampled_reverse_kl_advantages(logprobs, teacher_logprobs))
    expected = (logprobs.exp().detach() * losses).sum()
    torch.testing.assert_close(gradient(expected, student), gradient(reverse_kl(student, teacher), student))


def test_the_expected_advantage_is_minus_the_reverse_kl() -> None:
    logprobs, teacher_logprobs = (torch.log_softmax(noise(3, 5, seed=seed), -1) for seed in (10, 11))
    expected = (logprobs.exp() * sampled_reverse_kl_advantages(logprobs, teacher_logprobs)).sum(dim=-1)
    torch.testing.assert_close(expected, -reverse_kl(logprobs, teacher_logprobs))
