"""Load balancing of a mixture of experts by the router's bias, without an auxiliary loss.

DeepSeek-V3 (2024, section 2.1.2) adds a bias to each expert's score for the selection only; after each step the bias
of an overloaded expert falls by gamma and that of an underloaded one rises by gamma. transformers holds the bias as a
buffer (`e_score_correction_bias`) and never changes it, so the trainer has to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def bias_step(bias: Tensor, load: Tensor, rate: float) -> Tensor:
    """The new bias: bias + rate * sign(mean(load) - load); `load` [E] counts the tokens sent to each expert.

    >>> bias_step(torch.zeros(3), torch.tensor([6.0, 2.0, 1.0]), 0.1)
    tensor([-0.1000,  0.1000,  0.1000])
    """
    return bias + rate * torch.sign(load.mean() - load)


class RouterBalancer:
    """Counts the tokens that each expert receives while gradients are on, and moves the biases when asked.

    Padding is not counted, and a token that several rows share counts for each of them: how rows are split over
    micro-batches must not change a bias. The lean forward pass says so itself (`token_counts` of the trunk).

    A model without such routers is fine: then there is nothing to do.
    """

    def __init__(self, model: nn.Module, rate: float = 0.001) -> None:
        self.rate = rate
        with_bias = [m for m in model.modules() if isinstance(getattr(m, "e_score_correction_bias", None), Tensor)]
        # a frozen router, as beside an adapter, is left as it is
        self.routers = [m for m in with_bias if any(p.requires_grad for p in m.parameters())]
        self.loads = [torch.zeros_like(_bias(router)) for router in self.routers]
        self.is_real: Tensor | None = None  # [B * T] of the forward pass under way
        self.trunk: Any = getattr(model, "base_model", model)
        self.pad_token_id: int | None = getattr(getattr(model, "config", None), "pad_token_id", None)
        if self.routers:
            self.trunk.register_forward_pre_hook(self._remember, with_kwargs=True)
        for index, router in enumerate(self.routers):
            router.register_forward_hook(self._count(index))

    def _remember(self, _module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        tokens = named.get("input_ids", inputs[0] if inputs else None)
        if isinstance(tokens, Tensor) and self.pad_token_id is not None:
            self.is_real = tokens.ne(self.pad_token_id).flatten()
        else:
            self.is_real = None

    def _count(self, index: int):
        def hook(_module: nn.Module, _inputs: object, output: tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                chosen, load = output[-1], self.loads[index]
                counts = getattr(self.trunk, "token_counts", None)
                if counts is None:
                    counts = torch.ones(len(chosen), device=chosen.device) if self.is_real is None else self.is_real
                weights = counts.to(load)[:, None].expand_as(chosen)
                load += torch.bincount(chosen.flatten(), weights.flatten(), minlength=load.numel()).to(load)

        return hook

    def step(self) -> dict[str, float]:
        """Moves every bias by the counts since the last step; returns the largest load relative to the mean."""
        worst = 0.0
        for router, load in zip(self.routers, self.loads, strict=True):
            if load.sum() > 0:
                worst = max(worst, float(load.max() / load.mean()))
                bias = _bias(router)  # looked up each time: moving a model to a device replaces its buffers
                bias.copy_(bias_step(bias, load, self.rate))
            load.zero_()
        return {"expert_load_max": worst} if self.routers else {}


def _bias(router: nn.Module) -> Tensor:
    return router.get_buffer("e_score_correction_bias")
