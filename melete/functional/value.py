"""Credit per token: rewards of tokens, returns, GAE, whitening, and the value model's loss.

values[t] is the value of the state before token t. Tokens outside the mask (prompt, observations of tools, padding)
are transparent: the step after a token of the mask is the row's next token of the mask, whatever lies between. Their
outputs are 0, and what stands there, NaN included, is not read. Sums run in fp64; results have the input's dtype.
"""

from __future__ import annotations

import math

import torch

from ._types import BT, Mask, Rows, Scalar

_KL_ERROR_LIMIT = 0.2


def token_rewards(rewards: Rows, kl_per_token: BT | None, mask: Mask, *, kl_coef: float) -> BT:
    """Each row's reward at its last token of the mask, and a penalty for leaving the reference at every token.

        r[t] = -kl_coef * kl_per_token[t] + (reward if t is the last token of the mask)

    InstructGPT's reward (Ouyang et al. 2022, eq. 2), with the KL given by `k1`. A constant: no gradient passes.

    >>> kl_per_token, mask = torch.tensor([[2.0, 4.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    >>> token_rewards(torch.tensor([1.0]), kl_per_token, mask, kl_coef=0.5)     # -1 and -2 + 1
    tensor([[-1., -1.,  0.]])
    """
    counted = mask.bool()
    num_left = counted.flip(1).cumsum(1).flip(1)
    at_end = torch.where(counted & (num_left == 1), rewards.detach()[:, None], 0.0)
    if kl_per_token is None:
        return at_end
    return torch.where(counted, at_end - kl_coef * kl_per_token.detach().to(rewards), 0.0)


