"""Losses of preferences: DPO and its family, one value per pair [P], or per completion [B] for KTO.

Log-probs are sums over the tokens of a completion; lengths count those tokens. The reference carries no gradient. In
the formulas h = log(policy / ref)(chosen) - log(policy / ref)(rejected), and `mean` divides by the length; a completion
without tokens has mean 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ._types import RowFlags, Rows, Scalar


def implied_reward(logprobs: Rows, ref_logprobs: Rows, *, beta: float = 0.1) -> Rows:
    """beta log(policy / ref): the reward under which the policy is optimal (Rafailov et al. 2023, eq. 5).

    Up to a constant per prompt, which cancels in the margin of a pair. It is logged and carries no loss of its own.

    >>> implied_reward(torch.tensor([-1.0]), torch.tensor([-3.0]), beta=0.5)
    tensor([1.])
    """
    return beta * (logprobs - ref_logprobs.detach())


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

    e = 0 is DPO; e > 0 is conservative DPO (Mitchell 2023), whose optimum is finite, at sigmoid(beta h) = 1 - e. TRL's
    "sigmoid" has no smoothing.

    >>> dpo(torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([-1.0]), torch.tensor([-2.0]))     # log 2
    tensor([0.6931])
    """
    _check_label_smoothing(label_smoothing)
    gap = beta * _log_ratio_gap(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    if label_smoothing == 0:  # 0 * inf would be NaN for a rejected completion of probability 0
        return -F.logsigmoid(gap)
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
    """loss = ((1 - e) L(chosen, rejected) - e L(rejected, chosen)) / (1 - 2 e) (Chowdhury et al. 2024, 2403.00409).

    L is DPO's loss, e = label_smoothing. Where a share e of the labels is the wrong way round, the expectation of the
    loss is L on the true labels. It has no lower bound: a pair that is fitted too well goes below 0.

    >>> equal = torch.tensor([-1.0])
    >>> robust_dpo(equal, equal, equal, equal)     # log 2 whatever e is
    tensor([0.6931])
    """
    _check_label_smoothing(label_smoothing)
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
    """loss = (h - 1 / (2 beta))^2, h of mean log-ratios (Azar et al. 2023, 2310.12036, eq. 17; beta is its tau).

    The paper writes sums, which lengths of 1 give. TRL averages, by its note with the authors' agreement: the margin
    asked for then does not depend on length.

    >>> two = torch.tensor([2.0])
    >>> ipo(torch.tensor([-2.0]), torch.tensor([-4.0]), -two, -two, two, two, beta=0.5)     # h = 1: (1 - 1)^2
    tensor([0.])
    """
    if beta <= 0:
        raise ValueError(f"beta must be above 0, not {beta}")
    chosen = _mean(chosen_logprobs - ref_chosen_logprobs.detach(), chosen_lengths)
    rejected = _mean(rejected_logprobs - ref_rejected_logprobs.detach(), rejected_lengths)
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

    `beta` weighs a mean over tokens, hence fifty times DPO's. TRL calls it "sigmoid_norm".

    >>> zero, one, two = torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([2.0])
    >>> length_normalized_dpo(two, one, zero, zero, two, one)     # 2 over two tokens and 1 over one are equal: log 2
    tensor([0.6931])
    """
    chosen = _mean(chosen_logprobs - ref_chosen_logprobs.detach(), chosen_lengths)
    rejected = _mean(rejected_logprobs - ref_rejected_logprobs.detach(), rejected_lengths)
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

    `target_margin` is the paper's gamma, in units of reward, beta times nats per token, as is TRL's simpo_gamma; the
    authors' code asks for gamma / beta.

    >>> one = torch.tensor([1.0])
    >>> simpo(-one, -1.5 * one, one, one)     # 2 * 0.5 - 1 = 0: log 2
    tensor([0.6931])
    """
    gap = _mean(chosen_logprobs, chosen_lengths) - _mean(rejected_logprobs, rejected_lengths)
    return -F.logsigmoid(beta * gap - target_margin)


def orpo(
    chosen_logprobs: Rows,
    rejected_logprobs: Rows,
    chosen_lengths: Rows,
    rejected_lengths: Rows,
    *,
    orpo_coef: float = 0.1,
) -> Rows:
    """loss = NLL(chosen) - orpo_coef log sigmoid(log odds(chosen) - log odds(rejected)) (Hong et al. 2024, eq. 6, 7).

    odds(p) = p / (1 - p) with p = exp(mean log-prob), NLL = -mean log-prob; there is no reference. TRL's NLL runs over
    the prompt as well and over all tokens of the batch alike.

    >>> one = torch.tensor([1.0])
    >>> orpo(-one, -one, one, one)     # 1 + 0.1 log 2
    tensor([1.0693])
    """
    chosen, rejected = _mean(chosen_logprobs, chosen_lengths), _mean(rejected_logprobs, rejected_lengths)
    return -chosen - orpo_coef * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def hinge(
    chosen_logprobs: Rows,
    rejected_logprobs: Rows,
    ref_chosen_logprobs: Rows,
    ref_rejected_logprobs: Rows,
    *,
    beta: float = 0.1,
) -> Rows:
    """loss = max(0, 1 - beta h) (SLiC-HF, Zhao et al. 2023, with the log-ratios of DPO, as in TRL).

    The paper compares plain log-probs. A pair whose margin beta h is 1 teaches nothing more.

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
    """loss = -log sigmoid(beta h) - nll_coef mean(chosen) (iterative RPO, Pang et al. 2024, 2404.19733).

    Without the second term the likelihood of both completions may fall, which hurts chains of thought. TRL's "sft" term
    is a mean over all chosen tokens of the batch, not per pair.

    >>> two = torch.tensor([2.0])
    >>> dpo_nll(-two, -two, -two, -two, two)     # log 2 + 1
    tensor([1.6931])
    """
    pair = dpo(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta=beta)
    return pair - nll_coef * _mean(chosen_logprobs, chosen_lengths)


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
    """KTO: completions that were liked or not, unpaired (Ethayarajh et al. 2024, 2402.01306).

        desirable:    loss = desirable_weight (1 - sigmoid(beta (rho - z)))
        undesirable:  loss = undesirable_weight (1 - sigmoid(beta (z - rho)))

    rho = log(policy / ref) of the completion, z = `kl_baseline`, a constant. The paper's loss has a constant more.

    >>> kto(torch.zeros(2), torch.zeros(2), torch.tensor([True, False]), torch.tensor(0.0))
    tensor([0.5000, 0.5000])
    """
    distance = beta * (logprobs - ref_logprobs.detach() - kl_baseline.detach())
    # 1 - sigmoid(x) = sigmoid(-x), which does not cancel to 0 for a large x
    liked, disliked = torch.sigmoid(-distance), torch.sigmoid(distance)
    return torch.where(desirable, desirable_weight * liked, undesirable_weight * disliked)


def kto_baseline(mismatched_logprobs: Rows, mismatched_ref_logprobs: Rows) -> Scalar:
    """z = max(0, mean log(policy / ref)) over prompts with other prompts' completions: KTO's estimate of the KL.

    Detached, and 0 of no completions at all.

    >>> kto_baseline(torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -4.0]))     # (1 + 3) / 2
    tensor(2.)
    """
    log_ratios = (mismatched_logprobs - mismatched_ref_logprobs).detach()
    return (log_ratios.sum() / max(log_ratios.numel(), 1)).clamp(min=0)


def _log_ratio_gap(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    return (chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach())


def _mean(sums: Tensor, lengths: Tensor) -> Tensor:
    return sums / lengths.clamp(min=1)


def _log_odds(mean_logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean_logprobs), finite and with a finite gradient up to p = 1."""
    below = mean_logprobs.clamp(max=-torch.finfo(mean_logprobs.dtype).eps)
    return below - torch.log(-torch.expm1(below))  # log(1 - exp(x)) cancels near 0, where expm1 does not


def _check_label_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is a share of wrong labels, in [0, 0.5), not {label_smoothing}")
