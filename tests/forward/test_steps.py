"""Steps with gradients of their own: the numbers of the modules, and less is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from forward_kinds import KINDS
from torch import Tensor, nn

from melete.forward.steps import gated, normed

Step = Callable[[Tensor], Tensor]


def both_ways(kind: str) -> tuple[Step, nn.Module]:
    """A step as it is here, and the module that it stands for."""
    layer = KINDS["llama"]().base_model.layers[0]
    if kind == "gated":
        return lambda x: gated(layer.mlp, x), layer.mlp
    with torch.no_grad():
        layer.input_layernorm.weight.normal_()
    return lambda x: normed(layer.input_layernorm, x), layer.input_layernorm


def outcome(step: Step, module: nn.Module, x: Tensor) -> tuple[list[Tensor], int]:
    """Output and gradients, and how many numbers were kept for the backward pass beside the weights."""
    module.zero_grad()
    leaf = x.clone().requires_grad_()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = step(leaf)
    for weight in module.parameters():
        kept.pop(weight.untyped_storage().data_ptr(), None)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
    assert leaf.grad is not None
    found = [out.detach(), leaf.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]
    return found, sum(kept.values())


@pytest.mark.parametrize(("kind", "share"), [("norm", 0.55), ("gated", 0.8)])
def test_a_step_has_the_numbers_of_the_module_and_keeps_less(kind: str, share: float) -> None:
    torch.manual_seed(0)
    ours, module = both_ways(kind)
    x = torch.randn(50, 32)
    (found, little), (expected, much) = outcome(ours, module, x), outcome(module, module, x)
    assert len(found) == len(expected)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert little <= share * much


@pytest.mark.parametrize("kind", ["norm", "gated"])
def test_without_gradients_and_in_other_formats_the_modules_are_called(kind: str) -> None:
    torch.manual_seed(0)
    ours, module = both_ways(kind)
    x = torch.randn(7, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), module(x))
    module.bfloat16()
    assert torch.equal(ours(x.bfloat16()), module(x.bfloat16()))


def test_another_activation_is_left_to_the_module() -> None:
    _, mlp = both_ways("gated")
    mlp.act_fn = nn.GELU()
    x = torch.randn(7, 32)
    assert torch.equal(gated(mlp, x), mlp(x))
