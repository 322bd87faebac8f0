"""A model and its optimizer: one step from losses that come one after another."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from melete.errors import TrainingError
from melete.learning.optimizer import OptimizerSettings, lr_at, make_optimizer
from melete.machine.threads import in_lanes, num_lanes


@contextmanager
def _in_training(model: torch.nn.Module, number: int) -> Iterator[None]:
    """Tells what is to work only in training that it is: gradient checkpointing and an adapter's dropout.

    What is dropped depends on the number of the update alone, and takes nothing from torch's own generator.
    """
    layers = [layer for layer in model.modules() if getattr(layer, "gradient_checkpointing", False)]
    dropouts = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Dropout) and module.p > 0 and ".lora_dropout." in name
    ]
    place = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        if dropouts:
            stack.enter_context(torch.random.fork_rng(devices=[place] if place.type == "cuda" else []))
            torch.manual_seed(number)
        for module in (*layers, *dropouts):
            module.training = True  # of this one alone: what is in it stays in evaluation mode
            stack.callback(setattr, module, "training", False)
        yield


class Updater:
    """Updates `model` in place; `after_step` is called after each optimizer step and may return metrics of its own.

    The model stays in evaluation mode, but for an adapter's dropout: the sampler has none either, and a step is a
    function of its inputs. Weights of fewer than 32 bits are rounded from full ones, which the optimizer moves: a small
    step would else be rounded away, and gradients of many micro-batches with it.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        settings: OptimizerSettings,
        *,
        after_step: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.model, self.settings, self.after_step = model, settings, after_step
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.full = {p: torch.nn.Parameter(p.detach().float()) for p in trained if p.dtype.itemsize < 4}
        self.moved = torch.nn.ParameterList([self.full.get(parameter, parameter) for parameter in trained])
        self.optimizer = make_optimizer(self.moved, settings)
        self.num_updates = 0

    def step(self, losses: Iterable[Tensor], *, ahead: int = 0) -> dict[str, float]:
        """One optimizer step on the sum of `losses`, of which as many are held at once as there are lanes, and `ahead`.

        Without any loss no weight changes and only the schedule moves on. Returns `loss`, `grad_norm` and `lr`. Raises
        `TrainingError` when loss or gradient is not finite; weights, optimizer and schedule are then as they were.
        """
        self.model.eval()
        self.optimizer.zero_grad(set_to_none=True)
        for rounded in self.full:
            rounded.grad = None
        total, is_empty = 0.0, True
        with _in_training(self.model, self.num_updates):
            is_plain = len(self.moved) > 0 and not self.full
            lanes = num_lanes(torch.get_num_threads(), self.moved[0].device.type) if is_plain else 1
            # the next loss is made while the one before it is differentiated
            for value, gradients in in_lanes(
                self._backward if lanes == 1 else self._gradients, losses, lanes, ahead=ahead
            ):
                self._add(gradients)
                total, is_empty = total + value, False
        norm = torch.nn.utils.clip_grad_norm_(self.moved.parameters(), self.settings.max_grad_norm).item()
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
            # the fused step leaves the versions as they were, by which a sampler sees that weights have changed
            torch.autograd.graph.increment_version(list(self.moved.parameters()))
            self._round()
            self.optimizer.zero_grad(set_to_none=True)
            metrics |= self.after_step() if self.after_step else {}
        self.num_updates += 1
        return metrics

    def _backward(self, loss: Tensor) -> tuple[float, tuple[Tensor | None, ...]]:
        """The loss as a number; its gradients are where torch adds them up."""
        if loss.requires_grad:
            loss.backward()
            self._take_gradients()
        return loss.item(), ()

    def _gradients(self, loss: Tensor) -> tuple[float, tuple[Tensor | None, ...]]:
        """The loss as a number, and its gradients apart from all others."""
        trained = list(self.moved)
        return loss.item(), torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else ()

    def _add(self, gradients: Sequence[Tensor | None]) -> None:
        """Adds gradients up in the order of their losses, as `backward` would: to the last bit the same sums."""
        if not gradients:
            return
        with torch.no_grad():
            for parameter, gradient in zip(self.moved, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _take_gradients(self) -> None:
        """Adds the gradients of rounded weights to those of the full ones."""
        for rounded, full in self.full.items():
            if rounded.grad is not None:
                full.grad = rounded.grad.float() if full.grad is None else full.grad.add_(rounded.grad)
                rounded.grad = None

    @torch.no_grad()
    def _round(self) -> None:
        for rounded, full in self.full.items():
            rounded.copy_(full)

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
            **({"full": [full.detach() for full in self.full.values()]} if self.full else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state, bit for bit."""
        self.model.load_state_dict(state["model"], strict=not self._is_partly_frozen)
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_updates = state["num_updates"]
        with torch.no_grad():
            for full, saved in zip(self.full.values(), state.get("full", []), strict=True):
                full.copy_(saved)


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
