"""Distillation: how far a student's distribution is from a teacher's, one value per position [N].

Only the student's logits carry gradient. p is the teacher's, q the student's distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._types import BT, NV, N


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(precise / temperature, dim=-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(dim=-1)


def forward_kl(logits: NV, teacher_logits: NV, *, temperature: float = 1.0) -> N:
    """T^2 KL(p || q), both softened by temperature T (Hinton et al. 2015); T^2 keeps the gradient's size.

    >>> forward_kl(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log())     # log(2)/2 + log(2/3)/2
    tensor([0.1438])
    """
    teacher = _log_softmax(teacher_logits.detach(), temperature)
    return temperature**2 * _kl(teacher, _log_softmax(logits, temperature))


def reverse_kl(logits: NV, teacher_logits: NV, *, temperature: float = 1.0) -> N:
    """T^2 KL(q || p): the student avoids what the teacher finds unlikely (MiniLLM, Gu et al. 2023).

    >>> reverse_kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.1438])
    """
    teacher = _log_softmax(teacher_logits.detach(), temperature)
    return temperature**2 * _kl(_log_softmax(logits, temperature), teacher)


def generalized_jsd(logits: NV, teacher_logits: NV, *, jsd_beta: float = 0.5, temperature: float = 1.0) -> N:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD, Agarwal et al. 2023, eq. 3).

    beta 0 and 1 stand for forward KL(p || q) and reverse KL(q || p), as in TRL: the formula itself vanishes there.

    >>> same = torch.tensor([[0.5, 0.5]]).log()
    >>> generalized_jsd(same, same)
    tensor([0.])
    """
    if not 0 <= jsd_beta <= 1:
        raise ValueError(f"jsd_beta must be in [0, 1], not {jsd_beta}")
    student, teacher = _log_softmax(logits, temperature), _log_softmax(teacher_logits.detach(), temperature)
    if jsd_beta == 0:
        return _kl(teacher, student)
    if jsd_beta == 1:
        return _kl(student, teacher)
    weight = torch.tensor(jsd_beta, dtype=student.dtype, device=student.device)
    mixture = torch.logaddexp(teacher + weight.log(), student + (1 - weight).log())
    return weight * _kl(teacher, mixture) + (1 - weight) * _kl(student, mixture)


def sampled_reverse_kl_advantages(logprobs: BT, teacher_logprobs: BT) -> BT:
    """A_t = log p(token) - log q(token), a constant: on-policy distillation as a policy gradient.

    On the student's own samples the expected gradient is that of -KL(q || p) at each position, with discount 0.

    >>> sampled_reverse_kl_advantages(torch.tensor([[-2.0]]), torch.tensor([[-0.5]]))
    tensor([[1.5000]])
    """
    return (teacher_logprobs - logprobs).detach()
