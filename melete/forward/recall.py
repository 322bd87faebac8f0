"""The states of rows that a memory knows, and their gradients: an update without a forward pass over what was written.

The last states are read from the memory, and the backward pass reads there what a forward pass would have kept for it:
each layer's input, its heads, what they took. Only products that cost less than to keep their results, the output of
attention and the gate, are made again. The gradients are those of `trunk.py` up to the order of sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from melete.forward.architectures import layers_of, pair_rotations, unpaired
from melete.forward.layout import Grid, Layout
from melete.forward.memory import Memory
from melete.forward.products import by_onednn, weight_gradient
from melete.forward.steps import gradient_of_unit, normed, unit_of
from melete.forward.trunk import rows_together_in, states
from melete.forward.weights import Gated, GroupedAttention, Product, own_scores

_NUM_WEIGHTS = 16  # that a layer has, biases among them


def recalled_states_at(trunk: Any, tokens: Tensor, where: Tensor, memory: Memory) -> Tensor:
    """What `states_at` gives, by a forward pass only where the memory does not know all of the rows."""
    layout = Layout.of(tokens, where, multiple=rows_together_in(trunk))
    places = memory.find(layout)
    if not places:
        return states(trunk, layout)
    embedded = trunk.embed_tokens(layout.tokens)
    recall = _Recall(
        memory,
        layout,
        torch.tensor(places + [0] * layout.num_idle),
        pair_rotations(trunk, embedded.detach(), layout.positions),
        _look(layout.causal),
        [_look(bucket.mask) for bucket in layout.rests],
    )
    weights = [weight for layer in layers_of(trunk) for weight in _weights_of(layer)]
    hidden = cast(Tensor, _Recalled.apply(recall, embedded, *weights))  # pyright: ignore[reportUnknownMemberType]
    return normed(trunk.norm, hidden.index_select(0, layout.wanted))


def _look(mask: Tensor) -> Tensor:
    """0 where a token may look, -inf elsewhere."""
    return torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)


def _weights_of(layer: Any) -> list[Tensor | None]:
    attention, mlp = layer.self_attn, layer.mlp
    products = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    products += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    both = [part for product in products for part in (product.weight, product.bias)]
    return [layer.input_layernorm.weight, layer.post_attention_layernorm.weight, *both]


class _Recall(NamedTuple):
    memory: Memory
    layout: Layout
    places: Tensor  # [N] in the memory; idle tokens have any
    turns: Tensor  # [N, 1, D / 2, 2]
    causal: Tensor  # [1, 1, L, L], added to the scores of beginnings
    biases: list[Tensor]  # [R, 1, W, L + W], added to the scores of each bucket


class _Recalled(torch.autograd.Function):
    """The last states [N, d] of tokens as a function of their embeddings and all weights of the layers."""

    @staticmethod
    def forward(ctx: Any, recall: _Recall, embedded: Tensor, *weights: Tensor | None) -> Tensor:
        ctx.recall = recall
        return recall.memory.fields.states[-1].index_select(0, recall.places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted, grad = ctx.needs_input_grad[2:], grads[0].contiguous()
        of_weights: list[Tensor | None] = []
        for number in reversed(range(len(wanted) // _NUM_WEIGHTS)):
            asked = wanted[_NUM_WEIGHTS * number : _NUM_WEIGHTS * (number + 1)]
            grad, found = _backward(ctx.recall, number, grad, asked)
            of_weights = found + of_weights
        return None, grad, *of_weights


def _backward(
    recall: _Recall, number: int, grad: Tensor, asked: tuple[bool, ...]
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of a layer's input [N, d] from that of its output, and of the weights that are asked for."""
    layer, trained = recall.memory.model.layers[number], layers_of(recall.memory.model.trunk)[number]
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(attention, GroupedAttention) and isinstance(mlp, Gated)
    state, heads, taken, shares = (field[number].index_select(0, recall.places) for field in recall.memory.fields)
    sums = own_scores(*heads.split([attention.num_q, attention.num_kv, attention.num_kv], dim=1)[:2]) - shares.log_()
    # the gate
    between = attention.out(taken).add_(state)
    unit, scale = unit_of(between, layer.between.eps)
    x = unit * layer.between.weight
    gate, up = mlp.both(x).chunk(2, dim=-1)
    act = silu(gate)
    of_down = _of_product(mlp.down, grad, act * up, asked[14:16])
    of_act = _times(grad, mlp.down)
    of_both = torch.empty(len(x), 2 * gate.shape[1])
    torch.mul(of_act, act, out=of_both[:, gate.shape[1] :])
    of_both[:, : gate.shape[1]] = torch.ops.aten.silu_backward(of_act.mul_(up), gate)
    of_gates = _of_product(mlp.both, of_both, x, asked[10:14])
    of_x = _times(of_both, mlp.both)
    of_second = torch.linalg.vecdot(of_x, unit, dim=0) if asked[1] else None
    grad = gradient_of_unit(of_x.mul_(layer.between.weight), unit, scale).add_(grad)
    # attention
    of_out = _of_product(attention.out, grad, taken, asked[8:10])
    of_heads = _of_attention(recall, attention, heads, sums, taken, _times(grad, attention.out)).flatten(1)
    unit, scale = unit_of(state, layer.before.eps)
    x = unit * layer.before.weight
    of_inputs = _of_inputs(attention, of_heads, x, asked[2:8], trained.self_attn.scaling)
    of_x = _times(of_heads, attention.product)
    of_first = torch.linalg.vecdot(of_x, unit, dim=0) if asked[0] else None
    grad = gradient_of_unit(of_x.mul_(layer.before.weight), unit, scale).add_(grad)
    return grad, [of_first, of_second, *of_inputs, *of_out, *of_gates, *of_down]


