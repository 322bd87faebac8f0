"""KL divergence from the policy to a reference, KL(policy || ref), per token.

`k1`, `k2` and `k3` (Schulman 2020, "Approximating KL divergence") and `k3_straight_through`, made of two of them, look
only at the tokens that the policy sampled; `exact` needs the whole vocabulary. What each gives when it is
differentiated as a term of the loss differs, and is said in its docstring. In the formulas
u = exp(ref_logprobs - logprobs). Only `logprobs` carry gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ._types import BT
from .logprobs import log_ratio


def k1(logprobs: BT, ref_logprobs: BT) -> BT:
    """k1 = -log u = logprobs - ref_logprobs: unbiased, high variance, may be negative.

    As a loss its expected gradient is 0, so it belongs in the reward (detached), where it gives the exact
    reverse-KL policy gradient (Ahmadian et al. 2024, RLOO).

    >>> k1(torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log())     # log 2
    tensor([[0.6931]])
    """
    return logprobs - ref_logprobs.detach()


def k2(logprobs: BT, ref_logprobs: BT) -> BT:
    """k2 = (log u)^2 / 2: never negative, biased in value, but its expected gradient is that of KL(policy || ref).

    >>> k2(torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log())     # (log 2)^2 / 2
    tensor([[0.2402]])
    """
    return (logprobs - ref_logprobs.detach()).square() / 2


def k3(logprobs: BT, ref_logprobs: BT) -> BT:
    """k3 = u - 1 - log u: never negative, unbiased, low variance; GRPO's term (Shao et al. 2024, eq. 4).

    As a loss its gradient is (1 - u) grad logprobs, in expectation that of the forward KL(ref || policy).
    log u is held within +-20 in value; the gradient of a token beyond that is not cut (see `log_ratio`).

    >>> k3(torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log())     # 1/2 - 1 + log 2
    tensor([[0.1931]])
    """
    minus_log_u = log_ratio(logprobs, ref_logprobs)
    return torch.expm1(-minus_log_u) + minus_log_u


def k3_straight_through(logprobs: BT, ref_logprobs: BT) -> BT:
    """The value of k3 with the gradient of k2: sg(k3) + k2 - sg(k2); verl's "k3+" (sg stops the gradient).

    An unbiased number to look at, and in expectation the gradient of KL(policy || ref), which k3 itself does not have.

    >>> logprobs = torch.tensor([[0.5]]).log().requires_grad_()
    >>> value = k3_straight_through(logprobs, torch.tensor([[0.25]]).log())
    >>> value.detach(), torch.autograd.grad(value.sum(), logprobs)[0]     # 1/2 - 1 + log 2 and log 2
    (tensor([[0.1931]]), tensor([[0.6931]]))
    """
    surrogate = k2(logprobs, ref_logprobs)
    return k3(logprobs, ref_logprobs).detach() + (surrogate - surrogate.detach())


def exact(logits: Float[Tensor, "... V"], ref_logits: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """KL(policy || ref) over the whole vocabulary: sum_v p[v] (log p[v] - log q[v]); differentiable, no sampling.

    >>> exact(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())     # log 2 / 2 + log(2/3) / 2
    tensor(0.1438)
    """
    log_p, log_q = torch.log_softmax(logits, dim=-1), torch.log_softmax(ref_logits.detach(), dim=-1)
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(dim=-1)


ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3_straight_through": k3_straight_through,
}
