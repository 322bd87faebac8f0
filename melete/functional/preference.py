"""Losses of preferences: DPO and its family, one value per pair [P], or per completion [B] for KTO.

Log-probs are sums over the tokens of a completion; lengths count those tokens. The reference carries no gradient. In
the formulas h = log(policy / ref)(chosen) - log(policy / ref)(rejected).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ._types import RowFlags, Rows, Scalar


def implied_reward(logprobs: Rows, ref_logprobs: Rows, *, beta: float = 0.1) -> Rows:
    """beta log(policy / ref): the reward under which the policy would be optimal (Rafailov et al. 2023, eq. 5).

    >>> implied_reward(torch.tensor([-1.0]), torch.tensor([-3.0]), beta=0.5)
    tensor([1.])
    """
    return beta * (logprobs - ref_logprobs.detach())


def _log_ratio_gap(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    return (chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach())


def dpo(
    chosen_logprobs: Rows,
    rejected_logprobs: Rows,
    ref_chosen_logprobs: Rows,
    ref_rejected_logprobs: Rows,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Rows:
    """loss = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e = label_smoothing (Rafailov et al. 2023, eq. 7).

    e = 0 is DPO; e > 0 is conservative DPO (Mitchell 2023), whose optimum is finite.

    >>> dpo(torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([-1.0]), torch.tensor([-2.0]))     # log 2
    tensor([0.6931])
    """
    gap = beta * _log_ratio_gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    return -(1 - label_smoothing) * F.logsigmoid(gap) - label_smoothing * F.logsigmoid(-gap)


def robust_dpo(
    chosen_logprobs: Rows,
    rejected_logprobs: Rows,
    ref_chosen_logprobs: Rows,
    ref_rejected_logprobs: Rows,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> Rows:
    """loss = ((1 - e) L(chosen, rejected) - e L(rejected, chosen)) / (1 - 2 e) (Chowdhury et al. 2024, eq. 12).

    Where a share e of the labels is the wrong way round, its expectation is DPO's loss on the true labels.

    >>> equal = torch.tensor([-1.0])
    >>> robust_dpo(equal, equal, equal, equal)     # log 2 whatever e is
    tensor([0.6931])
    """
    gap = beta * _log_ratio_gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    right, wrong = -F.logsigmoid(gap), -F.logsigmoid(-gap)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def ipo(
    chosen_logprobs: Rows,
    rejected_logprobs: Rows,
    ref_chosen_logprobs: Rows,
    ref_rejected_logprobs: Rows,
    chosen_lengths: Rows,
    rejected_lengths: Rows,
    *,
    beta: float = 0.1,
) -> Rows:
    """loss = (h - 1 / (2 beta))^2 with log-ratios averaged over tokens (Azar et al. 2023, eq. 17).

    The paper writes sums; its authors and TRL average, so that the margin asked for does not depend on length.

    >>> two = torch.tensor([2.0])
    >>> ipo(torch.tensor([-2.0]), torch.tensor([-4.0]), -two, -two, two, two, beta=0.5)     # h = 1: (1 - 1)^2
    tensor([0.])
    """
    chosen = (chosen_logprobs - ref_chosen_logprobs.detach()) / chosen_lengths
    rejected = (rejected_logprobs - ref_rejected_logprobs.detach()) / rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)).square()


def length_normalized_dpo(
    chosen_logprobs: Rows,
    rejected_logprobs: Rows,
    ref_chosen_logprobs: Rows,
    ref_rejected_logprobs: Rows,
    chosen_lengths: Rows,
    rejected_lengths: Rows,
    *,
    beta: float = 5.0,
) -> Rows:
    """loss = -log sigmoid(beta (mean log-ratio of chosen - mean log-ratio of rejected)) (Tulu 3, Lambert et al. 2024).

    >>> one, two = torch.tensor([1.0]), torch.tensor([2.0])
    >>> length_normalized_dpo(-one, -one, -one, -one, one, two)     # log 2
    tensor([0.6931])
    """
    chosen = (chosen_logprobs - ref_chosen_logprobs.detach()) / chosen_lengths
    rejected = (rejected_logprobs - ref_rejected_logprobs.detach()) / rejected_lengths
    return -F.logsigmoid(beta * (chosen - rejected))


def simpo(
    chosen_logprobs: Rows,
    rejected_logprobs: Rows,
    chosen_lengths: Rows,
    rejected_lengths: Rows,
    *,
    beta: float = 2.0,
    target_margin: float = 1.0,
) -> Rows:
    """loss = -log sigmoid(beta mean(chosen) - beta mean(rejected) - target_margin), no reference (Meng et al. 2024).

    `target_margin` is the paper's gamma, in units of reward; TRL takes gamma / beta as a share.

    >>> one = torch.tensor([1.0])
    >>> simpo(-one, -1.5 * one, one, one)     # 2 * 0.5 - 1 = 0: log 2
    tensor([0.6931])
    """
    gap = chosen_logprobs / chosen_lengths - rejected_logprobs / rejected_lengths
    return -F.logsigmoid(beta * gap - target_margin)


def _log_odds(mean_logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean_logprobs), finite up to p = 1."""
    below = mean_logprobs.clamp(max=-torch.finfo(mean_logprobs.dtype).eps)
    # log(1 - e^x): expm1 near 0, log1p away from it (Maechler 2012)
    near = torch.log(-torch.expm1(below))
    return below - near