def gae(
    token_rewards: BT,
    values: BT,
    mask: Mask,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 1.0,
    bootstrap_values: Rows | None = None,
) -> tuple[BT, BT]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16): advantages and returns, constants both.

        delta[t] = r[t] + gamma * values[t+1] - values[t]
        advantages[t] = delta[t] + gamma * gae_lambda * advantages[t+1],   returns = advantages + values

    t+1 is the next token of the mask. After the last one the value is the row's `bootstrap_values`, by default 0: the
    row is over. A row cut off at its length limit may carry the value of the state it was cut in.

    >>> gae(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2), gae_lambda=0.5)     # deltas 1, 1
    (tensor([[1.5000, 1.0000]]), tensor([[2.5000, 3.0000]]))
    """
    for name, setting in (("gamma", gamma), ("gae_lambda", gae_lambda)):
        if not 0 <= setting <= 1:
            raise ValueError(f"{name} must be from 0 to 1, not {setting}")
    counted, reward, value = mask.bool(), token_rewards.detach().double(), values.detach().double()
    advantages = torch.zeros_like(value)
    next_advantage = value.new_zeros(len(value))
    next_value = next_advantage if bootstrap_values is None else bootstrap_values.detach().double()
    for t in reversed(range(value.shape[1])):
        here = counted[:, t]
        advantage = reward[:, t] + gamma * next_value - value[:, t] + gamma * gae_lambda * next_advantage
        advantages[:, t] = torch.where(here, advantage, 0.0)
        next_advantage = torch.where(here, advantage, next_advantage)
        next_value = torch.where(here, value[:, t], next_value)
    returns = torch.where(counted, advantages + value, 0.0)
    return advantages.to(values.dtype), returns.to(values.dtype)


def returns_to_go(token_rewards: BT, mask: Mask, *, gamma: float = 1.0) -> BT:
    """G[t] = r[t] + gamma * G[t+1], with t+1 the next token of the mask (Sutton and Barto 2018, eq. 3.9).

    >>> returns_to_go(torch.tensor([[1.0, 9.0, 4.0]]), torch.tensor([[1.0, 0.0, 1.0]]), gamma=0.5)     # 9 is not read
    tensor([[3., 0., 4.]])
    """
    return gae(token_rewards, torch.zeros_like(token_rewards), mask, gamma=gamma)[1]


def whiten(values: BT, mask: Mask, *, shift_mean: bool = True, epsilon: float = 1e-8) -> BT:
    """Mean 0 and deviation 1 over all tokens of the mask; a constant, and 0 outside the mask.

        out = (x - mean) / (std + epsilon), and + mean where shift_mean is off (Ziegler et al. 2019, for rewards)

    Give it all rows of the step: statistics of a micro-batch are not those of the step. std divides by n - 1, as in
    verl, which adds epsilon to the variance instead, where it swallows deviations below 1e-4. One token, or equal ones,
    deviate by exactly 0.

    >>> whiten(torch.tensor([[1.0, 3.0, 7.0]]), torch.tensor([[1.0, 1.0, 0.0]]))     # mean 2, std sqrt(2)
    tensor([[-0.7071,  0.7071,  0.0000]])
    """
    counted = mask.bool()
    out = torch.zeros_like(values)
    kept = values.detach()[counted].double()
    if kept.numel() == 0:
        return out
    above = kept - kept.min()  # equal values deviate by 0, not by a rounding error
    deviation = above - above.mean()
    std = (deviation.square().sum() / max(kept.numel() - 1, 1)).sqrt()
    scaled = torch.where(deviation == 0, 0.0, deviation / (std + epsilon))  # 0 / 0 where epsilon is 0 as well
    out[counted] = (scaled if shift_mean else scaled + kept.mean()).to(out.dtype)
    return out


def value_loss(values: BT, old_values: BT, returns: BT, *, value_clip: float | None = 0.2) -> BT:
    """PPO's clipped value loss, one value per token.

        loss = 0.5 * max((values - returns)^2, (clip(values, old_values - c, old_values + c) - returns)^2)

    c = value_clip; None leaves 0.5 * (values - returns)^2. From OpenAI's baselines (Engstrom et al. 2020, section 3).
    The factor 0.5 is part of it, as there and in verl, so a coefficient of 1 has the gradient values - returns.
    `old_values` are those of the start of the update, from which the returns were made.

    >>> value_loss(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]))     # 0.5 * (0.2 - 1)^2
    tensor([[0.3200]])
    """
    target = returns.detach()
    squares = (values - target).square()
    if value_clip is not None:
        if not value_clip > 0:
            raise ValueError(f"value_clip must be above 0, or None for no clipping, not {value_clip}")
        old = old_values.detach()
        near_old = values.clamp(old - value_clip, old + value_clip)
        squares = torch.maximum(squares, (near_old - target).square())
    return 0.5 * squares


def explained_variance(values: BT, returns: BT, mask: Mask) -> Scalar:
    """1 - Var(returns - values) / Var(returns) over the tokens of the mask; 0 where the returns are all equal.

    1 is a perfect value model up to a constant, 0 is no better than a constant, below 0 is worse; as OpenAI's
    baselines log it, where equal returns give NaN.

    >>> explained_variance(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 2.0]]), torch.ones(1, 2))
    tensor(0.)
    """
    counted = mask.bool()
    target, predicted = returns.detach()[counted].double(), values.detach()[counted].double()
    if target.numel() == 0 or target.min() == target.max():
        return values.new_zeros(())
    unexplained = (target - predicted).var(correction=0) / target.var(correction=0)
    return (1 - unexplained).to(values.dtype)


def adapted_kl_coef(
    kl_coef: float, observed_kl: float, *, kl_target: float, kl_horizon: float, num_rollouts: int
) -> float:
    """The next step's KL coefficient: larger after too much KL, smaller after too little.

        kl_coef * (1 + error * num_rollouts / kl_horizon),  error = clip(observed_kl / kl_target - 1, -0.2, 0.2)

    Ziegler et al. 2019, section 2.2, in the form of their code, where the horizon is counted in rollouts.

    >>> round(adapted_kl_coef(0.1, 12.0, kl_target=6.0, kl_horizon=1000.0, num_rollouts=100), 6)     # 0.1 * 1.02
    0.102
    """
    if kl_target <= 0:
        raise ValueError(f"kl_target must be above 0, not {kl_target}")
    if kl_horizon <= _KL_ERROR_LIMIT * num_rollouts:
        raise ValueError(
            f"kl_horizon must be above {_KL_ERROR_LIMIT} * num_rollouts ({num_rollouts}), not {kl_horizon}: "
            "the coefficient could reach 0 in one step"
        )
    if math.isnan(observed_kl):
        raise ValueError("observed_kl must be a number, not NaN")
    error = min(max(observed_kl / kl_target - 1, -_KL_ERROR_LIMIT), _KL_ERROR_LIMIT)
    return kl_coef * (1 + error * num_rollouts / kl_horizon)
