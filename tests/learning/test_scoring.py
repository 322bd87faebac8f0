"""The learner's forward pass, against the plain way: all logits, one row at a time."""

from __future__ import annotations

import pytest
import torch
from tiny_models import MODELS, deepseek, llama, sampled_batch, tokenizer
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from melete.functional.logprobs import logprobs
from melete.learning.scoring import score


def rows(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Right-padded random rows whose last half is to be scored."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(6, len(tokenizer()), (len(lengths), max(lengths)), generator=generator)
    column = torch.arange(max(lengths))[None]
    length = torch.tensor(lengths)[:, None]
    return torch.where(column < length, tokens, 0), (column >= length // 2) & (column < length)


@torch.no_grad()
def score_by_rows(model: PreTrainedModel, tokens: Tensor, mask: Tensor, temperature: float) -> Tensor:
    out = torch.zeros(tokens.shape)
    for row in range(tokens.shape[0]):
        length = int(mask[row].nonzero().max()) + 1
        alone = tokens[row : row + 1, :length]
        out[row, :length] = logprobs(model(input_ids=alone).logits, alone, temperature=temperature)[0]
    return torch.where(mask, out, 0.0)


def small(**special: float) -> dict[str, float]:
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return (
        dict(vocab_size=len(tokenizer()), num_key_value_heads=2, initializer_range=0.5, pad_token_id=0)
        | sizes
        | special
    )


def gemma2() -> PreTrainedModel:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**small(final_logit_softcapping=2.0, head_dim=8))).eval()


def cohere() -> PreTrainedModel:
    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**small(logit_scale=0.3))).eval()


def granite() -> PreTrainedModel:
    torch.manual_seed(0)
    return GraniteForCausalLM(GraniteConfig(**small(logits_scaling=3.0))).eval()


SCALING = {"gemma2": gemma2, "cohere": cohere, "granite": granite}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", [*MODELS, *SCALING])
def test_scores_are_those_of_the_whole_logits(kind: str, temperature: float) -> None:
    """I4, I34: padding and neighbours change nothing, and caps and scales of logits come before the temperature."""
    model = (MODELS | SCALING)[kind]()
    tokens, mask = rows(9, 3, 14)
    with torch.no_grad():
        scores = score(model, tokens, mask, temperature)
    expected = score_by_rows(model, tokens, mask, temperature)
    torch.testing.assert_close(scores.logprobs, expected, rtol=0, atol=2e-5)
    assert float(scores.logprobs.min()) < -1


@pytest.mark.parametrize("kind", MODELS)
def test_only_the_tokens_of_the_completion_reach_the_head(kind: str) -> None:
    model = MODELS[kind]()
    batch = sampled_batch(model)
    seen: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    score(model, batch.tokens, batch.loss_mask, 1.0)
    assert seen == [(int(batch.loss_mask.sum()), len(tokenizer()))]


def test_nothing_is_scored_outside_the_mask() -> None:
    """I32: a row without scored tokens, and the tokens after the scored one, may be anything."""
    model = llama()
    tokens, mask = rows(8, 5)
    mask[0], mask[1] = False, torch.arange(8) == 2
    changed = tokens.clone()
    changed[0] = changed[0].flip(0)
    changed[1, 3:] = 9  # tokens after the scored one
    one, other = score(model, tokens, mask, 1.0), score(model, changed, mask, 1.0)
    torch.testing.assert_close(one.logprobs, other.logprobs)
    assert (one.logprobs != 0).equal(mask) and (one.entropy != 0).equal(mask)
    assert one.logprobs.requires_grad and not one.entropy.requires_grad


def test_the_first_token_of_a_row_is_never_predicted() -> None:
    tokens, mask = rows(6, 6)
    with_first = mask.clone()
    with_first[:, 0] = True
    one, other = score(llama(), tokens, mask, 1.0), score(llama(), tokens, with_first, 1.0)
    assert one.logprobs.equal(other.logprobs) and one.entropy.equal(other.entropy)


def test_the_entropy_is_that_of_the_distribution_each_token_was_drawn_from() -> None:
    model = deepseek()
    tokens, mask = rows(7, 4)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits / 0.7
        expected = torch.distributions.Categorical(logits=logits).entropy()
        scores = score(model, tokens, mask, 0.7)
    shifted = torch.nn.functional.pad(expected[:, :-1], (1, 0))
    torch.testing.assert_close(scores.entropy, torch.where(mask, shifted, 0.0), rtol=1e-4, atol=1e-4)


def test_rows_without_anything_to_score_give_zeros_and_a_zero_gradient() -> None:
    """I5."""
    model = llama()
    tokens, mask = rows(6, 4)
    scores = score(model, tokens, torch.zeros_like(mask), 1.0)
    assert not scores.logprobs.any()
    scores.logprobs.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
