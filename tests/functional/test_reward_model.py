"""Losses of reward models, and what is reported about them."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor
from torch.nn import functional as F

from melete.functional.reward_model import (
    bradley_terry,
    calibration_error,
    length_correlation,
    pair_accuracy,
    pointwise,
    ranking,
)

LOG2 = math.log(2)
scores = st.floats(-8, 8)


def f64(*values: float) -> Tensor:
    return tensor(values, dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_bradley_terry_of_equal_scores_is_log_2_and_of_three_to_one_log_four_thirds() -> None:
    torch.testing.assert_close(bradley_terry(f64(5.0, math.log(3)), f64(5.0, 0.0)), f64(LOG2, math.log(4 / 3)))


def test_a_margin_and_the_centring_term_on_paper() -> None:
    """3 - 1 - 2 = 0, and 0.01 (3 + 1)^2."""
    got = bradley_terry(f64(3.0), f64(1.0), margins=f64(2.0), center_coef=0.01)
    torch.testing.assert_close(got, f64(LOG2 + 0.16))


@settings(max_examples=40, deadline=None)
@given(chosen=scores, rejected=scores, shift=scores)
def test_a_shift_of_both_scores_changes_nothing_without_centring(chosen: float, rejected: float, shift: float) -> None:
    plain = bradley_terry(f64(chosen), f64(rejected))
    torch.testing.assert_close(bradley_terry(f64(chosen + shift), f64(rejected + shift)), plain)


def test_centring_tells_a_shift_and_is_least_where_the_scores_are_opposite() -> None:
    chosen, rejected = f64(1.0).requires_grad_(), f64(-1.0).requires_grad_()
    loss = bradley_terry(chosen, rejected, center_coef=0.5)
    torch.testing.assert_close(loss, bradley_terry(f64(1.0), f64(-1.0)))
    assert bradley_terry(f64(3.0), f64(1.0), center_coef=0.5) > loss
    up, down = torch.autograd.grad(loss.sum(), [chosen, rejected])
    torch.testing.assert_close(up, -down)


def test_the_gradients_of_bradley_terry_cancel_and_are_those_of_finite_differences() -> None:
    """d loss / d chosen = -(1 - sigmoid(gap)) = -1/4 at a gap of log 3."""
    chosen, rejected = f64(math.log(3)).requires_grad_(), f64(0.0).requires_grad_()
    up, down = torch.autograd.grad(bradley_terry(chosen, rejected).sum(), [chosen, rejected])
    torch.testing.assert_close(up, f64(-0.25))
    assert torch.equal(up, -down)
    pair = [noise(5, seed=1).requires_grad_(), noise(5, seed=2).requires_grad_()]
    margins = noise(5, seed=3)
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry(c, r, margins=margins, center_coef=0.1), pair)


def test_a_margin_is_a_constant_and_moves_the_loss() -> None:
    """I16."""
    chosen, margins = f64(1.0).requires_grad_(), f64(0.5).requires_grad_()
    loss = bradley_terry(chosen, f64(0.0), margins=margins)
    loss.sum().backward()
    assert margins.grad is None
    assert loss > bradley_terry(chosen, f64(0.0))


def test_a_score_of_zero_is_a_score() -> None:
    """I36: taken for missing, the pairs would cost 0 or log 2."""
    torch.testing.assert_close(bradley_terry(f64(0.0), f64(math.log(3))), f64(math.log(4)))
    every = torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(ranking(f64(0.0, math.log(3))[None], every), f64(math.log(4)))
    assert pair_accuracy(f64(0.0, 0.0), f64(-1.0, 1.0)) == 0.5


def test_a_score_that_is_infinite_leaves_no_nan_behind() -> None:
    assert torch.equal(bradley_terry(f64(math.inf), f64(0.0)), f64(0.0))


def test_three_equal_scores_rank_at_log_2_and_three_spaced_ones_on_paper() -> None:
    """Gaps log 3, log 3 and 2 log 3: log(4/3) twice and log(10/9), over three pairs."""
    table = torch.stack([f64(7.0, 7.0, 7.0), f64(2.0, 1.0, 0.0) * math.log(3)])
    expected = f64(LOG2, (2 * math.log(4 / 3) + math.log(10 / 9)) / 3)
    torch.testing.assert_close(ranking(table, torch.ones(2, 3, dtype=torch.bool)), expected)


def test_a_ranking_of_two_is_bradley_terry() -> None:
    table = noise(6, 2)
    got = ranking(table, torch.ones(6, 2, dtype=torch.bool))
    torch.testing.assert_close(got, bradley_terry(table[:, 0], table[:, 1]))


@settings(max_examples=40, deadline=None)
@given(data=st.lists(st.lists(st.tuples(scores, st.booleans()), min_size=4, max_size=4), min_size=1, max_size=3))
def test_a_ranking_is_the_mean_over_a_loop_of_its_pairs(data: list[list[tuple[float, bool]]]) -> None:
    table = tensor([[score for score, _ in row] for row in data], dtype=torch.float64)
    mask = tensor([[there for _, there in row] for row in data])
    expected = []
    for row in data:
        losses = [math.log1p(math.exp(worse - better)) for better, worse in combinations([s for s, m in row if m], 2)]
        expected.append(sum(losses) / max(len(losses), 1))
    torch.testing.assert_close(ranking(table, mask), f64(*expected))


@pytest.mark.parametrize("hidden", [math.nan, math.inf, -math.inf])
def test_what_is_padded_is_not_read_and_a_ranking_of_fewer_than_two_is_0(hidden: float) -> None:
    """I6: neither in the value nor in the gradient."""
    table = tensor([[math.log(3), hidden, 0.0], [1.0, hidden, hidden], [hidden] * 3], dtype=torch.float64)
    table.requires_grad_()
    mask = tensor([[True, False, True], [True, False, False], [False] * 3])
    losses = ranking(table, mask)
    torch.testing.assert_close(losses, f64(math.log(4 / 3), 0.0, 0.0))
    grad = torch.autograd.grad(losses.sum(), table)[0]
    torch.testing.assert_close(grad, tensor([[-0.25, 0.0, 0.25], [0.0] * 3, [0.0] * 3], dtype=torch.float64))


def test_the_gradient_of_a_ranking_is_that_of_finite_differences() -> None:
    mask = tensor([[True, True, True, False], [True, False, True, True]])
    assert torch.autograd.gradcheck(lambda x: ranking(x, mask), [noise(2, 4).requires_grad_()])


def test_pointwise_is_log_2_at_0_and_on_paper_elsewhere() -> None:
    """Odds of 3 to 1: log(4/3) when right, log 4 when wrong; a share of 1/2 lies half way."""
    three = math.log(3)
    torch.testing.assert_close(pointwise(f64(0.0, 0.0), tensor([True, False])), f64(LOG2, LOG2))
    got = pointwise(f64(three, three, three), f64(1.0, 0.0, 0.5))
    torch.testing.assert_close(got, f64(math.log(4 / 3), math.log(4), (math.log(4 / 3) + math.log(4)) / 2))


def test_pointwise_scores_every_step_for_itself_without_overflow() -> None:
    steps, labels = tensor([[1e4, -1e4], [0.0, -1e4]]), tensor([[True, True], [False, False]])
    torch.testing.assert_close(pointwise(steps, labels), tensor([[0.0, 1e4], [LOG2, 0.0]]))


def test_the_gradient_of_pointwise_is_probability_less_label() -> None:
    x, labels = noise(2, 3).requires_grad_(), tensor([[True, False, True], [False, True, False]])
    grad = torch.autograd.grad(pointwise(x, labels).sum(), x)[0]
    torch.testing.assert_close(grad, x.detach().sigmoid() - labels.double())


def test_a_tie_is_half_right() -> None:
    assert pair_accuracy(tensor([1.0, 1.0, 0.0, 2.0]), tensor([0.0, 1.0, 1.0, 1.0])) == 0.625


def test_swapping_the_pairs_gives_the_rest_of_the_accuracy() -> None:
    a, b = noise(20).round(), noise(20, seed=1).round()
    torch.testing.assert_close(pair_accuracy(a, b) + pair_accuracy(b, a), tensor(1.0, dtype=torch.float64))


def test_calibration_error_of_two_bins_on_paper() -> None:
    """Bin [0.2, 0.3): 0.25 four times, one true, exact. Bin [0.8, 0.9): 0.85 twice, one true: 2/6 of 0.35."""
    probabilities = f64(0.25, 0.25, 0.25, 0.25, 0.85, 0.85)
    outcomes = tensor([True, False, False, False, True, False])
    torch.testing.assert_close(calibration_error(probabilities, outcomes), tensor(0.35 / 3, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(data=st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=12), num_bins=st.integers(1, 12))
def test_calibration_error_is_that_of_a_loop_over_bins(data: list[tuple[float, bool]], num_bins: int) -> None:
    expected = 0.0
    for k in range(num_bins):
        inside = [(p, y) for p, y in data if min(int(p * num_bins), num_bins - 1) == k]
        if inside:
            accuracy = sum(y for _, y in inside) / len(inside)
            confidence = math.fsum(p for p, _ in inside) / len(inside)
            expected += len(inside) / len(data) * abs(accuracy - confidence)
    outcomes = tensor([y for _, y in data], dtype=torch.bool)
    got = calibration_error(f64(*(p for p, _ in data)), outcomes, num_bins=num_bins)
    torch.testing.assert_close(got, tensor(expected, dtype=torch.float64))


def test_certainty_is_the_last_bin_and_costs_nothing_when_right() -> None:
    assert calibration_error(tensor([1.0, 0.0]), tensor([True, False])) == 0
    assert calibration_error(tensor([1.0, 0.0]), tensor([False, True])) == 1


def test_calibration_refuses_less_than_one_bin() -> None:
    with pytest.raises(ValueError, match="num_bins"):
        calibration_error(tensor([0.5]), tensor([True]), num_bins=0)


def test_length_correlation_on_paper() -> None:
    """1, 2, 3 against 1, 3, 2: covariance 1 over 2."""
    torch.testing.assert_close(length_correlation(f64(1.0, 2.0, 3.0), f64(1.0, 3.0, 2.0)), f64(0.5)[0])
    torch.testing.assert_close(length_correlation(f64(3.0, 1.0), f64(5.0, 9.0)), f64(-1.0)[0])


def test_where_scores_or_lengths_are_constant_the_correlation_is_0() -> None:
    """Ten times 0.1 has a mean in fp32 that is not 0.1: what rounds off must not be taken for a trend."""
    same, counts = torch.full((10,), 0.1), torch.arange(10.0)
    assert length_correlation(same, counts) == 0
    assert length_correlation(counts, same) == 0
    assert length_correlation(tensor([2.0]), tensor([3.0])) == 0
    assert length_correlation(torch.zeros(0), torch.zeros(0)) == 0


def test_a_common_offset_of_the_scores_changes_no_correlation() -> None:
    counts, x = torch.arange(20.0), noise(20).float()
    near = length_correlation(x, counts)
    torch.testing.assert_close(length_correlation((x * 64).round() / 64 + 4096, counts), near, atol=0.01, rtol=0.0)


def test_the_metrics_carry_no_gradient() -> None:
    x = f64(1.0, 2.0).requires_grad_()
    found = pair_accuracy(x, x), calibration_error(x.sigmoid(), tensor([True, False])), length_correlation(x, x)
    assert not any(metric.requires_grad for metric in found)


def test_the_loss_is_minus_the_log_likelihood_of_the_observed_order() -> None:
    """The probability of the pair in either order sums to 1."""
    a, b = noise(8), noise(8, seed=1)
    torch.testing.assert_close((-bradley_terry(a, b)).exp() + (-bradley_terry(b, a)).exp(), torch.ones_like(a))
    torch.testing.assert_close(bradley_terry(a, b), pointwise(a - b, torch.ones(8, dtype=torch.bool)))
    torch.testing.assert_close(bradley_terry(a, b), F.softplus(b - a))
