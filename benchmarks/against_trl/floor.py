"""The arithmetic of a step as bare matrix products: every linear layer, for the tokens that have to go through it.

Sampling: each different prompt once, then one product per layer and token position, over the rows that are still being
written. Training: forward, and the products for the gradients of inputs and of weights, over each different prompt once
and each completion, in parts of at most as many tokens as Melete's learner takes at once; the head over the completions
alone. Each product is made by the library that the model's own layers have. Attention, norms, softmax and the
optimizer are not counted, so no program that multiplies by these matrices can be faster on this machine.

python -m benchmarks.against_trl.floor SPEC
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.against_trl.child import Line, loaded, serve
from benchmarks.against_trl.workloads import Spec
from melete.forward.products import is_quick
from melete.forward.products import linear as quick_linear
from melete.models.load import load_model

MAX_TOKENS = 1024  # tokens of a part of the update


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight [out, in]; `share` of the tokens go through it: less than 1 for an expert. The head has `is_head`."""

    weight: Tensor
    share: float = 1.0
    is_head: bool = False
    multiply: Callable[[Tensor, Tensor], Tensor] = linear

    def rows(self, num_tokens: int) -> int:
        """Tokens of `num_tokens` that come here, at least 1."""
        return max(1, round(num_tokens * self.share))


def matrices_of(model: Any) -> list[Matrix]:
    """Every matrix that tokens are multiplied by, in the order of the modules."""
    found: list[Matrix] = []
    multiply = quick_linear if any(is_quick(module) for module in model.modules()) else linear
    head = model.get_output_embeddings()
    for module in model.modules():
        experts = getattr(module, "gate_up_proj", None)
        if isinstance(module, nn.Linear):
            found.append(Matrix(module.weight.detach(), is_head=module is head, multiply=multiply))
        elif isinstance(experts, nn.Parameter) and experts.dim() == 3:
            share = model.config.num_experts_per_tok / len(experts)
            for up, down in zip(experts.detach(), module.down_proj.detach(), strict=True):
                found += [Matrix(up, share), Matrix(down, share)]
    return found


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens that go through the layers together; logits are wanted of `num_predicted` of them."""

    num_tokens: int
    num_predicted: int
    has_gradient: bool = False


def batches(prompt_lengths: Sequence[int], lengths: Sequence[int], max_tokens: int = MAX_TOKENS) -> list[Batch]:
    """The batches of a step, in order: the prompts, each position of the completions, the parts of the update.

    The last token of a completion is never read.

    >>> [batch.num_tokens for batch in batches([3], [1, 2])]      # 3 prompt tokens; one row goes on; 3 + 1 in training
    [3, 1, 4]
    """
    found = [Batch(sum(prompt_lengths), len(prompt_lengths))]
    for position in range(1, max(lengths)):
        alive = sum(length > position for length in lengths)
        found.append(Batch(alive, alive))
    num_read = sum(prompt_lengths) + sum(length - 1 for length in lengths)
    num_parts = -(-num_read // max_tokens)
    for part in range(num_parts):
        share = [(total * (part + 1)) // num_parts - (total * part) // num_parts for total in (num_read, sum(lengths))]
        found.append(Batch(share[0], share[1], has_gradient=True))
    return found


def num_operations(matrices: Sequence[Matrix], steps: Sequence[Batch]) -> int:
    """Floating-point operations: 2 for each entry of a matrix and token, three times as many with gradients."""
    total = 0
    for batch in steps:
        for matrix in matrices:
            rows = matrix.rows(batch.num_predicted if matrix.is_head else batch.num_tokens)
            total += 2 * rows * matrix.weight.numel() * (3 if batch.has_gradient else 1)
    return total


@torch.inference_mode()
def measure(matrices: Sequence[Matrix], steps: Sequence[Batch]) -> dict[str, float]:
    """Seconds that the products of a step take, apart for sampling and training, and how many were made."""
    widest = max(max(matrix.weight.shape) for matrix in matrices)
    most = max(max(batch.num_tokens, batch.num_predicted) for batch in steps)
    source = torch.randn(most * widest)
    seconds = {False: 0.0, True: 0.0}
    num_products, worked = 0, time.process_time()
    for batch in steps:
        started = time.perf_counter()
        for matrix in matrices:
            rows = matrix.rows(batch.num_predicted if matrix.is_head else batch.num_tokens)
            size_out, size_in = matrix.weight.shape
            inputs = source[: rows * size_in].view(rows, size_in)
            matrix.multiply(inputs, matrix.weight)
            num_products += 1
            if batch.has_gradient:
                outputs = source[: rows * size_out].view(rows, size_out)
                matrix.multiply(outputs, matrix.weight.t())
                matrix.multiply(outputs.t(), inputs.t())
                num_products += 2
        seconds[batch.has_gradient] += time.perf_counter() - started
    return {
        "rollout_seconds": seconds[False],
        "update_seconds": seconds[True],
        "step_seconds": seconds[False] + seconds[True],
        "cpu_seconds": time.process_time() - worked,
        "num_products": num_products,
        "operations": num_operations(matrices, steps),
    }


def main(arguments: Sequence[str]) -> None:
    started, line = time.perf_counter(), Line()
    spec = Spec.from_json(arguments[0])
    torch.set_num_threads(spec.threads)
    matrices = matrices_of(load_model(Path(spec.place), device="cpu", dtype="float32"))

    def answer(request: Mapping[str, Any]) -> dict[str, float]:
        prompts = [spec.workload.prompt_tokens] * spec.workload.num_prompts
        return measure(matrices, batches(prompts, request["lengths"]))

    serve(line, loaded(started, {}), answer)


if __name__ == "__main__":
    main(sys.argv[1:])
