"""Log-probs, entropy and log-ratios of tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from melete.functional.logprobs import (
    LOG_RATIO_LIMIT,
    entropy_at,
    log_ratio,
    logprobs,
    logprobs_and_entropy_at,
    logprobs_at,
)


def logprobs_by_loop(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    out = torch.zeros(tokens.shape, dtype=torch.float64)
    for b in range(tokens.shape[0]):
        for t in range(1, tokens.shape[1]):
            scores = [float(x) / temperature for x in logits[b, t - 1]]
            top = max(scores)
            total = top + math.log(sum(math.exp(s - top) for s in scores))
            out[b, t] = scores[int(tokens[b, t])] - total
    return out


def test_a_token_is_predicted_by_the_logits_before_it_and_the_first_by_none() -> None:
    logits = tensor([[[0.0, math.log(3.0)], [math.log(4.0), 0.0], [9.0, 9.0]]])
    torch.testing.assert_close(logprobs(logits, tensor([[0, 1, 0]])), tensor([[0.0, math.log(3 / 4), math.log(4 / 5)]]))


def test_temperature_divides_the_logits_once() -> None:
    """At temperature 2, odds of 9 to 1 become 3 to 1."""
    logits = tensor([[math.log(9.0), 0.0]])
    torch.testing.assert_close(logprobs_at(logits, tensor([0]), temperature=2.0), tensor([math.log(3 / 4)]))


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 3), length=st.integers(1, 6), vocab=st.integers(2, 7), seed=st.integers(0, 10**6))
def test_logprobs_equal_the_loop_over_tokens(rows: int, length: int, vocab: int, seed: int) -> None:
    """I27."""
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(rows, length, vocab, generator=generator)
    tokens = torch.randint(vocab, (rows, length), generator=generator)
    got = logprobs(logits, tokens, temperature=0.7)
    torch.testing.assert_close(got.double(), logprobs_by_loop(logits, tokens, 0.7), rtol=1e-5, atol=1e-5)


def test_logprobs_of_a_row_are_unmoved_by_padding_on_either_side() -> None:
    """I4."""
    torch.manual_seed(0)
    logits, tokens = torch.randn(1, 4, 5), torch.randint(5, (1, 4))
    plain = logprobs(logits, tokens)[:, 1:]
    pad_logits, pad_tokens = torch.randn(1, 3, 5), torch.zeros(1, 3, dtype=torch.long)
    right = logprobs(torch.cat([logits, pad_logits], 1), torch.cat([tokens, pad_tokens], 1))
    left = logprobs(torch.cat([pad_logits, logits], 1), torch.cat([pad_tokens, tokens], 1))
    torch.testing.assert_close(right[:, 1:4], plain)
    torch.testing.assert_close(left[:, 4:], plain)


def test_half_precision_logits_are_scored_in_fp32_and_fp64_stays_fp64() -> None:
    logits = torch.randn(3, 5)
    assert logprobs_at(logits.bfloat16(), tensor([0, 1, 2])).dtype == torch.float32
    assert logprobs_at(logits.double(), tensor([0, 1, 2])).dtype == torch.float64


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_of_zero_or_less_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature above 0"):
        logprobs_at(torch.zeros(1, 2), tensor([0]), temperature=temperature)


def test_entropy_of_equal_odds_is_log_of_their_number_and_impossible_tokens_add_nothing() -> None:
    logits = tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -math.inf, -math.inf], [0.0, -math.inf, -math.inf, -math.inf]])
    torch.testing.assert_close(entropy_at(logits), tensor([math.log(4), math.log(2), 0.0]))


def test_entropy_has_a_finite_gradient_where_a_token_is_impossible() -> None:
    """I6."""
    logits = tensor([[0.0, 1.0, -math.inf]], requires_grad=True)
    entropy_at(logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_log_ratio_is_bounded_in_value_but_its_gradient_is_not_cut() -> None:
    """I20."""
    current = tensor([[0.0, -100.0, -1.0]], requires_grad=True)
    ratio = log_ratio(current, tensor([[-100.0, 0.0, -1.5]]))
    torch.testing.assert_close(ratio, tensor([[LOG_RATIO_LIMIT, -LOG_RATIO_LIMIT, 0.5]]))
    ratio.sum().backward()
    torch.testing.assert_close(current.grad, torch.ones(1, 3))


@pytest.mark.parametrize("numbers", [1, 20, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_one_softmax_gives_the_log_probs_the_entropy_and_the_gradient_of_two(
    temperature: float, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is looked at together; a token that cannot be drawn (logit -inf) adds nothing."""
    monkeypatch.setattr("melete.functional.logprobs.ENTROPY_NUMBERS", numbers)
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64)
    logits[2, 3] = -torch.inf
    targets, weights = tensor([0, 6, 2, 2, 5]), torch.randn(5, dtype=torch.float64)
    together, apart = (logits.clone().requires_grad_() for _ in range(2))
    picked, entropy = logprobs_and_entropy_at(together, targets, temperature=temperature)
    expected = logprobs_at(apart, targets, temperature=temperature)
    torch.testing.assert_close(picked, expected)
    torch.testing.assert_close(entropy, entropy_at(logits, temperature=temperature))
    (picked * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(together.grad, apart.grad)
    assert not entropy.requires_grad
    assert [len(found) for found in logprobs_and_entropy_at(logits[:0], targets[:0])] == [0, 0]
