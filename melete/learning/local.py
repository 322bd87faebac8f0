"""The local learner: one model, one optimizer, one process."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from melete.algorithms import Algorithm, token_losses
from melete.batch import Batch, TrainBatch, microbatches
from melete.errors import TrainingError
from melete.functional.aggregate import aggregate
from melete.learning.optimizer import OptimizerSettings, lr_at, make_optimizer
from melete.learning.scoring import score


class LocalLearner:
    """Updates `model` in place; `after_step` is called after each optimizer step and may return metrics of its own."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        optimizer: OptimizerSettings,
        max_tokens_per_microbatch: int = 8192,
        temperature: float = 1.0,
        after_step: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.model, self.settings = model, optimizer
        self.max_tokens, self.temperature, self.after_step = max_tokens_per_microbatch, temperature, after_step
        self.optimizer = make_optimizer(model, optimizer)
        self.reference: PreTrainedModel | None = None
        self.num_updates = 0

    def logprobs(self, batch: Batch | TrainBatch) -> Tensor:
        """Log-probs [B, T] by the current weights, without gradient."""
        return self._score_all(self.model, batch)

    def ref_logprobs(self, batch: Batch | TrainBatch) -> Tensor:
        """Log-probs [B, T] by the reference: the policy as it was when one was first asked for, or last refreshed."""
        if self.reference is None:
            self.refresh_reference()
        assert self.reference is not None
        return self._score_all(self.reference, batch)

    def refresh_reference(self) -> None:
        """Freezes a copy of the current policy as the reference."""
        self.reference = copy.deepcopy(self.model).requires_grad_(False)
        self.reference.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _score_all(self, model: PreTrainedModel, batch: Batch | TrainBatch) -> Tensor:
        model.eval()
        out = torch.zeros(batch.tokens.shape)
        for rows in _row_parts(batch.lengths, self.max_tokens):
            longest = int(batch.lengths[rows].max())
            tokens, mask = batch.tokens[rows, :longest], batch.loss_mask[rows, :longest]
            scores = score(model, tokens.to(model.device), mask.to(model.device), self.temperature)
            out[rows, :longest] = scores.logprobs.float().cpu()
        return out

    def update(self, batch: TrainBatch, algorithm: Algorithm) -> dict[str, float]:
        """One optimizer step over all rows; gradients of the micro-batches add up to those of the whole.

        A batch without rows changes no weight and only moves on in the schedule. Raises `TrainingError` when loss or
        gradient is not finite; the weights, the optimizer and the schedule are then as they were.
        """
        self.model.eval()  # the sampler has no dropout either
        sums: defaultdict[str, float] = defaultdict(float)
        self.optimizer.zero_grad(set_to_none=True)
        for part in microbatches(batch, self.max_tokens) if batch.num_rows else []:
            self._backward(part.to(self.model.device), algorithm, sums)
        return self._step(sums) | _averages(sums) | {"num_dropped_rows": float(batch.num_dropped_rows)}

    def _backward(self, part: TrainBatch, algorithm: Algorithm, sums: defaultdict[str, float]) -> None:
        scores = score(self.model, part.tokens, part.loss_mask, self.temperature)
        losses, per_token = token_losses(
            algorithm,
            logprobs=scores.logprobs,
            advantages=part.advantages,
            old_logprobs=part.streams.get("old_logprobs"),
            ref_logprobs=part.streams.get("ref_logprobs"),
            mask=part.loss_mask,
        )
        loss = aggregate(losses, part.loss_mask, algorithm.aggregation, part.totals)
        if loss.requires_grad:
            loss.backward()
        sums["loss"] += loss.item()
        sums["num_tokens"] += int(part.loss_mask.sum())
        streams = {**per_token, "entropy": scores.entropy}
        if part.rollout_logprobs is not None:
            streams["sampler_mismatch"] = (scores.logprobs.detach() - part.rollout_logprobs).abs()
        for name, stream in streams.items():
            sums[f"sum/{name}"] += float(torch.where(part.loss_mask, stream, 0.0).sum())
        if "ratio" in per_token:
            sums["ratio_max"] = max(
                sums["ratio_max"], float(torch.where(part.loss_mask, per_token["ratio"], 0.0).max())
            )

    def _step(self, sums: Mapping[str, float]) -> dict[str, float]:
        lr = lr_at(self.num_updates, self.settings)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm).item()
        if not (math.isfinite(sums.get("loss", 0.0)) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"loss {sums.get('loss')} or gradient norm {norm} is not a finite number; the step was refused",
                place=f"update {self.num_updates}",
                remedy="lower lr, or look at the last rollouts for a broken reward; the weights are unchanged",
            )
        metrics = {"lr": lr, "grad_norm": norm, "loss": sums.get("loss", 0.0)}
        if sums:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            metrics |= self.after_step() if self.after_step else {}
        self.num_updates += 1
        return metrics

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name; not copies."""
        return self.model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, place in the schedule and reference; not copies."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "num_updates": self.num_updates,
            "reference": None if self.reference is None else self.reference.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state, bit for bit."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_updates = state["num_updates"]
        self.reference = None
        if state["reference"] is not None:
            self.refresh_reference()
            assert self.reference is not None
            self.reference.load_state_dict(state["reference"])


def _row_parts(lengths: Tensor, max_tokens: int) -> list[list[int]]:
    parts: list[list[int]] = []
    for row in torch.argsort(lengths, stable=True).tolist():
        if parts and (len(parts[-1]) + 1) * int(lengths[row]) <= max_tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def _averages(sums: Mapping[str, float]) -> dict[str, float]:
    """Means per trained token of what was summed."""
    count = max(sums.get("num_tokens", 0.0), 1.0)
    means = {name.removeprefix("sum/"): total / count for name, total in sums.items() if name.startswith("sum/")}
    means.pop("ratio", None)
    return means | ({"ratio_max": sums["ratio_max"]} if "ratio_max" in sums else {})
