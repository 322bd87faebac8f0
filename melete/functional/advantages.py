"""Rewards of a group's completions to advantages, one per row.

Groups are keyed by `group_ids`: rows may come in any order and groups may be partial. Rows that are not `valid` (a
grader failed) leave every statistic and get 0, whatever their reward holds. A group of one valid row, and a group
whose rewards are all equal, get exactly 0. Statistics are taken in fp64 around each group's lowest reward, so a large
common offset costs no precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._types import RowFlags, RowIds, Rows


def uniform(rewards: Rows, group_ids: RowIds, valid: RowFlags) -> Rows:
    """1 for each valid row: demonstrations are imitated alike, whatever they earned.

    >>> uniform(torch.tensor([0.0, 5.0]), torch.tensor([0, 0]), torch.tensor([True, False]))
    tensor([1., 0.])
    """
    return valid.to(rewards)


def group_mean(rewards: Rows, group_ids: RowIds, valid: RowFlags) -> Rows:
    """A = r - mean(group): no division by the deviation (Dr. GRPO, Liu et al. 2025, section 3.2).

    >>> group_mean(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 0]), torch.ones(4, dtype=torch.bool))
    tensor([ 0.5000, -0.5000, -0.5000,  0.5000])
    """
    groups = _Groups.of(rewards, group_ids, valid)
    return groups.per_row(groups.deviation)


def group_mean_std(
    rewards: Rows, group_ids: RowIds, valid: RowFlags, *, std_epsilon: float = 1e-6, std_correction: int = 1
) -> Rows:
    """A = (r - mean(group)) / (std(group) + std_epsilon): GRPO with outcome supervision (Shao et al. 2024, 4.1.2).

    `std_correction = 1` divides the squares by n - 1 (torch.std, as in TRL and verl), 0 by n.

    >>> group_mean_std(torch.tensor([1.0, 3.0]), torch.tensor([7, 7]), torch.tensor([True, True]))     # std = sqrt(2)
    tensor([-0.7071,  0.7071])
    """
    groups = _Groups.of(rewards, group_ids, valid)
    squares = groups.sum(groups.deviation.square())
    std = (squares / (groups.count - std_correction).clamp(min=1)).sqrt()
    return groups.per_row(groups.deviation / (std + std_epsilon))


def leave_one_out(rewards: Rows, group_ids: RowIds, valid: RowFlags) -> Rows:
    """A = r - mean(the other rewards of the group) = n / (n - 1) (r - mean): RLOO (Ahmadian et al. 2024, eq. 8).

    >>> leave_one_out(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 0]), torch.ones(3, dtype=torch.bool))
    tensor([ 1.0000, -0.5000, -0.5000])
    """
    groups = _Groups.of(rewards, group_ids, valid)
    return groups.per_row(groups.deviation * groups.count / (groups.count - 1).clamp(min=1))


def batch_std(
    rewards: Rows, group_ids: RowIds, valid: RowFlags, *, std_epsilon: float = 1e-6, std_correction: int = 1
) -> Rows:
    """A = (r - mean(group)) / (std(all valid rewards) + std_epsilon): Lite PPO (Liu et al. 2025, "Tricks or Traps").

    >>> batch_std(torch.tensor([0.0, 2.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool))
    tensor([-1.2247,  1.2247,  0.0000,  0.0000])
    """
    groups = _Groups.of(rewards, group_ids, valid)
    kept = rewards.double()[valid]
    if kept.numel() == 0:
        return torch.zeros_like(rewards)
    squares = (kept - kept.min()) - (kept - kept.min()).mean()
    std = (squares.square().sum() / max(kept.numel() - std_correction, 1)).sqrt()
    return groups.per_row(groups.deviation / (std + std_epsilon))


def zero_signal_groups(rewards: Rows, group_ids: RowIds, valid: RowFlags) -> RowFlags:
    """True for each row of a group that teaches nothing: fewer than two valid rewards, or all of them equal.

    Asked of raw rewards, before a penalty or a normalisation can hide that a group is all right or all wrong
    (DAPO's dynamic sampling, Yu et al. 2025, section 3.2).

    >>> zero_signal_groups(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]), torch.ones(4) > 0)
    tensor([ True,  True, False, False])
    """
    return ~_Groups.of(rewards, group_ids, valid).has_signal


@dataclass(frozen=True, slots=True)
class _Groups:
    """Statistics of the groups, each spread back over the rows [B]; fp64."""

    like: Tensor
    index: Tensor
    valid: Tensor
    count: Tensor
    deviation: Tensor
    has_signal: Tensor

    @classmethod
    def of(cls, rewards: Tensor, group_ids: Tensor, valid: Tensor) -> _Groups:
        index = torch.searchsorted(group_ids.sort().values, group_ids)  # one number per group, below the number of rows
        # where, because the reward of a failed grader may be NaN
        values = torch.where(valid, rewards.double(), torch.inf)
        lowest = torch.full_like(values, torch.inf).scatter_reduce(0, index, values, "amin")[index]
        above = torch.where(valid, values - lowest, 0.0)
        count = _sum_by(index, valid.double())
        deviation = torch.where(valid, above - _sum_by(index, above) / count.clamp(min=1), 0.0)
        has_signal = _sum_by(index, (above > 0).double()) > 0
        return cls(rewards, index, valid, count, deviation, has_signal)

    def sum(self, values: Tensor) -> Tensor:
        return _sum_by(self.index, values)

    def per_row(self, advantages: Tensor) -> Tensor:
        # a group of equal rewards has std 0, and 0 / 0 where std_epsilon is 0 as well
        return torch.where(self.valid & self.has_signal, advantages, 0.0).to(self.like.dtype)


def _sum_by(index: Tensor, values: Tensor) -> Tensor:
    # there are never more groups than rows
    return torch.zeros_like(values).index_add(0, index, values)[index]
