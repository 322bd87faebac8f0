"""The learner's forward pass: log-probs of the tokens under a mask, with logits made at those positions only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from melete.batch import Batch, TokenRows, TrainBatch, row_parts
from melete.functional.logprobs import entropy_at, logprobs_at


@dataclass(frozen=True, slots=True)
class Scores:
    """Streams [B, T], 0 outside the mask; `logprobs` carries the gradient, `entropy` only where it was asked for."""

    logprobs: Tensor
    entropy: Tensor


def score(
    model: PreTrainedModel, tokens: Tensor, mask: Tensor, temperature: float, *, entropy_grad: bool = False
) -> Scores:
    """Scores the tokens of right-padded rows [B, T] where `mask` [B, T] is True.

    Right padding needs no attention mask: a real token never looks to its right. The first token of a row is never
    predicted, so a mask there counts for nothing.
    """
    predicted = mask[:, 1:]
    logits = logits_at(model, tokens, predicted)
    per_token = logprobs_at(logits, tokens[:, 1:][predicted], temperature=temperature)
    where = torch.nn.functional.pad(predicted, (1, 0))
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy = entropy_at(logits, temperature=temperature)
    zeros = per_token.new_zeros(tokens.shape)
    return Scores(zeros.masked_scatter(where, per_token), zeros.masked_scatter(where, entropy))


def score_batch(
    model: PreTrainedModel, batch: Batch | TrainBatch | TokenRows, max_tokens: int, temperature: float
) -> Tensor:
    """Log-probs [B, T] fp32 of the tokens under `loss_mask`, 0 elsewhere; `max_tokens` go through the model at once."""
    return stream_of(batch, max_tokens, model, lambda tokens, mask: score(model, tokens, mask, temperature).logprobs)


@torch.no_grad()
def stream_of(
    batch: Batch | TrainBatch | TokenRows,
    max_tokens: int,
    model: PreTrainedModel,
    compute: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """What `compute(tokens, loss_mask)` says of a part of the rows, put together: a stream [B, T] fp32 on the CPU."""
    model.eval()
    out = torch.zeros(batch.tokens.shape)
    for rows in row_parts(batch.lengths, max_tokens):
        longest = int(batch.lengths[rows].max())
        tokens, mask = batch.tokens[rows, :longest].to(model.device), batch.loss_mask[rows, :longest].to(model.device)
        out[rows, :longest] = compute(tokens, mask).float().cpu()
    return out


def logits_at(model: PreTrainedModel, tokens: Tensor, predicted: Tensor) -> Tensor:
    """Logits [N, V] at the positions whose next token is wanted."""
    head = model.get_output_embeddings()
    if head is not None and _plain_head(model):
        hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return head(hidden[:, :-1][predicted])
    return model(input_ids=tokens, use_cache=False).logits[:, :-1][predicted]


def _plain_head(model: PreTrainedModel) -> bool:
    """Whether logits are the head's product and nothing more (no cap, no scale), so that it may be applied apart."""
    if model.base_model is model:  # the part without the head has a name that transformers does not know
        return False
    scaled = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
    config = model.config.get_text_config(decoder=True)
    return not any(getattr(config, name, None) for name in scaled)


def scores_at(model: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """A scalar head's scores [B, T] of the tokens under `mask`, each having read up to itself; 0 elsewhere."""
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[mask]
    head: Any = model.score
    scores = head(hidden).squeeze(-1).float()
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


def values_before(model: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """A critic's values [B, T]: what the state before each token under `mask` is worth; 0 elsewhere."""
    before = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return torch.nn.functional.pad(scores_at(model, tokens, before)[:, :-1], (1, 0))
