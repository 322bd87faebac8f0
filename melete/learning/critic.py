"""The local critic: a value model with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from melete.batch import Batch, TrainBatch
from melete.errors import ModelError
from melete.functional.aggregate import aggregate, denominators
from melete.functional.value import explained_variance, value_loss
from melete.learning.optimizer import OptimizerSettings
from melete.learning.scoring import stream_of, values_before
from melete.learning.updater import OneModel, Updater
from melete.parts import row_parts


class SharedTrunk(torch.nn.Module):
    """A value head on a policy's own trunk, in the shape of a scalar model; only the head is its to train.

    The head starts at 0. Raises `ModelError` for a policy whose trunk cannot be used without its own head.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        super().__init__()
        if policy.base_model is policy:
            remedy = 'give the critic a trunk of its own: trunk = "own"'
            raise ModelError(f"{type(policy).__name__} does not show its trunk", remedy=remedy)
        self._policy = [policy]  # in a list, so that its weights are not counted as this module's
        width = policy.config.get_text_config().hidden_size
        self.score = torch.nn.Linear(width, 1, bias=False, device=policy.device, dtype=policy.dtype)
        torch.nn.init.zeros_(self.score.weight)

    @property
    def device(self) -> torch.device:
        return self._policy[0].device

    @torch.no_grad()
    def base_model(self, **inputs: Any) -> Any:
        """The trunk's hidden states, without gradient."""
        return self._policy[0].base_model(**inputs)


class LocalCritic(OneModel):
    """Updates `model` in place, towards returns; no temperature ever touches a value.

    `value_clip` is how far a value may move from `old_values` before its gradient ends; None for no limit.
    """

    def __init__(
        self,
        model: PreTrainedModel | SharedTrunk,
        *,
        optimizer: OptimizerSettings,
        max_tokens_per_microbatch: int = 8192,
        value_clip: float | None = 0.2,
    ) -> None:
        self.model, self.max_tokens, self.value_clip = model, max_tokens_per_microbatch, value_clip
        self.updater = Updater(model, optimizer)

    def values(self, batch: Batch | TrainBatch) -> Tensor:
        """The value [B, T] fp32 of the state before each token under `loss_mask`, without gradient; 0 elsewhere."""
        return stream_of(batch, self.max_tokens, self.model, partial(values_before, self.model))

    def update(self, batch: TrainBatch) -> dict[str, float]:
        """One optimizer step on the mean value loss of all tokens under `loss_mask`.

        Reads the streams `old_values` and `returns`. The metrics are those of the weights before the step. Raises
        `TrainingError` and changes nothing when loss or gradient is not finite.
        """
        if missing := sorted({"old_values", "returns"} - batch.streams.keys()):
            raise ValueError(f"the critic needs the streams {', '.join(missing)}; use an algorithm with values")
        mask, old, returns = batch.loss_mask, batch.streams["old_values"], batch.streams["returns"]
        totals = denominators(mask, "token_mean")
        values, device = torch.zeros(batch.tokens.shape), self.model.device

        def losses() -> Iterator[Tensor]:
            for part in row_parts(batch.lengths, self.max_tokens):
                width = int(batch.lengths[part].max())
                tokens, where = batch.tokens[part, :width].to(device), mask[part, :width].to(device)
                found = values_before(self.model, tokens, where)
                values[part, :width] = found.detach().float().cpu()
                near, target = old[part, :width].to(found), returns[part, :width].to(found)
                per_token = value_loss(found, near, target, value_clip=self.value_clip)
                yield aggregate(per_token, where, "token_mean", totals)

        metrics = self.updater.step(losses())
        metrics["value_loss"] = metrics.pop("loss")
        metrics["value_clip_fraction"] = self._clip_fraction(values[mask], old[mask])
        metrics["explained_variance"] = float(explained_variance(values, returns, mask))
        return {f"critic/{name}": value for name, value in metrics.items()}

    def _clip_fraction(self, values: Tensor, old: Tensor) -> float:
        """Share of tokens whose value has moved further from the old one than `value_clip` allows."""
        if self.value_clip is None or not len(values):
            return 0.0
        return float(((values - old).abs() > self.value_clip).float().mean())
