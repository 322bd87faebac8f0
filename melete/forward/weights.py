"""The weights of a trunk as the writing of tokens wants them: products that read the same input are one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from melete.forward.architectures import bias_of, layers_of, rotated, weight_of

_FEW_ROWS = 32  # up to which all experts of a small mixture are computed for every row
_FEW_EXPERTS = 16


class Product:
    """One or several linear layers of the same input as one."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        weights = [weight_of(module) for module in modules]
        biases = [bias_of(module) for module in modules]
        self.weight = _joined([weight for weight in weights if weight is not None])
        self.bias = _joined([bias for bias in biases if bias is not None])

    def __call__(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return linear(x, self.weight, self.bias)


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    parts = [part.detach() for part in parts]
    return (parts[0] if len(parts) == 1 else torch.cat(list(parts))) if parts else None


def can_be_joined(trunk: Any) -> bool:
    """Whether every linear layer of the trunk shows its weight, so that products can be joined."""
    for layer in layers_of(trunk):
        named = [module for module in _linear_layers(layer) if module is not None]
        if any(weight_of(module) is None for module in named):
            return False
        experts = getattr(layer.mlp, "experts", None)
        if experts is not None and type(experts).__name__ != "DeepseekV3Experts":
            return False
        attention = layer.self_attn
        if hasattr(attention, "q_proj") and hasattr(attention, "k_proj"):
            joined = (attention.q_proj, attention.k_proj, attention.v_proj)
            if len({bias_of(module) is None for module in joined}) > 1:
                return False
    return True


def _linear_layers(layer: Any) -> list[nn.Module | None]:
    attention, mlp = layer.self_attn, layer.mlp
    of_attention = ("q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
    found = [getattr(attention, name, None) for name in of_attention]
    dense = getattr(mlp, "shared_experts", mlp)
    return [*found, *(getattr(dense, name, None) for name in ("gate_proj", "up_proj", "down_proj"))]


class Gated:
    """down(act(gate(x)) * up(x)), with gate and up joined."""

    def __init__(self, mlp: Any) -> None:
        self.both, self.down, self.act = Product([mlp.gate_proj, mlp.up_proj]), Product([mlp.down_proj]), mlp.act_fn

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.down(self.act(gate) * up)


class Mixture:
    """A mixture of experts with shared ones: the router is the module's own."""

    def __init__(self, mlp: Any) -> None:
        self.router, self.shared, self.experts = mlp.gate, Gated(mlp.shared_experts), mlp.experts
        self.act, self.num_experts = mlp.experts.act_fn, mlp.experts.num_experts

    def __call__(self, x: Tensor) -> Tensor:
        _, weights, chosen = self.router(x)
        few = len(x) <= _FEW_ROWS and self.num_experts <= _FEW_EXPERTS
        return self.shared(x) + (self._all(x, weights, chosen) if few else self._sorted(x, weights, chosen))

    def _all(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Every expert for every row, those that were not chosen times 0: few rows make many small products slow."""
        gates = torch.zeros(len(x), self.num_experts, dtype=x.dtype, device=x.device)
        gates.scatter_(1, chosen, weights.to(x.dtype))
        gate, up = linear(x, self.experts.gate_up_proj.flatten(0, 1)).unflatten(1, (self.num_experts, -1)).chunk(2, -1)
        inner = self.act(gate) * up * gates[:, :, None]
        return inner.flatten(1) @ self.experts.down_proj.transpose(1, 2).flatten(0, 1)

    def _sorted(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Each expert for the rows that chose it."""
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self.num_experts).tolist()
        rows = order // chosen.shape[1]
        parts = []
        for expert, part in enumerate(x[rows].split(counts)):
            if len(part):
                gate, up = linear(part, self.experts.gate_up_proj[expert]).chunk(2, dim=-1)
                parts.append(linear(self.act(gate) * up, self.experts.down_proj[expert]))
        scaled = torch.cat(parts) * weights.flatten()[order, None].to(x.dtype)
        return torch.zeros_like(x).index_add_(0, rows, scaled)


class GroupedAttention:
    """Queries, keys and values of one token per row from one product."""

    def __init__(self, attention: Any) -> None:
        self.module, self.size, self.scale = attention, attention.head_dim, attention.scaling
        self.product = Product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = Product([attention.o_proj])
        self.num_kv = attention.k_proj.out_features // self.size
        self.num_q = attention.q_proj.out_features // self.size

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries [R, H, D], what is kept of the token: keys [R, K, D] and values [R, K, D]."""
        found = self.product(x).view(len(x), -1, self.size)
        turned, values = found.split([self.num_q + self.num_kv, self.num_kv], dim=1)
        if hasattr(self.module, "q_norm"):
            q, k = turned.split([self.num_q, self.num_kv], dim=1)
            turned = torch.cat([self.module.q_norm(q), self.module.k_norm(k)], dim=1)
        q, k = rotated(turned, cos, sin).split([self.num_q, self.num_kv], dim=1)
        return q, k, values

    def finish(self, taken: Tensor) -> Tensor:
        """The layer's output [R, d] from what each head took [R, H, E]."""
        return self.out(taken.flatten(1))


class LatentAttention:
    """Multi-head latent attention with its expansions absorbed into queries and output (DeepSeek-V2, section 2.1.2).

    A token keeps its latent and its rotated key, which all heads share. A head's query for the latent is its plain
    query times the expansion of keys; what it takes is a mean of latents, expanded to values afterwards.
    """

    def __init__(self, attention: Any) -> None:
        self.module, self.scale = attention, attention.scaling
        self.num_q, self.rank, self.plain_size = attention.num_heads, attention.kv_lora_rank, attention.qk_nope_head_dim
        first = attention.q_proj if attention.q_lora_rank is None else attention.q_a_proj
        self.product = Product([first, attention.kv_a_proj_with_mqa])
        self.sizes = [first.out_features, self.rank, attention.qk_rope_head_dim]
        self.second = None if attention.q_lora_rank is None else Product([attention.q_b_proj])
        expansion = weight_of(attention.kv_b_proj)
        assert expansion is not None
        both = expansion.detach().view(self.num_q, self.plain_size + attention.v_head_dim, self.rank)
        self.to_keys, self.to_values = both.split([self.plain_size, attention.v_head_dim], dim=1)
        self.out = Product([attention.o_proj])

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries [R, H, C + D] and what is kept of the token: latent and rotated key [R, 1, C + D]."""
        q, content, key = self.product(x).split(self.sizes, dim=-1)
        if self.second is not None:
            q = self.second(self.module.q_a_layernorm(q))
        plain, turned = q.view(len(x), self.num_q, -1).split([self.plain_size, self.sizes[2]], dim=-1)
        interleaved = self.module.config.rope_interleave
        both = rotated(torch.cat([turned, key[:, None]], dim=1), cos, sin, interleaved=interleaved)
        absorbed = (plain.transpose(0, 1) @ self.to_keys).transpose(0, 1)
        kept = torch.cat([self.module.kv_a_layernorm(content)[:, None], both[:, -1:]], dim=-1)
        return torch.cat([absorbed, both[:, :-1]], dim=-1), kept, None

    def finish(self, taken: Tensor) -> Tensor:
        """The layer's output [R, d] from what each head took of the latents [R, H, C]."""
        values = taken.transpose(0, 1) @ self.to_values.transpose(1, 2)
        return self.out(values.transpose(0, 1).flatten(1))


class LeanLayer:
    """A decoder layer for one token per row."""

    def __init__(self, layer: Any) -> None:
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        is_latent = hasattr(layer.self_attn, "kv_b_proj")
        self.attention = LatentAttention(layer.self_attn) if is_latent else GroupedAttention(layer.self_attn)
        self.mlp = Mixture(layer.mlp) if hasattr(layer.mlp, "experts") else Gated(layer.mlp)
