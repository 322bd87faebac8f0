"""Corrections for rollouts that another policy wrote."""

from __future__ import annotations

import math
from inspect import unwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from melete.functional.aggregate import MODES, aggregate, denominators
from melete.functional.off_policy import LEVELS, Level, negative_drift_kept, ratio_kept, truncated_weights
from melete.functional.policy import clipped

seeds = st.integers(0, 10**6)
levels = st.sampled_from(LEVELS)


def row(values: list[float]) -> Tensor:
    return tensor([values], dtype=torch.float64)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_rows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Old and rollout log-probs, and a mask with holes, an empty row among the four."""
    mask = noise(4, 5, seed=seed + 2) > -0.5
    mask[3] = False
    return noise(4, 5, seed=seed), noise(4, 5, seed=seed + 1), mask


def row_drift(old: Tensor, rollout: Tensor, mask: Tensor, i: int) -> list[float]:
    return [float(old[i, t] - rollout[i, t]) for t in range(mask.shape[1]) if mask[i, t]]


def test_a_weight_is_the_ratio_up_to_the_cap() -> None:
    """I17: ratios 3 and 1/2 with cap 2; the row's product is 3/2, and 9/2 with another pair."""
    old, mask = row([3.0, 0.5]).log(), tensor([[True, True]])
    torch.testing.assert_close(truncated_weights(old, row([0.0, 0.0]), mask), row([2.0, 0.5]))
    got = truncated_weights(old, row([0.0, 0.0]), mask, level="sequence")
    torch.testing.assert_close(got, row([1.5, 1.5]))
    got = truncated_weights(row([3.0, 1.5]).log(), row([0.0, 0.0]), mask, level="sequence")
    assert got.tolist() == [[2.0, 2.0]]


@settings(max_examples=40, deadline=None)
@given(seed=seeds, level=levels, cap=st.floats(0.5, 5))
def test_truncated_weights_equal_the_loop(seed: int, level: Level, cap: float) -> None:
    """I17, I27."""
    old, rollout, mask = some_rows(seed)
    got = truncated_weights(old, rollout, mask, level=level, weight_cap=cap)
    for i in range(4):
        product = math.exp(sum(row_drift(old, rollout, mask, i)))
        for t in range(5):
            token = math.exp(old[i, t] - rollout[i, t]) if mask[i, t] else 1.0
            assert float(got[i, t]) == pytest.approx(min(token if level == "token" else product, cap))


@settings(max_examples=40, deadline=None)
@given(seed=seeds, level=levels, low=st.floats(0, 0.9), high=st.floats(1.1, 5))
def test_what_is_kept_equals_the_loop(seed: int, level: Level, low: float, high: float) -> None:
    """I17, I27."""
    old, rollout, mask = some_rows(seed)
    got = ratio_kept(old, rollout, mask, level=level, ratio_low=low, ratio_high=high)
    for i in range(4):
        drift = row_drift(old, rollout, mask, i)
        mean = math.exp(sum(drift) / max(len(drift), 1))
        for t in range(5):
            token = math.exp(old[i, t] - rollout[i, t]) if mask[i, t] else 1.0
            assert bool(got[i, t]) == (low <= (token if level == "token" else mean) <= high)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, limit=st.floats(0, 1))
def test_negative_drift_equals_the_loop(seed: int, limit: float) -> None:
    """I27."""
    old, current, mask = some_rows(seed)
    advantages = noise(4, 1, seed=seed + 3).expand(4, 5)
    got = negative_drift_kept(current, old, advantages, mask, drift_limit=limit)
    for i in range(4):
        drift = row_drift(old, current, mask, i)
        leaves = float(advantages[i, 0]) < 0 and sum(drift) / max(len(drift), 1) > limit
        assert [bool(x) for x in got[i][mask[i]]] == [not leaves] * int(mask[i].sum())
        assert got[i][~mask[i]].all()


@pytest.mark.parametrize("level", LEVELS)
def test_equal_policies_weigh_one_and_keep_everything(level: Level) -> None:
    """I17."""
    old, _, mask = some_rows(0)
    assert truncated_weights(old, old, mask, level=level).tolist() == [[1.0] * 5] * 4
    assert ratio_kept(old, old, mask, level=level, ratio_low=1.0, ratio_high=1.1).all()
    assert negative_drift_kept(old, old, -torch.ones_like(old), mask, drift_limit=0.0).all()


