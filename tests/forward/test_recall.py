"""An update from what was computed while it was written: the gradients are those of a forward pass over all of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from forward_kinds import KINDS
from tiny_models import deepseek, llama, tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from melete.batch import TokenRows, masked_row
from melete.forward import memory as memories
from melete.forward import products, recall
from melete.forward.attention import added_to_scores
from melete.forward.layout import Bucket, Grid
from melete.forward.memory import Memory
from melete.forward.products import quickened
from melete.learning.scoring import score
from melete.models.adapters import LoRA, add_adapter
from melete.sampling import native
from melete.sampling.native import NativeSampler
from melete.types import SampleRequest, SamplingSettings

PROMPTS = ((1, 40, 41, 42), (1, *range(60, 100)), (1, 60))
REQUESTS = [SampleRequest(prompt, tuple(range(10 * n, 10 * n + 5))) for n, prompt in enumerate(PROMPTS)]
KNOWN = ["llama", "llama_bias", "llama3_rope", "mistral", "qwen2"]
Gradients = dict[str, Tensor]


def wrote(
    model: PreTrainedModel, num_lanes: int = 1, *, ends: bool = True, limit: int = 12
) -> tuple[Memory, TokenRows]:
    """What was kept, and what was written: with `ends`, rows of many lengths, some of a single token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "num_lanes", lambda *_: num_lanes)
        patch.setattr(native, "ROWS_OF_LANE", 2)
        sampler = NativeSampler(model, tokenizer())
        sampler.end_tokens = torch.arange(0, len(tokenizer()), 7) if ends else torch.tensor([-1])
        assert sampler.memory is not None
        with sampler.memory.opened():
            found = sampler.sample(REQUESTS, SamplingSettings(limit))
        sampler.close()
    rows = [
        masked_row(request.prompt_tokens, completion.tokens)
        for request, completions in zip(REQUESTS, found, strict=True)
        for completion in completions
    ]
    return sampler.memory, TokenRows.pack(rows, 0)


def gradients(model: PreTrainedModel, rows: TokenRows, memory: Memory | None) -> tuple[Tensor, Gradients]:
    model.zero_grad()
    logprobs = score(model, rows.tokens, rows.loss_mask, 1.0, memory=memory).logprobs
    worth = torch.linspace(-1, 2, logprobs.numel()).view(logprobs.shape)
    (logprobs * worth).sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return logprobs.detach(), {name: grad.clone() for name, grad in found.items()}


@pytest.fixture(name="no_forward")
def without_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def states_at(*_: object) -> Tensor:
            raise AssertionError("a forward pass")

        monkeypatch.setattr(recall, "states_at", states_at)

    return forbid


