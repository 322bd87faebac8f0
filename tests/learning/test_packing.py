"""Packing: rows in one sequence are as they are alone, in what they say and in what is learnt from them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import assert_close_gradients, copied, equal, llama
from torch import Tensor
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
)

from melete.algorithms import resolve
from melete.batch import MaskedRow, TrainBatch, demonstrations, microbatches
from melete.errors import ModelError
from melete.learning import packing
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.learning.packing import first_fit, packed, refuse_unpackable, states_of
from melete.learning.scoring import score, shares_beginnings

SMALL = {"vocab_size": 380, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}


def olmo() -> PreTrainedModel:
    return Olmo2ForCausalLM(Olmo2Config(**SMALL, **HEADS, pad_token_id=0))


def gemma() -> PreTrainedModel:
    return GemmaForCausalLM(GemmaConfig(**SMALL, **HEADS, head_dim=8))


def gpt2() -> PreTrainedModel:
    """Its positions are learnt embeddings."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=380, eos_token_id=0, bos_token_id=0, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    )


def eager() -> PreTrainedModel:
    return Olmo2ForCausalLM._from_config(Olmo2Config(**SMALL, **HEADS, pad_token_id=0), attn_implementation="eager")


MODELS: dict[str, Callable[[], PreTrainedModel]] = {"olmo": olmo, "gemma": gemma, "gpt2": gpt2, "eager": eager}
KIND = pytest.mark.parametrize("kind", MODELS)


def made(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def rows(seed: int = 0) -> list[MaskedRow]:
    """Rows of uneven lengths; of some, tokens in the middle are learnt and the last ones are not."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in (9, 3, 17, 5, 2, 11, 4):
        tokens = torch.randint(3, 370, (length,), generator=generator).tolist()
        found.append((tokens, [False, *(place % 3 != 0 or length < 6 for place in range(1, length))]))
    return found


def batch_of(given: list[MaskedRow]) -> TrainBatch:
    return demonstrations(given, 0)


def scored(model: PreTrainedModel, batch: TrainBatch, *, is_packed: bool) -> Tensor:
    return score(model, batch.tokens, batch.loss_mask, 1.0, packing=is_packed).logprobs


@given(st.lists(st.integers(1, 20), max_size=12), st.integers(1, 25))
@settings(max_examples=50)
def test_first_fit_holds_every_row_once_and_no_sequence_beyond_its_room(lengths: list[int], capacity: int) -> None:
    sequences = first_fit(lengths, capacity)
    assert sorted(row for rows in sequences for row in rows) == list(range(len(lengths)))
    for held in sequences:
        assert sum(lengths[row] for row in held) <= max(capacity, lengths[held[0]])
    for number, held in enumerate(sequences[1:], 1):  # nothing lies where an earlier sequence had room
        for earlier in sequences[:number]:
            before = [row for row in earlier if (-lengths[row], row) < (-lengths[held[0]], held[0])]
            assert sum(lengths[row] for row in before) + lengths[held[0]] > max(capacity, lengths[earlier[0]])


@KIND
def test_log_probs_of_packed_rows_are_those_of_padded_ones(kind: str) -> None:
    """I3."""
    model, batch = made(kind), batch_of(rows())
    assert not shares_beginnings(model)
    together, apart = scored(model, batch, is_packed=True), scored(model, batch, is_packed=False)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert float(apart.detach().abs().max()) > 1


@KIND
def test_log_probs_of_packed_rows_are_those_of_each_row_alone(kind: str) -> None:
    """I3, against a naive loop."""
    model = made(kind)
    together = scored(model, batch_of(rows()), is_packed=True)
    for number, row in enumerate(rows()):
        alone = scored(model, batch_of([row]), is_packed=False)
        torch.testing.assert_close(together[number, : len(row[0])], alone[0], rtol=1e-5, atol=1e-5)


@KIND
def test_what_stands_in_a_packed_neighbour_changes_nothing(kind: str) -> None:
    """I3: two rows in one sequence never see each other, to the last bit."""
    model = made(kind)
    first, second = rows()[3], rows()[6]
    other = ([(token + 7) % 370 for token in second[0]], second[1])
    filler = ([5] * 9, [False, *[True] * 8])  # long enough that the two share a sequence
    assert first_fit([9, 5, 4], 9) == [[0], [1, 2]]
    one, two = (scored(model, batch_of([filler, first, end]), is_packed=True) for end in (second, other))
    assert torch.equal(one[:2], two[:2]) and not torch.equal(one[2], two[2])
    other = ([(token + 7) % 370 for token in first[0]], first[1])
    one, two = (scored(model, batch_of([filler, begin, second]), is_packed=True) for begin in (first, other))
    assert torch.equal(one[2], two[2]) and not torch.equal(one[1], two[1])


@KIND
def test_gradients_of_packed_rows_are_those_of_padded_ones(kind: str) -> None:
    """I3."""
    gradients = []
    for is_packed in (False, True):
        model, batch = made(kind), batch_of(rows())
        (-scored(model, batch, is_packed=is_packed).sum() / batch.loss_mask.sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_close_gradients(gradients[1], gradients[0])


@pytest.mark.parametrize("kind", tiny_models.MODELS)
def test_where_padding_is_never_computed_a_neighbour_changes_nothing_either(kind: str) -> None:
    """I3; with experts but for rounding, since how many tokens an expert multiplies at once is another number."""
    model = tiny_models.MODELS[kind]()
    first, second = rows()[3], rows()[6]
    other = ([(token + 7) % 370 for token in second[0]], second[1])
    one, two = (scored(model, batch_of([first, end]), is_packed=True) for end in (second, other))
    torch.testing.assert_close(one[0], two[0], rtol=0, atol=0 if kind == "llama" else 1e-5)
    assert not torch.equal(one[1], two[1])


def learner(model: PreTrainedModel, *, is_packed: bool, max_tokens: int = 8192) -> LocalLearner:
    optimizer = OptimizerSettings(lr=1e-3, num_steps=3)
    return LocalLearner(model, optimizer=optimizer, max_tokens_per_microbatch=max_tokens, packing=is_packed)


@KIND
@pytest.mark.parametrize("max_tokens", [8192, 20])
def test_a_step_on_packed_rows_is_that_on_padded_ones(kind: str, max_tokens: int) -> None:
    """I3: loss, the gradient's norm and the step itself."""
    sft = resolve("sft")
    taken = {}
    for is_packed in (False, True):
        model = made(kind)
        one = learner(model, is_packed=is_packed, max_tokens=max_tokens)
        metrics = one.update(batch_of(rows()), sft)
        taken[is_packed] = metrics, copied(model)
    (padded, its_weights), (whole, weights) = taken[False], taken[True]
    assert whole["loss"] == pytest.approx(padded["loss"], abs=1e-5)
    assert whole["grad_norm"] == pytest.approx(padded["grad_norm"], rel=1e-4)
    assert whole["entropy"] == pytest.approx(padded["entropy"], rel=1e-5)
    before = copied(made(kind))
    assert not equal(weights, before)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, its_weights[name], rtol=0, atol=2e-4)  # a fifth of Adam's first step


