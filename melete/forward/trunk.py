"""The trunk over rows that share their beginnings: each shared token is computed once, padding never.

The rest of a row attends to the keys and values of its beginning, and the gradients of all rows add up in them; so the
result is that of the plain forward pass over whole rows, up to the order of sums.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from melete.forward.architectures import heads, knows, layers_of, rotations
from melete.forward.attention import Attention
from melete.forward.layout import Layout
from melete.forward.products import rows_together
from melete.forward.steps import gated, normed


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
    attend = Attention(layout)
    for layer in layers_of(trunk):
        if getattr(layer, "gradient_checkpointing", False) and layer.training:
            # as transformers was told to do it
            hidden = layer._gradient_checkpointing_func(_layer, layer, hidden, cos, sin, attend)
        else:
            hidden = _layer(layer, hidden, cos, sin, attend)
    trunk.token_counts = None
    return normed(trunk.norm, hidden.index_select(0, layout.wanted))


def _layer(layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attention) -> Tensor:
    attention = layer.self_attn
    found = heads(attention, normed(layer.input_layernorm, hidden), cos, sin)
    hidden = hidden + attention.o_proj(attend(found, attention.scaling))
    return hidden + gated(layer.mlp, normed(layer.post_attention_layernorm, hidden))
