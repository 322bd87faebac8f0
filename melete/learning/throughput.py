"""How fast a step of reinforcement learning was, and how fast its arithmetic alone could be on this machine.

The floor counts the matrix products that no implementation can leave out: each prompt and each completion once forward
to sample, and once more forward and backward to learn, which are three products for one. It leaves out attention, norms
and the drawing of tokens, and takes the speed of large products, which writing token by token does not reach.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from transformers import PreTrainedModel

from melete.forward.products import linear
from melete.types import RolloutGroup

_LEARNING = 3  # products of a forward and backward pass for each one of a forward pass
_ROWS, _WIDTH, _SECONDS = 2048, 512, 0.05


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Floating point operations of a forward pass, for each token: of the trunk, and of the head that makes logits."""

    trunk: float
    head: float

    @classmethod
    def of(cls, model: PreTrainedModel) -> Arithmetic:
        """Two for each weight that a token meets; of a mixture's experts it meets `num_experts_per_tok`."""
        head, active = model.get_output_embeddings(), getattr(model.config, "num_experts_per_tok", 0) or 0
        trunk = 0.0
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not head:
                trunk += module.weight.numel()
            for weight in module.parameters(recurse=False):
                if weight.dim() == 3:  # the weights of all experts in one
                    trunk += weight.numel() * active / weight.shape[0]
        return cls(2 * trunk, 2 * float(head.weight.numel()) if head is not None else 0.0)

    def of_step(self, num_prompt_tokens: int, num_completion_tokens: int, num_passes: int = 1) -> float:
        """Operations of sampling completions and of learning `num_passes` times from all of them.

        >>> Arithmetic(trunk=10.0, head=2.0).of_step(5, 3)  # 4 x (10 x 8 + 2 x 3)
        344.0
        """
        forward = self.trunk * (num_prompt_tokens + num_completion_tokens) + self.head * num_completion_tokens
        return forward * (1 + _LEARNING * num_passes)


@lru_cache(maxsize=8)
def operations_per_second(device: torch.device, dtype: torch.dtype, num_threads: int) -> float:
    """What products of 2048 rows reach here; measured once in a process for each device, format and `num_threads`."""
    left, right = (torch.randn(rows, _WIDTH, device=device).to(dtype) for rows in (_ROWS, _WIDTH))
    best, spent = float("inf"), 0.0
    while spent < _SECONDS:
        started = time.perf_counter()
        float(linear(left, right)[0, 0])  # waits for the device
        took = time.perf_counter() - started
        best, spent = min(best, took), spent + took
    return 2 * _ROWS * _WIDTH * _WIDTH / best


def throughput(
    model: PreTrainedModel, arithmetic: Arithmetic, groups: Sequence[RolloutGroup], num_passes: int, seconds: float
) -> dict[str, float]:
    """Completion tokens per second of a whole step, and the share of its seconds that the floor takes, 0 to 1."""
    completions = sum(len(rollout.completion.tokens) for group in groups for rollout in group.rollouts)
    prompts = sum(len(group.rollouts[0].prompt_tokens) for group in groups)
    weight = next(model.parameters())
    speed = operations_per_second(weight.device, weight.dtype, torch.get_num_threads())
    floor = arithmetic.of_step(prompts, completions, num_passes) / speed
    return {"tokens_per_second": completions / seconds, "floor_share": floor / seconds}
