"""Writing rows with the lean forward pass: after every token, the logits are those of the plain pass over the text."""

from __future__ import annotations

import pytest
import torch
from forward_kinds import KINDS
from tiny_models import llama
from torch import Tensor
from transformers import PreTrainedModel

from melete.forward import products
from melete.forward.products import quickened
from melete.forward.rows import LeanModel, Prompts, Rows, lean_model
from melete.forward.static_rows import StaticRows, can_be_static
from melete.forward.weights import Mixture, Product
from melete.models.adapters import LoRA, add_adapter, without_adapter

PROMPTS = ((1, 40, 41, 42), (1, 50, 51, 52, 53, 54), (1, 60))


def lean_of(model: PreTrainedModel) -> LeanModel:
    lean = lean_model(model)
    assert lean is not None
    lean.refresh()
    return lean


def plain(model: PreTrainedModel, text: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([text])).logits[0, -1]


def rows_of(form: str, lean: LeanModel, prompts: Prompts, prompt_of: Tensor) -> Rows | StaticRows:
    """Rows that read one prompt together, have a copy each, or do the same work each time, as on a GPU."""
    if form == "static":
        return StaticRows(lean, prompts, prompt_of, limit=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("melete.forward.rows.SHORT_PROMPT", 32 if form == "copied" else 0)
        return Rows(lean, prompts, prompt_of)


@pytest.mark.parametrize("form", ["shared", "copied", "static"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_are_those_of_the_plain_pass_while_rows_leave(
    kind: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I33."""
    monkeypatch.setattr("melete.forward.written.LEAST_ROOM", 2)
    monkeypatch.setattr("melete.forward.rows.STEPS_AHEAD", 3)
    model = KINDS[kind]()
    lean = lean_of(model)
    prompts = Prompts(lean, PROMPTS)
    for logits, prompt in zip(prompts.logits, PROMPTS, strict=True):
        torch.testing.assert_close(logits, plain(model, list(prompt)), rtol=1e-4, atol=1e-4)
    prompt_of = torch.tensor([1, 0, 0, 1, 2, 0, 2, 2])  # in no order
    rows = rows_of(form, lean, prompts, prompt_of)
    texts = [list(PROMPTS[number]) for number in prompt_of.tolist()]
    leaving = {2: [0, 2, 3, 5, 6, 7], 4: [5, 1, 3]}  # what stays; the second time no row of the last prompt but one
    torch.manual_seed(0)
    for step in range(7):
        tokens = torch.randint(5, 300, (len(texts),))
        for text, token in zip(texts, tokens.tolist(), strict=True):
            text.append(token)
        for logits, text in zip(rows.step(tokens), texts, strict=True):
            torch.testing.assert_close(logits, plain(model, text), rtol=1e-4, atol=1e-4)
        if step in leaving:
            rows.keep(torch.tensor(leaving[step]))
            texts = [texts[row] for row in leaving[step]]


def test_weights_that_change_are_followed() -> None:
    model = llama()
    lean = lean_of(model)
    with torch.no_grad():
        before = Prompts(lean, PROMPTS).logits
        rows = Rows(lean, Prompts(lean, PROMPTS), torch.arange(3))
        first = rows.step(torch.tensor([7, 8, 9]))
        model.base_model.layers[0].self_attn.k_proj.weight.mul_(1.5)
        lean.refresh()
        rows = Rows(lean, Prompts(lean, PROMPTS), torch.arange(3))
        second = rows.step(torch.tensor([7, 8, 9]))
        assert not torch.allclose(first, second) and not torch.allclose(before, Prompts(lean, PROMPTS).logits)
        torch.testing.assert_close(second[1], plain(model, [*PROMPTS[1], 8]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_adapter_is_part_of_the_weights_while_it_is_on() -> None:
    model = llama()
    bare = plain(model, [*PROMPTS[0], 7])
    add_adapter(model, LoRA(rank=4), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, 0.5)
    lean = lean_of(model)

    def after_seven() -> Tensor:
        lean.refresh()
        return Rows(lean, Prompts(lean, PROMPTS), torch.tensor([0])).step(torch.tensor([7]))[0]

    adapted = plain(model, [*PROMPTS[0], 7])
    torch.testing.assert_close(after_seven(), adapted, rtol=1e-4, atol=1e-4)
    with without_adapter(model):
        torch.testing.assert_close(after_seven(), bare, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted, bare, atol=1e-2)


@torch.no_grad()
def test_a_quick_head_is_laid_out_anew_and_follows_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "library", lambda: "onednn")
    monkeypatch.setattr(products, "LITTLE_MODEL", 0)
    model = quickened(KINDS["qwen2"]())
    head = model.get_output_embeddings()
    assert head is not None and head.weight is not model.base_model.embed_tokens.weight
    lean = lean_of(model)
    assert isinstance(lean.logits, Product)
    for _ in range(2):
        torch.testing.assert_close(
            Prompts(lean, PROMPTS).logits[0], plain(model, list(PROMPTS[0])), rtol=1e-4, atol=1e-4
        )
        head.weight.add_(torch.randn_like(head.weight))
        lean.refresh()
    head.register_forward_hook(lambda _head, _given, said: said + 1)
    head.weight.add_(1)
    lean.refresh()
    assert lean.logits is head  # whoever watches it is not passed over


@torch.no_grad()
def test_few_rows_and_many_go_through_the_same_experts() -> None:
    mlp = KINDS["deepseek"]().base_model.layers[1].mlp
    mixture, x = Mixture(mlp), torch.randn(9, 32)
    _, weights, chosen = mlp.gate(x)
    all_of_them, sorted_ones = mixture._all(x, weights, chosen), mixture._sorted(x, weights, chosen)
    torch.testing.assert_close(all_of_them, sorted_ones)
    torch.testing.assert_close(mixture.shared(x) + sorted_ones, mlp(x))


@torch.no_grad()
def test_a_long_prompt_is_read_once_for_all_of_its_rows() -> None:
    """Counts what is multiplied: the keys of a prompt have one row for each prompt, not one for each sibling."""
    lean = lean_of(llama())
    rows = Rows(lean, Prompts(lean, [PROMPTS[0] * 9, PROMPTS[1] * 9]), torch.tensor([0] * 8 + [1] * 8))
    rows.step(torch.full((16,), 7))
    assert [kept.keys.shape[0] for kept in rows.prompts] == [2, 2]
    assert [layer[0].shape[:2] for layer in rows.written.layers] == [(16, 2)] * 2
    rows.keep(torch.tensor([1, 2]))
    assert [kept.keys.shape[0] for kept in rows.prompts] == [1, 1]


@pytest.mark.parametrize("prompt", [(1, 40, 41), tuple(range(1, 60))])
@torch.no_grad()
def test_what_was_written_lies_without_a_gap(prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaps between rows make reading from main memory several times as slow."""
    monkeypatch.setattr("melete.forward.written.room_behind", lambda _num: 2)
    lean = lean_of(llama())
    rows = Rows(lean, Prompts(lean, [prompt]), torch.zeros(3, dtype=torch.long))
    copied = len(prompt) if rows.is_copied else 0
    for number in range(5):
        rows.step(torch.full((3,), 7 + number))
    assert rows.written.num == copied + 5
    rows.keep(torch.tensor([2, 0]))
    for part in (part for layer in rows.written.layers for part in layer):
        assert part.is_contiguous() and part.shape[::2] == (2, copied + 6)
        assert part[:, :, : copied + 5].any(dim=-1).all() and not part[:, :, copied + 5 :].any()


def test_a_mixture_is_not_captured() -> None:
    """How many rows each expert gets is asked of the device."""
    lean = lean_of(KINDS["deepseek"]())
    with torch.no_grad():
        assert not can_be_static(lean, Prompts(lean, PROMPTS), 4, 8)
