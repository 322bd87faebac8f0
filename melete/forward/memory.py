"""What a model computed of each token while it wrote it, kept until the update on what was written.

The weights of an update are those that wrote, so its forward pass would compute all of it again. With a memory the
update begins with the backward pass (`recall.py`). The memory lies where copies of this process write into it too.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from melete.forward.architectures import layers_of
from melete.forward.layout import Layout
from melete.forward.notes import Fields, Notes
from melete.forward.products import is_linear
from melete.forward.rows import LeanModel
from melete.forward.steps import is_gate
from melete.forward.weights import GroupedAttention, LeanLayer, linear_layers

_LEAST_SHARE = 1e-30  # of a token in what it takes: of less the logarithm is not known well
MOST_BYTES = 2**30  # of one step; what does not fit is computed again


class Memory:
    """Of the rows that `model` writes while it is open, for the weights that it had then."""

    def __init__(self, model: LeanModel) -> None:
        self.model = model
        self.is_open = False
        self.state: tuple[object, ...] = ()
        self.prompts: dict[tuple[int, ...], Sequence[int]] = {}
        self.rows: dict[tuple[int, ...], Sequence[int]] = {}
        self.lanes: list[Notes] = []

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """What is written meanwhile is kept; what was kept before is forgotten."""
        self.forget()
        self.is_open = True
        try:
            yield
        finally:
            self.is_open = False

    def forget(self) -> None:
        """Of no row anything is known."""
        self.prompts.clear()
        self.rows.clear()
        self.state = ()
        for notes in self.lanes:
            notes.at = notes.start

    def lane(self, number: int, num_lanes: int) -> Notes | None:
        """Where lane `number` of at most `num_lanes` notes what it computes; None where nothing is to be kept."""
        if not self.is_open or not self._is_kept():
            return None
        if len(self.lanes) != num_lanes:
            self._make(num_lanes)
        if self.state != self.model.state:
            self.forget()
            self.state = self.model.state
        return self.lanes[number]

    def remember_prompt(self, prompt: Sequence[int], places: Sequence[int]) -> None:
        """`places` are those of its tokens."""
        _keep_first(self.prompts, tuple(prompt), places)

    def remember(self, row: Sequence[int], places: Sequence[int]) -> None:
        """`places` are those of what was written behind the prompt; `row` is the prompt and that."""
        _keep_first(self.rows, tuple(row), places)

    def find(self, layout: Layout) -> list[int] | None:
        """The places of a layout's tokens, but for idle ones, in its order; None if any is unknown."""
        found = [self.prompts.get(text) for text in layout.texts] + [self.rows.get(row) for row in layout.rows]
        places = [place for part in found if part is not None for place in part]
        if len(places) + layout.num_idle != len(layout.tokens):
            return None
        shares = self.fields.shares.index_select(1, torch.tensor(places))
        return places if float(shares.min()) >= _LEAST_SHARE else None

    @property
    def fields(self) -> Fields:
        """What is kept, by place."""
        return self.lanes[0].fields

    def is_current(self) -> bool:
        """Whether the weights are those of the time when it was written."""
        return bool(self.rows) and self.state == self.model.state == self.model.present_state()

    def _is_kept(self) -> bool:
        """Whether `recall.py` knows the gradients of this kind of model: plain layers in fp32 on a CPU."""
        model = self.model
        weight = model.trunk.embed_tokens.weight
        if weight.dtype != torch.float32 or weight.device.type != "cpu" or not model.layers:
            return False
        return all(map(_is_known, model.layers, layers_of(model.trunk)))

    def _make(self, num_lanes: int) -> None:
        layer = self.model.layers[0]
        attention = layer.attention
        assert isinstance(attention, GroupedAttention)
        num_layers, width, num_q = len(self.model.layers), len(layer.before.weight), attention.num_q
        counts, shapes = [num_layers + 1, num_layers, num_layers], [(width,), (num_q * attention.size,), (num_q,)]
        sizes = [count * torch.Size(shape).numel() for count, shape in zip(counts, shapes, strict=True)]
        room = MOST_BYTES // (4 * sum(sizes) * num_lanes)
        num_places = room * num_lanes
        # of all that is asked for the system gives only what is written to
        shared = mmap.mmap(-1, max(4 * sum(sizes) * num_places, mmap.PAGESIZE))
        with torch.inference_mode(False):
            everything = torch.frombuffer(shared, dtype=torch.float32)[: sum(sizes) * num_places]
            parts = everything.split([size * num_places for size in sizes])
            views = (part.view(n, num_places, *shape) for part, n, shape in zip(parts, counts, shapes, strict=True))
            fields = Fields(*views)
        self.state = ()  # what was known lies elsewhere
        self.lanes = [Notes(fields, number * room, (number + 1) * room) for number in range(num_lanes)]


def _keep_first(known: dict[tuple[int, ...], Sequence[int]], text: tuple[int, ...], places: Sequence[int]) -> None:
    """The first of several places, whichever lane is heard of first: they differ in their last bits."""
    if text not in known or tuple(places) < tuple(known[text]):
        known[text] = places


def _is_known(lean: LeanLayer, layer: Any) -> bool:
    if not isinstance(lean.attention, GroupedAttention) or lean.attention.norms or not is_gate(layer.mlp):
        return False
    if getattr(layer, "gradient_checkpointing", False):
        return False
    is_watched = any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
    return all(map(is_linear, linear_layers(layer))) and not is_watched
