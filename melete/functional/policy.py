"""Policy-gradient losses, one value per token; masking and averaging belong to `aggregate`."""

from __future__ import annotations

import torch

from ._types import BT
from .logprobs import log_ratio


def clipped(logprobs: BT, old_logprobs: BT, advantages: BT, *, clip_low: float = 0.2, clip_high: float = 0.2) -> BT:
    """PPO's clipped surrogate.

        loss = -min(ratio * advantages, clip(ratio, 1 - clip_low, 1 + clip_high) * advantages)
        ratio = exp(logprobs - old_logprobs)

    Equal bounds are PPO (Schulman et al. 2017, eq. 7); clip_high > clip_low is DAPO's clip-higher (Yu et al. 2025).
    `old_logprobs` are the learner's own at the start of the update, not the sampler's.

    >>> clipped(torch.tensor([[1.5]]).log(), torch.zeros(1, 1), torch.ones(1, 1))     # ratio 1.5 is cut to 1.2
    tensor([[-1.2000]])
    """
    ratio, weight = log_ratio(logprobs, old_logprobs).exp(), advantages.detach()
    return -torch.minimum(ratio * weight, ratio.clamp(1 - clip_low, 1 + clip_high) * weight)


def reinforce(logprobs: BT, advantages: BT) -> BT:
    """loss = -advantages * logprobs (Williams 1992); RLOO's, where the sum over a row is the log-prob of the whole.

    >>> reinforce(torch.tensor([[-2.0]]), torch.tensor([[0.5]]))
    tensor([[1.]])
    """
    return -advantages.detach() * logprobs


def clip_fraction(
    logprobs: BT, old_logprobs: BT, advantages: BT, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> BT:
    """1 where `clipped` stops the gradient, else 0; its mean over the mask is the fraction that is logged.

    Only the harmful side counts: a raised good token beyond 1 + clip_high, a lowered bad one below 1 - clip_low.

    >>> ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    >>> clip_fraction(ratio.log(), torch.zeros(1, 4), torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    tensor([[1., 0., 0., 1.]])
    """
    ratio = log_ratio(logprobs, old_logprobs).exp()
    stopped = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
    return stopped.to(logprobs.dtype)
