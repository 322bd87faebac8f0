"""What loops over given rows share: which rows a step sees, and how it tells what it did."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

# number of the step, metrics (a function of recipe and seed), timings in seconds
OnStep = Callable[[int, Mapping[str, float], Mapping[str, float]], None]


def epoch_order(num_rows: int, seed: str, epoch: int) -> list[int]:
    """The order of an epoch's rows, a function of seed and epoch alone, so that a run can be continued anywhere."""
    order = list(range(num_rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def batch_numbers(step: int, num_rows: int, rows_per_step: int, seed: str) -> list[int]:
    """The rows of step `step` of passes that each see every row once; the last batch of a pass may be smaller."""
    steps_per_epoch = -(-num_rows // rows_per_step)
    epoch, within = divmod(step, steps_per_epoch)
    return epoch_order(num_rows, seed, epoch)[within * rows_per_step : (within + 1) * rows_per_step]
