"""Steps of a layer with gradients of their own, in fewer passes over memory than autograd would need.

They are for training in fp32 on a CPU, where a small model waits for memory as long as for products, and keep less for
the backward pass. Elsewhere, and for modules that they do not know, the modules themselves are called.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu
from transformers.activations import SiLUActivation


def _has_own_gradient(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and torch.is_grad_enabled()


def normed(module: Any, x: Tensor) -> Tensor:
    """The root mean square norm of x [..., d] (Zhang and Sennrich 2019) by a module of transformers.

    out = x / sqrt(mean(x^2) + eps) * weight
    """
    if not _has_own_gradient(x):
        return module(x)
    return cast(Tensor, _Normed.apply(x, module.weight, module.variance_epsilon))  # pyright: ignore[reportUnknownMemberType]


def unit_of(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [..., d] / sqrt(mean(x^2) + eps), and what it was multiplied by [..., 1]."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * scale, scale


def gradient_of_unit(grad: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
    """The gradient of x from that of `unit_of(x)`; `grad` is lost."""
    # what points along x does not change a norm of x
    along = torch.linalg.vecdot(grad, unit)[..., None].div_(unit.shape[-1])
    return grad.addcmul_(unit, along, value=-1).mul_(scale)


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        unit, scale = unit_of(x, eps)
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        unit, scale, weight = ctx.saved_tensors
        of_weight = (grads[0] * unit).flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        return gradient_of_unit(grads[0] * weight, unit, scale), of_weight, None


def gated(mlp: Any, x: Tensor) -> Tensor:
    """down(act(gate(x)) * up(x)) of x [N, d] by a module of transformers (Shazeer 2020); else what the module makes."""
    if not is_gate(mlp) or not _has_own_gradient(x):
        return mlp(x)
    both = _Gated.apply(mlp.gate_proj(x), mlp.up_proj(x))  # pyright: ignore[reportUnknownMemberType]
    return mlp.down_proj(both)


def is_gate(mlp: Any) -> bool:
    """Whether a module of transformers is down(silu(gate(x)) * up(x)) and nothing more."""
    return hasattr(mlp, "gate_proj") and isinstance(getattr(mlp, "act_fn", None), (nn.SiLU, SiLUActivation))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), silu(gate).mul_(grads[0])
