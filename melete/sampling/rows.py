"""Rows that are written token by token with a model's own forward pass: what any architecture can do."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from melete.forward.architectures import has_attention, has_full_attention
from melete.sampling.kv_cache import make_cache, select_rows


class WrittenRows(Protocol):
    """Rows under way: `step` writes one token of each, `keep` goes on with some of them.

    That is worth its while when no more than `compact_share` of the rows are still being written. Where a memory notes
    what is computed, `prompt_places` is the first place of each row's prompt [R] and `places` those of the last step.
    """

    compact_share: float

    @property
    def places(self) -> slice | None: ...

    @property
    def prompt_places(self) -> list[int] | None: ...

    def step(self, tokens: Tensor) -> Tensor:
        """Writes `tokens` [R]; returns the logits [R, V] of what follows."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows only, in this order."""
        ...


class CachedRows:
    """Rows of left-padded prompts with a cache of transformers; `logits` [R, V] is what follows the prompts.

    Each distinct prompt is run through the model once and its cache forked to its rows.
    """

    compact_share = 0.75
    places = prompt_places = None  # nothing is noted

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], prompt_of: Tensor, *, room: int, limit: int
    ) -> None:
        self.model = model
        # transformers takes a cache under a wrong name without a word and does not use it
        takes = inspect.signature(model.forward).parameters
        self.cache_argument = "cache_params" if "cache_params" in takes else "past_key_values"
        longest = max(len(prompt) for prompt in prompts)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long, device=model.device)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=model.device)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = True
        self.cache = make_cache(model.config, spare=room)
        output = model(
            input_ids=tokens,
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(dim=1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_argument: self.cache},
        )
        self.logits = output.logits[:, -1][prompt_of]
        select_rows(self.cache, prompt_of)  # the fork: every sibling gets its prompt's keys and values
        self.next_position = mask.sum(dim=1)[prompt_of]
        self.width = longest
        own = torch.ones(len(prompt_of), limit, dtype=torch.bool, device=mask.device)
        self.mask = torch.cat([mask[prompt_of], own], dim=1)

    def step(self, tokens: Tensor) -> Tensor:
        """Writes `tokens` [R]; returns the logits [R, V] of what follows."""
        self.width += 1
        logits = self.model(
            input_ids=tokens[:, None],
            attention_mask=_single_query_mask(self.mask[:, : self.width], self.model),
            position_ids=self.next_position[:, None],
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_argument: self.cache},
        ).logits[:, -1]
        self.next_position = self.next_position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows only, in this order."""
        self.mask, self.next_position = self.mask[rows], self.next_position[rows]
        select_rows(self.cache, rows)


def _single_query_mask(mask: Tensor, model: PreTrainedModel) -> Tensor | None:
    """The mask of a single query per row in the form that the model takes without further work, if one is needed."""
    # a model without attention would multiply the new token by the mask of all tokens
    if bool(mask.all()) or not has_attention(model.config):
        return None
    # a finished mask is taken as it is by every layer, so a window would be lost
    if model.config._attn_implementation == "sdpa" and has_full_attention(model.config):
        return mask[:, None, None, :]
    return mask.long()
