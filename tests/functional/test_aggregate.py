"""From a loss per token to the number that is minimised."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn, tensor

from melete.functional.aggregate import MODES, Denominators, Mode, aggregate, denominators
from melete.functional.logprobs import logprobs

every_mode = pytest.mark.parametrize("mode", MODES)


def totals_of(mask: Tensor, mode: Mode) -> Denominators:
    return denominators(mask, mode, constant=10.0 if mode == "constant" else None)


def by_loop(losses: Tensor, mask: Tensor, mode: Mode) -> float:
    rows = [[float(x) for x, m in zip(row, kept, strict=True) if m] for row, kept in zip(losses, mask, strict=True)]
    rows = [row for row in rows if row]
    if not rows:
        return 0.0
    if mode == "token_mean":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if mode == "sequence_mean_token_mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    if mode == "sequence_mean_token_sum":
        return sum(map(sum, rows)) / len(rows)
    return sum(map(sum, rows)) / (len(rows) * 10.0)


def lengths_to_mask(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width)[None] < tensor(lengths)[:, None]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("sequence_mean_token_mean", (10 / 1 + 9 / 9) / 2),  # each row counts alike
        ("token_mean", 19 / 10),  # each token counts alike
        ("sequence_mean_token_sum", 19 / 2),
        ("constant", 19 / (2 * 10)),
    ],
)
def test_rows_of_length_one_and_nine_have_a_known_value_in_each_mode(mode: Mode, expected: float) -> None:
    """One token of loss 10, and nine of loss 1."""
    losses = torch.cat([tensor([[10.0] + [99.0] * 8]), torch.ones(1, 9)])
    mask = lengths_to_mask([1, 9], 9)
    assert float(aggregate(losses, mask, mode, totals_of(mask, mode))) == pytest.approx(expected)


@every_mode
@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6), seed=st.integers(0, 10**6))
def test_aggregate_equals_the_loop_over_tokens(mode: Mode, lengths: list[int], seed: int) -> None:
    """I27."""
    losses = torch.randn(len(lengths), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mask = lengths_to_mask(lengths, 5)
    got = aggregate(losses, mask, mode, totals_of(mask, mode))
    assert float(got) == pytest.approx(by_loop(losses, mask, mode), abs=1e-9)


@every_mode
@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=2, max_size=7),
    cuts=st.lists(st.integers(1, 6), max_size=3),
    seed=st.integers(0, 10**6),
)
def test_micro_batches_add_up_to_the_whole(mode: Mode, lengths: list[int], cuts: list[int], seed: int) -> None:
    """I1, I7: any split, uneven lengths included, with the denominators of the whole step."""
    losses = torch.randn(len(lengths), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mask = lengths_to_mask(lengths, 5)
    totals = totals_of(mask, mode)
    edges = sorted({0, len(lengths), *(cut for cut in cuts if cut < len(lengths))})
    parts = [aggregate(losses[a:b], mask[a:b], mode, totals) for a, b in pairwise(edges)]
    torch.testing.assert_close(torch.stack(parts).sum(), aggregate(losses, mask, mode, totals))


class TinyModel(nn.Module):
    """Embeds a token, adds what came before it, and predicts the next one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(7, 6, dtype=torch.float64), nn.Linear(6, 7, dtype=torch.float64)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(tokens).cumsum(dim=1)))


def gradients(model: nn.Module, parts: list[tuple[Tensor, Tensor]], mode: Mode, totals: Denominators) -> list[Tensor]:
    model.zero_grad()
    for tokens, mask in parts:
        aggregate(-logprobs(model(tokens), tokens), mask, mode, totals).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@every_mode
def test_gradients_of_all_micro_batches_survive_and_add_up(mode: Mode) -> None:
    """I1, I9: a model's gradient after three backward passes of 1, 3 and 2 rows is that of one pass of 6."""
    model = TinyModel()
    tokens = torch.randint(7, (6, 8), generator=torch.Generator().manual_seed(3))
    mask = lengths_to_mask([8, 2, 5, 0, 3, 7], 8)
    mask[:, :1] = False
    totals = totals_of(mask, mode)
    whole = gradients(model, [(tokens, mask)], mode, totals)
    split = gradients(model, list(zip(tokens.split([1, 3, 2]), mask.split([1, 3, 2]), strict=True)), mode, totals)
    torch.testing.assert_close(split, whole)


def test_clipping_scales_the_sum_of_the_micro_batches_not_the_last_of_them() -> None:
    """I9: the norm that is clipped is that of the whole step's gradient."""
    model, tokens = TinyModel(), torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(4))
    mask = torch.ones(4, 5, dtype=torch.bool)
    totals = totals_of(mask, "token_mean")
    whole = gradients(model, [(tokens, mask)], "token_mean", totals)
    norm = torch.stack([g.square().sum() for g in whole]).sum().sqrt()
    gradients(model, list(zip(tokens.split(1), mask.split(1), strict=True)), "token_mean", totals)
    reported = nn.utils.clip_grad_norm_(model.parameters(), float(norm) / 2)
    torch.testing.assert_close(reported, norm)
    torch.testing.assert_close([p.grad for p in model.parameters()], [g / 2 for g in whole], rtol=1e-4, atol=1e-9)


