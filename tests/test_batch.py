"""Rows packed from graded groups, credited, and split into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from melete.algorithms import Algorithm, resolve, token_losses
from melete.batch import Annotations, Batch, TrainBatch, demonstrations, microbatches
from melete.credit import credit
from melete.errors import DataError, TrainingError
from melete.functional.aggregate import aggregate
from melete.functional.logprobs import logprobs
from melete.types import Completion, Message, Problem, Reward, Rollout, RolloutGroup


def group(
    group_id: str,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    rewards: Sequence[float | None],
    version: int = 0,
) -> RolloutGroup:
    problem = Problem(group_id, "toy", (Message("user", "?"),), "")
    rollouts = tuple(
        Rollout(problem, i, tuple(prompt), Completion(tuple(c), (-0.5,) * len(c), "stop", version), "")
        for i, c in enumerate(completions)
    )
    graded = tuple(Reward(reward, {}, "" if reward is not None else "timeout") for reward in rewards)
    return RolloutGroup(group_id, problem, rollouts, graded)


def mixed_batch() -> Batch:
    """Two live groups, one that is all right, one failed grader; lengths from 3 to 7."""
    return Batch.from_groups(
        [
            group("a", [1, 2], [[3], [4, 5, 6], [5, 5]], [1.0, 0.0, None]),
            group("b", [6, 1, 2], [[3, 3], [4, 2, 1, 5]], [1.0, 1.0]),
            group("c", [2], [[1, 6, 6], [3, 4], [2, 2, 2, 2]], [0.5, 0.0, 1.0]),
        ],
        pad_token_id=0,
    )


def tiny_logits(tokens: Tensor) -> Tensor:
    """A fixed causal "model" over 7 tokens: the logits of a position are a function of the tokens up to it."""
    table = torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return table[tokens].cumsum(dim=1)


class TinyModel(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(7, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        return logprobs(tiny_logits(tokens) @ self.weight, tokens)


def notes_for(batch: Batch) -> Annotations:
    reference = logprobs(0.5 * tiny_logits(batch.tokens), batch.tokens)
    return Annotations({"old_logprobs": TinyModel()(batch.tokens) - 0.1, "ref_logprobs": reference})


def step(parts: list[TrainBatch], algorithm: Algorithm) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of one optimizer step over these micro-batches."""
    model, total = TinyModel(), torch.zeros((), dtype=torch.float64)
    for part in parts:
        losses, _ = token_losses(
            algorithm, logprobs=model(part.tokens), advantages=part.advantages, mask=part.loss_mask, **part.streams
        )
        loss = aggregate(losses, part.loss_mask, algorithm.aggregation, part.totals)
        loss.backward()
        total += loss.detach()
    assert model.weight.grad is not None
    return total, model.weight.grad


ALGORITHMS = [
    resolve("grpo"),
    resolve("grpo", kl_coef=0.0),
    resolve("dr_grpo", aggregation_constant=8),
    resolve("dapo"),
    resolve("rloo"),
]
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: f"{a.name}-{a.kl_coef}")


def test_rows_are_prompt_then_completion_and_the_loss_mask_is_what_the_policy_wrote() -> None:
    """I32: the end-of-turn token (9) is in; the prompt and padding are out."""
    batch = Batch.from_groups([group("p", [7, 8], [[5, 9], [9]], [1.0, 0.0], version=3)], pad_token_id=0)
    assert batch.tokens.tolist() == [[7, 8, 5, 9], [7, 8, 9, 0]]
    assert batch.attention_mask.int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.loss_mask.int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]]
    assert batch.rollout_logprobs.tolist() == [[0, 0, -0.5, -0.5], [0, 0, -0.5, 0]]
    assert batch.lengths.tolist() == [4, 3]
    assert batch.policy_versions.tolist() == [3, 3]


def test_an_end_of_turn_token_that_is_also_the_padding_stays_in_the_loss() -> None:
    """I31: masks are counted, not read from the tokens."""
    batch = Batch.from_groups([group("p", [7], [[5, 0], [5, 5, 5]], [1.0, 0.0])], pad_token_id=0)
    assert batch.loss_mask.int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 1]]


