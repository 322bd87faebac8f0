"""Products of matrices on a CPU, by the library that is fast on this processor.

torch leaves products in fp32 to MKL, whose kernels of 512 bits run on Intel's processors alone. On another processor
that has such instructions oneDNN, which torch carries too, takes less than half of the time (LOG.md). Which library it
is depends on the machine, never on a measurement: the order of sums depends on it, and one machine has one result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from melete.errors import RecipeError
from melete.machine.processor import vendor

_Module = TypeVar("_Module", bound=nn.Module)
CHOICE = "MELETE_PRODUCTS"
LIBRARIES = ("blas", "onednn")
LITTLE_MODEL = 2_000_000  # parameters, below which a call costs as much as is won, and oneDNN's programs take memory
_ROWS_TOGETHER = 32  # a program for a number of rows is made in a third of a millisecond
_MANY_OPERATIONS = 2**29  # multiplications of a product beside which a program of its own costs nothing
_PROGRAMS = "64"  # that oneDNN keeps, of a fifth of a MiB each; by itself it keeps 1024
_SMALL_WEIGHT = 2**18  # numbers; of 4 to 64 rows MKL's products take 0.6 to 0.8 of the time when they lie by column


def library_for(environment: Mapping[str, str], capability: str, vendor: str) -> str:
    """The library for a CPU by its maker and the instructions that torch found; MELETE_PRODUCTS has the last word.

    >>> library_for({}, "AVX512", "AuthenticAMD"), library_for({}, "AVX512", "GenuineIntel")
    ('onednn', 'blas')
    """
    chosen = environment.get(CHOICE, "").strip()
    if chosen and chosen not in LIBRARIES:
        raise RecipeError(
            f"{CHOICE} is {chosen!r}, not a library for products",
            place=f"environment variable {CHOICE}",
            remedy=f"set it to {' or '.join(LIBRARIES)}, or unset it",
        )
    is_wide = capability.startswith("AVX512")
    return chosen or ("onednn" if is_wide and "Intel" not in vendor and vendor else "blas")


@cache
def library() -> str:
    """The library for this machine; "blas" where torch has no other. Asked once in a process."""
    chosen = library_for(os.environ, torch.backends.cpu.get_cpu_capability(), vendor())
    is_there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not is_there or chosen == "blas":
        return "blas"
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _PROGRAMS)  # read when the first is made
    return chosen


def rows_together(layer: object) -> int:
    """What numbers of rows are best rounded up to for a linear layer: oneDNN makes a program for each that it meets."""
    return _ROWS_TOGETHER if is_quick(layer) and library() == "onednn" else 1


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., d] times weight [o, d] transposed, plus bias [o]: [..., o], with gradients where they are asked for."""
    if x.dtype != torch.float32 or not x.numel() or not is_for_onednn(weight):
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias)):
        return _with_gradients(x, weight, bias)
    return by_onednn(x, _in_order(weight), bias)


def _with_gradients(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.numel() // x.shape[-1]
    missing = -rows % _ROWS_TOGETHER
    if not missing or rows * weight.numel() >= _MANY_OPERATIONS:
        return cast(Tensor, _Linear.apply(x, weight, bias))  # pyright: ignore[reportUnknownMemberType]
    rounded = nn.functional.pad(x.flatten(0, -2), (0, 0, 0, missing))
    out = cast(Tensor, _Linear.apply(rounded, weight, bias))  # pyright: ignore[reportUnknownMemberType]
    return out[:rows].view(*x.shape[:-1], -1)


def is_for_onednn(weight: Tensor) -> bool:
    """Whether oneDNN multiplies with such a weight here: one of fp32 on a CPU."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and library() == "onednn"


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., d] times weight [o, d] transposed, plus bias [o]; the weight lies by row or by column."""
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def batched(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """x [N, m, k] times y [N, k, n], written to `out` [N, m, n] if there is one; without gradients.

    Where MKL is slow, numpy's OpenBLAS takes half of its time for few rows, unless they meet columns that lie apart. It
    has one thread (`machine/threads.py`).
    """
    if not (_is_for_numpy(x) and (y.stride(2) == 1 or x.shape[1] == 1)):
        return torch.bmm(x, y) if out is None else torch.bmm(x, y, out=out)
    if out is None:
        return torch.from_numpy(np.matmul(x.numpy(), y.numpy()))
    np.matmul(x.numpy(), y.numpy(), out=out.numpy())
    return out


def _is_for_numpy(x: Tensor) -> bool:
    is_plain = x.dtype == torch.float32 and x.device.type == "cpu"
    return is_plain and torch.get_num_threads() == 1 and library() == "onednn"


def _in_order(weight: Tensor) -> Tensor:
    """The same weight by row or by column; with any other oneDNN would take its slowest way, a plain loop."""
    return weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient [o, d] of a weight by oneDNN, from those of the results [N, o] and what was multiplied [N, d]."""
    if grad.shape[1] > x.shape[1]:  # the smaller of the two is laid out anew
        return by_onednn(x.t(), _in_order(grad.t())).t().contiguous()
    return by_onednn(grad.t(), _in_order(x.t()))


class _Linear(torch.autograd.Function):
    """The product with its gradients, which are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return by_onednn(x, _in_order(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad, (of_x, of_weight, of_bias) = grads[0], ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            by_onednn(grad, _in_order(weight.t())) if of_x else None,
            weight_gradient(rows, x.flatten(0, -2)) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


class QuickLinear(nn.Linear):
    """A linear layer whose products are those of `linear`; in all else it is torch's."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def quickened(model: _Module) -> _Module:
    """The same model, its plain linear layers with the machine's faster products; nothing is copied or renamed.

    A model of less than `LITTLE_MODEL` parameters is left as it is.
    """
    if library() == "onednn" and sum(parameter.numel() for parameter in model.parameters()) >= LITTLE_MODEL:
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = QuickLinear
    return model


def is_linear(module: object) -> bool:
    """Whether a module is a linear layer and nothing more."""
    return type(module) in (nn.Linear, QuickLinear)


def is_quick(module: object) -> bool:
    """Whether a linear layer, beneath an adapter or not, has the machine's faster products."""
    return type(getattr(module, "base_layer", module)) is QuickLinear


def is_small(weight: Tensor) -> bool:
    """Whether a product of a few rows with this weight takes little more than the call."""
    return weight.numel() <= _SMALL_WEIGHT


def laid_out(weight: Tensor, *, quick: bool) -> Tensor:
    """The same weight [o, d] as it lies best in memory for products of few rows on a CPU: there is less to pack."""
    is_matrix = weight.dim() == 2 and weight.device.type == "cpu"
    if not is_matrix or not (quick or is_small(weight)):
        return weight
    return weight.t().contiguous().t()
