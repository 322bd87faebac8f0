"""Training a reward model, whole, on a tiny random model: a simple taste is learnt, and measured on other rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama, tokenizer
from transformers import LlamaForSequenceClassification

from melete.datasets.encode import step_row
from melete.learning.optimizer import OptimizerSettings
from melete.learning.reward_model import RewardModelLearner
from melete.loops.reward_model import (
    evaluate_labels,
    evaluate_rankings,
    evaluate_steps,
    packed_rankings,
    packed_steps,
    split_by_text,
    train,
    with_replay,
)
from melete.types import LabelledCompletion, LabelledSteps, Message, PreferencePair, RankedCompletions

FILLERS = ("one", "what is it", "and", "12", "is what", "one and one", "it", "what")


def asked(number: int) -> tuple[Message, ...]:
    return (Message("user", f"what is {number}"),)


def texts(number: int) -> tuple[str, str]:
    """One with the word two, which is liked, and one with three; what is around it says nothing."""
    before, after = FILLERS[number % 8], FILLERS[(3 * number + 1) % 8]
    return f"{before} two {after}", f"{after} three {before}"


PAIRS = [PreferencePair(f"p/{n}", asked(n), *texts(n)) for n in range(48)]
LABELLED = [LabelledCompletion(f"l/{n}", asked(n), texts(n)[n % 2], n % 2 == 0) for n in range(48)]
STEPS = [
    LabelledSteps(f"s/{n}", asked(n), tuple(f"{text}\n" for text in (texts(n) if n % 2 else texts(n)[::-1])),
                  (n % 2 == 1, n % 2 == 0))
    for n in range(48)
]  # fmt: skip

RANKINGS = [
    RankedCompletions(f"r/{n}", asked(n), (texts(n)[0], f"{FILLERS[n % 8]} one", texts(n)[1])) for n in range(48)
]


def learner_of() -> RewardModelLearner:
    trunk = llama()
    trunk.config.num_labels = 1
    model = LlamaForSequenceClassification(trunk.config).eval()
    model.model.load_state_dict(trunk.model.state_dict())
    torch.nn.init.zeros_(model.score.weight)
    return RewardModelLearner(model, optimizer=OptimizerSettings(lr=3e-3))


def trained(rows: list[Any], num_steps: int = 24, start: int = 0, learner: RewardModelLearner | None = None):
    learner, logged = learner or learner_of(), list[dict[str, float]]()
    train(
        start=start,
        stop=num_steps,
        rows=rows,
        rows_per_step=8,
        tokenizer=tokenizer(),
        learner=learner,
        seed="0",
        on_step=lambda _step, metrics, _timings: logged.append(dict(metrics)),
    )
    return learner, logged


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        (PAIRS, "pair_accuracy"),
        (RANKINGS, "pair_accuracy"),
        (LABELLED, "label_accuracy"),
        (STEPS, "label_accuracy"),
    ],
)
def test_what_is_liked_is_learnt(rows: list[Any], share: str) -> None:
    _, logged = trained(rows)
    assert logged[0]["loss"] == pytest.approx(math.log(2))  # a head of zeros knows nothing
    assert logged[-1]["loss"] < 0.3
    assert logged[-1][share] > 0.9


def test_what_is_learnt_holds_for_rows_that_were_not_learnt_from() -> None:
    splits = split_by_text(PAIRS, 0.3)
    learner, _ = trained(list(splits.train))
    measured = evaluate_rankings(splits.held_out, tokenizer(), learner.scores)
    assert measured["num_rows"] == len(splits.held_out) > 5
    assert measured["pair_accuracy"] > 0.8 and measured["margin"] > 0.5
    untrained = evaluate_rankings(splits.held_out, tokenizer(), learner_of().scores)
    assert (untrained["pair_accuracy"], untrained["margin"]) == (0.5, 0.0)


def test_labels_that_were_not_learnt_from_are_told_apart() -> None:
    splits = split_by_text(LABELLED, 0.3)
    learner, _ = trained(list(splits.train))
    measured = evaluate_labels(splits.held_out, tokenizer(), learner.scores)
    assert measured["num_rows"] == len(splits.held_out) > 5
    assert measured["label_accuracy"] > 0.8


def test_a_run_in_two_parts_is_the_run_in_one() -> None:
    """I37."""
    _, whole = trained(PAIRS, 4)
    learner, first = trained(PAIRS, 2)
    _, second = trained(PAIRS, 4, start=2, learner=learner)
    assert first + second == whole


@pytest.mark.parametrize("rows", [PAIRS, LABELLED, STEPS])
def test_rows_that_repeat_lie_on_one_side(rows: list[Any]) -> None:
    """Whatever their ids and their order."""
    repeated = [*rows, *reversed(rows)]
    splits = split_by_text(repeated, 0.3)
    assert not {row for row in splits.train} & {row for row in splits.held_out}
    assert len(splits.train) + len(splits.held_out) == len(repeated)
    assert 0 < len(splits.held_out) < len(splits.train)


def test_a_pair_that_is_turned_round_lies_on_the_side_of_the_pair() -> None:
    turned = [PreferencePair(f"t/{n}", pair.messages, pair.rejected, pair.chosen) for n, pair in enumerate(PAIRS)]
    sides, other = ({p.messages for p in split_by_text(rows, 0.3).held_out} for rows in (PAIRS, turned))
    assert sides == other


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=30)
def test_a_larger_share_holds_out_the_same_rows_and_more(one: float, other: float) -> None:
    small, large = (set(split_by_text(PAIRS, share).held_out) for share in sorted((one, other)))
    assert small <= large


def test_nothing_and_everything_may_be_held_out() -> None:
    assert split_by_text(PAIRS, 0.0).held_out == [] and split_by_text(PAIRS, 1.0).train == []


def test_the_rows_of_a_pair_stand_together_chosen_first() -> None:
    packed, ranking_ids, margins = packed_rankings(PAIRS[:3], tokenizer())
    assert margins.tolist() == [0.0] * 6
    assert ranking_ids.tolist() == [0, 0, 1, 1, 2, 2]
    for row, text in enumerate(text for n in range(3) for text in texts(n)):
        learnt = packed.tokens[row][packed.loss_mask[row]].tolist()
        assert tokenizer().decode(learnt[:-1]) == text and learnt[-1] == tokenizer().eos_token_id


def test_a_step_is_marked_at_its_last_token_with_its_label() -> None:
    packed, labels = packed_steps(STEPS[:4], tokenizer())
    assert labels.shape == packed.tokens.shape and labels.dtype == torch.bool
    for row, steps in enumerate(STEPS[:4]):
        _, ends = step_row(tokenizer(), steps)
        assert packed.loss_mask[row].nonzero().flatten().tolist() == [end for end, _ in ends]
        assert labels[row][packed.loss_mask[row]].tolist() == list(steps.labels)
    assert not bool((labels & ~packed.loss_mask).any())


def test_pairs_are_measured_by_their_scores() -> None:
    """Gaps log 3, log 3, log 3 and -log 3: three of four are right, and a certainty of 3/4 is well calibrated."""
    gap = math.log(3)
    scores = torch.tensor([gap, 0.0, gap, 0.0, gap, 0.0, 0.0, gap])
    measured = evaluate_rankings(PAIRS[:4], tokenizer(), lambda _rows: scores)
    assert measured["pair_accuracy"] == 0.75
    assert measured["margin"] == pytest.approx(gap / 2) and measured["score_mean"] == pytest.approx(gap / 2)


def test_a_ranking_is_measured_over_all_its_pairs() -> None:
    """Of scores 2, 0, 1, best first, the last pair is wrong; the one gap of the other ranking is right."""
    rows = [
        RankedCompletions("r/0", asked(0), ("one", "one two", "one two three")),
        RankedCompletions("r/1", asked(1), ("two", "one")),
    ]
    scores = torch.tensor([2.0, 0.0, 1.0, 3.0, -1.0])
    measured = evaluate_rankings(rows, tokenizer(), lambda _rows: scores)
    assert measured["pair_accuracy"] == 0.75 and measured["num_rows"] == 2
    assert measured["margin"] == pytest.approx((2 + 1 - 1 + 4) / 4)


def test_a_score_that_is_always_sure_and_right_half_the_time_is_badly_calibrated() -> None:
    scores = torch.tensor([50.0, 0.0, 0.0, 50.0])
    assert evaluate_rankings(PAIRS[:2], tokenizer(), lambda _rows: scores)["calibration_error"] == 0.5


def test_gaps_that_are_right_as_often_as_they_say_are_calibrated() -> None:
    """Three gaps of log 3 and one of -log 3: a probability of 3/4 that is right 3 times out of 4."""
    gap = math.log(3)
    scores = torch.tensor([gap, 0.0, gap, 0.0, gap, 0.0, 0.0, gap])
    measured = evaluate_rankings(PAIRS[:4], tokenizer(), lambda _rows: scores)
    assert measured["calibration_error"] == pytest.approx(0.0, abs=1e-6)


def test_steps_that_were_not_learnt_from_are_told_apart() -> None:
    splits = split_by_text(STEPS, 0.3)
    learner, _ = trained(list(splits.train))
    measured = evaluate_steps(splits.held_out, tokenizer(), learner.step_scores)
    assert measured["num_rows"] == len(splits.held_out) > 5 and measured["num_steps"] == 2 * len(splits.held_out)
    assert measured["label_accuracy"] > 0.8 and measured["share_good"] == 0.5
    untrained = evaluate_steps(splits.held_out, tokenizer(), learner_of().step_scores)
    assert untrained["label_accuracy"] == 0.5  # a score of 0 calls every step wrong


def test_a_score_that_pays_for_length_is_seen() -> None:
    measured = evaluate_rankings(PAIRS, tokenizer(), lambda rows: rows.loss_mask.sum(dim=1).float())
    assert measured["length_correlation"] == pytest.approx(1.0)


def test_labels_are_measured_by_the_sign_of_the_score() -> None:
    sure = torch.tensor([50.0, -50.0, 50.0, 50.0])
    measured = evaluate_labels(LABELLED[:4], tokenizer(), lambda _rows: sure)
    assert measured["label_accuracy"] == 0.75
    assert measured["calibration_error"] == pytest.approx(0.25, abs=1e-6)


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0.05, 0.6))
@settings(max_examples=40)
def test_replay_is_its_share_of_what_is_learnt_from(num_new: int, num_old: int, share: float) -> None:
    new, old = (PAIRS * 2)[:num_new], [RankedCompletions(f"{n}", asked(n), ("a", "b")) for n in range(num_old)]
    rows = with_replay(new, old, share, "0")
    replayed = rows[num_new:]
    assert rows[:num_new] == new and len(set(replayed)) == len(replayed) and set(replayed) <= set(old)
    wanted = share / (1 - share) * num_new
    assert len(replayed) == num_old or abs(len(replayed) - wanted) <= 0.5 + 1e-9
    assert rows == with_replay(new, old, share, "0")


def test_ninety_new_rows_are_joined_by_ten_old_ones() -> None:
    """DeepSeekMath's share."""
    assert len(with_replay(PAIRS[:45] * 2, PAIRS, 0.1, "0")) == 100


def test_the_margin_of_a_pair_is_part_of_its_loss() -> None:
    """A head of zeros: log 2 without a margin, log(1 + e^m) with one."""
    wide = [PreferencePair(pair.pair_id, pair.messages, pair.chosen, pair.rejected, margin=2.0) for pair in PAIRS[:8]]
    _, logged = trained(wide, 1)
    assert logged[0]["loss"] == pytest.approx(math.log(1 + math.exp(2)), abs=1e-5)
