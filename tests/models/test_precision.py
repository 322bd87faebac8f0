"""Weights of 16 bits: each is its full weight rounded, so that no small step is lost."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import MODELS, llama, tokenizer
from tiny_training import TOKENS, rows, train
from transformers import PreTrainedModel

from melete.batch import TokenRows
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.learning.scoring import score_batch
from melete.learning.updater import Updater
from melete.models.adapters import LoRA, add_adapter
from melete.sampling.native import NativeSampler
from melete.types import SampleRequest, SamplingSettings


def half(seed: int = 0) -> PreTrainedModel:
    return llama(seed).to(torch.bfloat16)


def test_small_steps_add_up_where_each_alone_would_be_rounded_away() -> None:
    layer = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(layer.weight)
    updater = Updater(layer, OptimizerSettings(lr=1e-4, num_steps=100))
    seen = set()
    for _ in range(100):
        updater.step([layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum()])
        seen.add(layer.weight.item())
    # the number below 1 is 1 - 1/256: a step of 1e-4 alone would leave 1
    assert layer.weight.item() == pytest.approx(0.99, abs=2e-3)
    assert updater.full[layer.weight].item() == pytest.approx(0.99, abs=1e-4)
    assert 1.0 in seen and len(seen) <= 5


@pytest.mark.parametrize("with_adapter", [False, True])
def test_interrupted_and_resumed_is_as_if_it_had_not_been(with_adapter: bool) -> None:
    whole, cut, later = half(), half(), half()
    for model in (whole, cut, later):
        if with_adapter:
            add_adapter(model, LoRA(rank=4), seed=0)
    train(whole)
    state = copy.deepcopy(train(cut, stop=2).state_dict())
    learner = train(later, start=2, state=state)
    for one, other in zip(whole.parameters(), later.parameters(), strict=True):
        assert one.dtype == torch.bfloat16 and torch.equal(one, other)
    for rounded, full in learner.updater.full.items():
        assert torch.equal(rounded, full.to(torch.bfloat16))


def test_gradients_of_parts_add_up_in_full() -> None:
    layer = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    updater = Updater(layer, OptimizerSettings(max_grad_norm=1e9))
    metrics = updater.step(layer(torch.full((1, 1), 1.0, dtype=torch.bfloat16)).sum() for _ in range(300))
    assert metrics["grad_norm"] == 300.0  # sums in bfloat16 would stay at 256


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_log_probs_have_32_bits_and_those_of_sampler_and_learner_are_near(make) -> None:
    model = make().to(torch.bfloat16)
    request = SampleRequest((1, 40, 41), (7,))
    written = NativeSampler(model, tokenizer()).sample([request], SamplingSettings(8))[0][0]
    row = (request.prompt_tokens + written.tokens, (False,) * 3 + (True,) * len(written.tokens))
    scored = score_batch(model, TokenRows.pack([row], 0), 4096, 1.0)[0, 3:]
    assert scored.dtype == torch.float32
    torch.testing.assert_close(scored, torch.tensor(written.logprobs), atol=0.25, rtol=0.1)


def test_it_learns_what_32_bits_learn() -> None:
    learner = LocalLearner(half(), optimizer=OptimizerSettings(lr=1e-2, num_steps=4))
    before = score_batch(learner.model, TokenRows.pack(rows(), 0), 4096, 1.0).sum()
    full, rounded = llama(), half()
    train(full), train(rounded)
    one, other = (score_batch(model, TokenRows.pack(rows(), 0), 4096, 1.0).sum() for model in (full, rounded))
    assert abs(float(one - other)) < 0.1 * abs(float(one - before))
    assert rounded(input_ids=TOKENS).logits.dtype == torch.bfloat16