def orpo(
    chosen_logprobs: Rows,
    rejected_logprobs: Rows,
    chosen_lengths: Rows,
    rejected_lengths: Rows,
    *,
    orpo_coef: float = 0.1,
) -> Rows:
    """loss = NLL(chosen) - orpo_coef log sigmoid(log odds(chosen) - log odds(rejected)) (Hong et al. 2024, eq. 6, 7).

    NLL and the probability in the odds are of the mean log-prob per token; there is no reference.

    >>> one = torch.tensor([1.0])
    >>> orpo(-one, -one, one, one)     # 1 + 0.1 log 2
    tensor([1.0693])
    """
    chosen, rejected = chosen_logprobs / chosen_lengths, rejected_logprobs / rejected_lengths
    return -chosen - orpo_coef * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def hinge(
    chosen_logprobs: Rows,
    rejected_logprobs: Rows,
    ref_chosen_logprobs: Rows,
    ref_rejected_logprobs: Rows,
    *,
    beta: float = 0.1,
) -> Rows:
    """loss = max(0, 1 - beta h) (SLiC-HF, Zhao et al. 2023, with the reference's log-probs as in TRL).

    >>> zero = torch.tensor([0.0])
    >>> hinge(zero, torch.tensor([-5.0]), zero, zero)     # 1 - 0.1 * 5
    tensor([0.5000])
    """
    gap = _log_ratio_gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    return F.relu(1 - beta * gap)


def dpo_nll(
    chosen_logprobs: Rows,
    rejected_logprobs: Rows,
    ref_chosen_logprobs: Rows,
    ref_rejected_logprobs: Rows,
    chosen_lengths: Rows,
    *,
    beta: float = 0.1,
    nll_coef: float = 1.0,
) -> Rows:
    """loss = -log sigmoid(beta h) + nll_coef NLL(chosen) / length(chosen) (iterative RPO, Pang et al. 2024, eq. 1).

    Without the second term both likelihoods may fall, which ruins chains of thought.

    >>> two = torch.tensor([2.0])
    >>> dpo_nll(-two, -two, -two, -two, two)     # log 2 + 1
    tensor([1.6931])
    """
    pair = dpo(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta=beta)
    return pair - nll_coef * chosen_logprobs / chosen_lengths


def kto(
    logprobs: Rows,
    ref_logprobs: Rows,
    desirable: RowFlags,
    kl_baseline: Scalar,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Rows:
    """Liked: w (1 - sigmoid(beta (rho - z))); disliked: w (1 - sigmoid(beta (z - rho))) (Ethayarajh et al. 2024, eq. 8).

    rho = log(policy / ref) of the completion, z = `kl_baseline`, a constant.

    >>> kto(torch.zeros(2), torch.zeros(2), torch.tensor([True, False]), torch.tensor(0.0))
    tensor([0.5000, 0.5000])
    """
    distance = beta * (logprobs - ref_logprobs.detach() - kl_baseline.detach())
    liked = desirable_weight * (1 - torch.sigmoid(distance))
    return torch.where(desirable, liked, undesirable_weight * (1 - torch.sigmoid(-distance)))


def kto_baseline(mismatched_logprobs: Rows, mismatched_ref_logprobs: Rows) -> Scalar:
    """z = max(0, mean log(policy / ref)) over prompts with other prompts' completions: KTO's estimate of the KL.

    >>> kto_baseline(torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -4.0]))     # (1 + 3) / 2
    tensor(2.)
    """
    return (mismatched_logprobs - mismatched_ref_logprobs).mean().clamp(min=0).detach()
