"""Distillation: how far a student's distribution is from a teacher's, one value per position [N].

Only the student's logits carry gradient. In the formulas p is the teacher's distribution, q the student's, both of
logits divided by `temperature`. A token that neither can write (logit -inf) adds 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._types import BT, NV, N


def forward_kl(logits: NV, teacher_logits: NV, *, temperature: float = 1.0) -> N:
    """loss = T^2 KL(p || q), T = temperature: knowledge distillation (Hinton et al. 2015, section 2).

    The gradient of the KL shrinks as 1 / T^2; the factor keeps its size.

    >>> forward_kl(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log())     # log(2)/2 + log(2/3)/2
    tensor([0.1438])
    """
    teacher = _log_softmax(teacher_logits.detach(), temperature)
    return temperature**2 * _kl(teacher, _log_softmax(logits, temperature))


def reverse_kl(logits: NV, teacher_logits: NV, *, temperature: float = 1.0) -> N:
    """loss = T^2 KL(q || p), T = temperature: the student avoids what the teacher finds unlikely (Gu et al. 2023).

    MiniLLM takes it over whole sequences; here it is that of each position, with the factor of `forward_kl`. It is
    infinite where the student can write a token that the teacher cannot.

    >>> reverse_kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())     # log(2)/2 + log(2/3)/2
    tensor([0.1438])
    """
    teacher = _log_softmax(teacher_logits.detach(), temperature)
    return temperature**2 * _kl(_log_softmax(logits, temperature), teacher)


def generalized_jsd(logits: NV, teacher_logits: NV, *, jsd_beta: float = 0.5, temperature: float = 1.0) -> N:
    """loss = beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD, Agarwal et al. 2023, eq. 1).

    The formula itself is 0 at beta 0 and 1; there these stand for its limits divided by beta and 1 - beta, forward
    KL(p || q) and reverse KL(q || p), as in TRL. There is no factor T^2, as in TRL and unlike `forward_kl`.

    >>> certain, other = torch.tensor([[0.0, -100.0]]), torch.tensor([[-100.0, 0.0]])
    >>> generalized_jsd(certain, other)     # m = 1/2, 1/2: log 2
    tensor([0.6931])
    """
    if not 0 <= jsd_beta <= 1:
        raise ValueError(f"jsd_beta must be in [0, 1], not {jsd_beta}")
    student, teacher = _log_softmax(logits, temperature), _log_softmax(teacher_logits.detach(), temperature)
    if jsd_beta == 0:
        return _kl(teacher, student)
    if jsd_beta == 1:
        return _kl(student, teacher)
    # clamp, because the gradient of logaddexp(-inf, -inf) is NaN
    lowest = torch.finfo(student.dtype).min
    parts = teacher.clamp(min=lowest) + math.log(jsd_beta), student.clamp(min=lowest) + math.log1p(-jsd_beta)
    mixture = torch.logaddexp(*parts)
    return jsd_beta * _kl(teacher, mixture) + (1 - jsd_beta) * _kl(student, mixture)


def sampled_reverse_kl_advantages(logprobs: BT, teacher_logprobs: BT) -> BT:
    """A[t] = log p(token) - log q(token), a constant: on-policy distillation as a policy gradient (Lu et al. 2025).

    On the student's own samples the expected policy gradient is that of -KL(q || p) at each position; what a token does
    to later positions is left out (discount 0).

    >>> sampled_reverse_kl_advantages(torch.tensor([[-2.0]]), torch.tensor([[-0.5]]))
    tensor([[1.5000]])
    """
    return (teacher_logprobs - logprobs).detach()


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(precise / temperature, dim=-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    # where, because of -inf - -inf
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(dim=-1)
