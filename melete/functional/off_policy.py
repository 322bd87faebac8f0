"""Corrections for rollouts that another policy wrote: weights per token, or which tokens to keep.

Even at equal weights a sampler's kernels give `rollout_logprobs` that differ from the learner's `old_logprobs`; stale
weights add to it. Everything here is a constant for the gradient. What stands outside the mask, NaN included, is not
read; a token there has ratio 1. A token that is not kept belongs out of the loss, by `torch.where`; the denominators
of `aggregate` still count it, so that it is as if its advantage were 0.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from ._types import BT, Mask

Level = Literal["token", "sequence"]
LEVELS: tuple[Level, ...] = get_args(Level)


def truncated_weights(
    old_logprobs: BT, rollout_logprobs: BT, mask: Mask, *, level: Level = "token", weight_cap: float = 2.0
) -> BT:
    """Truncated importance sampling (TIS): the weight of each token's loss.

        token     min(exp(old_logprobs - rollout_logprobs), weight_cap)
        sequence  min(exp(sum_t(old_logprobs - rollout_logprobs)), weight_cap), the same for all tokens of a row

    Cutting is Ionides 2008; for a sampler that differs from the learner, Yao et al. 2025 ("Your efficient RL framework
    secretly brings you off-policy RL training"). The product over a row is unbiased but for the cap, and of high
    variance; the token's ratio is biased, as it leaves out how likely its prefix is, and of low variance.

    >>> old, rollout, mask = torch.tensor([[3.0, 0.5]]).log(), torch.zeros(1, 2), torch.ones(1, 2)
    >>> truncated_weights(old, rollout, mask)     # 3 is cut to 2
    tensor([[2.0000, 0.5000]])
    >>> truncated_weights(old, rollout, mask, level="sequence")     # 3 * 1/2
    tensor([[1.5000, 1.5000]])
    """
    _check_level(level)
    if not weight_cap > 0:
        raise ValueError(f"weight_cap must be above 0, not {weight_cap}")
    drift = _masked_difference(old_logprobs, rollout_logprobs, mask)
    if level == "sequence":
        drift = drift.sum(dim=1, keepdim=True).expand_as(drift)
    return drift.exp().clamp(max=weight_cap)


def ratio_kept(
    old_logprobs: BT,
    rollout_logprobs: BT,
    mask: Mask,
    *,
    level: Level = "token",
    ratio_low: float = 0.5,
    ratio_high: float = 2.0,
) -> Bool[Tensor, "B T"]:
    """True where the ratio of learner to sampler lies in [ratio_low, ratio_high]: masked importance sampling (MIS).

        token     ratio = exp(old_logprobs - rollout_logprobs)
        sequence  ratio = exp(mean_t(old_logprobs - rollout_logprobs)), the same for all tokens of a row

    The token level is IcePop (Ling Team 2025, Ring-1T, arXiv 2510.18855), which keeps up to 5. A row is judged by its
    geometric mean, as in verl's "geometric" mode, because the product of a few hundred ratios leaves any such band
    although every token is close; TRL's "sequence_mask" takes the product. The mean of a long row stays very near 1,
    so a narrower band is in order there.

    >>> old, rollout, mask = torch.tensor([[3.0, 0.5]]).log(), torch.zeros(1, 2), torch.ones(1, 2)
    >>> ratio_kept(old, rollout, mask, ratio_low=0.4)
    tensor([[False,  True]])
    >>> ratio_kept(old, rollout, mask, level="sequence")     # sqrt(3/2)
    tensor([[True, True]])
    """
    _check_level(level)
    if not 0 <= ratio_low < ratio_high:
        raise ValueError(f"a band needs 0 <= ratio_low < ratio_high, not {ratio_low} and {ratio_high}")
    drift = _masked_difference(old_logprobs, rollout_logprobs, mask)
    if level == "sequence":
        drift = _row_mean(drift, mask).expand_as(drift)
    ratio = drift.exp()
    return (ratio >= ratio_low) & (ratio <= ratio_high)


def negative_drift_kept(
    logprobs: BT, old_logprobs: BT, advantages: BT, mask: Mask, *, drift_limit: float = 0.5
) -> Bool[Tensor, "B T"]:
    """False for the bad rows that the policy has already left behind (DeepSeek-V3.2, arXiv 2512.02556, eq. 9).

        kept = not (advantages < 0 and mean_t(old_logprobs - logprobs) > drift_limit)

    Good rows always stay. A row of one advantage leaves as a whole; of a row with both signs, the bad tokens leave.
    The paper and TRL put the sampler's log-probs in the place of `old_logprobs`, which counts its mismatch as well.

    >>> old, mask = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]]), torch.ones(2, 2)     # both rows drift by 1
    >>> negative_drift_kept(old - 1, old, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), mask)
    tensor([[False, False],
            [ True,  True]])
    """
    if not drift_limit >= 0:
        raise ValueError(f"drift_limit must be 0 or above, not {drift_limit}")
    drift = _row_mean(_masked_difference(old_logprobs, logprobs, mask), mask)
    return ~((advantages < 0) & mask.bool() & (drift > drift_limit))


def _masked_difference(logprobs: Tensor, other_logprobs: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool(), logprobs.detach() - other_logprobs.detach(), 0.0)


def _row_mean(masked: Tensor, mask: Tensor) -> Tensor:
    """[B, 1]; `masked` is 0 outside the mask."""
    return masked.sum(dim=1, keepdim=True) / mask.bool().sum(dim=1, keepdim=True).clamp(min=1)


def _check_level(level: str) -> None:
    if level not in LEVELS:
        raise ValueError(f'level "{level}" is none of {", ".join(LEVELS)}')
