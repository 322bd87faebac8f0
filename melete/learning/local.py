"""The local learner: one model, one optimizer, one process."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from melete.algorithms import Algorithm, token_losses
from melete.batch import Batch, TrainBatch, microbatches
from melete.errors import ModelError
from melete.forward.memory import Memory
from melete.functional.aggregate import aggregate
from melete.functional.value import value_loss
from melete.learning.optimizer import OptimizerSettings
from melete.learning.packing import refuse_unpackable
from melete.learning.scoring import plain_head, score, score_batch, shares_beginnings
from melete.learning.updater import OneModel, Updater
from melete.models.adapters import has_adapter, without_adapter


class LocalLearner(OneModel):
    """Updates `model` in place; `after_step` is called after each optimizer step and may return metrics of its own.

    `value_head` is that of a critic on the policy's own trunk: `value_coef` times its value loss is added to each
    token's loss (Schulman et al. 2017, eq. 9), which teaches the trunk; the head itself is the critic's to train. With
    `packing`, several rows of an update go through the model as one sequence (see `packing.py`). `memory` is that of
    the sampler that writes with this very model: an update by the weights that wrote needs no forward pass over it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        optimizer: OptimizerSettings,
        max_tokens_per_microbatch: int = 8192,
        temperature: float = 1.0,
        after_step: Callable[[], Mapping[str, float]] | None = None,
        reference: PreTrainedModel | None = None,
        value_head: torch.nn.Linear | None = None,
        value_coef: float = 0.1,
        packing: bool = False,
        memory: Memory | None = None,
    ) -> None:
        if value_head is not None and plain_head(model) is None:
            remedy = 'give the critic a trunk of its own: trunk = "own"'
            raise ModelError(f"{type(model).__name__} cannot share its trunk with a critic", remedy=remedy)
        self.value_head, self.value_coef = value_head, value_coef
        self.model, self.max_tokens, self.temperature = model, max_tokens_per_microbatch, temperature
        self.updater = Updater(model, optimizer, after_step=after_step)
        self.reference = reference
        self.packing, self.memory = packing, memory
        if packing and not shares_beginnings(model):
            refuse_unpackable(model)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """What the sampler writes meanwhile is for the next update."""
        with self.memory.opened() if self.memory else nullcontext():
            yield

    def logprobs(self, batch: Batch | TrainBatch) -> Tensor:
        """Log-probs [B, T] by the current weights, without gradient."""
        return score_batch(self.model, batch, self.max_tokens, self.temperature)

    def ref_logprobs(self, batch: Batch | TrainBatch) -> Tensor:
        """Log-probs [B, T] by the reference.

        That is the model given at the start, else the policy as it was when one was first asked for, or last refreshed;
        of a policy with an adapter it is the policy without.
        """
        if self.reference is None and has_adapter(self.model):
            with without_adapter(self.model):
                return self.logprobs(batch)
        if self.reference is None:
            self.refresh_reference()
        assert self.reference is not None
        return score_batch(self.reference, batch, self.max_tokens, self.temperature)

    def refresh_reference(self) -> None:
        """Freezes a copy of the current policy as the reference."""
        self.reference = copy.deepcopy(self.model).requires_grad_(False)
        self.reference.zero_grad(set_to_none=True)

    def update(self, batch: TrainBatch, algorithm: Algorithm) -> dict[str, float]:
        """One optimizer step over all rows; gradients of the micro-batches add up to those of the whole.

        A batch without rows changes no weight and only moves on in the schedule. Raises `TrainingError` when loss or
        gradient is not finite; the weights, the optimizer and the schedule are then as they were.
        """
        sums: defaultdict[str, float] = defaultdict(float)
        memory = self.memory if self.memory is not None and self.memory.is_current() else None
        # with a memory a loss is next to nothing until it is differentiated
        metrics = self.updater.step(self._losses(batch, algorithm, sums, memory), ahead=1 if memory else 0)
        return metrics | _averages(sums) | {"num_dropped_rows": float(batch.num_dropped_rows)}

    def _losses(
        self, batch: TrainBatch, algorithm: Algorithm, sums: defaultdict[str, float], memory: Memory | None
    ) -> Iterator[Tensor]:
        shared = shares_beginnings(self.model)
        for part in microbatches(batch, self.max_tokens, share_beginnings=shared, packing=self.packing):
            yield self._loss(part.to(self.model.device), algorithm, sums, memory)

    def _loss(
        self, part: TrainBatch, algorithm: Algorithm, sums: defaultdict[str, float], memory: Memory | None
    ) -> Tensor:
        entropy_grad = algorithm.settings.entropy_coef > 0
        head = None if self.value_head is None else self.value_head.weight.detach()
        scores = score(
            self.model,
            part.tokens,
            part.loss_mask,
            self.temperature,
            entropy_grad=entropy_grad,
            value_weight=head if "returns" in part.streams else None,
            packing=self.packing,
            memory=memory,
        )
        losses, per_token = token_losses(
            algorithm,
            logprobs=scores.logprobs,
            advantages=part.advantages,
            old_logprobs=part.streams.get("old_logprobs"),
            ref_logprobs=part.streams.get("ref_logprobs"),
            rollout_logprobs=part.rollout_logprobs,
            entropy=scores.entropy,
            mask=part.loss_mask,
        )
        streams = {**per_token, "entropy": scores.entropy.detach()}
        if part.rollout_logprobs is not None:
            streams["sampler_mismatch"] = (scores.logprobs.detach() - part.rollout_logprobs).abs()
        sums["num_tokens"] += int(part.loss_mask.sum())
        for name, stream in streams.items():
            sums[f"sum/{name}"] += float(torch.where(part.loss_mask, stream, 0.0).sum())
        if "ratio" in per_token:
            largest = float(torch.where(part.loss_mask, per_token["ratio"], 0.0).max())
            sums["ratio_max"] = max(sums["ratio_max"], largest)
        if scores.values is not None:
            old, returns = part.streams["old_values"], part.streams["returns"]
            per_token = value_loss(scores.values, old, returns, value_clip=algorithm.settings.value_clip)
            losses = losses + self.value_coef * per_token
        return aggregate(losses, part.loss_mask, algorithm.aggregation, part.totals)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, place in the schedule and reference; not copies."""
        reference = None if self.reference is None else self.reference.state_dict()
        return super().state_dict() | {"reference": reference}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state, bit for bit."""
        super().load_state_dict(state)
        self.reference = None
        if state["reference"] is not None:
            self.refresh_reference()
            assert self.reference is not None
            self.reference.load_state_dict(state["reference"])


def _averages(sums: Mapping[str, float]) -> dict[str, float]:
    """Means per trained token of what was summed."""
    count = max(sums.get("num_tokens", 0.0), 1.0)
    means = {name.removeprefix("sum/"): total / count for name, total in sums.items() if name.startswith("sum/")}
    means.pop("ratio", None)
    return means | ({"ratio_max": sums["ratio_max"]} if "ratio_max" in sums else {})
