"""A few steps of supervised training of a tiny model."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from melete.algorithms import resolve
from melete.batch import MaskedRow, masked_row
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.loops import sft

TOKENS = torch.tensor([[1, 40, 41, 42, 43, 2], [1, 50, 51, 52, 53, 2]])


def rows() -> list[MaskedRow]:
    return [masked_row((1, 40, 41), [60 + n, 70, 2]) for n in range(8)]


def train(model: PreTrainedModel, start: int = 0, stop: int = 4, state: dict | None = None) -> LocalLearner:
    learner = LocalLearner(model, optimizer=OptimizerSettings(lr=1e-2, num_steps=4))
    if state:
        learner.load_state_dict(state)
    sft.train(
        start=start,
        stop=stop,
        rows=rows(),
        rows_per_step=4,
        pad_token_id=0,
        learner=learner,
        algorithm=resolve("sft"),
        seed="s",
        on_step=lambda *_: None,
    )
    return learner
