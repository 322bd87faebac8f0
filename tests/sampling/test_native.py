"""The native sampler: what a row says depends on its prompt, its key and the weights, and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from tiny_models import MODELS, PROMPTS, deepseek, ending_often, llama, requests, sampled_batch, tokenizer
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconH1Config,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    Lfm2Config,
    Llama4TextConfig,
    MambaConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from melete.functional.logprobs import logprobs
from melete.learning.scoring import score
from melete.sampling.native import NativeSampler
from melete.types import Completion, SampleRequest, SamplingSettings

TWELVE = SamplingSettings(max_new_tokens=12)


def sampler_of(model: PreTrainedModel, **settings: int) -> NativeSampler:
    return NativeSampler(ending_often(model), tokenizer(), **settings)


def assert_same(got: Sequence[Sequence[Completion]], expected: Sequence[Sequence[Completion]]) -> None:
    """Tokens and reasons are equal, log-probs to rounding."""
    for siblings, others in zip(got, expected, strict=True):
        for one, other in zip(siblings, others, strict=True):
            assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


class Rows:
    """How many rows each call of a model's head has, told by a hook."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.counts: list[int] = []
        head = model.get_output_embeddings()
        assert head is not None
        head.register_forward_pre_hook(lambda _head, given: self.counts.append(given[0].numel() // given[0].shape[-1]))


@pytest.mark.parametrize("kind", MODELS)
def test_a_row_does_not_depend_on_the_rows_written_with_it(kind: str) -> None:
    """I33, I4: one by one, together, in any order and in waves of any size."""
    model = MODELS[kind]()
    asked = requests()
    together = sampler_of(model).sample(asked, TWELVE)
    assert len({len(completion.tokens) for siblings in together for completion in siblings}) > 3
    alone = [
        [sampler_of(model).sample([SampleRequest(request.prompt_tokens, (key,))], TWELVE)[0][0] for key in request.keys]
        for request in asked
    ]
    assert_same(together, alone)
    assert_same(sampler_of(model).sample(asked[::-1], TWELVE)[::-1], together)
    for max_rows in (1, 2, 4, 7):
        assert_same(sampler_of(model, max_rows=max_rows).sample(asked, TWELVE), together)


def test_when_ended_rows_are_removed_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = deepseek(), requests()
    results = []
    for share in (0.0, 0.5, 1.0):  # never, now and then, at once
        monkeypatch.setattr("melete.forward.rows.Rows.compact_share", share)
        results.append(sampler_of(model).sample(asked, TWELVE))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_the_room_for_which_the_cache_is_made_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = llama(), requests()
    expected = sampler_of(model).sample(asked, TWELVE)
    monkeypatch.setattr("melete.sampling.native.SPARE_TOKENS", 1)
    assert_same(sampler_of(model).sample(asked, TWELVE), expected)


def test_the_same_key_draws_the_same_and_siblings_differ() -> None:
    sampler = sampler_of(llama())
    first = sampler.sample([SampleRequest(PROMPTS[0], (7, 7, 8))], TWELVE)[0]
    assert first[0] == first[1]
    assert first[0].tokens != first[2].tokens


def test_a_request_with_more_keys_than_max_rows_is_split() -> None:
    model = ending_often(llama())
    rows = Rows(model)
    sampler = NativeSampler(model, tokenizer(), max_rows=4)
    split = sampler.sample([SampleRequest(PROMPTS[0], tuple(range(10)))], TWELVE)
    assert max(rows.counts) == 4
    assert_same(split, sampler_of(llama()).sample([SampleRequest(PROMPTS[0], tuple(range(10)))], TWELVE))


def test_each_distinct_prompt_is_run_through_the_model_once() -> None:
    """A prompt that several requests share counts once too."""
    sampler = sampler_of(llama())
    sampler.sample([*requests(group_size=5), SampleRequest(PROMPTS[0], (9,))], TWELVE)
    assert sampler.num_prefilled_tokens == sum(len(prompt) for prompt in PROMPTS)


def test_ended_rows_leave_the_batch() -> None:
    model = ending_often(llama())
    rows = Rows(model)
    sampler = NativeSampler(model, tokenizer())
    written = sampler.sample(requests(group_size=8), TWELVE)
    lengths = [len(completion.tokens) for siblings in written for completion in siblings]
    assert sampler.num_decoded_tokens == sum(lengths)
    prefill, *decode = rows.counts
    assert prefill == len(PROMPTS)
    assert len(decode) == max(lengths) - 1  # the first token needs the prefill alone, the last none after it
    for step, num_rows in enumerate(decode):
        needed = sum(length > step + 1 for length in lengths)
        assert needed <= num_rows <= max(needed / 0.75 + 1, 1)


@pytest.mark.parametrize("kind", MODELS)
def test_the_lean_forward_pass_writes_what_the_models_own_writes(kind: str) -> None:
    lean, own = sampler_of(MODELS[kind]()), sampler_of(MODELS[kind]())
    assert lean.lean is not None
    own.lean = None
    asked = requests(group_size=6)
    assert_same(lean.sample(asked, TWELVE), own.sample(asked, TWELVE))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_logprobs_of_the_sampler_are_those_of_the_learner(kind: str, temperature: float) -> None:
    """I33, I34."""
    model = MODELS[kind]()
    batch = sampled_batch(model, temperature=temperature)
    with torch.no_grad():
        scores = score(model, batch.tokens, batch.loss_mask, temperature)
    torch.testing.assert_close(batch.rollout_logprobs, scores.logprobs, rtol=0, atol=1e-5)
    assert float(batch.rollout_logprobs.min()) < -1


def windowed(kind: str, implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    shared = dict(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        initializer_range=0.2,
        pad_token_id=0,
        attn_implementation=implementation,
    )
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**shared)).eval()
    return Gemma3ForCausalLM(Gemma3TextConfig(**shared, head_dim=8, query_pre_attn_scalar=8)).eval()


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_model_that_looks_through_a_window_is_sampled_through_it(kind: str, implementation: str) -> None:
    """I33 for attention of four tokens, shorter than most rows."""
    model = windowed(kind, implementation)
    batch = sampled_batch(model)
    with torch.no_grad():
        scores = score(model, batch.tokens, batch.loss_mask, 1.0)
    torch.testing.assert_close(batch.rollout_logprobs, scores.logprobs, rtol=0, atol=1e-5)


SMALL = dict(vocab_size=len(tokenizer()), hidden_size=32, num_hidden_layers=2, pad_token_id=0, initializer_range=0.2)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64, intermediate_size_mlp=64)
MAMBA = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8)
OTHER_KINDS: Mapping[str, tuple[type[PreTrainedConfig], Mapping[str, object]]] = {
    "learned positions": (GPT2Config, SMALL | dict(num_attention_heads=4)),
    "biases for positions": (BloomConfig, SMALL | dict(n_layer=2, n_head=4)),
    "chunked attention": (Llama4TextConfig, SMALL | HEADS | dict(num_local_experts=2, attention_chunk_size=4)),
    "convolutions and attention": (Lfm2Config, SMALL | HEADS | dict(layer_types=["conv", "full_attention"])),
    "a state and attention side by side": (FalconH1Config, SMALL | HEADS | MAMBA | dict(lm_head_multiplier=0.5)),
    "a state and no attention": (MambaConfig, SMALL | dict(state_size=8)),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_models_of_other_kinds_are_sampled_and_scored_alike(kind: str) -> None:
    """I33: with rows forked, padded and removed, and against the whole logits of a row alone."""
    make, sizes = OTHER_KINDS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make(**sizes)).eval()
    batch = sampled_batch(model)
    with torch.no_grad():
        scores = score(model, batch.tokens, batch.loss_mask, 1.0).logprobs
        longest = int(batch.lengths.argmax())
        row = batch.tokens[longest : longest + 1]
        alone = logprobs(model(input_ids=row).logits, row)
    torch.testing.assert_close(batch.rollout_logprobs, scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores[longest], torch.where(batch.loss_mask[longest], alone[0], 0.0), rtol=0, atol=1e-5)
    assert float(scores.min()) < -1


