"""AdamW and its learning-rate schedule, as plain functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """`num_steps` is the length of the schedule; the rate falls to `min_lr_ratio` of its height."""

    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    num_steps: int = 1
    min_lr_ratio: float = 0.0


def lr_at(step: int, settings: OptimizerSettings) -> float:
    """The rate of optimizer step `step`, counted from 0.

    >>> settings = OptimizerSettings(lr=1.0, warmup_steps=2, schedule="linear", num_steps=6)
    >>> [lr_at(step, settings) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    progress = min(1.0, (step - settings.warmup_steps) / max(1, settings.num_steps - settings.warmup_steps))
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    return settings.lr * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * shape[settings.schedule])


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW, one pass over each weight; weight decay acts on matrices only, not on norms and biases."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
