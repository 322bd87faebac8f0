"""The trunk over rows that share their beginnings: each shared token is computed once, padding never.

The rest of a row attends to the keys and values of its beginning, and the gradients of all rows add up in them; so the
result is that of the plain forward pass over whole rows, up to the order of sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from melete.forward.architectures import heads, knows, layers_of, rotations
from melete.forward.layout import Layout
from melete.forward.products import rows_together
from melete.forward.steps import gated, normed

SHORT = 32  # keys up to which plain products are faster on a CPU than its fused kernel


def states_at(trunk: Any, tokens: Tensor, where: Tensor) -> Tensor:
    """The last hidden states [N, d] of right-padded rows [B, T] where `where` [B, T] is True, row by row.

    Right padding needs no attention mask: a real token never looks to its right.
    """
    if knows(trunk):
        return states(trunk, Layout.of(tokens, where, multiple=rows_together_in(trunk)))
    return trunk(input_ids=tokens, use_cache=False).last_hidden_state[where]


def rows_together_in(trunk: Any) -> int:
    """What the number of tokens is best rounded up to."""
    return rows_together(layers_of(trunk)[0].self_attn.o_proj)


def states(trunk: Any, layout: Layout) -> Tensor:
    """The last hidden states [M, d] of the tokens that the layout asks for."""
    if not len(layout.wanted):
        return trunk.norm(trunk.embed_tokens(layout.wanted))
    trunk.token_counts = layout.counts  # for who counts the tokens of each expert
    hidden = trunk.embed_tokens(layout.tokens)
    cos, sin = rotations(trunk, hidden, layout.positions)
    for layer in layers_of(trunk):
        if getattr(layer, "gradient_checkpointing", False) and layer.training:
            # as transformers was told to do it
            hidden = layer._gradient_checkpointing_func(_layer, layer, hidden, cos, sin, layout)
        else:
            hidden = _layer(layer, hidden, cos, sin, layout)
    trunk.token_counts = None
    return normed(trunk.norm, hidden.index_select(0, layout.wanted))


def _layer(layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    attention = layer.self_attn
    found = heads(attention, normed(layer.input_layernorm, hidden), cos, sin)
    hidden = hidden + attention.o_proj(_attend(found, attention.scaling, layout))
    return hidden + gated(layer.mlp, normed(layer.post_attention_layernorm, hidden))


def _attend(found: tuple[Tensor, Tensor, Tensor], scale: float, layout: Layout) -> Tensor:
    """What each token [N] takes from those before it: [N, H * E]."""
    sizes = [len(layout.beginnings.places), *(len(bucket.grid.places) for bucket in layout.rests), layout.num_idle]
    first, *shares, _idle = zip(*(stream.split(sizes) for stream in found), strict=True)
    q, k, v = (layout.beginnings.padded(stream).transpose(1, 2) for stream in first)
    taken = [layout.beginnings.flat(attend(q, k, v, layout.causal, scale).transpose(1, 2)).flatten(1)]
    for bucket, part in zip(layout.rests, shares, strict=True):
        own_q, own_k, own_v = (bucket.grid.padded(stream).transpose(1, 2) for stream in part)
        width = bucket.mask.shape[-1] - bucket.grid.width  # of the longest beginning in the bucket
        keys = torch.cat([k[:, :, :width].index_select(0, bucket.beginning_of), own_k], dim=2)
        values = torch.cat([v[:, :, :width].index_select(0, bucket.beginning_of), own_v], dim=2)
        rest = attend(own_q, keys, values, bucket.mask, scale)
        taken.append(bucket.grid.flat(rest.transpose(1, 2)).flatten(1))
    return torch.cat([*taken, taken[0].new_zeros(layout.num_idle, taken[0].shape[1])])


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v under a mask: q [B, H, T, D], k [B, K, L, D], v [B, K, L, E], mask [B or 1, 1, T, L]."""
    k, v = (_spread(states, q.shape[1] // k.shape[1]) for states in (k, v))
    is_long = k.shape[2] > SHORT and q.shape[-1] == v.shape[-1]  # the kernel has no form for unequal sizes
    if is_long or q.device.type != "cpu":
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    scores = (q * scale) @ k.transpose(2, 3)
    scores += added_to_scores(mask, q.dtype)
    return scores.softmax(dim=-1) @ v


def attend_and_sum(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What `attend` gives on a CPU, to the last bit, and the logs [B, H, T] of the sums of exponentials."""
    spread = (_spread(states, q.shape[1] // k.shape[1]) for states in (k, v))
    bias = added_to_scores(mask, q.dtype)
    taken, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, *spread, attn_mask=bias, scale=scale)
    return taken if k.shape[2] > SHORT else attend(q, k, v, mask, scale), sums


def added_to_scores(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """0 where a token may look and -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _spread(states: Tensor, group: int) -> Tensor:
    """Keys or values [B, K, T, D] for every query head [B, K * group, T, D]."""
    return states if group == 1 else states.repeat_interleave(group, dim=1)
