"""The states of rows that a memory knows, and their gradients: an update without a forward pass over what was written.

The last states are read from the memory, and the backward pass reads there what a forward pass would have kept for it:
each layer's input and what its heads took, from which it has the sums of their exponentials too. Products are made
again where to keep their results would take more memory than they are worth: the heads, the output of attention and
the gate. The gradients are those of `trunk.py` up to the order of sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from melete.forward.architectures import layers_of, own_scores, pair_rotations, unpaired
from melete.forward.attention import added_to_scores
from melete.forward.layout import Bucket, Grid, Layout
from melete.forward.memory import Memory
from melete.forward.products import by_onednn, weight_gradient
from melete.forward.steps import gradient_of_unit, normed, unit_of
from melete.forward.trunk import rows_together_in, states_at
from melete.forward.weights import Gated, GroupedAttention, LeanLayer, Product, linear_layers

_QUERIES = 80  # of a row in one call: what they need not look at saves more than a further call costs
_LONG = 64  # beginnings, whose gradients are added up row by row
_NUM_WEIGHTS = 16  # that a layer has, biases among them


def recalled_states_at(trunk: Any, tokens: Tensor, where: Tensor, memory: Memory) -> Tensor:
    """What `states_at` gives, which is asked only where the memory does not know all of the rows."""
    layout = Layout.of(tokens, where, multiple=rows_together_in(trunk), parts_all=True)
    places = memory.find(layout)
    if not places:
        return states_at(trunk, tokens, where)
    embedded = trunk.embed_tokens(layout.tokens)
    recall = _Recall.of(memory, layout, places, pair_rotations(trunk, embedded.detach(), layout.positions))
    weights = [weight for layer in layers_of(trunk) for weight in _weights_of(layer)]
    hidden = cast(Tensor, _Recalled.apply(recall, embedded, *weights))  # pyright: ignore[reportUnknownMemberType]
    return normed(trunk.norm, hidden.index_select(0, layout.wanted))


def _weights_of(layer: Any) -> list[Tensor | None]:
    both = [part for product in linear_layers(layer) for part in (product.weight, product.bias)]
    return [layer.input_layernorm.weight, layer.post_attention_layernorm.weight, *both]


class _Padded(NamedTuple):
    """The rows of a grid [R, W] among N tokens, and what is added to their scores: 0 or -inf."""

    grid: Grid
    part: slice  # of the tokens
    is_empty: Tensor | None  # [R, W, 1]; None where no place is empty
    bias: Tensor | None  # [R, 1, W, L + W]; None if each looks at those up to itself

    @classmethod
    def of(cls, grid: Grid, start: int, mask: Tensor | None) -> _Padded:
        part = slice(start, start + len(grid.places))
        is_empty = None if grid.is_full else ~grid.is_there[:, :, None]
        return cls(grid, part, is_empty, None if mask is None else added_to_scores(mask))

    def read(self, flat: Tensor) -> Tensor:
        """What tokens have [N, ...]: [R, W, ...]; at an empty place some other token's."""
        return self.grid.padded(flat[self.part])

    def hidden(self, sums: Tensor) -> Tensor:
        """Logs of sums of exponentials [R, W, H], infinite at empty places, which so take no share of anything."""
        return sums if self.is_empty is None else sums.masked_fill(self.is_empty, torch.inf)

    def write(self, padded: Tensor, flat: Tensor) -> None:
        """What is at the places [R, W, ...] to where it belongs among all tokens [N, ...]."""
        joined, place = padded.flatten(0, 1), flat[self.part]
        if self.is_empty is None:
            place.copy_(joined)
        else:
            torch.index_select(joined, 0, self.grid.places, out=place)


