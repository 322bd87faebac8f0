"""vLLM behind the sampler's protocol: with a small engine of its shape, and with itself where it is installed."""

from __future__ import annotations

import copy
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import fake_vllm
import numpy as np
import pytest
import torch
from fake_vllm import Fake
from tiny_models import PROMPTS, deepseek, ending_often, requests, tokenizer
from tiny_training import train
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from melete.errors import ModelError, RecipeError
from melete.learning.scoring import score
from melete.models.adapters import LoRA, add_adapter
from melete.sampling.native import NativeSampler
from melete.sampling.vllm import VLLMSampler
from melete.types import Completion, SampleRequest, SamplingSettings

TWELVE = SamplingSettings(max_new_tokens=12)
Open: TypeAlias = Callable[..., VLLMSampler]


def llama(seed: int = 0, *, tied: bool = False) -> PreTrainedModel:
    """Heads of 32 numbers are the smallest that vLLM knows on a CPU."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer().bos_token_id,
        eos_token_id=tokenizer().eos_token_id,
        pad_token_id=tokenizer().pad_token_id,
    )
    return ending_often(LlamaForCausalLM(config).eval())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return fake_vllm.install(monkeypatch)


def opening(close: list[VLLMSampler]) -> Open:
    def make(model: PreTrainedModel, **settings: int) -> VLLMSampler:
        sampler = VLLMSampler(model, tokenizer(), cache_bytes=32 << 20, **settings)
        close.append(sampler)
        return sampler

    return make


@pytest.fixture(params=fake_vllm.ENGINES)
def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Makes samplers, and closes them in the end: first with the fake engine, then with vLLM if it can be imported."""
    if request.param == "fake":
        fake_vllm.install(monkeypatch)
    made: list[VLLMSampler] = []
    yield opening(made)
    for sampler in made:
        sampler.close()


def flat(found: list[list[Completion]]) -> list[Completion]:
    return [completion for siblings in found for completion in siblings]


def scored(model: PreTrainedModel, prompt: tuple[int, ...], completion: Completion, temperature: float) -> torch.Tensor:
    tokens = torch.tensor([[*prompt, *completion.tokens]])
    mask = torch.arange(tokens.shape[1])[None] >= len(prompt)
    with torch.no_grad():
        return score(model, tokens, mask, temperature).logprobs[mask]


def assert_scored_alike(
    model: PreTrainedModel, found: list[list[Completion]], temperature: float = 1.0, asked: Sequence[SampleRequest] = ()
) -> None:
    for request, siblings in zip(asked or requests(), found, strict=True):
        for completion in siblings:
            expected = scored(model, request.prompt_tokens, completion, temperature)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_logprobs_of_the_engine_are_those_of_the_learner(opened: Open, temperature: float) -> None:
    """I33, I34."""
    model = llama()
    found = opened(model).sample(requests(), SamplingSettings(12, temperature=temperature))
    assert [len(siblings) for siblings in found] == [3] * len(PROMPTS)
    assert_scored_alike(model, found, temperature)
    assert min(min(completion.logprobs) for completion in flat(found)) < -1


@pytest.mark.parametrize("cut", [{"top_k": 2}, {"top_p": 0.3}])
def test_cuts_are_made_and_leave_the_logprobs_those_of_the_full_softmax(opened: Open, cut: dict[str, float]) -> None:
    model = llama()
    found = opened(model).sample(requests(), SamplingSettings(12, temperature=0.7, **cut))
    assert_scored_alike(model, found, 0.7)
    for request, siblings in zip(requests(), found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([request.prompt_tokens])).logits[0, -1]
        likeliest = logits.topk(2).indices.tolist()
        if "top_k" in cut:
            assert all(completion.tokens[0] in likeliest for completion in siblings)