def test_groups_are_keyed_by_id_however_they_are_split_or_ordered() -> None:
    """I28: a group that arrives in two parts is one group."""
    parts = [group("x", [1], [[2]], [1.0]), group("y", [1], [[3]], [0.0]), group("x", [1], [[4]], [0.0])]
    batch = Batch.from_groups(parts, pad_token_id=0)
    assert batch.group_ids.tolist() == [0, 1, 0]
    update = credit(batch, Annotations(), resolve("dr_grpo", aggregation_constant=8))
    assert update.tokens[:, 1].tolist() == [2, 4]
    assert update.advantages[:, 1].tolist() == [0.5, -0.5]


def test_a_failed_grader_is_not_a_reward_of_zero() -> None:
    """I41: rewards 1, 0, 0, None give what 1, 0, 0 give, in the denominators too."""
    algorithm = resolve("dr_grpo", aggregation_constant=8)
    with_failure = group("p", [1], [[2], [3], [4], [5, 6]], [1.0, 0.0, 0.0, None])
    without = group("p", [1], [[2], [3], [4]], [1.0, 0.0, 0.0])
    update = credit(Batch.from_groups([with_failure], 0), Annotations(), algorithm)
    expected = credit(Batch.from_groups([without], 0), Annotations(), algorithm)
    torch.testing.assert_close(update.trimmed().advantages, expected.advantages)
    assert update.totals == expected.totals
    assert (update.num_dropped_rows, expected.num_dropped_rows) == (1, 0)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_refused_with_its_place(reward: float) -> None:
    """I42."""
    with pytest.raises(TrainingError, match="p, sibling 1"):
        Batch.from_groups([group("p", [1], [[2], [3]], [1.0, reward])], pad_token_id=0)


def test_tokens_without_a_logprob_each_and_logprobs_that_are_nan_are_refused() -> None:
    """I42."""
    problem = Problem("p", "toy", (), "")
    for logprobs_, error in (((-0.5,), DataError), ((-0.5, math.nan), TrainingError)):
        rollout = Rollout(problem, 0, (1,), Completion((2, 3), logprobs_, "stop", 0), "")
        with pytest.raises(error, match="p, sibling 0"):
            Batch.from_groups([RolloutGroup("p", problem, (rollout,), (Reward(1.0, {}),))], pad_token_id=0)


@each_algorithm
@pytest.mark.parametrize("max_tokens", [1, 7, 12, 1000])
def test_any_split_into_micro_batches_gives_the_same_loss_and_gradient(algorithm: Algorithm, max_tokens: int) -> None:
    """I1: uneven lengths, every aggregation that an algorithm uses."""
    batch = mixed_batch()
    update = credit(batch, notes_for(batch), algorithm)
    whole, parts = step([update], algorithm), step(microbatches(update, max_tokens), algorithm)
    torch.testing.assert_close(parts, whole)


@each_algorithm
def test_the_step_is_unmoved_by_row_order_and_by_padding(algorithm: Algorithm) -> None:
    """I4."""
    batch = mixed_batch()
    update = credit(batch, notes_for(batch), algorithm)
    order = torch.randperm(update.num_rows, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(step([update.select(order)], algorithm), step([update.trimmed()], algorithm))


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "rloo"])
def test_dropping_rows_without_signal_changes_neither_loss_nor_gradient(name: str) -> None:
    """I7, I28: they stay in the denominators; the group that is all right ("b") and one middling row are dropped."""
    constant = 8 if name == "dr_grpo" else None
    algorithm = resolve(name, kl_coef=0.0, aggregation_constant=constant)
    batch = mixed_batch()
    update = credit(batch, notes_for(batch), algorithm)
    assert update.num_dropped_rows == 4  # one failed grader, two of group b, reward 0.5 of 0, 0.5, 1
    assert update.totals.num_sequences == 7
    kept = update.advantages.new_zeros(batch.tokens.shape)
    per_row = algorithm.advantages(batch.rewards, batch.group_ids, batch.valid)
    everything = TrainBatch(
        batch.tokens,
        batch.attention_mask,
        batch.loss_mask,
        torch.where(batch.loss_mask, per_row[:, None], kept),
        notes_for(batch).streams,
        update.totals,
    )
    torch.testing.assert_close(step([update], algorithm)[1], step([everything], algorithm)[1])


def test_rows_without_signal_stay_when_the_kl_can_still_move_them() -> None:
    batch = mixed_batch()
    update = credit(batch, notes_for(batch), resolve("grpo", kl_coef=0.1))
    assert update.num_rows == 7
    assert update.num_dropped_rows == 1


