"""Distances to a teacher against TRL's own code for GKD. Written for TRL 1.16."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from melete.functional.distill import forward_kl, generalized_jsd, reverse_kl

pytest.importorskip("trl", minversion="1.16")
gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer", reason="no gkd in this TRL")

MASK = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn() -> tuple[Tensor, Tensor]:
    return (2 * noise(3, 5, 7, seed=0)).requires_grad_(), 2 * noise(3, 5, 7, seed=1)


def trl(student: Tensor, teacher: Tensor, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """The mean over the positions under MASK."""
    labels = torch.where(MASK, 1, -100)
    return gkd.GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=temperature)


def assert_same(loss: Tensor, other: Tensor, student: Tensor) -> None:
    torch.testing.assert_close(loss, other, atol=1e-6, rtol=1e-6)
    grads, expected = torch.autograd.grad(loss, student)[0], torch.autograd.grad(other, student)[0]
    assert expected.abs().max() > 0
    torch.testing.assert_close(grads, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.9, 1.0, 3.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_divergence_of_gkd_is_trls(beta: float, temperature: float) -> None:
    """The same formula, ends included; TRL's batchmean with labels is the mean over the positions under the mask."""
    student, teacher = drawn()
    losses = generalized_jsd(student[MASK], teacher[MASK], jsd_beta=beta, temperature=temperature)
    assert_same(losses.mean(), trl(student, teacher, beta, temperature), student)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("beta", "divergence"), [(0.0, forward_kl), (1.0, reverse_kl)])
def test_the_ends_are_ours_without_the_square_of_the_temperature(
    beta: float, divergence: Callable[..., Tensor], temperature: float
) -> None:
    """forward_kl and reverse_kl have Hinton's factor T^2, which TRL leaves out."""
    student, teacher = drawn()
    losses = divergence(student[MASK], teacher[MASK], temperature=temperature)
    assert_same(losses.mean() / temperature**2, trl(student, teacher, beta, temperature), student)


def test_trl_hands_gradient_to_the_teachers_logits_and_we_do_not() -> None:
    """TRL's trainer runs the teacher without gradient; its formula alone would train the teacher as well."""
    student, teacher = drawn()
    teacher.requires_grad_()
    assert torch.autograd.grad(trl(student, teacher), teacher)[0].abs().max() > 0
    ours = generalized_jsd(student[MASK], teacher[MASK]).sum()
    assert torch.autograd.grad(ours, teacher, allow_unused=True)[0] is None


def test_a_token_of_probability_0_on_both_sides_is_finite_with_us_and_nan_in_trl() -> None:
    """TRL's F.kl_div has log_target, so exp(-inf) (-inf - -inf) is NaN; ours leaves the token out."""
    student, teacher = drawn()
    forbidden = torch.arange(7) == 6
    student, teacher = (x.masked_fill(forbidden, -math.inf) for x in (student, teacher))
    assert trl(student, teacher).isnan()
    without = trl(student[..., :6], teacher[..., :6])
    torch.testing.assert_close(generalized_jsd(student[MASK], teacher[MASK]).mean(), without, atol=1e-6, rtol=1e-6)
