"""Policy-gradient losses, one value per token; masking and averaging belong to `aggregate`."""

from __future__ import annotations

import torch
from torch import Tensor

from ._types import BT, Mask
from .logprobs import LOG_RATIO_LIMIT, log_ratio


def clipped(
    logprobs: BT,
    old_logprobs: BT,
    advantages: BT,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> BT:
    """PPO's clipped surrogate.

        loss = -min(ratio * advantages, clip(ratio, 1 - clip_low, 1 + clip_high) * advantages)
        ratio = exp(logprobs - old_logprobs)
        with dual_clip, where advantages < 0:  loss = min(loss, -dual_clip * advantages)

    Equal bounds are PPO (Schulman et al. 2017, eq. 7); clip_high > clip_low is DAPO's clip-higher (Yu et al. 2025).
    `old_logprobs` are the learner's own at the start of the update, not the sampler's. `dual_clip` (Ye et al. 2020,
    arXiv 1912.09729, typically 3) stops a bad token whose ratio is above it, which the two bounds leave unbounded.
    INTELLECT-2's two-sided clip (2025, arXiv 2505.07291), min(ratio, delta) in the first product, is the same function
    with dual_clip = delta, as long as delta >= 1 + clip_high.

    >>> clipped(torch.tensor([[1.5]]).log(), torch.zeros(1, 1), torch.ones(1, 1))     # ratio 1.5 is cut to 1.2
    tensor([[-1.2000]])
    >>> clipped(torch.tensor([[5.0]]).log(), torch.zeros(1, 1), -torch.ones(1, 1), dual_clip=3.0)     # 5 is cut to 3
    tensor([[3.]])
    """
    _check_dual_clip(dual_clip)
    ratio, weight = log_ratio(logprobs, old_logprobs).exp(), advantages.detach()
    losses = -torch.minimum(ratio * weight, ratio.clamp(1 - clip_low, 1 + clip_high) * weight)
    if dual_clip is None:
        return losses
    return torch.where(weight < 0, torch.minimum(losses, -dual_clip * weight), losses)


def sequence_clipped(
    logprobs: BT,
    old_logprobs: BT,
    advantages: BT,
    mask: Mask,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> BT:
    """GSPO: the clipped surrogate of a ratio that all tokens of a row share (Zheng et al. 2025, arXiv 2507.18071).

        loss = -min(s * advantages, clip(s, 1 - clip_low, 1 + clip_high) * advantages)
        s = sg(exp(mean_t(logprobs - old_logprobs))) * exp(logprobs - sg(logprobs)),   sg stops the gradient

    The token form of the paper (GSPO-token): averaged over its row, its gradient is that of the sequence objective. So
    it belongs with aggregation "sequence_mean_token_mean". The mean of the log-ratios keeps long rows near 1, hence
    bounds a thousandth of PPO's. The loss is 0 outside the mask.

    >>> twice, mask = torch.tensor([[4.0, 1.0]]).log(), torch.ones(1, 2)     # s is the geometric mean, 2
    >>> sequence_clipped(twice, torch.zeros(1, 2), torch.ones(1, 2), mask, clip_high=0.5)
    tensor([[-1.5000, -1.5000]])
    """
    counted = mask.bool()
    # where before exp, because 0 * NaN would hand a masked token a gradient
    alike = torch.where(counted, logprobs - logprobs.detach(), 0.0).exp()
    ratio = _row_ratio(logprobs, old_logprobs, mask) * alike
    weight = torch.where(counted, advantages.detach(), 0.0)
    return -torch.minimum(ratio * weight, ratio.clamp(1 - clip_low, 1 + clip_high) * weight)


def cispo(logprobs: BT, old_logprobs: BT, advantages: BT, *, clip_low: float = 1.0, clip_high: float = 4.0) -> BT:
    """CISPO: REINFORCE with a clipped importance weight; no token loses its gradient (MiniMax-M1, arXiv 2506.13585).

        loss = -sg(clip(ratio, 1 - clip_low, 1 + clip_high)) * advantages * logprobs
        ratio = exp(logprobs - old_logprobs),   sg stops the gradient

    clip_low = 1 sets no lower bound, as in the paper; clip_high = 4 cuts at 5, ScaleRL's bound (Khatri et al. 2025,
    arXiv 2510.13786). TRL's epsilon_high is the cut itself, 1 + clip_high; verl takes PPO's bounds unless told.

    >>> cispo(torch.tensor([[-1.0]]), torch.tensor([[-4.0]]), torch.ones(1, 1))     # e^3 is cut to 5
    tensor([[5.]])
    """
    ratio = log_ratio(logprobs, old_logprobs).detach().exp()
    return -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages.detach() * logprobs


def reinforce(logprobs: BT, advantages: BT) -> BT:
    """loss = -advantages * logprobs (Williams 1992); RLOO's, where the sum over a row is the log-prob of the whole.

    >>> reinforce(torch.tensor([[-2.0]]), torch.tensor([[0.5]]))
    tensor([[1.]])
    """
    return -advantages.detach() * logprobs


def clip_fraction(
    logprobs: BT,
    old_logprobs: BT,
    advantages: BT,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> BT:
    """1 where `clipped` stops the gradient, else 0; its mean over the mask is the fraction that is logged.

    Only the harmful side counts: a raised good token beyond 1 + clip_high, a lowered bad one below 1 - clip_low, and
    with `dual_clip` a raised bad one beyond it.

    >>> ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    >>> clip_fraction(ratio.log(), torch.zeros(1, 4), torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    tensor([[1., 0., 0., 1.]])
    """
    _check_dual_clip(dual_clip)
    ratio = log_ratio(logprobs, old_logprobs).exp()
    stopped = _stopped(ratio, advantages, clip_low, clip_high)
    if dual_clip is not None:
        stopped |= (advantages < 0) & (ratio > dual_clip)
    return stopped.to(logprobs.dtype)


def sequence_clip_fraction(
    logprobs: BT,
    old_logprobs: BT,
    advantages: BT,
    mask: Mask,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> BT:
    """1 where `sequence_clipped` stops the gradient, else 0; all tokens of a row alike, and 0 outside the mask.

    >>> twice, mask = torch.tensor([[4.0, 1.0, 9.0]]).log(), torch.tensor([[1.0, 1.0, 0.0]])
    >>> sequence_clip_fraction(twice, torch.zeros(1, 3), torch.ones(1, 3), mask)
    tensor([[1., 1., 0.]])
    """
    ratio = _row_ratio(logprobs, old_logprobs, mask)
    return (_stopped(ratio, advantages, clip_low, clip_high) & mask.bool()).to(logprobs.dtype)


def _row_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """exp of the mean log-ratio of each row [B, 1], a constant."""
    counted = mask.bool()
    drift = torch.where(counted, logprobs.detach() - old_logprobs.detach(), 0.0).sum(dim=1, keepdim=True)
    return (drift / counted.sum(dim=1, keepdim=True).clamp(min=1)).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _stopped(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))


def _check_dual_clip(dual_clip: float | None) -> None:
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1, or None for no such bound, not {dual_clip}")
