"""Which models the lean forward pass knows, and the products of their attention layers.

It works with the modules of transformers as they are, so adapters, number formats and gradients are theirs; only how
tokens are laid out is different. A model that it does not know is left to transformers.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from melete.forward.products import is_linear
from melete.forward.steps import normed

GROUPED = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")  # queries share keys and values in groups
LATENT = ("DeepseekV3Model",)  # keys and values are made from a latent per token (MLA, DeepSeek-V2)
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class Heads(NamedTuple):
    """What an attention layer makes of N tokens: queries [N, H, D], keys [N, K, D] and values [N, K, E].

    H is a multiple of K: each key serves H / K neighbouring queries.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor


def knows(trunk: Any) -> bool:
    """Whether the lean forward pass gives the numbers of this trunk (a model without its head)."""
    if type(trunk).__name__ not in (*GROUPED, *LATENT) or not type(trunk).__module__.startswith("transformers."):
        return False
    config = trunk.config
    rope = getattr(config, "rope_parameters", None) or {}
    if not has_full_attention(config) or rope.get("rope_type", "default") not in _STATIC_ROPE:
        return False
    return float(rope.get("partial_rotary_factor", 1.0)) == 1.0


def has_full_attention(config: PreTrainedConfig) -> bool:
    """Whether every layer looks at all tokens before it: no window, no chunks, no recurrence."""
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        return not (getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None))
    return set(kinds) == {"full_attention"}


def has_attention(config: PreTrainedConfig) -> bool:
    """Whether any layer looks at single tokens before it, rather than at a state that they have left behind."""
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None)
    return kinds is None or not set(kinds) <= {"linear_attention", "conv"}


def layers_of(trunk: Any) -> list[Any]:
    """The decoder layers that are used."""
    return list(trunk.layers[: trunk.config.num_hidden_layers])


def rotations(trunk: Any, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, 1, D] of the rotary embedding at positions [N]."""
    cos, sin = trunk.rotary_emb(like[None], positions[None])
    return cos[0, :, None], sin[0, :, None]


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """The rotary embedding of x [N, H, D] (Su et al. 2021); `interleaved` makes pairs of neighbours, as DeepSeek."""
    half = x.shape[-1] // 2
    if interleaved:
        (first, second), cos, sin = x.unflatten(-1, (-1, 2)).unbind(-1), cos[..., :half], sin[..., :half]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    first, second = x.chunk(2, dim=-1)
    signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), signed)


def paired(x: Tensor) -> Tensor:
    """The two halves of the last dimension [..., D], which the rotary embedding turns together, as neighbours."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def unpaired(x: Tensor) -> Tensor:
    """The inverse of `paired`."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def pair_rotations(trunk: Any, like: Tensor, positions: Tensor) -> Tensor:
    """Cosine and sine [N, 1, D / 2, 2] of each pair at positions [N], for `rotated_pairs`."""
    cos, sin = rotations(trunk, like, positions)
    half = cos.shape[-1] // 2
    return torch.stack([cos[..., :half], sin[..., :half]], dim=-1)


def rotated_pairs(x: Tensor, turns: Tensor) -> Tensor:
    """The rotary embedding of x [N, H, D] whose pairs are neighbours, which stay neighbours: one complex product."""
    pairs = x.unflatten(-1, (-1, 2))
    if x.dtype == torch.float32:
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns)).flatten(-2)
    (first, second), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)


def own_scores(q: Tensor, k: Tensor) -> Tensor:
    """The product [N, H] of each token's query [N, H, D] with its own key [N, K, D]."""
    return (q.unflatten(1, (k.shape[1], -1)) * k[:, :, None]).sum(dim=-1).flatten(1)


def heads(attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Heads:
    """Queries, keys and values of normalised states x [N, d], rotated."""
    if hasattr(attention, "kv_b_proj"):
        return expanded(attention, *latent(attention, x, cos, sin))
    size, count = attention.head_dim, x.shape[0]
    queries = attention.q_proj(x).view(count, -1, size)
    keys = attention.k_proj(x).view(count, -1, size)
    values = attention.v_proj(x).view(count, -1, size)
    if hasattr(attention, "q_norm"):
        queries, keys = normed(attention.q_norm, queries), normed(attention.k_norm, keys)
    return Heads(rotated(queries, cos, sin), rotated(keys, cos, sin), values)


def latent(attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of latent attention: plain and rotated parts of queries [N, H, .]; latent and rotated key of each token."""
    count, interleaved = x.shape[0], attention.config.rope_interleave
    if attention.q_lora_rank is None:
        queries = attention.q_proj(x)
    else:
        queries = attention.q_b_proj(normed(attention.q_a_layernorm, attention.q_a_proj(x)))
    queries = queries.view(count, -1, attention.qk_head_dim)
    plain, turned = queries.split([attention.qk_nope_head_dim, attention.qk_rope_head_dim], dim=-1)
    compressed = attention.kv_a_proj_with_mqa(x)
    content, key = compressed.split([attention.kv_lora_rank, attention.qk_rope_head_dim], dim=-1)
    content = normed(attention.kv_a_layernorm, content)
    key = rotated(key[:, None], cos, sin, interleaved=interleaved)
    return plain, rotated(turned, cos, sin, interleaved=interleaved), content[:, None], key


def expanded(attention: Any, plain: Tensor, turned: Tensor, content: Tensor, key: Tensor) -> Heads:
    """Keys and values of every head, from the latents: what training computes."""
    count, num_heads = plain.shape[:2]
    made = attention.kv_b_proj(content[:, 0]).view(count, num_heads, -1)
    keys, values = made.split([attention.qk_nope_head_dim, attention.v_head_dim], dim=-1)
    return Heads(torch.cat([plain, turned], dim=-1), torch.cat([keys, key.expand(-1, num_heads, -1)], dim=-1), values)


def weight_of(module: nn.Module) -> Tensor | None:
    """The weight that a linear layer multiplies by, an adapter of it included; None where it cannot be told."""
    if is_linear(module):
        return cast(nn.Linear, module).weight
    base = getattr(module, "base_layer", None)
    if not is_linear(base) or not hasattr(module, "get_delta_weight"):
        return None
    adapter: Any = module
    if any(getattr(adapter, "use_dora", {}).values()) or adapter.merged_adapters:
        return None
    weight = cast(nn.Linear, base).weight.detach()
    if adapter.disable_adapters:
        return weight
    for name in adapter.active_adapters:
        weight = weight + adapter.get_delta_weight(name)
    return weight


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a linear layer."""
    bias = getattr(getattr(module, "base_layer", module), "bias", None)
    return bias if isinstance(bias, Tensor) else None