@pytest.mark.parametrize("cut", [{"top_k": 2}, {"top_p": 0.3}])
def test_cuts_leave_the_logprobs_those_of_the_full_softmax(cut: dict[str, float]) -> None:
    model = ending_often(llama())
    settings = SamplingSettings(6, temperature=0.7, **cut)
    asked = SampleRequest(PROMPTS[1], (1, 2))
    for completion in NativeSampler(model, tokenizer()).sample([asked], settings)[0]:
        tokens = torch.tensor([[*asked.prompt_tokens, *completion.tokens]])
        mask = torch.arange(tokens.shape[1])[None] >= len(asked.prompt_tokens)
        with torch.no_grad():
            scores = score(model, tokens, mask, 0.7).logprobs[mask]
        torch.testing.assert_close(torch.tensor(completion.logprobs), scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_is_what_transformers_generates(kind: str) -> None:
    model = ending_often(MODELS[kind](), num_end_tokens=20)
    greedy = SamplingSettings(max_new_tokens=16, temperature=0)
    written = NativeSampler(model, tokenizer()).sample(requests(group_size=1), greedy)
    for prompt, (completion,) in zip(PROMPTS, written, strict=True):
        inputs = torch.tensor([prompt])
        expected = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=16, pad_token_id=0
        )
        assert completion.tokens == tuple(expected[0, len(prompt) :].tolist())


