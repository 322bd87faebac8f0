"""Rewards of a group's completions to advantages, one per row, or one per token where steps or tokens are rewarded.

Groups are keyed by `group_ids`: rows may come in any order and groups may be partial. Rows that are not `valid` (a
grader failed) leave every statistic and get 0, whatever their reward holds. A group of one valid row, and a group
whose rewards are all equal, get exactly 0, unless the mean of the whole step is taken off (the `whitened` ones).
Statistics are taken in fp64 around each group's lowest reward, so a large common offset costs no precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ._types import BT, Mask, RowFlags, RowIds, Rows
from .value import returns_to_go, whiten


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


def per_reward_group_mean_std(
    reward_parts: Float[Tensor, "B K"],
    part_weights: Float[Tensor, "K"],
    group_ids: RowIds,
    valid: RowFlags,
    *,
    std_epsilon: float = 1e-6,
    std_correction: int = 1,
) -> Rows:
    """GDPO (Liu et al. 2026, arXiv 2601.05242): every reward is normalised in its group before they are added up.

        A = (s - mean(step)) / (std(step) + std_epsilon)
        s = sum_k part_weights[k] * group_mean_std(reward_parts[:, k])

    A sum that is normalised afterwards lets the part of the largest spread drown the others. mean(step) is 0, as it is
    in every group, so a row with s = 0 stays exactly 0; a part that is equal in the whole group adds 0.

    >>> parts, ids, valid = torch.tensor([[0.0, 5.0], [9.0, 5.0]]), torch.tensor([0, 0]), torch.tensor([True, True])
    >>> per_reward_group_mean_std(parts, torch.tensor([1.0, 1.0]), ids, valid)     # s = -0.7071, 0.7071; std 1
    tensor([-0.7071,  0.7071])
    """
    total = reward_parts.new_zeros(len(valid), dtype=torch.float64)
    for part, weight in zip(reward_parts.double().unbind(1), part_weights.double(), strict=True):
        total += weight * group_mean_std(part, group_ids, valid, std_epsilon=std_epsilon, std_correction=std_correction)
    # the mean that batch_std takes off, that of a group, is 0 already
    whitened = batch_std(total, group_ids, valid, std_epsilon=std_epsilon, std_correction=std_correction)
    return whitened.to(reward_parts.dtype)


def batch_whitened_returns(token_rewards: BT, mask: Mask, valid: RowFlags, *, std_epsilon: float = 1e-6) -> BT:
    """REINFORCE++ (Hu 2025, arXiv 2501.03262): every token's return-to-go, whitened over all tokens of the step.

        A[t] = (G[t] - mean(step)) / (std(step) + std_epsilon),   G[t] = r[t] + r[t+1] + ... to the end of the row

    There are no groups. The KL penalty belongs in `token_rewards`. Tokens whose returns are all equal get exactly 0.

    >>> rewards, mask = torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    >>> batch_whitened_returns(rewards, mask, torch.tensor([True, True]))     # G = 0 | 4, 3: mean 7/3, std 2.0817
    tensor([[ 0.0000, -1.1209],
            [ 0.8006,  0.3203]])
    """
    counted = mask.bool() & valid[:, None]
    return whiten(returns_to_go(token_rewards, counted), counted, epsilon=std_epsilon)


def group_mean_batch_whitened(
    rewards: Rows, group_ids: RowIds, valid: RowFlags, mask: Mask, *, std_epsilon: float = 1e-6
) -> BT:
    """REINFORCE++-baseline (Hu 2025, arXiv 2501.03262): `group_mean`, then whitened over all tokens of the step.

        A[t] = (a - mean(step)) / (std(step) + std_epsilon),   a = r - mean(group) at every token of the row

    A row weighs as much as it has tokens, so mean(step) is 0 only where rows are equally long: if the better ones are
    the longer ones it is above 0, and a group of equal rewards, whose a is 0, is then pushed down, as in the paper.

    >>> ids, valid, mask = torch.tensor([4, 4]), torch.tensor([True, True]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> group_mean_batch_whitened(torch.tensor([0.0, 3.0]), ids, valid, mask)     # a = -1.5 | 1.5, 1.5: mean 1/2
    tensor([[-1.1547,  0.0000],
            [ 0.5773,  0.5773]])
    """
    counted = mask.bool() & valid[:, None]
    centred = group_mean(rewards, group_ids, valid)[:, None].expand(counted.shape)
    return whiten(centred, counted, epsilon=std_epsilon)


def process_mean_std(
    step_rewards: BT,
    step_ends: Mask,
    group_ids: RowIds,
    valid: RowFlags,
    *,
    std_epsilon: float = 1e-6,
    std_correction: int = 1,
) -> BT:
    """GRPO with process supervision (Shao et al. 2024, 4.1.3): the steps of a group are normalised together.

        A[t] = sum of the normalised rewards of the row's steps that end at or after t

    `step_ends` marks the last token of each step; `step_rewards` is read there only. Tokens after the last step get 0,
    as does a group with fewer than two steps or with equal ones. Tokens before a step's end, prompt included, get its
    credit: the loss mask picks from them.

    >>> rewards, ends = torch.tensor([[0.0, 1.0, 3.0, 0.0]]), torch.tensor([[False, True, True, False]])
    >>> process_mean_std(rewards, ends, torch.tensor([0]), torch.tensor([True]))     # steps -0.7071, 0.7071
    tensor([[0.0000, 0.0000, 0.7071, 0.0000]])
    """
    at_end = step_ends.bool() & valid[:, None]
    steps = step_rewards[at_end].double()
    ids = group_ids[:, None].expand(at_end.shape)[at_end]
    every = torch.ones_like(steps, dtype=torch.bool)
    normalised = torch.zeros_like(step_rewards, dtype=torch.float64)
    normalised[at_end] = group_mean_std(steps, ids, every, std_epsilon=std_epsilon, std_correction=std_correction)
    return normalised.flip(1).cumsum(1).flip(1).to(step_rewards.dtype)


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
