"""The learner's forward pass: log-probs of the tokens under a mask, with logits made at those positions only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from melete.functional.logprobs import entropy_at, logprobs_at


@dataclass(frozen=True, slots=True)
class Scores:
    """Streams [B, T], 0 outside the mask; `logprobs` carries the gradient, `entropy` does not."""

    logprobs: Tensor
    entropy: Tensor


def score(model: PreTrainedModel, tokens: Tensor, mask: Tensor, temperature: float) -> Scores:
    """Scores the tokens of right-padded rows [B, T] where `mask` [B, T] is True.

    Right padding needs no attention mask: a real token never looks to its right. The first token of a row is never
    predicted, so a mask there counts for nothing.
    """
    predicted = mask[:, 1:]
    logits = _logits_at(model, tokens, predicted)
    per_token = logprobs_at(logits, tokens[:, 1:][predicted], temperature=temperature)
    where = torch.nn.functional.pad(predicted, (1, 0))
    with torch.no_grad():
        entropy = entropy_at(logits.detach(), temperature=temperature)
    zeros = per_token.new_zeros(tokens.shape)
    return Scores(zeros.masked_scatter(where, per_token), zeros.masked_scatter(where, entropy))


def _logits_at(model: PreTrainedModel, tokens: Tensor, predicted: Tensor) -> Tensor:
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
