"""The learner's forward pass: log-probs of the tokens under a mask, with logits made at those positions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from melete.batch import Batch, TokenRows, TrainBatch
from melete.forward.architectures import knows
from melete.forward.memory import Memory
from melete.forward.recall import recalled_states_at
from melete.forward.trunk import states_at
from melete.functional.logprobs import entropy_at, logprobs_and_entropy_at, logprobs_at
from melete.learning.packing import packed, states_of
from melete.machine.threads import in_lanes, num_lanes
from melete.parts import beginnings, row_parts


@dataclass(frozen=True, slots=True)
class Scores:
    """Streams [B, T], 0 outside the mask; `logprobs` carries the gradient, `entropy` only where it was asked for.

    `values` are those of the state before each token, by the head that was given; without one there are none.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None = None


def score(
    model: PreTrainedModel,
    tokens: Tensor,
    mask: Tensor,
    temperature: float,
    *,
    entropy_grad: bool = False,
    value_weight: Tensor | None = None,
    packing: bool = False,
    memory: Memory | None = None,
) -> Scores:
    """Scores the tokens of right-padded rows [B, T] where `mask` [B, T] is True.

    Right padding needs no attention mask: a real token never looks to its right. The first token of a row is never
    predicted, so a mask there counts for nothing. With `packing`, several rows go through the model as one sequence.
    With a `memory` of what the present weights wrote, no forward pass is made over that.
    """
    predicted = mask[:, 1:]
    where = torch.nn.functional.pad(predicted, (1, 0))
    values = None
    if value_weight is None:
        logits = logits_at(model, tokens, predicted, packing=packing, memory=memory)
    else:
        hidden = hidden_at(model, tokens, predicted, packing=packing, memory=memory)
        logits = cast(nn.Module, plain_head(model))(hidden)
        worth = torch.nn.functional.linear(hidden, value_weight).squeeze(-1).float()
        values = worth.new_zeros(tokens.shape).masked_scatter(where, worth)
    targets = tokens[:, 1:][predicted]
    if entropy_grad:
        per_token = logprobs_at(logits, targets, temperature=temperature)
        entropy = entropy_at(logits, temperature=temperature)
    else:
        per_token, entropy = logprobs_and_entropy_at(logits, targets, temperature=temperature)
    zeros = per_token.new_zeros(tokens.shape)
    return Scores(zeros.masked_scatter(where, per_token), zeros.masked_scatter(where, entropy), values)


def score_batch(
    model: PreTrainedModel, batch: Batch | TrainBatch | TokenRows, max_tokens: int, temperature: float
) -> Tensor:
    """Log-probs [B, T] fp32 of the tokens under `loss_mask`, 0 elsewhere; `max_tokens` go through the model at once."""
    return stream_of(batch, max_tokens, model, lambda tokens, mask: score(model, tokens, mask, temperature).logprobs)


@torch.no_grad()
def stream_of(
    batch: Batch | TrainBatch | TokenRows,
    max_tokens: int,
    model: Any,
    compute: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """What `compute(tokens, loss_mask)` says of a part of the rows, put together: a stream [B, T] fp32 on the CPU."""
    model.eval()
    out = torch.zeros(batch.tokens.shape)
    shared = beginnings(batch.tokens, batch.loss_mask) if shares_beginnings(model) else None

    @torch.no_grad()  # which a thread has of its own
    def said(rows: Sequence[int]) -> None:
        longest = int(batch.lengths[rows].max())
        tokens, mask = batch.tokens[rows, :longest].to(model.device), batch.loss_mask[rows, :longest].to(model.device)
        out[rows, :longest] = compute(tokens, mask).float().cpu()

    parts = row_parts(batch.lengths, max_tokens, beginnings=shared)
    for _ in in_lanes(said, parts, num_lanes(torch.get_num_threads(), torch.device(model.device).type)):
        pass
    return out


def shares_beginnings(model: Any) -> bool:
    """Whether what several rows begin with is computed once for all of them, and padding never."""
    return knows(getattr(model, "base_model", None))


def logits_at(
    model: PreTrainedModel, tokens: Tensor, predicted: Tensor, *, packing: bool = False, memory: Memory | None = None
) -> Tensor:
    """Logits [N, V] at the positions whose next token is wanted."""
    head = plain_head(model)
    if head is not None:
        return head(hidden_at(model, tokens, predicted, packing=packing, memory=memory))
    if packing:
        return packed(lambda **said: model(**said, use_cache=False).logits, tokens[:, :-1], predicted, model.dtype)
    return model(input_ids=tokens, use_cache=False).logits[:, :-1][predicted]


def hidden_at(
    model: PreTrainedModel, tokens: Tensor, predicted: Tensor, *, packing: bool = False, memory: Memory | None = None
) -> Tensor:
    """The trunk's last hidden states [N, H] at the positions whose next token is wanted."""
    if memory is not None:
        return recalled_states_at(model.base_model, tokens[:, :-1], predicted, memory)
    if packing and not shares_beginnings(model):  # what is shared is never padded either
        return packed(states_of(model.base_model), tokens[:, :-1], predicted, model.dtype)
    return states_at(model.base_model, tokens[:, :-1], predicted)


def plain_head(model: PreTrainedModel) -> nn.Module | None:
    """The head, if logits are its product and nothing more (no cap, no scale), so that it may be applied apart."""
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:  # a trunk that transformers cannot name
        return None
    scaled = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
    config = model.config.get_text_config(decoder=True)
    return None if any(getattr(config, name, None) for name in scaled) else head


def scores_at(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """A scalar head's scores [B, T] of the tokens under `mask`, each having read up to itself; 0 elsewhere."""
    scores = model.score(states_at(model.base_model, tokens, mask)).squeeze(-1).float()
    return scores.new_zeros(tokens.shape).masked_scatter(mask, scores)


def scores_at_end(model: PreTrainedModel, tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """The score [B] of each right-padded row, at its last token; it does not depend on the rows beside it."""
    last = attention_mask & ~torch.nn.functional.pad(attention_mask[:, 1:], (0, 1))
    return scores_at(model, tokens, last).sum(dim=1)


@torch.no_grad()
def end_scores(model: PreTrainedModel, rows: TokenRows, max_tokens: int) -> Tensor:
    """The score [B] fp32 of each row at its last token, on the CPU; `max_tokens` go through the model at once."""
    model.eval()
    out = torch.zeros(rows.num_rows)
    for part in row_parts(rows.lengths, max_tokens):
        picked = rows.select(part).to(model.device)
        out[part] = scores_at_end(model, picked.tokens, picked.attention_mask).float().cpu()
    return out


def values_before(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """A critic's values [B, T]: what the state before each token under `mask` is worth; 0 elsewhere."""
    before = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return torch.nn.functional.pad(scores_at(model, tokens, before)[:, :-1], (1, 0))