class _Recall(NamedTuple):
    """What the backward pass needs to know of N tokens."""

    memory: Memory
    layout: Layout
    places: Tensor  # [N] in the memory; idle tokens have any
    turns: Tensor  # [N, 1, D / 2, 2]
    beginnings: _Padded
    rests: list[tuple[_Padded, Bucket]]

    @classmethod
    def of(cls, memory: Memory, layout: Layout, found: list[int], turns: Tensor) -> _Recall:
        places = torch.tensor(found + [0] * layout.num_idle)
        beginnings = _Padded.of(layout.beginnings, 0, None)
        rests: list[tuple[_Padded, Bucket]] = []
        start = beginnings.part.stop
        for bucket in layout.rests:
            rests.append((_Padded.of(bucket.grid, start, bucket.mask()), bucket))
            start = rests[-1][0].part.stop
        return cls(memory, layout, places, turns, beginnings, rests)


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
    layer, fields = recall.memory.model.layers[number], recall.memory.fields
    state, taken = (field[number].index_select(0, recall.places) for field in (fields.states, fields.taken))
    # in two parts, so that what one has made is gone when the other begins
    grad, of_second, of_gate = _of_gate(layer, state, taken, grad, asked)
    grad, of_first, of_attention = _of_attention(recall, number, state, taken, grad, asked)
    return grad, [of_first, of_second, *of_attention, *of_gate]


def _of_gate(
    layer: LeanLayer, state: Tensor, taken: Tensor, grad: Tensor, asked: tuple[bool, ...]
) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """Gradients of what goes into the layer's second norm [N, d], of that norm, and of the gate's weights."""
    mlp = layer.mlp
    assert isinstance(mlp, Gated) and isinstance(layer.attention, GroupedAttention)
    unit, scale = unit_of(layer.attention.out(taken).add_(state), layer.between.eps)
    x = unit * layer.between.weight
    gate, up = mlp.both(x).chunk(2, dim=-1)
    act = silu(gate)
    of_down = _of_product(mlp.down, grad, act * up, asked[14:16])
    of_act = _times(grad, mlp.down)
    of_both = torch.empty(len(x), 2 * gate.shape[1])
    torch.mul(of_act, act, out=of_both[:, gate.shape[1] :])
    torch.ops.aten.silu_backward.grad_input(of_act.mul_(up), gate, grad_input=of_both[:, : gate.shape[1]])
    of_gates = _of_product(mlp.both, of_both, x, asked[10:14])
    of_x = _times(of_both, mlp.both)
    of_norm = torch.linalg.vecdot(of_x, unit, dim=0) if asked[1] else None
    return gradient_of_unit(of_x.mul_(layer.between.weight), unit, scale).add_(grad), of_norm, [*of_gates, *of_down]


def _of_attention(
    recall: _Recall, number: int, state: Tensor, taken: Tensor, grad: Tensor, asked: tuple[bool, ...]
) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """Gradients of the layer's input [N, d], of its first norm, and of the weights of attention."""
    layer, trained = recall.memory.model.layers[number], layers_of(recall.memory.model.trunk)[number]
    attention = layer.attention
    assert isinstance(attention, GroupedAttention)
    of_out = _of_product(attention.out, grad, taken, asked[8:10])
    unit, scale = unit_of(state, layer.before.eps)
    x = unit * layer.before.weight
    of_heads = _of_heads(recall, number, attention, x, taken, _times(grad, attention.out)).flatten(1)
    of_inputs = _of_inputs(attention, of_heads, x, asked[2:8], trained.self_attn.scaling)
    of_x = _times(of_heads, attention.product)
    of_norm = torch.linalg.vecdot(of_x, unit, dim=0) if asked[0] else None
    return gradient_of_unit(of_x.mul_(layer.before.weight), unit, scale).add_(grad), of_norm, [*of_inputs, *of_out]


