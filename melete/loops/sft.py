"""Supervised fine-tuning: demonstrations in, a policy out."""

from __future__ import annotations

import time
from collections.abc import Sequence

from melete.algorithms import Algorithm
from melete.batch import MaskedRow, demonstrations
from melete.learning.protocol import Learner
from melete.loops.passes import OnStep, batch_numbers


def train(
    *,
    start: int,
    stop: int,
    rows: Sequence[MaskedRow],
    rows_per_step: int,
    pad_token_id: int,
    learner: Learner,
    algorithm: Algorithm,
    seed: str,
    on_step: OnStep,
) -> None:
    """Steps `start` to `stop - 1`; each pass sees every row once, in an order of its own."""
    for step in range(start, stop):
        started = time.perf_counter()
        numbers = batch_numbers(step, len(rows), rows_per_step, seed)
        batch = demonstrations([rows[number] for number in numbers], pad_token_id, aggregation=algorithm.aggregation)
        metrics = learner.update(batch, algorithm)
        on_step(step, metrics, {"update_seconds": time.perf_counter() - started})
