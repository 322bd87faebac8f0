"""Log-probs, entropies and log-ratios of tokens, in fp32 or better whatever the model's dtype."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ._types import BT, BTV, NV, N, Targets, TokenIds

LOG_RATIO_LIMIT = 20.0
ENTROPY_NUMBERS = 1 << 18  # that are looked at together


def logprobs(logits: BTV, tokens: TokenIds, *, temperature: float = 1.0) -> BT:
    """Log-probs of `tokens`; the one place where logits, which predict the next token, are shifted.

        out[:, t] = log softmax(logits[:, t - 1] / temperature)[tokens[:, t]],  out[:, 0] = 0

    The first token of a row is never predicted.

    >>> logprobs(torch.tensor([[[0.0, 0.0], [9.0, 9.0]]]), torch.tensor([[1, 0]]))     # log 1/2
    tensor([[ 0.0000, -0.6931]])
    """
    num_rows, num_tokens = tokens.shape
    predicted = logprobs_at(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), temperature=temperature)
    return F.pad(predicted.view(num_rows, num_tokens - 1), (1, 0))


def logprobs_at(logits: NV, targets: Targets, *, temperature: float = 1.0) -> N:
    """Log-probs of `targets` under the logits that predict them; nothing is shifted.

        out[n] = log softmax(logits[n] / temperature)[targets[n]]

    >>> logprobs_at(torch.tensor([[0.0, 1.0986]]), torch.tensor([1]))     # odds of 3 to 1: log 3/4
    tensor([-0.2877])
    """
    return -F.cross_entropy(_tempered(logits, temperature), targets, reduction="none")


def entropy_at(logits: NV, *, temperature: float = 1.0) -> N:
    """Entropy in nats of each softmax; a token of probability 0 (logit -inf) adds 0.

        out[n] = -sum_v p[v] log p[v],  p = softmax(logits[n] / temperature)

    >>> entropy_at(torch.zeros(1, 4))     # log 4
    tensor([1.3863])
    """
    log_p = torch.log_softmax(_tempered(logits, temperature), dim=-1)
    p = log_p.exp()
    return -(p * torch.where(p > 0, log_p, 0.0)).sum(dim=-1)


def logprobs_and_entropy_at(logits: NV, targets: Targets, *, temperature: float = 1.0) -> tuple[N, N]:
    """What `logprobs_at` and `entropy_at` say, from one softmax; only the log-probs carry a gradient.

    Of a large vocabulary it holds at most two tensors of the logits' size at once, in the backward pass too.

    >>> logprobs_and_entropy_at(torch.zeros(1, 4), torch.tensor([2]))     # log 1/4 and log 4
    (tensor([-1.3863]), tensor([1.3863]))
    """
    return cast(tuple[Tensor, Tensor], _Picked.apply(_tempered(logits, temperature), targets))  # pyright: ignore[reportUnknownMemberType]


class _Picked(torch.autograd.Function):
    """Log-probs [N] of targets [N] and entropies [N] under logits [N, V]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(logits, dim=-1)
        # a few rows at a time, so that what is made on the way stays in the cache
        parts: tuple[Tensor, ...] = torch.split(log_p, max(1, ENTROPY_NUMBERS // log_p.shape[-1]))
        entropies = [-(p.exp() * torch.where(p > -torch.inf, p, 0.0)).sum(dim=-1) for p in parts]
        entropy = torch.cat(entropies) if entropies else log_p.new_zeros(0)
        ctx.save_for_backward(log_p, targets)
        ctx.mark_non_differentiable(entropy)
        return log_p.gather(1, targets[:, None])[:, 0], entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        log_p, targets = ctx.saved_tensors
        grad = grads[0][:, None]
        # d log p[target] / d logits = onehot(target) - p
        return log_p.exp().mul_(-grad).scatter_add_(1, targets[:, None], grad), None


def log_ratio(logprobs: BT, other_logprobs: BT) -> BT:
    """logprobs - other_logprobs, its value held within +-20 so that exp() stays finite, its gradient left alone.

    A plain clamp would also cut the gradient of exactly those tokens that drifted furthest. `other_logprobs` are
    taken as constants.

    >>> log_ratio(torch.tensor([[-1.0, 0.0]]), torch.tensor([[-3.0, -50.0]]))
    tensor([[ 2., 20.]])
    """
    difference = logprobs - other_logprobs.detach()
    bounded = difference.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    # difference - difference.detach() is 0 with gradient 1; where, because inf - inf would be NaN
    excess = torch.where(difference.detach().isinf(), 0.0, difference - difference.detach())
    return bounded + excess


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"log-probs need a temperature above 0, not {temperature} (greedy sampling scores at 1)")
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return precise if temperature == 1.0 else precise / temperature
