"""Choosing the next token from logits and one uniform random number per row."""

from __future__ import annotations

import torch
from torch import Tensor

from melete.types import SamplingSettings

BLOCK = 256
SMALL = 1024  # tokens up to which the running sum over all of them costs less than finding a block first


def draw(logits: Tensor, uniforms: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probs [B] under the full softmax at the sampling temperature (greedy: at 1).

    `logits` [B, V]; `uniforms` [B] float64 in [0, 1). The token is the inverse of the cumulative distribution at the
    uniform number, after top-k and top-p have set probabilities to 0.
    """
    scaled = logits.float() if settings.temperature in (0, 1) else logits.float() / settings.temperature
    peak = scaled.amax(dim=-1, keepdim=True)
    weights = (scaled - peak).exp_()  # probabilities times a number that is not needed to draw
    blocks = _blocks(weights)
    total = blocks.sum(dim=-1)
    if settings.temperature == 0:
        tokens = logits.argmax(dim=-1)  # log-probs of logits that are almost equal may round to the same number
    elif settings.top_k or settings.top_p < 1:
        cut = _cut(weights / total[:, None].float(), settings)
        tokens = _inverse_cumulative(cut, _blocks(cut), uniforms)
    else:
        tokens = _inverse_cumulative(weights, blocks, uniforms)
    logprobs = scaled.gather(1, tokens[:, None])[:, 0] - peak[:, 0] - total.log().float()
    return tokens, logprobs


def _blocks(weights: Tensor) -> Tensor:
    """Sums of `BLOCK` neighbouring tokens' weights [B, V / BLOCK], in double precision."""
    return _padded(weights).sum(dim=-1).double()


def _padded(weights: Tensor) -> Tensor:
    size = weights.shape[-1]
    whole = weights if size % BLOCK == 0 else torch.nn.functional.pad(weights, (0, -size % BLOCK))
    return whole.view(len(weights), -1, BLOCK)


def _inverse_cumulative(weights: Tensor, sums: Tensor, uniforms: Tensor) -> Tensor:
    """The first token [B] at which the running sum of `weights` [B, V] is above `uniforms` [B] times their total.

    Strictly above: a token of weight 0 is never reached, not even by a uniform number of 0. First a block of tokens is
    found, then the token in it, so that of a large vocabulary only the blocks' sums are added up in double precision.
    """
    if weights.shape[-1] <= SMALL:
        running = weights.double().cumsum(dim=-1)
        total = running[:, -1:]
        # below the total, however the product is rounded: there the running sum has yet to rise, at a token with weight
        target = (uniforms[:, None] * total).minimum(torch.nextafter(total, torch.zeros_like(total)))
        # numbers that are not finite leave the vocabulary; whoever asked for them is told elsewhere
        return torch.searchsorted(running, target, right=True).clamp_(max=weights.shape[-1] - 1)[:, 0]
    edges = sums.cumsum(dim=-1)
    target = (uniforms * edges[:, -1])[:, None]
    block = torch.searchsorted(edges, target, right=True).clamp(max=sums.shape[1] - 1)
    inside = _padded(weights).gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    rest = target - (edges - sums).gather(1, block)
    place = torch.searchsorted(inside.double().cumsum(dim=-1), rest, right=True)
    # the block's sum may be rounded up above the sum of its tokens: then it is the last that has any weight
    last = (inside > 0).int().cumsum(dim=-1).argmax(dim=-1, keepdim=True)
    return (block * BLOCK + torch.minimum(place, last))[:, 0]


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
