"""Products by either library: which one a machine gets, and that numbers, gradients and names stay what they were."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from forward_kinds import KINDS
from torch import Tensor, nn

from melete.errors import RecipeError
from melete.forward import products
from melete.forward.architectures import weight_of
from melete.forward.products import (
    QuickLinear,
    batched,
    is_linear,
    is_quick,
    laid_out,
    library_for,
    linear,
    quickened,
)
from melete.forward.rows import Prompts, Rows, lean_model
from melete.learning.scoring import score
from melete.models.adapters import LoRA, add_adapter

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this torch was built without oneDNN",
)


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "library", lambda: "onednn")
    monkeypatch.setattr(products, "LITTLE_MODEL", 0)


@pytest.mark.parametrize(
    ("chosen", "capability", "vendor", "expected"),
    [
        ("", "AVX512", "AuthenticAMD", "onednn"),
        ("", "AVX512", "GenuineIntel", "blas"),  # MKL has its wide kernels there
        ("", "AVX2", "AuthenticAMD", "blas"),
        ("", "AVX512", "", "blas"),
        ("", "DEFAULT", "", "blas"),
        ("blas", "AVX512", "AuthenticAMD", "blas"),
        ("onednn", "AVX512", "GenuineIntel", "onednn"),
    ],
)
def test_the_machine_decides_unless_the_user_does(chosen: str, capability: str, vendor: str, expected: str) -> None:
    assert library_for({"MELETE_PRODUCTS": chosen} if chosen else {}, capability, vendor) == expected


def test_a_library_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"(?s)'mkl'.*MELETE_PRODUCTS.*blas or onednn"):
        library_for({"MELETE_PRODUCTS": "mkl"}, "AVX512", "AuthenticAMD")


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 12), (1, 12), (0, 12)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_numbers_and_gradients_are_those_of_torch(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(5, 12), torch.randn(5) if has_bias else None
    found: list[list[Tensor]] = []
    for function in (linear, nn.functional.linear):
        leaves = [part.clone().requires_grad_() for part in (x, weight, bias) if part is not None]
        out = function(*leaves)
        out.pow(2).sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_little_model_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call costs as much as is won, and oneDNN's programs take memory."""
    monkeypatch.setattr(products, "library", lambda: "onednn")
    assert not any(is_quick(module) for module in quickened(KINDS["llama"]()).modules())


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_only_what_is_trained_has_a_gradient() -> None:
    x, weight = torch.randn(3, 12), torch.randn(5, 12).requires_grad_()
    linear(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None
    assert linear(x, weight.detach()).grad_fn is None
    with torch.no_grad():
        assert linear(x, weight).grad_fn is None


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_other_number_formats_are_left_to_torch() -> None:
    layer = quickened(nn.Sequential(nn.Linear(12, 5)))[0]
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.randn(3, 12, dtype=dtype)
        assert torch.equal(layer.to(dtype)(x), nn.functional.linear(x, layer.weight, layer.bias))


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_quickened_model_says_the_same_and_keeps_its_names(kind: str) -> None:
    torch.manual_seed(0)
    model = KINDS[kind]()
    names = list(model.state_dict())
    quick = quickened(copy.deepcopy(model))
    assert any(type(module) is QuickLinear for module in quick.modules())
    assert list(quick.state_dict()) == names
    tokens = torch.randint(5, 300, (3, 9))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    found: list[list[Tensor]] = []
    for one in (model, quick, copy.deepcopy(quick), pickle.loads(pickle.dumps(quick))):
        logprobs = score(one, tokens, mask, 1.0).logprobs
        logprobs.sum().backward()
        found.append([logprobs.detach(), *(p.grad for p in one.parameters() if p.grad is not None)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.usefixtures("onednn")
def test_an_adapter_fits_a_quickened_model() -> None:
    model = quickened(KINDS["llama"]())
    add_adapter(model, LoRA(rank=2), seed=0)
    projection = model.base_model.layers[0].self_attn.q_proj
    assert is_linear(projection.base_layer)
    found = weight_of(projection)
    assert found is not None and torch.equal(found, projection.base_layer.weight)


@pytest.mark.parametrize("quick", [True, False])
def test_a_weight_is_the_same_however_it_lies(quick: bool) -> None:
    small, large = torch.randn(8, 4), torch.randn(1024, 512)
    assert torch.equal(laid_out(small, quick=quick), small) and torch.equal(laid_out(large, quick=quick), large)
    assert not laid_out(small, quick=quick).is_contiguous()
    assert laid_out(large, quick=quick).is_contiguous() != quick


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("kind", sorted(KINDS))
@torch.no_grad()
def test_rows_are_written_with_the_same_products(kind: str) -> None:
    model = quickened(KINDS[kind]())
    lean = lean_model(model)
    assert lean is not None
    lean.refresh()
    assert lean.layers[0].attention.product.quick
    rows = Rows(lean, Prompts(lean, [(1, 40, 41)]), torch.zeros(3, dtype=torch.long))
    for _ in range(3):
        found = rows.step(torch.full((3,), 7))
    expected = model(input_ids=torch.tensor([[1, 40, 41, 7, 7, 7]])).logits[:, -1]
    torch.testing.assert_close(found, expected.expand(3, -1), rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize(("rows", "by_row"), [(1, False), (1, True), (4, True), (4, False), (40, True)])
@torch.inference_mode()
def test_rows_meet_their_own_matrices_by_whichever_library_is_faster(
    rows: int, by_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    x, y = torch.randn(3, rows, 8), torch.randn(3, 8, 5) if by_row else torch.randn(3, 5, 8).transpose(1, 2)
    out, asked = torch.empty(3, rows, 5), list[int]()
    multiply = np.matmul
    monkeypatch.setattr(products.np, "matmul", lambda *of, **to: (asked.append(1), multiply(*of, **to))[1])
    expected = torch.einsum("nmk,nkl->nml", x, y)
    torch.testing.assert_close(batched(x, y), expected)
    assert batched(x, y, out) is out
    torch.testing.assert_close(out, expected)
    assert len(asked) == (2 if by_row or rows == 1 else 0)
    torch.testing.assert_close(batched(x.double(), y.double()).float(), expected)
    assert len(asked) == (2 if by_row or rows == 1 else 0)
