"""Rows that are written token by token: siblings share the keys and values of their prompt.

A row attends to its prompt, of which there is one copy for all of its siblings, and to its own tokens, of which every
row has as many. What has been written by nobody is not computed: there is no padding but between prompts. Of a short
prompt every row has a copy of its own, so that there is one product instead of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from melete.forward.architectures import (
    expanded,
    heads,
    knows,
    latent,
    layers_of,
    own_scores,
    pair_rotations,
    rotations,
)
from melete.forward.attention import added_to_scores, attend, attend_and_sum
from melete.forward.layout import Grid
from melete.forward.notes import Notes
from melete.forward.products import batched, is_quick
from melete.forward.weights import GroupedAttention, LatentAttention, LeanLayer, Norm, Product, can_be_joined
from melete.forward.written import Written

STEPS_AHEAD = 16  # whose rotations are made at once
SHORT_PROMPT = 32  # tokens up to which a prompt is copied to its rows: one product more costs more than reading it


class LeanModel:
    """A causal language model for writing rows; it follows the model's weights when they change."""

    def __init__(self, model: Any) -> None:
        self.trunk, self.head = model.base_model, model.get_output_embeddings()
        self.state: tuple[object, ...] = ()
        self.layers: list[LeanLayer] = []
        self.norm: Norm
        self.logits: Callable[[Tensor], Tensor] = self.head

    def present_state(self) -> tuple[object, ...]:
        """What tells the model's weights from those of another time."""
        weighty = [*self.trunk.parameters(), *self.trunk.buffers(), *self.head.parameters()]
        weights = [(weight.data_ptr(), weight._version) for weight in weighty]
        return (*weights, *self.adapters())

    def adapters(self) -> tuple[object, ...]:
        """Which adapters are in use."""
        adapted: list[Any] = [module for module in self.trunk.modules() if hasattr(module, "base_layer")]
        return tuple((module.disable_adapters, *module.active_adapters) for module in adapted)

    def refresh(self, *, always: bool = False) -> None:
        """Takes the model's weights, if they are other than before."""
        state = self.present_state()
        if always or state != self.state:
            self.layers, self.norm = [LeanLayer(layer) for layer in layers_of(self.trunk)], Norm(self.trunk.norm)
            self.logits = Product([self.head]) if self._head_is_worth_a_copy() else self.head
            self.state = state

    def _head_is_worth_a_copy(self) -> bool:
        """Whether the head is a plain product that takes less time with its weight laid out anew."""
        is_watched = self.head._forward_pre_hooks or self.head._forward_hooks
        return is_quick(self.head) and not is_watched and self.head.weight.device.type == "cpu"


def lean_model(model: Any) -> LeanModel | None:
    """The model for writing rows, or None for one that the lean forward pass does not know."""
    trunk = getattr(model, "base_model", None)
    if trunk is model or not knows(trunk) or not can_be_joined(trunk) or model.get_output_embeddings() is None:
        return None
    return LeanModel(model)


class Kept(NamedTuple):
    """What a layer keeps of the prompts: keys [P, K, L, D] and values [P, K, L, E], or None where keys hold both."""

    keys: Tensor
    values: Tensor | None

    def some(self, prompts: Tensor) -> Kept:
        """Of these prompts only."""
        values = None if self.values is None else self.values.index_select(0, prompts)
        return Kept(self.keys.index_select(0, prompts), values)