def alike(one: tuple[Tensor, Gradients], other: tuple[Tensor, Gradients]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, grad in one[1].items():
        scale = float(other[1][name].abs().max())
        torch.testing.assert_close(grad, other[1][name], rtol=1e-4, atol=1e-5 * max(scale, 1e-3), msg=name)


@pytest.mark.parametrize("num_lanes", [1, 3])
@pytest.mark.parametrize("kind", KNOWN)
def test_gradients_are_those_of_a_forward_pass(kind: str, num_lanes: int, no_forward: Callable[[], None]) -> None:
    model = KINDS[kind]()
    memory, rows = wrote(model, num_lanes)
    assert len({int(length) for length in rows.lengths}) > 4  # many lengths
    plain = gradients(model, rows, None)
    no_forward()
    assert memory.is_current()
    alike(gradients(model, rows, memory), plain)
    some = rows.select(torch.arange(0, rows.num_rows, 2))  # any of the rows will do
    assert gradients(model, some, memory)[0].shape == some.tokens.shape


@pytest.mark.parametrize("kind", KNOWN)
def test_to_keep_it_changes_nothing_that_is_written(kind: str) -> None:
    """Log-probs to the last bit."""
    sampler = NativeSampler(KINDS[kind](), tokenizer())
    assert sampler.memory is not None
    with sampler.memory.opened():
        kept = sampler.sample(REQUESTS, SamplingSettings(20))
    assert sampler.memory.rows and kept == sampler.sample(REQUESTS, SamplingSettings(20))


def test_rows_that_are_longer_than_a_prompt_is_copied_for(no_forward: Callable[[], None]) -> None:
    model = llama()
    memory, rows = wrote(model, ends=False, limit=40)
    plain = gradients(model, rows, None)
    no_forward()
    alike(gradients(model, rows, memory), plain)


def test_with_the_faster_products_too(monkeypatch: pytest.MonkeyPatch, no_forward: Callable[[], None]) -> None:
    monkeypatch.setattr(products, "library", lambda: "onednn")
    monkeypatch.setattr(products, "LITTLE_MODEL", 0)
    model = quickened(llama())
    memory, rows = wrote(model)
    plain = gradients(model, rows, None)
    no_forward()
    alike(gradients(model, rows, memory), plain)


def test_weights_that_are_not_trained_have_no_gradient(no_forward: Callable[[], None]) -> None:
    model = llama()
    for name, weight in model.named_parameters():
        weight.requires_grad = "layers.1.mlp" in name or "input_layernorm" in name
    memory, rows = wrote(model)
    plain = gradients(model, rows, None)
    no_forward()
    alike(gradients(model, rows, memory), plain)


def test_rows_that_are_not_known_are_computed() -> None:
    model = llama()
    memory, rows = wrote(model)
    rows.tokens[3, len(PROMPTS[0])] = 99
    found, plain = gradients(model, rows, memory), gradients(model, rows, None)
    assert torch.equal(found[0], plain[0])
    assert all(torch.equal(grad, plain[1][name]) for name, grad in found[1].items())


def test_other_weights_are_not_those_that_wrote() -> None:
    model = llama()
    memory, _ = wrote(model)
    assert memory.is_current()
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(1)
    assert not memory.is_current()


def test_what_does_not_fit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    whole, rows = wrote(model)
    of_a_token = 4 * sum(field[:, 0].numel() for field in whole.fields)
    monkeypatch.setattr(memories, "MOST_BYTES", 75 * of_a_token)
    memory, again = wrote(model)
    assert torch.equal(rows.tokens, again.tokens)
    assert 0 < len(memory.rows) < len(whole.rows)
    alike(gradients(model, rows, memory), gradients(model, rows, None))


def test_a_token_that_nothing_is_taken_from_is_computed_again() -> None:
    """The sum of exponentials could not be told from its share."""
    model = llama()
    memory, rows = wrote(model)
    written = next(places for places in memory.rows.values() if places)
    memory.fields.shares[0, written[0], 0] = 0
    assert all(grad.isfinite().all() for grad in gradients(model, rows, memory)[1].values())


def test_only_what_is_written_while_it_is_open_is_kept() -> None:
    sampler = NativeSampler(llama(), tokenizer())
    assert sampler.memory is not None
    sampler.sample(REQUESTS, SamplingSettings(3))
    assert not sampler.memory.rows and not sampler.memory.lanes
    for _ in range(2):
        with sampler.memory.opened():
            sampler.sample(REQUESTS[:1], SamplingSettings(3))
            sampler.sample(REQUESTS[1:], SamplingSettings(3))
        assert len(sampler.memory.prompts) == 3
        at = sampler.memory.lanes[0].at
    assert at < 2 * sum(len(request.prompt_tokens) + 3 * len(request.keys) for request in REQUESTS)


def test_of_several_places_the_first_is_kept_whoever_is_heard_first() -> None:
    sampler = NativeSampler(llama(), tokenizer())
    memory = sampler.memory
    assert memory is not None
    memory.remember((1, 2), [70])
    memory.remember((1, 2), [30])
    memory.remember((1, 2), [50])
    assert memory.rows == {(1, 2): [30]}


def with_adapter() -> PreTrainedModel:
    model = llama()
    add_adapter(model, LoRA(rank=2), seed=0)
    return model


def watched() -> PreTrainedModel:
    model = llama()
    model.base_model.layers[0].mlp.register_forward_hook(lambda *_: None)
    return model


def checkpointed() -> PreTrainedModel:
    model = llama()
    model.gradient_checkpointing_enable()
    return model


@pytest.mark.parametrize("make", [deepseek, KINDS["qwen3"], with_adapter, watched, checkpointed])
def test_of_models_whose_gradients_are_not_known_nothing_is_kept(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    sampler = NativeSampler(model, tokenizer())
    assert sampler.memory is not None
    with sampler.memory.opened():
        sampler.sample(REQUESTS, SamplingSettings(3))
    assert not sampler.memory.rows and not sampler.memory.is_current()


def test_what_a_part_of_the_queries_may_not_look_at_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of attention are those of one call, for three quarters of the work and less."""
    torch.manual_seed(5)
    num_queries, num_begun, starts = 250, 30, torch.tensor([30, 17])
    bucket = Bucket(Grid.of(torch.tensor([250, 201])), torch.tensor([0, 1]), starts, num_begun)
    mask = bucket.mask()
    assert mask is not None
    bias = added_to_scores(mask)
    q, of_out = torch.randn(2, 2, 3, num_queries, 8).unbind()
    k, v = torch.randn(2, 2, 3, num_begun + num_queries, 8).unbind()
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, scale=1.0)
    expected = recall._fused(of_out, q, k, v, out, sums, bias)  # pyright: ignore[reportPrivateUsage]
    fused, looked_at = recall._fused, 0  # pyright: ignore[reportPrivateUsage]

    def counted(*streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal looked_at
        looked_at += streams[1].shape[2] * streams[2].shape[2]
        return fused(*streams)

    monkeypatch.setattr(recall, "_fused", counted)
    found = recall._of_parts(of_out, q, k, v, out, sums, bias)  # pyright: ignore[reportPrivateUsage]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert looked_at < 0.75 * num_queries * (num_begun + num_queries)


def test_rows_are_added_to_where_they_belong_whatever_their_length() -> None:
    torch.manual_seed(6)
    numbers = torch.tensor([1, 0, 1])
    for length in (5, 70):
        rows, to = torch.randn(3, length, 2), torch.zeros(2, length, 2)
        recall._add_rows(to, numbers, rows)  # pyright: ignore[reportPrivateUsage]
        torch.testing.assert_close(to, torch.stack([rows[1], rows[0] + rows[2]]))