def test_the_mean_weight_over_the_sampler_is_one_below_the_cap_and_less_above_it() -> None:
    """I17: by enumeration of five tokens, and of the 25 rows of two tokens, whose ratio is the product."""
    learner, sampler = noise(5, seed=1).log_softmax(-1), noise(5, seed=2).log_softmax(-1)
    first, second = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    old, rollout = (torch.stack([x[first], x[second]], 1) for x in (learner, sampler))
    chance, mask = rollout.sum(1).exp(), torch.ones(25, 2)
    for level in LEVELS:
        uncut = truncated_weights(old, rollout, mask, level=level, weight_cap=1e9)
        torch.testing.assert_close((chance[:, None] * uncut).sum(0), torch.ones(2, dtype=torch.float64))
        cut = truncated_weights(old, rollout, mask, level=level, weight_cap=1.5)
        assert ((chance[:, None] * cut).sum(0) < 1).all()
        assert cut.max() == 1.5


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_a_row_shares_one_weight_and_one_verdict(seed: int) -> None:
    """I17: masked positions included, so that nothing depends on where the holes are."""
    old, rollout, mask = some_rows(seed)
    weights = truncated_weights(old, rollout, mask, level="sequence")
    assert torch.equal(weights, weights[:, :1].expand(4, 5))
    kept = ratio_kept(old, rollout, mask, level="sequence", ratio_low=0.9, ratio_high=1.1)
    assert torch.equal(kept, kept[:, :1].expand(4, 5))


def test_a_long_row_is_judged_by_its_mean_because_its_product_leaves_every_band() -> None:
    """500 tokens, each 1% off: the product is 0.007, the geometric mean 0.99."""
    old, mask = torch.full((1, 500), math.log(0.99), dtype=torch.float64), torch.ones(1, 500)
    rollout = torch.zeros_like(old)
    assert truncated_weights(old, rollout, mask, level="sequence")[0, 0] < 0.01
    assert ratio_kept(old, rollout, mask, level="sequence").all()
    assert not ratio_kept(old, rollout, mask, level="sequence", ratio_low=0.995, ratio_high=1.005).any()


def test_both_ends_of_the_band_are_kept() -> None:
    """I17: ratio 1 exactly, as exp(0), with the band ending there from either side."""
    zero, mask = row([0.0]), tensor([[True]])
    assert ratio_kept(zero, zero, mask, ratio_low=1.0, ratio_high=2.0).all()
    assert ratio_kept(zero, zero, mask, ratio_low=0.5, ratio_high=1.0).all()
    assert not ratio_kept(zero + 1e-9, zero, mask, ratio_low=0.5, ratio_high=1.0).any()


def test_only_bad_rows_that_fell_leave() -> None:
    """I17: rows that fell, rose and stayed by 1; good and bad of each."""
    old, advantages = row([-1.0, -1.0]).expand(6, 2), row([1.0, -1.0]).T.repeat(3, 1).expand(6, 2)
    moved = row([-1.0, -1.0, 1.0, 1.0, 0.0, 0.0]).T
    kept = negative_drift_kept(old + moved, old, advantages, torch.ones(6, 2))
    assert kept.tolist() == [[True] * 2, [False] * 2, [True] * 2, [True] * 2, [True] * 2, [True] * 2]


def test_at_the_limit_of_the_drift_a_row_stays() -> None:
    old, mask = row([-1.0, -1.0]), torch.ones(1, 2)
    assert negative_drift_kept(old - 0.5, old, -mask.double(), mask, drift_limit=0.5).all()
    assert not negative_drift_kept(old - 0.5, old, -mask.double(), mask, drift_limit=0.49).any()