class Prompts:
    """The prompts' states: each layer's keys and values, and the logits [P, V] of what follows."""

    def __init__(self, model: LeanModel, prompts: Sequence[Sequence[int]], notes: Notes | None = None) -> None:
        trunk, device = model.trunk, model.trunk.embed_tokens.weight.device
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        grid = Grid.of(self.lengths)
        hidden = trunk.embed_tokens(torch.tensor([token for prompt in prompts for token in prompt], device=device))
        cos, sin = rotations(trunk, hidden, grid.places % grid.width)
        self.layers: list[Kept] = []
        page = notes.turn(len(hidden)) if notes else None
        starts = (self.lengths.cumsum(0) - self.lengths).tolist()
        self.places = [page.places.start + start for start in starts] if page else None  # the first of each prompt
        for number, (layer, lean) in enumerate(zip(layers_of(trunk), model.layers, strict=True)):
            attention, x = layer.self_attn, layer.input_layernorm(hidden)
            if hasattr(attention, "kv_b_proj"):
                parts = latent(attention, x, cos, sin)
                found = expanded(attention, *parts)
                kept = Kept(_by_head(grid, lean.attention.kept(torch.cat(parts[2:], dim=-1))), None)
            else:
                found = heads(attention, x, cos, sin)
                kept = Kept(_by_head(grid, lean.attention.kept(found.keys)), _by_head(grid, found.values))
            self.layers.append(kept)
            q, k, v = (grid.padded(part).transpose(1, 2) for part in found)
            if page and isinstance(lean.attention, GroupedAttention):
                both = attend_and_sum(q, k, v, attention.scaling)
                taken, sums = (grid.flat(part.transpose(1, 2)) for part in both)
                page.states[number].copy_(hidden)
                page.taken[number].copy_(taken.flatten(1))
                own = own_scores(found.queries, found.keys).mul_(attention.scaling)
                page.shares[number].copy_(own.sub_(sums).exp_())
            else:
                taken = grid.flat(attend(q, k, v, None, attention.scaling).transpose(1, 2))
            hidden = hidden + attention.o_proj(taken.flatten(1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if page:
            page.states[-1].copy_(hidden)
        last = trunk.norm(hidden[self.lengths.cumsum(0) - 1])
        self.logits = model.logits(last)
        self.width = grid.width
        # [P, 1, 1, L]
        self.bias = None if grid.is_full else added_to_scores(grid.is_there, hidden.dtype)[:, None, None]


def _by_head(grid: Grid, flat: Tensor) -> Tensor:
    return grid.padded(flat).transpose(1, 2).contiguous()


class Rows:
    """R rows under way, each with its prompt; `step` writes one token of each."""

    compact_share = 0.75

    def __init__(self, model: LeanModel, prompts: Prompts, prompt_of: Tensor, notes: Notes | None = None) -> None:
        self.model, self.notes = model, notes if prompts.places else None
        self.prompt_places = [prompts.places[prompt] for prompt in prompt_of.tolist()] if prompts.places else None
        self.next_position = prompts.lengths[prompt_of]
        self.places: slice | None = None
        self._turns: list[Tensor] = []  # of the next steps, the last one first
        self.written = Written()
        self.is_copied = prompts.width <= SHORT_PROMPT
        if self.is_copied:
            beginnings = [[part for part in kept if part is not None] for kept in prompts.layers]
            self.written.begin_with(beginnings, prompt_of)
            self.bias = None if prompts.bias is None else prompts.bias[prompt_of]
        else:
            # keys [P, K, D, L]: with columns side by side a product takes half of the time (LOG.md)
            self.prompts = [Kept(kept.keys.transpose(2, 3).contiguous(), kept.values) for kept in prompts.layers]
            self.bias, self.prompt_of = prompts.bias, prompt_of
            self._arrange()

    def step(self, tokens: Tensor) -> Tensor:
        """Writes `tokens` [R] and returns the logits [R, V] of what follows; `places` are those where it is noted."""
        trunk = self.model.trunk
        hidden = trunk.embed_tokens(tokens)
        if not self._turns:
            self._turns = self._turns_ahead(hidden)
        turns = self._turns.pop()
        page = self.notes.turn(len(tokens)) if self.notes else None
        self.places = page.places if page else None
        if page:
            page.states[0].copy_(hidden)
        for number, layer in enumerate(self.model.layers):
            queries, keys, values = layer.attention.queries(layer.before(hidden), turns)
            taken, own = self._attend(
                number, queries, keys, values, layer.attention, page.taken[number] if page else None
            )
            if page:
                page.shares[number].copy_(own)
            hidden = hidden + layer.attention.finish(taken)
            place = page.states[number + 1] if page else None
            hidden = torch.add(hidden, layer.mlp(layer.between(hidden)), out=place)
        self.written.advance()
        self.next_position = self.next_position + 1
        return self.model.logits(self.model.norm(hidden))

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows only, in this order."""
        self.written.keep(rows)
        self.next_position, self._turns = self.next_position[rows], []
        if self.is_copied:
            self.bias = None if self.bias is None else self.bias[rows]
            return
        self.prompt_of = self.prompt_of[rows]
        left, self.prompt_of = self.prompt_of.unique(return_inverse=True)
        if len(left) < len(self.prompts[0].keys):
            self.prompts = [kept.some(left) for kept in self.prompts]
            self.bias = None if self.bias is None else self.bias[left]
        self._arrange()

    def _turns_ahead(self, like: Tensor) -> list[Tensor]:
        steps = torch.arange(STEPS_AHEAD, device=like.device).flip(0)[:, None]
        turns = pair_rotations(self.model.trunk, like, (steps + self.next_position).flatten())
        return list(turns.unflatten(0, (STEPS_AHEAD, -1)).unbind())

    def _arrange(self) -> None:
        """Places the rows in a grid [P, S] by prompt, so that a prompt's keys are read once for all of its rows."""
        num_prompts, num_heads = self.prompts[0].keys.shape[:2]
        order = self.prompt_of.argsort(stable=True)
        counts = self.prompt_of.bincount(minlength=num_prompts)
        self.num_slots = int(counts.max())
        ordered = self.prompt_of[order]
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[ordered]
        slot_of = torch.empty_like(rank).scatter_(0, order, rank)  # [R]
        row_at = order.new_zeros(num_prompts, self.num_slots)  # an empty place has some row
        row_at[ordered, rank] = order
        heads = torch.arange(num_heads, device=order.device)
        # a head's rows of one prompt side by side [P, K, S], and where each row's head is there [R, K]
        self.to_grid = (row_at[:, None] * num_heads + heads[:, None]).flatten()
        self.to_rows = ((self.prompt_of[:, None] * num_heads + heads) * self.num_slots + slot_of[:, None]).flatten()

    def _attend(
        self,
        number: int,
        q: Tensor,
        keys: Tensor,
        values: Tensor | None,
        attention: Any,
        place: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What each head takes [R, H * E], written to `place` if there is one, and its share [R, H] of the new token.

        The new token's keys and values are kept.
        """
        layer = [part.flatten(0, 1) for part in self.written.put(number, [keys] if values is None else [keys, values])]
        q = q.unflatten(1, (keys.shape[1], -1))  # [R, K, g, D]
        flat, num = q.flatten(0, 1), self.written.num
        scores = batched(flat, layer[0].transpose(1, 2))  # [R * K, g, C]
        if num + 1 < scores.shape[-1]:
            scores[..., num + 1 :].fill_(-torch.inf)  # what is read in vain
        if not self.is_copied:
            scores = torch.cat([self._to_prompts(flat, self.prompts[number].keys, self.bias), scores], dim=-1)
        elif self.bias is not None:
            scores.view(*q.shape[:3], -1)[..., : self.bias.shape[-1]] += self.bias
        shares = scores.float().softmax(dim=-1).to(q.dtype)
        own = layer[1] if len(layer) > 1 else _latents(layer[0], attention)
        out = None if place is None else place.view(*flat.shape[:2], own.shape[2])
        width = shares.shape[-1] - own.shape[1]
        taken = batched(shares[..., width:], own, out)
        if not self.is_copied:
            prompt = self.prompts[number]
            values = _latents(prompt.keys.transpose(2, 3), attention) if prompt.values is None else prompt.values
            taken += self._to_prompts(shares[..., :width], values)
        return taken.view(len(q), -1), shares[..., width + num].view(len(q), -1)

    def _to_prompts(self, rows: Tensor, states: Tensor, bias: Tensor | None = None) -> Tensor:
        """Rows [R * K, g, M] times what their prompts have [P, K, M, N], plus a bias [P, 1, 1, N]: [R * K, g, N]."""
        grid = rows.index_select(0, self.to_grid).view(-1, self.num_slots * rows.shape[1], rows.shape[2])
        found = batched(grid, states.flatten(0, 1))  # [P * K, S * g, N]
        if bias is not None:
            found.view(*states.shape[:2], *found.shape[1:]).add_(bias)
        return found.view(-1, rows.shape[1], found.shape[2]).index_select(0, self.to_rows)


def _latents(kept: Tensor, attention: Any) -> Tensor:
    """What is taken of keys [..., C + D] that are values too [..., C]."""
    assert isinstance(attention, LatentAttention)
    return kept[..., : attention.rank]
