"""The lean forward pass over rows: what rows share is computed once, and nothing changes but the order of sums."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from forward_kinds import KINDS
from tiny_models import deepseek, llama
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, PreTrainedModel

from melete.forward import products
from melete.forward.architectures import knows
from melete.forward.attention import SHORT
from melete.forward.layout import Layout
from melete.forward.trunk import states, states_at
from melete.models.moe import RouterBalancer


def rows(width: int = 14) -> tuple[Tensor, Tensor]:
    """Six rows: three with one prompt, two with another, one alone; where their completions are predicted from."""
    torch.manual_seed(1)
    tokens = torch.randint(5, 300, (6, width))
    tokens[1:3, :4], tokens[4, :6] = tokens[0, :4], tokens[3, :6]
    where = torch.zeros(6, width, dtype=torch.bool)
    for row, (start, end) in enumerate([(3, width - 1), (3, 9), (3, 6), (5, 12), (5, 8), (1, 2)]):
        where[row, start:end] = True
    where[0, 7] = False  # a turn in between that is somebody else's
    return tokens, where


def plain(model: PreTrainedModel, tokens: Tensor, where: Tensor) -> Tensor:
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[where]


def gradients(model: PreTrainedModel, found: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model.zero_grad()
    (found * torch.randn(found.shape)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("short", [SHORT, 0])
def test_states_and_gradients_are_those_of_the_plain_pass(
    kind: str, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I3: neither padding nor another row changes a row; in both ways of computing attention."""
    monkeypatch.setattr("melete.forward.attention.SHORT", short)
    model = KINDS[kind]()
    tokens, where = rows()
    lean, expected = states_at(model.base_model, tokens, where), plain(model, tokens, where)
    torch.testing.assert_close(lean, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(model, lean), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        size = max(1.0, float(theirs[name].abs().max()))
        torch.testing.assert_close(gradient / size, theirs[name] / size, rtol=0, atol=1e-5, msg=name)


def test_a_shared_prompt_is_computed_once_and_padding_never() -> None:
    tokens, where = rows()
    layout = Layout.of(tokens, where)
    # prompts of 4, 6 and 2, then what is left up to the last token that is asked for
    assert len(layout.tokens) == (4 + 6 + 2) + (9 + 5 + 2) + (6 + 2) + 0
    assert int(layout.counts.sum()) == sum(int(row.nonzero().max()) + 1 for row in where)
    calls: list[int] = []
    model = llama()
    model.base_model.layers[0].mlp.up_proj.register_forward_pre_hook(lambda _up, given: calls.append(len(given[0])))
    states(model.base_model, layout)
    assert calls == [36]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_tokens_that_round_up_a_product_change_nothing(kind: str) -> None:
    model, (tokens, where) = KINDS[kind](), rows()
    expected = gradients(model, states_at(model.base_model, tokens, where))
    for multiple, idle in ((1, 0), (32, 28)):
        layout = Layout.of(tokens, where, multiple=multiple)
        assert layout.num_idle == idle
        assert {len(layout.tokens), len(layout.positions), len(layout.counts)} == {36 + idle}
        assert not layout.counts[36:].any()  # nobody's: no expert is told of them
        found = gradients(model, states(model.base_model, layout))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_only_a_model_with_quick_products_has_tokens_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "library", lambda: "onednn")
    layer = llama().base_model.layers[0].self_attn.o_proj
    assert products.rows_together(layer) == 1
    layer.__class__ = products.QuickLinear
    assert products.rows_together(layer) == 32


def test_a_row_of_which_nothing_is_asked_costs_nothing() -> None:
    tokens, where = rows()
    where[1] = False
    model = llama()
    torch.testing.assert_close(states_at(model.base_model, tokens, where), plain(model, tokens, where))
    assert states_at(model.base_model, tokens, torch.zeros_like(where)).shape == (0, 32)


def test_gradient_checkpointing_changes_nothing() -> None:
    model, (tokens, where) = llama(), rows()
    expected = gradients(model, states_at(model.base_model, tokens, where))
    model.gradient_checkpointing_enable()
    for layer in model.base_model.layers:
        layer.training = True
    found = gradients(model, states_at(model.base_model, tokens, where))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0)


def test_the_load_of_an_expert_does_not_depend_on_what_was_shared() -> None:
    model, (tokens, where) = deepseek(), rows()
    balancer = RouterBalancer(model)
    states_at(model.base_model, tokens, where)
    together = [load.clone() for load in balancer.loads]
    for load in balancer.loads:
        load.zero_()
    for row in range(len(tokens)):
        states_at(model.base_model, tokens[row : row + 1], where[row : row + 1])
    for found, expected in zip(together, balancer.loads, strict=True):
        torch.testing.assert_close(found, expected)
        assert float(found.sum()) > 0


def _window() -> PreTrainedModel:
    config = MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4,
    )  # fmt: skip
    return MistralForCausalLM(config).eval()


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4)).eval()


@pytest.mark.parametrize("make", [_window, _gpt2])
def test_what_the_lean_pass_does_not_know_is_left_to_transformers(make: Callable[[], PreTrainedModel]) -> None:
    model, (tokens, where) = make(), rows()
    tokens = tokens % 290
    assert not knows(model.base_model)
    torch.testing.assert_close(states_at(model.base_model, tokens, where), plain(model, tokens, where))
