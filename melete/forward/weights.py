"""The weights of a trunk as the writing of tokens wants them: products that read the same input are one product."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from melete.forward.architectures import bias_of, layers_of, paired, rotated_pairs, weight_of
from melete.forward.products import by_onednn, is_for_onednn, is_quick, is_small, laid_out

_FEW_ROWS = 32  # up to which all experts of a small mixture are computed for every row
_VERY_FEW_ROWS = 3
_FEW_EXPERTS = 16
_WIDE = 4  # times the hidden size: up to which the latents of all heads go to the output at once
Change = Callable[[Tensor], Tensor]


class Product:
    """One or several linear layers of the same input as one.

    Given `changes`, one for each layer, its weight and bias are what the change makes of them; it works on rows.
    """

    def __init__(self, modules: Sequence[nn.Module], changes: Sequence[Change] | None = None) -> None:
        changes = changes or [_as_it_is] * len(modules)
        weights = [(weight_of(module), change) for module, change in zip(modules, changes, strict=True)]
        biases = [(bias_of(module), change) for module, change in zip(modules, changes, strict=True)]
        is_wanted = all(is_quick(module) for module in modules)
        weight = _joined([change(weight.detach()) for weight, change in weights if weight is not None])
        assert weight is not None
        self.weight = laid_out(weight, quick=is_wanted)
        self.quick = is_wanted and is_for_onednn(self.weight)
        # torch's own product takes less time for so many rows of a small weight than it takes to call oneDNN
        self.few = _VERY_FEW_ROWS if is_small(self.weight) else 0
        self.bias = _joined([change(bias.detach()) for bias, change in biases if bias is not None])

    def __call__(self, x: Tensor) -> Tensor:
        return (by_onednn if self.quick and len(x) > self.few else linear)(x, self.weight, self.bias)


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    return (parts[0] if len(parts) == 1 else torch.cat(list(parts))) if parts else None


class Norm:
    """RMSNorm in as few calls as there are: x w / sqrt(mean(x^2) + eps); `change` is made of its weight."""

    def __init__(self, module: Any, change: Change = _as_it_is) -> None:
        self.weight, self.eps = change(module.weight.detach()), module.variance_epsilon
        size = self.weight.numel()
        # x sqrt(d) w / hypot(|x|, sqrt(d eps))
        self.scaled, self.floor = self.weight * math.sqrt(size), self.weight.new_tensor(math.sqrt(size * self.eps))

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype.itemsize < 4:  # whose squares want more bits
            return rms_norm(x, self.weight.shape, self.weight, self.eps)
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor) * self.scaled


def can_be_joined(trunk: Any) -> bool:
    """Whether every linear layer of the trunk shows its weight, so that products can be joined."""
    for layer in layers_of(trunk):
        if any(weight_of(module) is None for module in linear_layers(layer)):
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


def linear_layers(layer: Any) -> list[Any]:
    """The linear layers of a layer, but for routed experts and their router: of attention first, then the gate's."""
    attention, mlp = layer.self_attn, layer.mlp
    of_attention = ("q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
    found = [getattr(attention, name, None) for name in of_attention]
    dense = getattr(mlp, "shared_experts", mlp)
    found += [getattr(dense, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return [module for module in found if module is not None]


class Gated:
    """down(act(gate(x)) * up(x)), with gate and up joined."""

    def __init__(self, mlp: Any) -> None:
        self.both, self.down, self.act = Product([mlp.gate_proj, mlp.up_proj]), Product([mlp.down_proj]), mlp.act_fn

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.down(self.act(gate) * up)


class Router:
    """Which experts a row goes to, and their weights (DeepSeek-V3, eqs. 13-16), where the experts are one group."""

    def __init__(self, gate: Any) -> None:
        self.weight, self.bias = gate.weight.detach().float(), gate.e_score_correction_bias.detach()
        self.num_chosen, self.factor, self.is_normed = gate.top_k, gate.routed_scaling_factor, gate.norm_topk_prob

    def __call__(self, x: Tensor) -> tuple[None, Tensor, Tensor]:
        """Nothing in place of the module's logits, then weights and numbers of the chosen experts [R, k]."""
        scores = linear(x.float(), self.weight).sigmoid_()
        chosen = (scores + self.bias).topk(self.num_chosen, dim=-1, sorted=False).indices
        weights = scores.gather(1, chosen)
        if self.is_normed:
            return None, weights * (self.factor / (weights.sum(dim=-1, keepdim=True) + 1e-20)), chosen
        return None, weights * self.factor, chosen


class Mixture:
    """A mixture of experts with shared ones; where experts are in groups the router is the module's own."""

    def __init__(self, mlp: Any) -> None:
        self.router = Router(mlp.gate) if mlp.gate.num_group == 1 else mlp.gate
        self.shared, self.experts = Gated(mlp.shared_experts), mlp.experts
        self.act, self.num_experts = mlp.experts.act_fn, mlp.experts.num_experts
        if self.num_experts <= _FEW_EXPERTS:
            self.all_down = mlp.experts.down_proj.detach().transpose(1, 2).flatten(0, 1)

    def __call__(self, x: Tensor) -> Tensor:
        _, weights, chosen = self.router(x)
        few = len(x) <= _FEW_ROWS and self.num_experts <= _FEW_EXPERTS
        return self.shared(x) + (self._all(x, weights, chosen) if few else self._sorted(x, weights, chosen))

    def _all(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Every expert for every row, those that were not chosen times 0: few rows make many small products slow."""
        gates = torch.zeros(len(x), self.num_experts, dtype=x.dtype, device=x.device)
        gates.scatter_(1, chosen, weights.to(x.dtype))
        gate, up = linear(x, self.experts.gate_up_proj.flatten(0, 1)).unflatten(1, (self.num_experts, -1)).chunk(2, -1)
        return (self.act(gate) * up * gates[:, :, None]).flatten(1) @ self.all_down

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
    """Queries, keys and values of one token per row from one product.

    Queries come scaled. What the rotary embedding turns together are neighbours, unlike in the module.
    """

    def __init__(self, attention: Any) -> None:
        self.size, self.scale = attention.head_dim, attention.scaling
        scale = self.scale
        has_norms = hasattr(attention, "q_norm")

        def as_pairs(rows: Tensor) -> Tensor:
            return paired(rows.unflatten(0, (-1, self.size)).movedim(1, -1)).movedim(-1, 1).flatten(0, 1)

        def as_queries(rows: Tensor) -> Tensor:
            return as_pairs(rows) if has_norms else as_pairs(rows) * scale

        modules = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.product = Product(modules, [as_queries, as_pairs, _as_it_is])
        self.norms = None
        if has_norms:
            q_norm = Norm(attention.q_norm, lambda weight: paired(weight) * scale)
            self.norms = (q_norm, Norm(attention.k_norm, paired))
        self.out = Product([attention.o_proj])
        self.num_kv = attention.k_proj.out_features // self.size
        self.num_q = attention.q_proj.out_features // self.size

    def queries(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries [R, H, D], what is kept of the token: keys [R, K, D] and values [R, K, D]."""
        found = self.product(x).view(len(x), -1, self.size)
        turned, values = found.split([self.num_q + self.num_kv, self.num_kv], dim=1)
        if self.norms:
            q, k = turned.split([self.num_q, self.num_kv], dim=1)
            turned = torch.cat([self.norms[0](q), self.norms[1](k)], dim=1)
        q, k = rotated_pairs(turned, turns).split([self.num_q, self.num_kv], dim=1)
        return q, k, values

    def kept(self, keys: Tensor) -> Tensor:
        """Keys [..., D] of the module as they are kept here."""
        return paired(keys)

    def finish(self, taken: Tensor) -> Tensor:
        """The layer's output [R, d] from what each head took [R, H, E]."""
        return self.out(taken.flatten(1))


class LatentAttention:
    """Multi-head latent attention with its expansions absorbed into queries and output (DeepSeek-V2, section 2.1.2).

    A token keeps its latent and its rotated key, which all heads share. A head's query for the latent is its plain
    query times the expansion of keys; what it takes is a mean of latents, expanded to values afterwards. Queries come
    scaled.
    """

    def __init__(self, attention: Any) -> None:
        scale = attention.scaling

        def as_queries(rows: Tensor) -> Tensor:
            return rows * scale

        self.num_q, self.rank, self.plain_size = attention.num_heads, attention.kv_lora_rank, attention.qk_nope_head_dim
        self.is_interleaved = attention.config.rope_interleave
        has_second = attention.q_lora_rank is not None
        first = attention.q_a_proj if has_second else attention.q_proj
        changes = [_as_it_is if has_second else as_queries, _as_it_is]
        self.product = Product([first, attention.kv_a_proj_with_mqa], changes)
        self.sizes = [first.out_features, self.rank, attention.qk_rope_head_dim]
        self.second = Product([attention.q_b_proj], [as_queries]) if has_second else None
        self.q_norm = Norm(attention.q_a_layernorm) if has_second else None
        self.norm = Norm(attention.kv_a_layernorm)
        expansion = weight_of(attention.kv_b_proj)
        assert expansion is not None
        both = expansion.detach().view(self.num_q, self.plain_size + attention.v_head_dim, self.rank)
        self.to_keys, self.to_values = both.split([self.plain_size, attention.v_head_dim], dim=1)
        self.out = Product([attention.o_proj])
        self.all_out = self._whole_output() if self.num_q * self.rank <= _WIDE * attention.o_proj.out_features else None

    def _whole_output(self) -> Tensor:
        """From what heads took of the latents to the output in one product [d, H * C]; small models gain by it."""
        by_head = self.out.weight.unflatten(1, (self.num_q, -1)).transpose(0, 1)  # [H, d, E]
        return (by_head @ self.to_values).transpose(0, 1).flatten(1)

    def queries(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries [R, H, C + D] and what is kept of the token: latent and rotated key [R, 1, C + D]."""
        q, content, key = self.product(x).split(self.sizes, dim=-1)
        if self.second is not None and self.q_norm is not None:
            q = self.second(self.q_norm(q))
        plain, turned = q.view(len(x), self.num_q, -1).split([self.plain_size, self.sizes[2]], dim=-1)
        both = torch.cat([turned, key[:, None]], dim=1)
        both = rotated_pairs(both if self.is_interleaved else paired(both), turns)
        absorbed = (plain.transpose(0, 1) @ self.to_keys).transpose(0, 1)
        kept = torch.cat([self.norm(content)[:, None], both[:, -1:]], dim=-1)
        return torch.cat([absorbed, both[:, :-1]], dim=-1), kept, None

    def kept(self, keys: Tensor) -> Tensor:
        """Latents and rotated keys [..., C + D] of the module as they are kept here."""
        return torch.cat([keys[..., : self.rank], paired(keys[..., self.rank :])], dim=-1)

    def finish(self, taken: Tensor) -> Tensor:
        """The layer's output [R, d] from what each head took of the latents [R, H, C]."""
        if self.all_out is not None:
            return linear(taken.flatten(1), self.all_out, self.out.bias)
        values = taken.transpose(0, 1) @ self.to_values.transpose(1, 2)
        return self.out(values.transpose(0, 1).flatten(1))


class LeanLayer:
    """A decoder layer for one token per row."""

    def __init__(self, layer: Any) -> None:
        self.before, self.between = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        is_latent = hasattr(layer.self_attn, "kv_b_proj")
        self.attention = LatentAttention(layer.self_attn) if is_latent else GroupedAttention(layer.self_attn)
        self.mlp = Mixture(layer.mlp) if hasattr(layer.mlp, "experts") else Gated(layer.mlp)