def test_a_step_in_which_nothing_can_be_learnt_has_no_micro_batches() -> None:
    batch = Batch.from_groups([group("p", [1], [[2], [3]], [1.0, 1.0])], pad_token_id=0)
    update = credit(batch, Annotations(), resolve("dapo"))
    assert (update.num_rows, update.num_dropped_rows, update.totals.num_tokens) == (0, 2, 2)
    assert microbatches(update, 100) == []


def test_kl_in_the_reward_is_taken_off_before_credit_and_carries_no_gradient() -> None:
    """I20, I21: R = r - 0.5 * sum over the completion of (old - ref); prompt and padding are not read."""
    batch = Batch.from_groups([group("p", [1], [[2, 3], [4]], [1.0, 0.0])], pad_token_id=0)
    old = torch.tensor([[math.nan, -1.0, -2.0], [math.nan, -1.0, math.nan]], requires_grad=True)
    ref = torch.tensor([[0.0, -1.5, -2.5], [0.0, -3.0, 0.0]], requires_grad=True)
    notes = Annotations({"old_logprobs": old, "ref_logprobs": ref})
    update = credit(batch, notes, resolve("rloo", kl_coef=0.5))
    # R = 1 - 0.5 * (0.5 + 0.5) = 0.5 and 0 - 0.5 * 2 = -1; each is compared with the other
    torch.testing.assert_close(update.advantages, torch.tensor([[0.0, 1.5, 1.5], [0.0, -1.5, 0.0]]))
    assert not update.advantages.requires_grad


def test_an_algorithm_with_kl_and_no_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="needs ref_logprobs"):
        credit(mixed_batch(), Annotations(), resolve("grpo"))


def test_old_logprobs_are_never_changed_by_a_step_nor_by_their_maker() -> None:
    """I15: the streams are copies, carry the version of the weights, and an update leaves them bit for bit."""
    batch = mixed_batch()
    old = TinyModel()(batch.tokens)
    notes = Annotations({"old_logprobs": old, "ref_logprobs": old.detach() - 0.3}, policy_version=7)
    before = notes.streams["old_logprobs"].clone()
    update = credit(batch, notes, resolve("grpo"))
    step(microbatches(update, 12), resolve("grpo"))
    with torch.no_grad():
        old.zero_()
    assert torch.equal(notes.streams["old_logprobs"], before)
    assert not notes.streams["old_logprobs"].requires_grad
    assert notes.policy_version == 7


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), max_tokens=st.integers(1, 40))
def test_micro_batches_hold_every_row_once_and_keep_to_the_budget(lengths: list[int], max_tokens: int) -> None:
    """I40: rows times longest row is within max_tokens, except for one row that is longer by itself."""
    rows = [([number] * length, [True] * length) for number, length in enumerate(lengths)]
    batch = demonstrations(rows, pad_token_id=99)
    parts = microbatches(batch, max_tokens)
    assert sorted(int(number) for part in parts for number in part.tokens[:, 0]) == list(range(len(lengths)))
    for part in parts:
        assert part.tokens.shape[1] == int(part.lengths.max())
        assert part.tokens.numel() <= max_tokens or part.num_rows == 1
        assert part.totals == batch.totals


def test_micro_batches_gather_rows_of_similar_length() -> None:
    rows = [([1] * n, [True] * n) for n in (5, 2, 3)]
    assert [part.lengths.tolist() for part in microbatches(demonstrations(rows, 0), 6)] == [[2, 3], [5]]


def test_demonstrations_weigh_the_learnt_tokens_alike() -> None:
    batch = demonstrations([([7, 8, 5], [False, False, True]), ([7, 5], [False, True])], pad_token_id=0)
    assert batch.advantages.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert batch.rollout_logprobs is None
    assert batch.totals.num_tokens == 2
    losses, metrics = token_losses(resolve("sft"), logprobs=-torch.ones(2, 3), advantages=batch.advantages)
    assert aggregate(losses, batch.loss_mask, "token_mean", batch.totals) == 1.0
    assert metrics == {}


def test_a_demonstration_with_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match="row 0"):
        demonstrations([([7, 8], [True])], pad_token_id=0)


def test_a_budget_below_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        microbatches(demonstrations([([1], [True])], 0), 0)
