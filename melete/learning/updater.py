"""A model and its optimizer: one step from losses that come one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from melete.errors import TrainingError
from melete.learning.optimizer import OptimizerSettings, lr_at, make_optimizer


@contextmanager
def _checkpointed(model: torch.nn.Module) -> Iterator[None]:
    """Layers for which gradient checkpointing was enabled do it only while they are told that they are in training."""
    layers = [layer for layer in model.modules() if getattr(layer, "gradient_checkpointing", False)]
    for layer in layers:
        layer.training = True  # of the layer alone: what is in it stays in evaluation mode, without dropout
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


class Updater:
    """Updates `model` in place; `after_step` is called after each optimizer step and may return metrics of its own.

    The model stays in evaluation mode: the sampler has no dropout either, and a step is a function of its inputs.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        settings: OptimizerSettings,
        *,
        after_step: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.model, self.settings, self.after_step = model, settings, after_step
        self.optimizer = make_optimizer(model, settings)
        self.num_updates = 0

    def step(self, losses: Iterable[Tensor]) -> dict[str, float]:
        """One optimizer step on the sum of `losses`, each of which is differentiated before the next is asked for.

        Without any loss no weight changes and only the schedule moves on. Returns `loss`, `grad_norm` and `lr`. Raises
        `TrainingError` when loss or gradient is not finite; weights, optimizer and schedule are then as they were.
        """
        self.model.eval()
        self.optimizer.zero_grad(set_to_none=True)
        total, is_empty = 0.0, True
        with _checkpointed(self.model):
            for loss in losses:
                if loss.requires_grad:
                    loss.backward()
                total, is_empty = total + loss.item(), False
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm).item()
        if not (math.isfinite(total) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"loss {total} or gradient norm {norm} is not a finite number; the step was refused",
                place=f"update {self.num_updates}",
                remedy="lower lr, or look at the last rollouts for a broken reward; the weights are unchanged",
            )
        lr = lr_at(self.num_updates, self.settings)
        metrics = {"lr": lr, "grad_norm": norm, "loss": total}
        if not is_empty:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            metrics |= self.after_step() if self.after_step else {}
        self.num_updates += 1
        return metrics

    @property
    def _is_partly_frozen(self) -> bool:
        return not all(parameter.requires_grad for parameter in self.model.parameters())

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, or those that are trained where others are frozen; not copies."""
        if not self._is_partly_frozen:
            return self.model.state_dict()
        return {name: weight.detach() for name, weight in self.model.named_parameters() if weight.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and place in the schedule; not copies."""
        return {
            "model": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state, bit for bit."""
        self.model.load_state_dict(state["model"], strict=not self._is_partly_frozen)
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_updates = state["num_updates"]


class OneModel:
    """What every learner of one model shares: its weights, and all that a checkpoint needs of it."""

    updater: Updater

    def weights(self) -> dict[str, Tensor]:
        """What is trained, by name; not copies."""
        return self.updater.weights()

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer and place in the schedule; not copies."""
        return self.updater.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state, bit for bit."""
        self.updater.load_state_dict(state)