def test_greedy_is_what_the_native_sampler_writes(opened: Open) -> None:
    model, greedy = llama(), SamplingSettings(12, temperature=0)
    found = flat(opened(model).sample(requests(1), greedy))
    expected = flat(NativeSampler(model, tokenizer()).sample(requests(1), greedy))
    assert [(c.tokens, c.finish_reason) for c in found] == [(c.tokens, c.finish_reason) for c in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


def test_a_row_ends_with_its_end_of_turn_token_or_at_the_limit(opened: Open) -> None:
    """I31: the end-of-turn token is a token of the completion, with a log-prob of its own."""
    model = llama()
    ends = set(model.generation_config.eos_token_id) | {tokenizer().eos_token_id}
    found = flat(opened(model).sample(requests(8), TWELVE))
    assert {completion.finish_reason for completion in found} == {"stop", "length"}
    for completion in found:
        assert len(completion.tokens) == len(completion.logprobs)
        assert not ends & set(completion.tokens[:-1])
        assert (completion.tokens[-1] in ends) == (completion.finish_reason == "stop")
        if completion.finish_reason == "length":
            assert len(completion.tokens) == 12


def test_the_same_key_draws_the_same_and_siblings_differ(opened: Open) -> None:
    """In another order and with other rows beside them too, where no token is nearly a tie."""
    sampler = opened(llama())
    first = sampler.sample([SampleRequest(PROMPTS[0], (7, 7, 8))], TWELVE)[0]
    assert first[0].tokens == first[1].tokens
    assert first[0].tokens != first[2].tokens
    torch.manual_seed(123)
    together = sampler.sample([SampleRequest(PROMPTS[1], (7, 9)), SampleRequest(PROMPTS[0], (8, 7))], TWELVE)[1]
    assert [completion.tokens for completion in together] == [first[2].tokens, first[0].tokens]
    (large,) = sampler.sample([SampleRequest(PROMPTS[0], (2**63 - 1, 2**63 - 2))], TWELVE)
    assert large[0].tokens != large[1].tokens


def test_a_stop_string_ends_a_row_at_the_token_that_completes_it(opened: Open) -> None:
    sampler = opened(llama())
    free = sampler.sample(requests(), TWELVE)
    num_shortened = 0
    for request, siblings in zip(requests(), free, strict=True):
        for key, completion in zip(request.keys, siblings, strict=True):
            text = tokenizer().decode(list(completion.tokens))
            stop = text[len(text) // 2 : len(text) // 2 + 3]
            if not stop:
                continue
            settings = SamplingSettings(12, stop_strings=("never written", stop))
            (short,) = sampler.sample([SampleRequest(request.prompt_tokens, (key,))], settings)[0]
            lengths = range(1, len(completion.tokens) + 1)
            shortest = next(n for n in lengths if stop in tokenizer().decode(list(completion.tokens[:n])))
            assert short.tokens == completion.tokens[:shortest]
            assert short.finish_reason == "stop" and len(short.logprobs) == shortest
            num_shortened += shortest < len(completion.tokens)
    assert num_shortened > 3
    assert flat(sampler.sample(requests(1), TWELVE))  # nothing of what was cut short is still in the engine


def test_each_completion_is_told_once_and_as_soon_as_it_is_written(opened: Open) -> None:
    told: list[tuple[int, int, Completion]] = []
    found = opened(llama()).sample(requests(), TWELVE, on_completion=lambda *heard: told.append(heard))
    assert {(number, sibling): completion for number, sibling, completion in told} == {
        (number, sibling): completion
        for number, siblings in enumerate(found)
        for sibling, completion in enumerate(siblings)
    }
    lengths = [len(completion.tokens) for _, _, completion in told]
    assert len(told) == len(flat(found)) and lengths == sorted(lengths) and len(set(lengths)) > 1


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied embeddings"])
def test_new_weights_bring_their_version_and_their_logprobs(opened: Open, tied: bool) -> None:
    """I38; with tied embeddings the head is not in the checkpoint, and follows the embedding."""
    model, new = llama(tied=tied), llama(seed=1, tied=tied)
    sampler = opened(model, version=4)
    before = sampler.sample(requests(), TWELVE)
    assert {completion.policy_version for completion in flat(before)} == {4}
    for version in (5, 6):  # the second push begins from what the first has left
        sampler.load_weights(new.state_dict(), version=version)
        after = sampler.sample(requests(), TWELVE)
        assert {completion.policy_version for completion in flat(after)} == {version}
        assert_scored_alike(new, after)
    assert [c.tokens for c in flat(after)] != [c.tokens for c in flat(before)]


def test_a_training_step_is_seen_and_so_are_prompts_that_were_kept(opened: Open) -> None:
    """A long prompt whose beginning the engine kept is read again after a push."""
    model = llama()
    sampler = opened(model)
    asked = [SampleRequest(tuple(range(5, 205)), (0, 1))]
    before = sampler.sample(asked, TWELVE)
    assert_scored_alike(model, before, asked=asked)
    learner = train(model)
    sampler.load_weights(learner.weights(), version=1)
    after = sampler.sample(asked, TWELVE)
    assert_scored_alike(model, after, asked=asked)
    assert max(abs(a - b) for a, b in zip(before[0][0].logprobs[:1], after[0][0].logprobs[:1], strict=True)) > 1e-3


def test_an_adapter_is_merged_on_the_way_and_stays_in_the_model(opened: Open) -> None:
    pytest.importorskip("peft")
    model = llama()
    add_adapter(model, LoRA(rank=4, alpha=32), seed=0)
    sampler = opened(model)
    base = {name: weight.clone() for name, weight in model.state_dict().items() if "base_layer" in name}
    before = sampler.sample(requests(), TWELVE)
    learner = train(model)
    assert all("lora_" in name for name in learner.weights())
    sampler.load_weights(learner.weights(), version=1)
    assert_scored_alike(model, sampler.sample(requests(), TWELVE))
    assert all(torch.equal(weight, base[name]) for name, weight in model.state_dict().items() if name in base)
    first = float(scored(model, PROMPTS[0], before[0][0], 1.0)[0])
    assert abs(first - before[0][0].logprobs[0]) > 1e-3  # the adapter has changed what the model says


def test_a_sampler_that_lags_behind_has_a_state_of_its_own(opened: Open) -> None:
    model = llama()
    sampler = opened(copy.deepcopy(model), version=2)
    kept = copy.deepcopy(sampler.state_dict())
    train(model)
    sampler.load_weights(model.state_dict(), version=3)
    sampler.load_state_dict(kept)
    assert sampler.policy_version == 2
    assert_scored_alike(llama(), sampler.sample(requests(), TWELVE))


def test_the_process_is_left_as_it_was(opened: Open) -> None:
    """Seeds, threads and the environment are those of before."""
    set_num_threads, environment = torch.set_num_threads, os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")
    model = llama()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = float(torch.rand(())), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    sampler = opened(model)
    sampler.load_weights(model.state_dict(), version=1)
    assert (float(torch.rand(())), np.random.rand(), random.random()) == expected
    assert torch.set_num_threads is set_num_threads and torch.get_num_threads() == 1
    assert os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == environment


def test_a_mixture_of_experts_is_pushed_under_the_names_of_its_checkpoint(fake: Fake) -> None:
    model = ending_often(deepseek())
    sampler = opening([])(model)
    names = fake.engines[0].weights.checkpoint
    assert any(".experts.0.gate_proj.weight" in name for name in names)
    train(model)
    sampler.load_weights(model.state_dict(), version=1)
    assert_scored_alike(model, sampler.sample(requests(), TWELVE))


def test_no_more_rows_than_asked_for_are_written_at_once(fake: Fake) -> None:
    opening([])(llama(), max_rows=4).sample(requests(5), TWELVE)
    assert fake.engines[0].llm_engine.most_rows == 4


LOST = [
    ("lost", "did not take: the model's log-probs moved by up to .*, and the engine's not at all"),
    ("half", "does not write with the weights that it was sent"),
    ("old head", "does not write with the weights that it was sent"),
    ("cache kept", "it reads prompts that earlier weights have left in its prefix cache"),
    ("cache refused", "did not empty its prefix cache"),
]


@pytest.mark.parametrize(("fault", "says"), LOST, ids=[fault for fault, _ in LOST])
def test_a_push_that_did_not_take_is_refused_and_the_next_one_mends_it(fake: Fake, fault: str, says: str) -> None:
    model = llama(tied=fault == "old head")
    sampler = opening([])(model)
    sampler.load_weights(model.state_dict(), version=1)
    fake.faults.add(fault)
    learner = train(model)
    with pytest.raises(ModelError, match=says) as error:
        sampler.load_weights(learner.weights(), version=2)
    assert "version 2" in error.value.place and "native" in error.value.remedy
    assert sampler.policy_version == 1
    with pytest.raises(ModelError, match="the last push of weights failed"):
        sampler.sample(requests(), TWELVE)
    fake.faults.clear()
    sampler.load_weights(learner.weights(), version=2)
    assert_scored_alike(model, sampler.sample(requests(), TWELVE))


def test_a_push_that_was_lost_is_seen_however_small_the_step(fake: Fake) -> None:
    model = llama()
    sampler = opening([])(model)
    fake.faults.add("lost")
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.add_(1e-5)
    with pytest.raises(ModelError, match="did not take"):
        sampler.load_weights(model.state_dict(), version=1)


def test_weights_that_do_not_fit_change_nothing(fake: Fake) -> None:
    """I38."""
    model = llama()
    sampler = opening([])(model)
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    changed = {name: weight + 1 for name, weight in kept.items()}
    with pytest.raises(KeyError):
        sampler.load_weights(changed | {"no.such.weight": torch.zeros(1)}, version=1)
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        sampler.load_weights(changed | {"model.norm.weight": torch.zeros(1)}, version=1)
    assert sampler.policy_version == 0 and sampler.sample(requests(), TWELVE)
    assert all(torch.equal(weight, kept[name]) for name, weight in model.state_dict().items())


def test_what_cannot_be_sampled_is_refused_and_leaves_nothing_in_the_engine(fake: Fake) -> None:
    sampler = opening([])(llama())
    for bad, says in [(SampleRequest((), (1,)), "no prompt"), (SampleRequest((1,), ()), "no keys")]:
        with pytest.raises(ValueError, match=f"request 1 has {says}"):
            sampler.sample([SampleRequest((1,), (1,)), bad], TWELVE)
    with pytest.raises(ValueError, match="longer than"):
        sampler.sample([SampleRequest((1,), (1,)), SampleRequest((1,) * 300, (1,))], TWELVE)
    with pytest.raises(ValueError, match=r"0 or at least 0\.01"):
        sampler.sample(requests(), SamplingSettings(4, temperature=0.001))
    fake.faults.add("abort")
    with pytest.raises(ModelError, match="gave a completion up: abort"):
        sampler.sample(requests(), TWELVE)
    assert not fake.engines[0].llm_engine.requests
    assert sampler.sample([], TWELVE) == []


def test_a_closed_engine_gives_its_memory_back_once(fake: Fake) -> None:
    sampler = opening([])(llama())
    sampler.close()
    sampler.close()
    assert fake.engines[0].llm_engine.is_shut_down and fake.num_cleaned == 1
    with pytest.raises(ModelError):
        sampler.sample(requests(), TWELVE)


def test_without_vllm_the_line_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RecipeError, match=r"pip install 'melete\[vllm\]'"):
        opening([])(llama())


@pytest.mark.parametrize(("fault", "says"), [("no start", "no kernel image"), ("no step", "Head dimension 80")])
def test_an_engine_that_cannot_run_the_model_says_why_and_is_given_back(fake: Fake, fault: str, says: str) -> None:
    fake.faults.add(fault)
    with pytest.raises(ModelError, match=f"vLLM cannot run LlamaForCausalLM: {says}") as error:
        opening([])(llama())
    assert "native" in error.value.remedy
    assert fake.num_cleaned == len(fake.engines)