def test_fewer_tokens_go_through_the_model() -> None:
    model, batch, seen = made("olmo"), batch_of(rows()), list[tuple[int, ...]]()
    model.base_model.register_forward_pre_hook(
        lambda _module, _args, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    scored(model, batch, is_packed=False)
    scored(model, batch, is_packed=True)
    assert seen == [(7, 16), (3, 16)]


def test_parts_of_packed_rows_are_counted_without_padding() -> None:
    batch = batch_of(rows())
    assert [part.num_rows for part in microbatches(batch, 34)] == [4, 2, 1]
    assert [part.num_rows for part in microbatches(batch, 34, packing=True)] == [6, 1]


def test_rows_that_ask_for_nothing_take_part_in_nothing() -> None:
    model = made("olmo")
    batch = batch_of([*rows(), ([1, 2, 3], [False, False, False])])
    assert torch.equal(scored(model, batch, is_packed=True)[-1], torch.zeros(17))
    nothing = batch_of([([1, 2, 3], [False] * 3)])
    assert scored(model, nothing, is_packed=True).abs().sum() == 0


def test_a_model_that_never_pads_learns_the_same_with_packing() -> None:
    model = llama()
    assert shares_beginnings(model)
    batch = batch_of(rows())
    assert torch.equal(scored(model, batch, is_packed=True), scored(model, batch, is_packed=False))
    learner(model, is_packed=True)


def mamba() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "eos_token_id": 0}
    return MambaForCausalLM(MambaConfig(vocab_size=380, **sizes)).eval()


def test_a_window_and_a_recurrent_state_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    window = MistralForCausalLM(MistralConfig(**SMALL, **HEADS, sliding_window=4)).eval()
    with pytest.raises(ModelError, match=r"MistralForCausalLM .* window") as refusal:
        learner(window, is_packed=True)
    assert refusal.value.remedy == "packing = false"
    with pytest.raises(ModelError, match=r"MambaForCausalLM .* recurrent state"):
        learner(mamba(), is_packed=True)
    learner(mamba(), is_packed=False)
    monkeypatch.setattr(packing, "has_full_attention", lambda config: True)  # a configuration that does not say
    with pytest.raises(ModelError, match="MambaForCausalLM cannot be packed"):
        learner(mamba(), is_packed=True)


def test_a_model_whose_rows_would_see_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    causal = packing._mask
    monkeypatch.setattr(packing, "_mask", lambda rows_at, dtype: causal(torch.zeros_like(rows_at), dtype))
    with pytest.raises(ModelError, match="change each other"):
        refuse_unpackable(made("gpt2"))


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_any_mask_is_answered_row_by_row(masks: list[list[bool]], seed: int) -> None:
    """The order of what comes back is that of the rows, whatever sequence they lay in."""
    model = SHARED
    generator = torch.Generator().manual_seed(seed)
    where = torch.zeros(len(masks), 9, dtype=torch.bool)
    for row, mask in enumerate(masks):
        where[row, : len(mask)] = torch.tensor(mask)
    tokens = torch.randint(370, where.shape, generator=generator)
    with torch.no_grad():
        found = packed(states_of(model.base_model), tokens, where, model.dtype)
        expected = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[where]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


SHARED = made("olmo")
