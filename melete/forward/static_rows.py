"""Rows whose every token is the same work on the same memory, so that a GPU can replay it from one captured graph.

Small models on a GPU wait for the launch of kernels, dozens for each layer and token; a replayed graph is one launch.
The cache has room for all that may be written, and a mask says what of it is there. On a CPU the same step just runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from melete.forward.architectures import pair_rotations
from melete.forward.rows import LeanModel, Prompts
from melete.forward.weights import LatentAttention, LeanLayer, Mixture

MEMORY_SHARE = 0.4  # of the device's free memory that the cache may take


class StaticRows:
    """R rows under way, each with a copy of its prompt and room for `limit` tokens; see `rows.Rows`."""

    compact_share = 0.25  # each new number of rows is captured anew, which takes as long as dozens of tokens
    places = prompt_places = None  # nothing is noted

    def __init__(self, model: LeanModel, prompts: Prompts, prompt_of: Tensor, *, limit: int) -> None:
        self.model, width = model, prompts.width
        self.cache: list[list[Tensor]] = []
        for kept in prompts.layers:
            found = [part.index_select(0, prompt_of) for part in kept if part is not None]
            self.cache.append([torch.nn.functional.pad(part, (0, 0, 0, limit)) for part in found])
        first = self.cache[0][0]
        self.bias = first.new_full((len(prompt_of), 1, 1, width + limit), -torch.inf)
        self.bias[..., :width] = 0.0 if prompts.bias is None else prompts.bias.index_select(0, prompt_of)
        self.position = prompts.lengths[prompt_of]  # [R], of the next token in its row
        self.place = torch.tensor([width], device=first.device)  # of the next token in the cache
        self.tokens = torch.zeros(len(prompt_of), dtype=torch.long, device=first.device)
        self.replay: Callable[[], Tensor] | None = None

    def step(self, tokens: Tensor) -> Tensor:
        """Writes `tokens` [R] and returns the logits [R, V] of what follows; the next step overwrites them."""
        self.tokens.copy_(tokens)
        if self.replay is None:
            self.replay = self._captured() if tokens.device.type == "cuda" else self._step
        return self.replay()

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows only, in this order."""
        self.cache = [[states.index_select(0, rows) for states in layer] for layer in self.cache]
        self.bias, self.position, self.tokens = self.bias[rows], self.position[rows], self.tokens[rows]
        self.replay = None

    def _step(self) -> Tensor:
        trunk = self.model.trunk
        hidden = trunk.embed_tokens(self.tokens)
        turns = pair_rotations(trunk, hidden, self.position)
        self.bias.index_fill_(3, self.place, 0.0)
        for layer, states in zip(self.model.layers, self.cache, strict=True):
            hidden = hidden + self._taken(layer, hidden, turns, states)
            hidden = hidden + layer.mlp(layer.between(hidden))
        self.position += 1
        self.place += 1
        return self.model.logits(self.model.norm(hidden))

    def _taken(self, layer: LeanLayer, hidden: Tensor, turns: Tensor, states: list[Tensor]) -> Tensor:
        attention = layer.attention
        queries, *new = attention.queries(layer.before(hidden), turns)
        for buffer, part in zip(states, new, strict=False):  # latents are keys and values in one
            if part is not None:
                buffer.index_copy_(2, self.place, part[:, :, None])
        keys = states[0]
        values = keys[..., : attention.rank] if isinstance(attention, LatentAttention) else states[1]
        scores = queries.unflatten(1, (keys.shape[1], -1)) @ keys.transpose(2, 3) + self.bias
        taken = scores.float().softmax(dim=-1).to(queries.dtype) @ values
        return attention.finish(taken.flatten(1, 2))

    def _captured(self) -> Callable[[], Tensor]:
        """The step as a graph; where it cannot be captured, the step itself, with a warning."""
        before = self.position.clone(), self.place.clone()

        def put_back() -> None:
            self.position.copy_(before[0])
            self.place.copy_(before[1])

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels choose their workspaces the first time
            self._step()
        torch.cuda.current_stream().wait_stream(aside)
        put_back()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                logits = self._step()
        except RuntimeError as error:
            warnings.warn(f"writing goes on without a captured graph: {error}", stacklevel=2)
            torch.cuda.synchronize()
            put_back()
            return self._step

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def can_be_static(model: LeanModel, prompts: Prompts, num_rows: int, limit: int) -> bool:
    """Whether the work of a token is the same each time, and the whole cache fits.

    A mixture that sends rows to their experts by number asks the device how many each has got; that cannot be captured.
    """
    if any(isinstance(layer.mlp, Mixture) for layer in model.layers):
        return False
    of_a_token = sum(
        part[0, :, 0].numel() * part.element_size() for kept in prompts.layers for part in kept if part is not None
    )
    free, _ = torch.cuda.mem_get_info()
    return num_rows * (prompts.width + limit) * of_a_token <= MEMORY_SHARE * free