def test_of_a_row_with_both_signs_the_bad_tokens_leave() -> None:
    """DeepSeek-V3.2, eq. 9, asks for the sign of each token's advantage, and for the drift of the row."""
    old = row([-1.0, -1.0, -1.0])
    kept = negative_drift_kept(old - 1, old, row([1.0, -1.0, 0.0]), torch.ones(1, 3))
    assert kept.tolist() == [[True, False, True]]


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("level", LEVELS)
def test_what_stands_outside_the_mask_is_not_read(level: Level, hole: float) -> None:
    """I6: the outputs are finite everywhere and those of clean streams."""
    old, rollout, mask = some_rows(3)
    holed, clean = ([x.masked_fill(~mask, fill) for x in (old, rollout)] for fill in (hole, 0.0))
    weights = truncated_weights(*holed, mask, level=level)
    assert weights.isfinite().all()
    assert torch.equal(weights, truncated_weights(*clean, mask, level=level))
    assert torch.equal(ratio_kept(*holed, mask, level=level), ratio_kept(*clean, mask, level=level))
    assert torch.equal(
        negative_drift_kept(*holed, old.masked_fill(~mask, hole), mask, drift_limit=0.1),
        negative_drift_kept(*clean, old.masked_fill(~mask, 0.0), mask, drift_limit=0.1),
    )


def test_a_ratio_that_overflows_is_the_cap_and_leaves_the_band() -> None:
    """I17: fp32 exp(200) is infinite, exp(-200) is 0."""
    old, mask = tensor([[200.0, -200.0]]), tensor([[True, True]])
    assert truncated_weights(old, torch.zeros(1, 2), mask).tolist() == [[2.0, 0.0]]
    assert truncated_weights(old.abs(), torch.zeros(1, 2), mask, level="sequence").tolist() == [[2.0, 2.0]]
    assert ratio_kept(old, torch.zeros(1, 2), mask).tolist() == [[False, False]]


def test_corrections_carry_no_gradient() -> None:
    """I17."""
    old, rollout, mask = some_rows(4)
    old, rollout = old.requires_grad_(), rollout.requires_grad_()
    for level in LEVELS:
        assert not truncated_weights(old, rollout, mask, level=level).requires_grad
        assert not ratio_kept(old, rollout, mask, level=level).requires_grad
    assert not negative_drift_kept(rollout, old, old, mask).requires_grad


def test_a_weight_multiplies_the_gradient_of_its_token_and_nothing_else() -> None:
    """I17: the gradient of weight * loss is the weight times the gradient of the loss."""
    old, rollout, _ = some_rows(5)
    mask, logs, advantages = torch.ones(4, 5) > 0, old.clone().requires_grad_(), noise(4, 5, seed=9)
    weights, losses = truncated_weights(old, rollout, mask), clipped(logs, old, advantages)
    (plain,) = torch.autograd.grad(losses.sum(), logs, retain_graph=True)
    (weighted,) = torch.autograd.grad((weights * losses).sum(), logs)
    torch.testing.assert_close(weighted, weights * plain)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_that_is_not_kept_gives_no_gradient_and_stays_in_the_denominators(mode: str) -> None:
    """I17: as if its advantage were 0; its NaN does not leak."""
    logs = noise(2, 3, seed=1)
    logs[1] = math.nan
    logs.requires_grad_()
    old, rollout, mask = logs.detach(), logs.detach() - tensor([[0.0], [9.0]]), torch.ones(2, 3) > 0
    kept = ratio_kept(old, rollout, mask, level="sequence")
    assert kept.tolist() == [[True] * 3, [False] * 3]
    losses = torch.where(kept, -logs, 0.0)
    totals = denominators(mask, mode, constant=3)
    (got,) = torch.autograd.grad(aggregate(losses, mask, mode, totals), logs)
    share = {"sequence_mean_token_sum": 1 / 2}.get(mode, 1 / 6)
    torch.testing.assert_close(got, tensor([[-share] * 3, [0.0] * 3], dtype=torch.float64))


def test_bad_arguments_are_refused_with_what_is_allowed() -> None:
    x, mask = row([0.0]), tensor([[True]])
    for function in (truncated_weights, ratio_kept):
        with pytest.raises(ValueError, match="none of token, sequence"):
            # the type checker of the tests would refuse it first
            unwrap(function)(x, x, mask, level="row")
    with pytest.raises(ValueError, match="weight_cap must be above 0"):
        truncated_weights(x, x, mask, weight_cap=0.0)
    for low, high in ((-0.1, 2.0), (2.0, 2.0), (3.0, 2.0), (math.nan, 2.0)):
        with pytest.raises(ValueError, match="0 <= ratio_low < ratio_high"):
            ratio_kept(x, x, mask, ratio_low=low, ratio_high=high)
    with pytest.raises(ValueError, match="drift_limit must be 0 or above"):
        negative_drift_kept(x, x, x, mask, drift_limit=-0.1)