def test_a_row_ends_with_its_end_of_turn_token_or_at_the_limit() -> None:
    """I31: the end-of-turn token is a token of the completion, with a log-prob of its own."""
    model = ending_often(llama())
    ends = set(model.generation_config.eos_token_id) | {tokenizer().eos_token_id}
    written = [c for siblings in NativeSampler(model, tokenizer()).sample(requests(16), TWELVE) for c in siblings]
    assert {completion.finish_reason for completion in written} == {"stop", "length"}
    for completion in written:
        assert len(completion.tokens) == len(completion.logprobs)
        assert not ends & set(completion.tokens[:-1])
        assert (completion.tokens[-1] in ends) == (completion.finish_reason == "stop")
        if completion.finish_reason == "length":
            assert len(completion.tokens) == 12


def test_a_row_that_ends_at_the_limit_itself_has_stopped() -> None:
    model = llama()
    model.generation_config.eos_token_id = list(range(len(tokenizer())))
    (completion,) = NativeSampler(model, tokenizer()).sample([SampleRequest((1,), (0,))], SamplingSettings(1))[0]
    assert len(completion.tokens) == 1
    assert completion.finish_reason == "stop"


def test_a_model_whose_pad_token_is_its_end_of_turn_token_samples_the_same() -> None:
    """I31."""
    model = ending_often(llama())
    same = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    assert same.pad_token_id == same.eos_token_id == tokenizer().eos_token_id
    got = NativeSampler(model, same).sample(requests(), TWELVE)
    assert_same(got, NativeSampler(model, tokenizer()).sample(requests(), TWELVE))
    ended = [c for siblings in got for c in siblings if c.finish_reason == "stop"]
    assert ended and all(len(completion.tokens) >= 1 for completion in ended)