def _of_attention(
    recall: _Recall, attention: GroupedAttention, heads: Tensor, sums: Tensor, taken: Tensor, of_taken: Tensor
) -> Tensor:
    """Gradients [N, H + 2 K, D] of queries, keys and values before they were rotated."""
    layout, num_q, num_kv = recall.layout, attention.num_q, attention.num_kv
    of_heads = torch.empty_like(heads)
    of_heads[len(heads) - layout.num_idle :] = 0
    taken, of_taken = (stream.unflatten(1, (num_q, -1)) for stream in (taken, of_taken))
    num_begun = len(layout.beginnings.places)
    begun = layout.beginnings.padded(heads[:num_begun, num_q:])  # [P, L, 2 K, D]
    of_begun = torch.zeros_like(begun)
    at = num_begun
    for bucket, bias in zip(layout.rests, recall.biases, strict=True):
        grid, part = bucket.grid, slice(at, at + len(bucket.grid.places))
        at = part.stop
        padded = grid.padded(heads[part])
        width = bias.shape[-1] - grid.width
        seen = torch.cat([begun[:, :width].index_select(0, bucket.beginning_of), padded[:, :, num_q:]], dim=1)
        streams = grid.padded(taken[part]), grid.padded(of_taken[part]), _padded_sums(grid, sums[part])
        of_q, of_k, of_v = _of_fused(padded[:, :, :num_q], seen, *streams, bias)
        own = torch.cat([of_q, of_k[:, width:], of_v[:, width:]], dim=2)
        _put(grid, own, of_heads[part])
        of_begun[:, :width, :num_kv].index_add_(0, bucket.beginning_of, of_k[:, :width])
        of_begun[:, :width, num_kv:].index_add_(0, bucket.beginning_of, of_v[:, :width])
    grid, part = layout.beginnings, slice(num_begun)
    streams = grid.padded(taken[part]), grid.padded(of_taken[part]), _padded_sums(grid, sums[part])
    of_q, of_k, of_v = _of_fused(grid.padded(heads[part, :num_q]), begun, *streams, recall.causal)
    own = torch.cat([of_q, of_begun.add_(torch.cat([of_k, of_v], dim=2))], dim=2)
    _put(grid, own, of_heads[part])
    turned = torch.view_as_complex(of_heads[:, : num_q + num_kv].unflatten(-1, (-1, 2)))
    turned.mul_(torch.view_as_complex(recall.turns).conj())
    return of_heads


