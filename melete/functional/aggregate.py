"""The one way from a loss per token to the number that is minimised.

Denominators are counted once for the whole optimizer step, before a row is dropped and before rows are split over
micro-batches or machines. So the parts simply add up: sum of `aggregate(part, totals)` = `aggregate(whole, totals)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ._types import BT, Mask, Scalar

Mode = Literal["sequence_mean_token_mean", "token_mean", "sequence_mean_token_sum", "constant"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class Denominators:
    """What a step's losses are divided by: unmasked tokens, rows that have any, and the constant of mode "constant"."""

    num_tokens: int | float
    num_sequences: int | float
    constant: float | None = None

    def share(self, num_parts: int) -> Denominators:
        """Those of each of `num_parts` optimizer steps that the rows are dealt to.

        >>> Denominators(6, 2).share(4)
        Denominators(num_tokens=1.5, num_sequences=0.5, constant=None)
        """
        return Denominators(self.num_tokens / num_parts, self.num_sequences / num_parts, self.constant)


def denominators(mask: Mask, mode: Mode, *, constant: int | float | None = None) -> Denominators:
    """Counts over all rows of an optimizer step; a row that is masked throughout is not a sequence.

    >>> denominators(torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), "token_mean")
    Denominators(num_tokens=3, num_sequences=2, constant=None)
    """
    _check_mode(mode)
    if mode == "constant" and (constant is None or constant <= 0):
        raise ValueError(f'mode "constant" needs a constant above 0, usually max_new_tokens, not {constant}')
    counted = mask.bool()
    divisor = float(constant) if mode == "constant" and constant is not None else None
    return Denominators(int(counted.sum()), int(counted.any(dim=1).sum()), divisor)


def aggregate(per_token: BT, mask: Mask, mode: Mode, totals: Denominators) -> Scalar:
    """Losses of a micro-batch to its share of the step's loss.

        sequence_mean_token_mean  sum_rows (sum_t x / len(row)) / num_sequences     GRPO (Shao et al. 2024, eq. 3)
        token_mean                sum x / num_tokens                                DAPO (Yu et al. 2025, eq. 8)
        sequence_mean_token_sum   sum x / num_sequences                             REINFORCE, RLOO
        constant                  sum x / (num_sequences * constant)                Dr. GRPO (Liu et al. 2025, sec. 3.2)

    What stands at a masked position, NaN included, is not read. A step that is masked throughout gives 0.

    >>> losses, mask = torch.tensor([[3.0, 0.0], [1.0, 2.0]]), torch.tensor([[True, False], [True, True]])
    >>> [float(aggregate(losses, mask, mode, denominators(mask, mode, constant=4))) for mode in MODES]
    [2.25, 2.0, 3.0, 0.75]
    """
    _check_mode(mode)
    counted = mask.bool()
    row_sums = torch.where(counted, per_token, 0.0).sum(dim=1)
    num_sequences = totals.num_sequences or 1
    if mode == "token_mean":
        return row_sums.sum() / (totals.num_tokens or 1)
    if mode == "sequence_mean_token_mean":
        return (row_sums / counted.sum(dim=1).clamp(min=1)).sum() / num_sequences
    if mode == "sequence_mean_token_sum":
        return row_sums.sum() / num_sequences
    if totals.constant is None:
        raise ValueError('mode "constant" needs denominators that were made for it')
    return row_sums.sum() / (num_sequences * totals.constant)


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f'aggregation "{mode}" is none of {", ".join(MODES)}')
