"""Losses of reward models, and what is reported about them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ._types import N, Rows, Scalar


def bradley_terry(
    chosen_scores: Rows, rejected_scores: Rows, *, margins: Rows | None = None, center_coef: float = 0.0
) -> Rows:
    """loss = -log sigmoid(s_chosen - s_rejected - margin) + center_coef (s_chosen + s_rejected)^2.

    Bradley and Terry 1952; the margin is Llama 2's (Touvron et al. 2023, eq. 2). The second term holds scores near 0
    (Eisenstein et al. 2023), because the first sees only their difference: it is invariant to a shift of both.

    >>> bradley_terry(torch.tensor([2.0]), torch.tensor([2.0]))     # log 2
    tensor([0.6931])
    """
    gap = chosen_scores - rejected_scores
    loss = -F.logsigmoid(gap if margins is None else gap - margins.detach())
    return loss if center_coef == 0 else loss + center_coef * (chosen_scores + rejected_scores).square()


def ranking(scores: Float[Tensor, "P K"], mask: Bool[Tensor, "P K"]) -> Rows:
    """Mean of -log sigmoid(better - worse) over all pairs of a prompt; scores stand best first (InstructGPT, eq. 1).

    All pairs of a prompt weigh as much as one pair of another, K choose 2 being their number (section 3.5). A prompt
    with fewer than two entries under `mask` gives 0; entries outside it are not read.

    >>> ranking(torch.tensor([[1.0, 1.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool))     # three pairs of log 2
    tensor([0.6931])
    """
    safe = torch.where(mask, scores, 0.0)
    losses = -F.logsigmoid(safe[:, :, None] - safe[:, None, :])
    pairs = (mask[:, :, None] & mask[:, None, :]).triu(diagonal=1)
    return torch.where(pairs, losses, 0.0).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)


def pointwise(
    scores: Float[Tensor, "*shape"], labels: Bool[Tensor, "*shape"] | Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """loss = -y log sigmoid(score) - (1 - y) log sigmoid(-score): safe or not, step right or wrong.

    The safety model of DeepSeek-R1 (2025) and, one score per step, the process reward model of Lightman et al. 2023. A
    label may be a share in [0, 1], as from rollouts that continue a step (Wang et al. 2024, Math-Shepherd).

    >>> pointwise(torch.tensor([0.0, 0.0]), torch.tensor([True, False]))
    tensor([0.6931, 0.6931])
    """
    return F.binary_cross_entropy_with_logits(scores, labels.to(scores), reduction="none")


@torch.no_grad()
def pair_accuracy(chosen_scores: Rows, rejected_scores: Rows) -> Scalar:
    """Share of pairs whose chosen one has the higher score; equal scores count half.

    >>> pair_accuracy(torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.tensor([0.0, 1.0, 2.0, -1.0]))
    tensor(0.6250)
    """
    won = (chosen_scores > rejected_scores).to(chosen_scores) + 0.5 * (chosen_scores == rejected_scores)
    return won.mean()


@torch.no_grad()
def calibration_error(probabilities: N, outcomes: Bool[Tensor, "N"], *, num_bins: int = 10) -> Scalar:
    """Expected calibration error: mean over bins of |share that came true - mean probability|, weighted by size.

        sum over bins of |sum of outcomes - sum of probabilities| / N

    Guo et al. 2017, eq. 5, with bins of equal width, [0, 0.1) to [0.9, 1]; 0 where there is nothing.

    >>> calibration_error(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))     # |1/2 - 3/4|
    tensor(0.2500)
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, not {num_bins}")
    bins = (probabilities * num_bins).long().clamp(0, num_bins - 1)
    gaps = probabilities.new_zeros(num_bins).index_add(0, bins, outcomes.to(probabilities) - probabilities)
    return gaps.abs().sum() / max(probabilities.numel(), 1)


@torch.no_grad()
def length_correlation(scores: N, lengths: N) -> Scalar:
    """Pearson's correlation of score and length, 0 where either is constant: near 1 the model pays for length.

    >>> length_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0]))
    tensor(1.)
    """
    if len(scores) == 0 or scores.min() == scores.max() or lengths.min() == lengths.max():
        return scores.new_zeros(())  # asked of the values, because a mean of equal ones may round off them
    return torch.corrcoef(torch.stack([scores.double(), lengths.double()]))[0, 1].to(scores.dtype)