def _put(grid: Grid, padded: Tensor, place: Tensor) -> None:
    """What is at the places of a grid [R, W, ...] into a flat tensor."""
    joined = padded.flatten(0, 1)
    if grid.is_full:
        place.copy_(joined)
    else:
        torch.index_select(joined, 0, grid.places, out=place)


def _padded_sums(grid: Grid, sums: Tensor) -> Tensor:
    """[N, H] as [R, W, H]; infinite at empty places, which so take no share of anything."""
    padded = grid.padded(sums)
    if grid.is_full:
        return padded
    is_there = torch.arange(grid.width) < grid.lengths[:, None]
    return padded.masked_fill(~is_there[:, :, None], torch.inf)


def _of_fused(
    q: Tensor, seen: Tensor, out: Tensor, of_out: Tensor, sums: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass of torch's fused attention.

    Scaled queries, what they took and its gradient [R, W, H, D], keys and values [R, L, 2 K, D], sums [R, W, H]; gives
    gradients of queries [R, W, H, D], of keys and of values [R, L, K, D].
    """
    num_q, num_kv = q.shape[2], seen.shape[2] // 2
    k, v = seen.split(num_kv, dim=2)
    group = num_q // num_kv
    if group > 1:
        k, v = (states.repeat_interleave(group, dim=2) for states in (k, v))
    of_out, q, k, v, out, sums = (stream.transpose(1, 2) for stream in (of_out, q, k, v, out, sums))
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        of_out, q, k, v, out, sums, 0.0, False, attn_mask=bias, scale=1.0
    )
    of_q, of_k, of_v = (part.transpose(1, 2) for part in found)
    if group > 1:
        of_k, of_v = (part.unflatten(2, (-1, group)).sum(dim=3) for part in (of_k, of_v))
    return of_q, of_k, of_v


def _times(grad: Tensor, product: Product) -> Tensor:
    """The gradient [N, d] of what was multiplied, from that of the result [N, o]."""
    return by_onednn(grad, product.weight.t()) if product.quick else grad @ product.weight


def _of_weight(product: Product, grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of the weight [o, d]."""
    return weight_gradient(grad, x) if product.quick else grad.t() @ x


def _of_product(product: Product, grad: Tensor, x: Tensor, asked: tuple[bool, ...]) -> list[Tensor | None]:
    """Gradients of weight and bias of each of the layers that a product joins."""
    num = len(asked) // 2
    weights = _of_weight(product, grad, x).chunk(num) if any(asked[::2]) else [None] * num
    biases = grad.sum(dim=0).chunk(num) if any(asked[1::2]) else [None] * num
    return [part for both in zip(weights, biases, strict=True) for part in both]


def _of_inputs(
    attention: GroupedAttention, of_heads: Tensor, x: Tensor, asked: tuple[bool, ...], scale: float
) -> list[Tensor | None]:
    """Gradients of weights and biases of queries, keys and values, as the module has them."""
    sizes = [count * attention.size for count in (attention.num_q, attention.num_kv, attention.num_kv)]

    def parted(rows: Tensor) -> list[Tensor]:
        q, k, v = rows.split(sizes)
        q, k = (_as_in_module(part, attention.size) for part in (q, k))
        return [q * scale, k, v]

    weights = parted(_of_weight(attention.product, of_heads, x)) if any(asked[::2]) else [None] * 3
    biases = parted(of_heads.sum(dim=0)) if any(asked[1::2]) else [None] * 3
    return [part for both in zip(weights, biases, strict=True) for part in both]


def _as_in_module(rows: Tensor, size: int) -> Tensor:
    """Rows [H * D, ...] whose neighbours the rotary embedding turns, as two halves of each head."""
    return unpaired(rows.unflatten(0, (-1, size)).movedim(1, -1)).movedim(-1, 1).flatten(0, 1)
