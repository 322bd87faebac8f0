"""Drawing a token from logits and a uniform number."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.sampling import drawing
from melete.sampling.drawing import draw
from melete.sampling.keys import rollout_key, uniforms
from melete.types import SamplingSettings

LAST_BELOW_ONE = math.nextafter(1.0, 0.0)
logit_rows = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)
any_uniform = st.one_of(st.just(0.0), st.just(LAST_BELOW_ONE), st.floats(0, LAST_BELOW_ONE))


@pytest.fixture(params=[drawing.SMALL, 0], ids=["all at once", "block first"], scope="module", autouse=True)
def _both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small vocabularies are drawn from in one way and large ones in another; both keep every law."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "SMALL", request.param)
        yield


def drawn(logits: list[float], uniform: float, **cuts: float) -> tuple[int, float]:
    settings_ = SamplingSettings(1, **cuts)
    tokens, logprobs = draw(torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64), settings_)
    return int(tokens[0]), float(logprobs[0])


def softmax(logits: list[float], temperature: float) -> list[float]:
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.49, 0), (0.51, 1), (0.74, 1), (0.76, 2), (LAST_BELOW_ONE, 2)]
)
def test_a_uniform_number_picks_the_token_whose_interval_it_falls_in(uniform: float, token: int) -> None:
    """Probabilities 1/2, 1/4, 1/4 own [0, 0.5), [0.5, 0.75) and [0.75, 1)."""
    logits = [math.log(2.0), 0.0, 0.0]
    assert drawn(logits, uniform) == (token, pytest.approx(math.log([0.5, 0.25, 0.25][token]), abs=1e-6))


@settings(max_examples=150, deadline=None)
@given(logits=logit_rows, uniform=any_uniform, top_k=st.integers(1, 14))
def test_top_k_draws_among_the_k_most_likely(logits: list[float], uniform: float, top_k: int) -> None:
    token, _ = drawn(logits, uniform, top_k=top_k)
    assert sum(x > logits[token] + 1e-5 for x in logits) < top_k  # closer ones are equal in single precision


@settings(max_examples=150, deadline=None)
@given(logits=logit_rows, uniform=any_uniform, top_p=st.floats(0.01, 1.0), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_top_p_draws_among_the_fewest_tokens_that_reach_p(
    logits: list[float], uniform: float, top_p: float, temperature: float
) -> None:
    token, logprob = drawn(logits, uniform, top_p=top_p, temperature=temperature)
    probs = softmax(logits, temperature)
    more_likely = sum(p for p in probs if p > probs[token] * (1 + 1e-5))
    assert more_likely < top_p + 1e-5
    assert logprob == pytest.approx(math.log(probs[token]), abs=1e-4)


@settings(max_examples=100, deadline=None)
@given(logits=logit_rows, uniform=any_uniform, banned=st.sets(st.integers(0, 11), max_size=6))
def test_a_token_of_probability_zero_is_never_drawn(logits: list[float], uniform: float, banned: set[int]) -> None:
    cut = [-math.inf if n in banned and n > 0 else x for n, x in enumerate(logits)]
    token, logprob = drawn(cut, uniform)
    assert cut[token] > -math.inf
    assert math.isfinite(logprob)


@settings(max_examples=50, deadline=None)
@given(logits=logit_rows, uniform=any_uniform)
def test_greedy_takes_the_most_likely_whatever_the_number(logits: list[float], uniform: float) -> None:
    token, logprob = drawn(logits, uniform, temperature=0)
    assert logits[token] == pytest.approx(max(logits), rel=1e-6, abs=1e-6)  # equal in fp32
    assert logprob == pytest.approx(math.log(softmax(logits, 1.0)[token]), abs=1e-4)


def test_greedy_tells_logits_apart_whose_logprobs_are_rounded_to_the_same() -> None:
    higher = float(torch.nextafter(torch.tensor(0.001), torch.tensor(1.0)))
    logits = [0.001, higher, -8.0]
    assert torch.log_softmax(torch.tensor(logits), dim=-1)[:2].unique().numel() == 1
    assert drawn(logits, 0.5, temperature=0)[0] == 1


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_tokens_are_drawn_as_often_as_their_probabilities_say(temperature: float) -> None:
    """Chi-square over 20,000 keys; 9 degrees of freedom exceed 33.7 once in ten thousand."""
    torch.manual_seed(0)
    logits, num = torch.randn(10), 20_000
    keys = np.array([rollout_key(0, "frequency", n) for n in range(num)], dtype=np.uint64)
    numbers = torch.from_numpy(uniforms(keys, np.full(num, 3, dtype=np.uint64)))
    tokens, _ = draw(logits.expand(num, -1), numbers, SamplingSettings(1, temperature=temperature))
    expected = num * torch.softmax(logits / temperature, dim=-1)
    observed = torch.bincount(tokens, minlength=10)
    assert float(((observed - expected) ** 2 / expected).sum()) < 33.7


def test_a_large_vocabulary_is_drawn_to_its_last_token() -> None:
    """The cumulative sum of 150,000 equal probabilities is not rounded away."""
    size = 150_000
    numbers = torch.tensor([0.0, 0.5, LAST_BELOW_ONE], dtype=torch.float64)
    tokens, _ = draw(torch.zeros(3, size), numbers, SamplingSettings(1))
    assert tokens.tolist()[0] == 0
    assert abs(tokens.tolist()[1] - size // 2) <= 1
    assert tokens.tolist()[2] == size - 1