def test_a_stop_string_ends_a_row_at_the_token_that_completes_it() -> None:
    model = llama()
    sampler = NativeSampler(model, tokenizer())
    free = sampler.sample(requests(), TWELVE)
    for request, siblings in zip(requests(), free, strict=True):
        for key, completion in zip(request.keys, siblings, strict=True):
            text = tokenizer().decode(list(completion.tokens))
            stop = text[len(text) // 2 : len(text) // 2 + 3]
            settings = SamplingSettings(12, stop_strings=("never written", stop))
            (short,) = sampler.sample([SampleRequest(request.prompt_tokens, (key,))], settings)[0]
            lengths = range(1, 13)
            shortest = next(n for n in lengths if stop in tokenizer().decode(list(completion.tokens[:n])))
            assert short.tokens == completion.tokens[:shortest]
            assert short.finish_reason == "stop"


def test_a_stop_string_of_few_characters_and_many_tokens_is_seen() -> None:
    """A character of two bytes is two tokens of a byte-level tokenizer that has not learnt it."""
    tokens = tokenizer().encode("ééé", add_special_tokens=False)
    assert len(tokens) == 6
    model = llama()

    written = 0

    def write_it(_head: object, _given: object, logits: torch.Tensor) -> torch.Tensor:  # the next of the cycle, always
        nonlocal written
        forced = torch.zeros_like(logits)
        forced[..., tokens[written % 6]] = 100.0
        written += 1
        return forced

    head = model.get_output_embeddings()
    assert head is not None
    head.register_forward_hook(write_it)
    settings = SamplingSettings(20, stop_strings=("ééé",))
    (completion,) = NativeSampler(model, tokenizer()).sample([SampleRequest((1,), (0,))], settings)[0]
    assert completion.tokens == tuple(tokens)
    assert completion.finish_reason == "stop"


def test_new_weights_bring_their_version_and_their_logprobs() -> None:
    """I38."""
    old, new = deepseek(seed=0), deepseek(seed=1)
    sampler = NativeSampler(ending_often(old), tokenizer(), version=4)
    before = sampler.sample(requests(), TWELVE)
    assert {completion.policy_version for siblings in before for completion in siblings} == {4}
    sampler.load_weights(new.state_dict(), version=5)
    after = sampler.sample(requests(), TWELVE)
    assert {completion.policy_version for siblings in after for completion in siblings} == {5}
    assert_same(after, NativeSampler(ending_often(new), tokenizer()).sample(requests(), TWELVE))
    assert [c.tokens for c in after[0]] != [c.tokens for c in before[0]]


def test_weights_that_do_not_fit_change_nothing() -> None:
    """I38."""
    model = llama()
    sampler = NativeSampler(model, tokenizer())
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    changed = {name: weight + 1 for name, weight in kept.items()}
    with pytest.raises(KeyError):
        sampler.load_weights(changed | {"no.such.weight": torch.zeros(1)}, version=1)
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        sampler.load_weights(changed | {"model.norm.weight": torch.zeros(1)}, version=1)
    assert sampler.policy_version == 0
    assert all(torch.equal(weight, kept[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("request_", "says"), [(SampleRequest((), (1,)), "no prompt"), (SampleRequest((1,), ()), "no keys")]
)
def test_a_request_without_prompt_or_keys_is_refused(request_: SampleRequest, says: str) -> None:
    with pytest.raises(ValueError, match=f"request 1 has {says}"):
        sampler_of(llama()).sample([SampleRequest((1,), (1,)), request_], TWELVE)


def test_no_requests_are_no_completions() -> None:
    assert sampler_of(llama()).sample([], TWELVE) == []


def test_sampling_leaves_the_mode_of_the_model_as_it_was() -> None:
    model = llama().train()
    sampler = NativeSampler(model, tokenizer())
    sampler.sample([SampleRequest((1,), (1,))], SamplingSettings(2))
    assert model.training
    with pytest.raises(IndexError):
        sampler.sample([SampleRequest((10**6,), (1,))], SamplingSettings(2))
    assert model.training


def test_rows_sampled_in_bfloat16_carry_finite_logprobs_in_full_precision() -> None:
    model = ending_often(llama()).to(torch.bfloat16)
    for completion in NativeSampler(model, tokenizer()).sample(requests(), TWELVE)[0]:
        assert all(-50 < logprob <= 0 for logprob in completion.logprobs)


def test_a_completion_is_told_as_soon_as_it_is_written() -> None:
    """Short rows before long ones, each once, and the same as what is returned in the end."""
    sampler = sampler_of(ending_often(llama()))
    told: list[tuple[int, int, Completion, int]] = []

    def hears(number: int, sibling: int, completion: Completion) -> None:
        told.append((number, sibling, completion, sampler.num_decoded_tokens))

    completions = sampler.sample(requests(), TWELVE, on_completion=hears)
    assert {(number, sibling): completion for number, sibling, completion, _ in told} == {
        (number, sibling): completion
        for number, siblings in enumerate(completions)
        for sibling, completion in enumerate(siblings)
    }
    lengths = [len(completion.tokens) for _, _, completion, _ in told]
    assert lengths == sorted(lengths) and len(set(lengths)) > 1
    assert told[0][3] < sampler.num_decoded_tokens  # there was still work to do
