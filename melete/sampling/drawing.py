"""Choosing the next token from logits and one uniform random number per row."""

from __future__ import annotations

import torch
from torch import Tensor

from melete.types import SamplingSettings


def draw(logits: Tensor, uniforms: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probs [B] under the full softmax at the sampling temperature (greedy: at 1).

    `logits` [B, V]; `uniforms` [B] float64 in [0, 1). The token is the inverse of the cumulative distribution at the
    uniform number, after top-k and top-p have set probabilities to 0.
    """
    temperature = settings.temperature or 1.0
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    if settings.temperature == 0:
        tokens = logits.argmax(dim=-1)  # log-probs of logits that are almost equal may round to the same number
    else:
        cumulative = _cut(logprobs.exp(), settings).double().cumsum(dim=-1)
        # strictly above: a token of probability 0 is never reached, not even by a uniform number of 0
        tokens = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)[:, 0]
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(1, tokens[:, None])[:, 0]


def _cut(probs: Tensor, settings: SamplingSettings) -> Tensor:
    if settings.top_k and settings.top_k < probs.shape[-1]:
        kept = torch.zeros_like(probs, dtype=torch.bool).scatter_(1, probs.topk(settings.top_k, dim=-1).indices, True)
        probs = torch.where(kept, probs, 0.0)
    if settings.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        ordered = ordered / ordered.sum(dim=-1, keepdim=True)
        before = ordered.cumsum(dim=-1) - ordered  # the token that crosses top_p stays
        kept = torch.zeros_like(probs, dtype=torch.bool).scatter_(1, order, before < settings.top_p)
        probs = torch.where(kept, probs, 0.0)
    return probs
