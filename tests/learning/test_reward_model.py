"""The learner of reward models: losses of whole rankings, however their rows are split, and what is measured."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import pytest
import torch
from tiny_models import MODELS, assert_close_gradients, copied, equal, scalar_model, tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from melete.batch import RankedRows, TokenRows
from melete.errors import TrainingError
from melete.functional.reward_model import bradley_terry, pointwise, ranking
from melete.learning.optimizer import OptimizerSettings
from melete.learning.reward_model import RewardModelLearner
from melete.learning.scoring import scores_at, scores_at_end

UNCLIPPED = OptimizerSettings(lr=1e-3, max_grad_norm=1e9)
RANKINGS = torch.tensor([5, 5, 2, 2, 2, 9, 7, 7])  # two, three, a single row, two


def learner_of(model: PreTrainedModel, **settings: object) -> RewardModelLearner:
    return RewardModelLearner(model, **({"optimizer": UNCLIPPED} | settings))


def packed(*lengths: int, prompt: int = 2) -> TokenRows:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(6, len(tokenizer()), (length,), generator=generator).tolist() for length in lengths]
    return TokenRows.pack([(row, [False] * prompt + [True] * (len(row) - prompt)) for row in rows], 0)


def step_rows() -> tuple[TokenRows, Tensor]:
    """Rows whose mask marks ends of steps, one of them without a step; labels are noise wherever no step ends."""
    rows = packed(9, 4, 12, 6)
    ends = rows.attention_mask & (torch.arange(12)[None] % 3 == 2)
    ends[1] = False
    labels = torch.rand(ends.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    return TokenRows(rows.tokens, rows.attention_mask, ends), labels


ROWS = packed(7, 5, 9, 12, 3, 11, 4, 6)
LABELS = torch.tensor([True, False, True, True, False, False, True, False])
MARGINS = torch.tensor([0.5, 9.0, 0.1, 0.2, 9.0, 9.0, 0.0, 9.0])


def rankings_by_hand(model: PreTrainedModel, margins: Tensor, center_coef: float) -> Tensor:
    """Pair by pair, ranking by ranking, on the whole batch at once."""
    scores = scores_at_end(model, ROWS.tokens, ROWS.attention_mask)
    losses = []
    for number in dict.fromkeys(RANKINGS.tolist()):
        rows = [row for row, other in enumerate(RANKINGS.tolist()) if other == number]
        pairs = [(i, j) for place, i in enumerate(rows) for j in rows[place + 1 :]]
        of_pairs = [
            -torch.nn.functional.logsigmoid(scores[i] - scores[j] - margins[i])
            + center_coef * (scores[i] + scores[j]) ** 2
            for i, j in pairs
        ]
        if pairs:
            losses.append(torch.stack(of_pairs).mean())
    return torch.stack(losses).mean()


def pointwise_by_hand(model: PreTrainedModel) -> Tensor:
    return pointwise(scores_at_end(model, ROWS.tokens, ROWS.attention_mask), LABELS).mean()


def steps_by_hand(model: PreTrainedModel) -> Tensor:
    rows, labels = step_rows()
    return pointwise(scores_at(model, rows.tokens, rows.loss_mask)[rows.loss_mask], labels[rows.loss_mask]).mean()


# what is learnt from -> the update, and its loss written out over the whole batch
LOSSES: dict[str, tuple[Callable[[RewardModelLearner], dict[str, float]], Callable[[PreTrainedModel], Tensor]]] = {
    "rankings": (
        lambda learner: learner.update_rankings(ROWS, RANKINGS, MARGINS),
        lambda model: rankings_by_hand(model, MARGINS, 0.02),
    ),
    "pointwise": (lambda learner: learner.update_pointwise(ROWS, LABELS), pointwise_by_hand),
    "steps": (lambda learner: learner.update_steps(*step_rows()), steps_by_hand),
}


def gradient_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def watch_gradient(learner: RewardModelLearner) -> dict[str, Tensor]:
    """The gradient that the optimizer is about to use, by name, once there has been an update."""
    seen: dict[str, Tensor] = {}
    learner.updater.optimizer.register_step_pre_hook(lambda *_: seen.update(gradient_of(learner.model)))
    return seen


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_do_not_depend_on_the_split(name: str, kind: str) -> None:
    """I1, I9: against the loss written out over the whole batch."""
    update, by_hand = LOSSES[name]
    twin = scalar_model(kind)
    expected = by_hand(twin)
    expected.backward()
    for max_tokens in (1, 30, 10_000):
        learner = learner_of(scalar_model(kind), max_tokens_per_microbatch=max_tokens, center_coef=0.02)
        seen = watch_gradient(learner)
        metrics = update(learner)
        assert metrics["loss"] == pytest.approx(float(expected.detach()), abs=1e-5)
        assert_close_gradients(seen, gradient_of(twin))


def test_the_order_of_the_rankings_changes_nothing() -> None:
    """I4."""
    order = [6, 7, 5, 2, 0, 3, 1, 4]  # rows of one ranking keep their order, but need no longer be neighbours
    one, other = learner_of(scalar_model()), learner_of(scalar_model())
    seen, shuffled = watch_gradient(one), watch_gradient(other)
    metrics = one.update_rankings(ROWS, RANKINGS, MARGINS)
    changed = other.update_rankings(ROWS.select(order), RANKINGS[order], MARGINS[order])
    assert_close_gradients(seen, shuffled)
    assert changed == pytest.approx(metrics, abs=1e-5)


def test_a_plain_ranking_has_the_loss_of_instruct_gpt() -> None:
    scores = scores_at_end(scalar_model(), ROWS.tokens, ROWS.attention_mask).detach()
    grid, mask = torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.bool)
    for row, rows in enumerate(([0, 1], [2, 3, 4], [6, 7])):
        grid[row, : len(rows)], mask[row, : len(rows)] = scores[rows], True
    loss = learner_of(scalar_model()).update_rankings(ROWS, RANKINGS)["loss"]
    assert loss == pytest.approx(float(ranking(grid, mask).mean()), abs=1e-5)


def test_pairs_have_the_loss_of_bradley_and_terry() -> None:
    pairs, margins = torch.arange(8) // 2, torch.tensor([0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 2.0, 0.0])
    scores = scores_at_end(scalar_model(), ROWS.tokens, ROWS.attention_mask).detach()
    expected = bradley_terry(scores[::2], scores[1::2], margins=margins[::2], center_coef=0.3).mean()
    metrics = learner_of(scalar_model(), center_coef=0.3).update_rankings(ROWS, pairs, margins)
    assert metrics["loss"] == pytest.approx(float(expected), abs=1e-5)
    assert metrics["chosen_score"] == pytest.approx(float(scores[::2].mean()), abs=1e-5)
    assert metrics["rejected_score"] == pytest.approx(float(scores[1::2].mean()), abs=1e-5)
    assert metrics["margin"] == pytest.approx(metrics["chosen_score"] - metrics["rejected_score"], abs=1e-5)
    assert metrics["pair_accuracy"] == float((scores[::2] > scores[1::2]).float().mean())


@pytest.mark.parametrize("max_tokens", [1, 25, 40, 10_000])
def test_a_micro_batch_holds_whole_rankings_within_its_budget(max_tokens: int) -> None:
    batch = RankedRows(ROWS, RANKINGS, MARGINS)
    parts = batch.microbatches(max_tokens)
    assert sorted(row for part in parts for row in part) == [0, 1, 2, 3, 4, 6, 7]  # the single row has no partner
    for part in parts:
        numbers = set(RANKINGS[part].tolist())
        assert all(row in part for row in range(8) if int(RANKINGS[row]) in numbers)
        assert len(numbers) == 1 or len(part) * int(ROWS.lengths[part].max()) <= max_tokens
    assert len(parts) == {1: 3, 25: 3, 40: 2, 10_000: 1}[max_tokens]


def test_scores_of_zero_are_scores() -> None:
    """I36: a head of zeros says 0 everywhere, which is a coin toss and not a missing value."""
    metrics = learner_of(scalar_model(head=0.0)).update_rankings(ROWS, RANKINGS)
    assert metrics["loss"] == pytest.approx(math.log(2))
    assert (metrics["pair_accuracy"], metrics["margin"], metrics["chosen_score"]) == (0.5, 0.0, 0.0)
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_shown_again_and_again_is_learnt(name: str) -> None:
    learner = learner_of(scalar_model(), optimizer=OptimizerSettings(lr=3e-3, num_steps=30))
    update, _ = LOSSES[name]
    logged = [update(learner) for _ in range(30)]
    share = "pair_accuracy" if name == "rankings" else "label_accuracy"
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    assert logged[-1][share] == 1.0


@pytest.mark.parametrize("name", LOSSES)
def test_a_rate_of_zero_keeps_every_parameter(name: str) -> None:
    """I39."""
    learner = learner_of(scalar_model(), optimizer=OptimizerSettings(lr=0.0, weight_decay=0.1))
    before = copied(learner.model)
    assert len({LOSSES[name][0](learner)["loss"] for _ in range(2)}) == 1
    assert equal(copied(learner.model), before)


def test_nothing_to_compare_changes_no_weight() -> None:
    """I5: rankings of one row each, and rows without a step."""
    learner = learner_of(scalar_model())
    before = copied(learner.model)
    assert learner.update_rankings(ROWS, torch.arange(8))["loss"] == 0.0
    rows, labels = step_rows()
    nothing = TokenRows(rows.tokens, rows.attention_mask, torch.zeros_like(rows.loss_mask))
    assert learner.update_steps(nothing, labels)["loss"] == 0.0
    assert equal(copied(learner.model), before)


def test_a_label_where_no_step_ends_counts_for_nothing() -> None:
    """I6."""
    rows, labels = step_rows()
    one, other = learner_of(scalar_model()), learner_of(scalar_model())
    first = one.update_steps(rows, labels)
    assert first == other.update_steps(rows, torch.where(rows.loss_mask, labels, ~labels))
    assert equal(copied(one.model), copied(other.model))


@pytest.mark.parametrize("max_tokens", [1, 30, 10_000])
def test_scores_come_back_in_the_order_of_the_rows(max_tokens: int) -> None:
    """I36: each is that of its row alone, and carries no gradient."""
    model = scalar_model()
    model.train()  # dropout is switched off by itself
    scores = learner_of(model, max_tokens_per_microbatch=max_tokens).scores(ROWS)
    assert not scores.requires_grad and scores.dtype == torch.float32 and not model.training
    for row, length in enumerate(ROWS.lengths.tolist()):
        alone = scores_at_end(model, ROWS.tokens[[row], :length], ROWS.attention_mask[[row], :length])
        torch.testing.assert_close(scores[[row]], alone.detach(), rtol=1e-5, atol=1e-5)


def test_a_step_that_is_not_finite_is_refused() -> None:
    learner = learner_of(scalar_model())
    learner.update_rankings(ROWS, RANKINGS)
    before = copied(learner.model)
    with pytest.raises(TrainingError, match="not a finite number"):
        learner.update_rankings(ROWS, RANKINGS, torch.full((8,), math.nan))
    assert equal(copied(learner.model), before)


def test_a_saved_state_is_continued_bit_for_bit() -> None:
    """I37."""
    learner = learner_of(scalar_model())
    learner.update_rankings(ROWS, RANKINGS)
    saved = io.BytesIO()
    torch.save(learner.state_dict(), saved)
    expected = learner.update_rankings(ROWS, RANKINGS)
    saved.seek(0)
    other = learner_of(scalar_model())
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert other.update_rankings(ROWS, RANKINGS) == expected
    assert equal(copied(other.model), copied(learner.model))


def test_labels_of_another_shape_are_refused() -> None:
    learner = learner_of(scalar_model())
    with pytest.raises(ValueError, match="ranking_ids must have one entry for each of the 8 rows"):
        learner.update_rankings(ROWS, RANKINGS[:4])
    with pytest.raises(ValueError, match="margins"):
        learner.update_rankings(ROWS, RANKINGS, MARGINS[:4])
    with pytest.raises(ValueError, match="labels must have one entry for each of the 8 rows"):
        learner.update_pointwise(ROWS, LABELS[:4])
    with pytest.raises(ValueError, match="one entry for each token"):
        learner.update_steps(ROWS, LABELS)