@every_mode
def test_the_loss_is_unmoved_by_row_order_and_by_padding_on_either_side(mode: Mode) -> None:
    """I4."""
    torch.manual_seed(0)
    losses, mask = torch.randn(4, 5), lengths_to_mask([5, 1, 3, 0], 5)
    plain = aggregate(losses, mask, mode, totals_of(mask, mode))
    order = tensor([2, 0, 3, 1])
    torch.testing.assert_close(aggregate(losses[order], mask[order], mode, totals_of(mask, mode)), plain)
    wide, no = torch.randn(4, 3), torch.zeros(4, 3, dtype=torch.bool)
    for sides in ((losses, wide), (wide, losses)):
        padded = torch.cat(sides, dim=1)
        padded_mask = torch.cat([mask, no] if sides[0] is losses else [no, mask], dim=1)
        torch.testing.assert_close(aggregate(padded, padded_mask, mode, totals_of(padded_mask, mode)), plain)


@every_mode
def test_a_fully_masked_step_has_loss_zero_and_a_finite_zero_gradient(mode: Mode) -> None:
    """I5."""
    losses, mask = torch.randn(3, 4).requires_grad_(), torch.zeros(3, 4, dtype=torch.bool)
    loss = aggregate(losses, mask, mode, totals_of(mask, mode))
    loss.backward()
    assert loss == 0
    assert losses.grad is not None
    assert losses.grad.eq(0).all()


@every_mode
def test_a_fully_masked_row_leaves_the_denominators(mode: Mode) -> None:
    """I5."""
    losses, mask = torch.randn(3, 4), lengths_to_mask([4, 0, 2], 4)
    without, kept = losses[[0, 2]], mask[[0, 2]]
    got = aggregate(losses, mask, mode, totals_of(mask, mode))
    torch.testing.assert_close(got, aggregate(without, kept, mode, totals_of(kept, mode)))


@every_mode
@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_what_stands_at_a_masked_position_is_not_read(mode: Mode, junk: float) -> None:
    """I6."""
    losses, mask = torch.ones(2, 3), tensor([[True, True, False], [True, False, False]])
    clean = aggregate(losses, mask, mode, totals_of(mask, mode))
    dirty = torch.where(mask, losses, junk).requires_grad_()
    loss = aggregate(dirty, mask, mode, totals_of(mask, mode))
    loss.backward()
    torch.testing.assert_close(loss.detach(), clean)
    assert dirty.grad is not None
    assert dirty.grad.isfinite().all()
    assert dirty.grad[~mask].eq(0).all()


def test_the_weight_of_a_token_depends_on_length_as_each_mode_says() -> None:
    """I8: constant and token-mean weigh all tokens alike, sequence means weigh them by 1 / length of their row."""
    mask = lengths_to_mask([1, 4], 4)
    weights: dict[str, list[float]] = {}
    for mode in MODES:
        losses = torch.zeros(2, 4, requires_grad=True)
        aggregate(losses, mask, mode, totals_of(mask, mode)).backward()
        assert losses.grad is not None
        weights[mode] = [float(losses.grad[0, 0]), float(losses.grad[1, 0])]
    assert weights["sequence_mean_token_mean"] == pytest.approx([1 / 2, 1 / 8])
    assert weights["token_mean"] == pytest.approx([1 / 5, 1 / 5])
    assert weights["sequence_mean_token_sum"] == pytest.approx([1 / 2, 1 / 2])
    assert weights["constant"] == pytest.approx([1 / 20, 1 / 20])


def test_under_the_constant_a_longer_sibling_changes_no_token_of_this_row() -> None:
    """I8."""

    def weight(other: int) -> float:
        losses, mask = torch.zeros(2, 9, requires_grad=True), lengths_to_mask([3, other], 9)
        aggregate(losses, mask, "constant", totals_of(mask, "constant")).backward()
        assert losses.grad is not None
        return float(losses.grad[0, 0])

    assert weight(1) == weight(9)


def test_a_float_mask_counts_as_the_bool_mask() -> None:
    losses, mask = torch.randn(2, 4), lengths_to_mask([1, 3], 4)
    for mode in MODES:
        got = aggregate(losses, mask.float(), mode, totals_of(mask.float(), mode))
        torch.testing.assert_close(got, aggregate(losses, mask, mode, totals_of(mask, mode)))


@pytest.mark.parametrize("constant", [None, 0.0, -1.0])
def test_the_constant_mode_without_a_constant_is_refused(constant: float | None) -> None:
    with pytest.raises(ValueError, match="max_new_tokens"):
        denominators(torch.ones(1, 1), "constant", constant=constant)
    with pytest.raises(ValueError, match="denominators"):
        aggregate(torch.ones(1, 1), torch.ones(1, 1), "constant", Denominators(1, 1))