def _of_heads(
    recall: _Recall, number: int, attention: GroupedAttention, x: Tensor, taken: Tensor, of_taken: Tensor
) -> Tensor:
    """Gradients [N, H + 2 K, D] of queries, keys and values before they were rotated, which are made of x [N, d]."""
    num_q, num_kv = attention.num_q, attention.num_kv
    all_heads = attention.product(x).view(len(x), -1, attention.size)
    _turn(all_heads[:, : num_q + num_kv], recall.turns)
    shares = recall.memory.fields.shares[number].index_select(0, recall.places)
    all_sums = own_scores(*all_heads[:, : num_q + num_kv].split([num_q, num_kv], dim=1)).sub_(shares.log())
    taken, of_taken = (stream.unflatten(1, (num_q, -1)) for stream in (taken, of_taken))
    of_heads = torch.empty_like(all_heads)
    of_heads[len(of_heads) - recall.layout.num_idle :] = 0

    def backward(rows: _Padded, heads: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, of_out, sums = rows.read(taken), rows.read(of_taken), rows.hidden(rows.read(all_sums))
        return _of_fused(heads[:, :, :num_q], seen, out, of_out, sums, rows.bias)

    first = recall.beginnings
    heads = first.read(all_heads)
    begun = heads[:, :, num_q:]  # [P, L, 2 K, D]
    of_q, of_k, of_v = backward(first, heads, begun)
    of_begun = torch.cat([of_k, of_v], dim=2)
    for rows, bucket in recall.rests:
        own, beginning_of, width = rows.read(all_heads), bucket.beginning_of, bucket.width
        seen = torch.cat([begun[:, :width].index_select(0, beginning_of), own[:, :, num_q:]], dim=1)
        of_own, of_k, of_v = backward(rows, own, seen)
        rows.write(torch.cat([of_own, of_k[:, width:], of_v[:, width:]], dim=2), of_heads)
        _add_rows(of_begun[:, :width, :num_kv], beginning_of, of_k[:, :width])
        _add_rows(of_begun[:, :width, num_kv:], beginning_of, of_v[:, :width])
    first.write(torch.cat([of_q, of_begun], dim=2), of_heads)
    _turn(of_heads[:, : num_q + num_kv], recall.turns, back=True)
    return of_heads


def _add_rows(to: Tensor, numbers: Tensor, rows: Tensor) -> None:
    """Adds rows [R, L, ...] to those with these numbers [R]."""
    if rows.shape[1] < _LONG:
        to.index_add_(0, numbers, rows)
        return
    for number, row in zip(numbers.tolist(), rows, strict=True):  # which one call would scatter number by number
        to[number] += row


def _turn(heads: Tensor, turns: Tensor, *, back: bool = False) -> None:
    """Rotates heads [N, H, D] in place, whose pairs are neighbours."""
    by = torch.view_as_complex(turns)
    torch.view_as_complex(heads.unflatten(-1, (-1, 2))).mul_(by.conj() if back else by)


def _of_fused(
    q: Tensor, seen: Tensor, out: Tensor, of_out: Tensor, sums: Tensor, bias: Tensor | None
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
    found = _of_parts(of_out, q, k, v, out, sums, bias) if bias is not None else _fused(of_out, q, k, v, out, sums)
    of_q, of_k, of_v = (part.transpose(1, 2) for part in found)
    if group > 1:
        of_k, of_v = (part.unflatten(2, (-1, group)).sum(dim=3) for part in (of_k, of_v))
    return of_q, of_k, of_v


def _of_parts(
    of_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `_fused` gives, a part of the queries [R, H, W, D] at a time, without keys that none of them may look at."""
    num_queries, num_keys = bias.shape[2:]
    size = -(-num_queries // max(num_queries // _QUERIES, 1))
    of_q, of_k, of_v = torch.empty_like(q), None, None
    for start in reversed(range(0, num_queries, size)):  # the last part looks at all keys
        part, seen = slice(start, start + size), min(num_keys - num_queries + start + size, num_keys)
        streams = (of_out[:, :, part], q[:, :, part], k[:, :, :seen], v[:, :, :seen], out[:, :, part], sums[:, :, part])
        found = _fused(*streams, bias[:, :, part, :seen])
        of_q[:, :, part] = found[0]
        if of_k is None or of_v is None:
            _, of_k, of_v = found
        else:
            of_k[:, :, :seen] += found[1]
            of_v[:, :, :seen] += found[2]
    assert of_k is not None and of_v is not None
    return of_q, of_k, of_v


def _fused(
    of_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        of_out, q, k, v, out, sums, 0.0, bias is None, attn_mask=bias, scale=1.0
    )


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
