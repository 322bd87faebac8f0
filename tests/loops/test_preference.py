"""Preference optimisation, whole, on tiny random models: rows in their order, offline and online."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama, tokenizer
from tiny_rewards import even_tokens

from melete.algorithms.preference import pair_metrics, resolve_preference
from melete.learning.optimizer import OptimizerSettings
from melete.learning.preference import PreferenceLearner
from melete.loops.passes import batch_numbers, epoch_order
from melete.loops.preference import PairData, train_offline, train_online
from melete.loops.rl_rollouts import SampleSettings
from melete.rewards.grade import RewardPart
from melete.rewards.rules import BatchReward
from melete.sampling.native import NativeSampler
from melete.types import Message, PreferencePair, Problem, Rollout, SamplingSettings

QUESTIONS = ("what is one", "what is two and two", "three", "is one two")
PAIRS = [PreferencePair(f"p/{n}", (Message("user", QUESTIONS[n % 4]),), f"one {n}", f"two {n}") for n in range(10)]


@given(st.integers(1, 40), st.integers(1, 12), st.text(max_size=4))
@settings(max_examples=50)
def test_a_pass_sees_every_row_once(num_rows: int, rows_per_step: int, seed: str) -> None:
    steps = -(-num_rows // rows_per_step)
    for epoch in range(3):
        batches = [batch_numbers(epoch * steps + n, num_rows, rows_per_step, seed) for n in range(steps)]
        assert Counter(n for batch in batches for n in batch) == Counter(range(num_rows))
        assert [len(batch) for batch in batches[:-1]] == [rows_per_step] * (steps - 1)
        assert 1 <= len(batches[-1]) <= rows_per_step


def test_the_rows_of_a_step_are_a_function_of_the_step_alone() -> None:
    """I37: a run that goes on from any step sees the rows that it would have seen."""
    forwards = [batch_numbers(step, 10, 3, "0") for step in range(12)]
    backwards = [batch_numbers(step, 10, 3, "0") for step in reversed(range(12))]
    assert forwards == backwards[::-1]


def test_seeds_and_passes_have_orders_of_their_own() -> None:
    orders = [epoch_order(20, seed, epoch) for seed in ("0", "1") for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 6


def learner_of(**settings: object) -> PreferenceLearner:
    return PreferenceLearner(llama(), optimizer=OptimizerSettings(lr=1e-3), **settings)


def offline(
    name: str, start: int, stop: int, learner: PreferenceLearner, data: PairData | None = None
) -> list[tuple[int, dict[str, float]]]:
    logged: list[tuple[int, dict[str, float]]] = []

    def on_step(step: int, metrics, timings) -> None:
        assert timings["update_seconds"] > 0
        logged.append((step, dict(metrics)))

    train_offline(
        start=start,
        stop=stop,
        data=data or PairData(PAIRS, tokenizer()),
        pairs_per_step=4,
        learner=learner,
        algorithm=resolve_preference(name),
        seed="0",
        on_step=on_step,
    )
    return logged


@pytest.mark.parametrize("name", ["dpo", "simpo", "kto"])
def test_given_pairs_are_learnt(name: str) -> None:
    logged = offline(name, 0, 9, learner_of())
    assert [step for step, _ in logged] == list(range(9))
    first, last = logged[0][1], logged[-1][1]
    assert last["loss"] < first["loss"]
    if name != "kto":
        assert last["pair_accuracy"] == 1.0


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_run_in_two_parts_is_the_run_in_one(name: str) -> None:
    """I37: what the reference said is computed again after a break, and is the same."""
    whole, parts = learner_of(), learner_of()
    expected = offline(name, 0, 6, whole)
    found = offline(name, 0, 4, parts)
    found += offline(name, 4, 6, parts)
    for (step, metrics), (other_step, other) in zip(expected, found, strict=True):
        assert step == other_step and metrics == pytest.approx(other, rel=1e-5, abs=1e-5)


def test_the_reference_is_asked_about_each_pair_once_in_all_passes() -> None:
    learner, asked = learner_of(), []
    plain = learner.ref_sums
    learner.ref_sums = lambda rows: (asked.append(rows.num_rows), plain(rows))[1]  # type: ignore[method-assign]
    offline("dpo", 0, 9, learner)
    assert sum(asked) == 2 * len(PAIRS)


def problems(step: int) -> list[Problem]:
    return [Problem(f"q/{step}/{n}", "q", (Message("user", question),), "1") for n, question in enumerate(QUESTIONS)]


def online(
    reward, *, num_steps: int = 20, lr: float = 1e-2
) -> tuple[list[dict[str, float]], PreferenceLearner, NativeSampler]:
    model = llama()
    learner = PreferenceLearner(model, optimizer=OptimizerSettings(lr=lr))
    sampler = NativeSampler(model, tokenizer())
    logged: list[dict[str, float]] = []

    def on_step(step: int, metrics, timings) -> None:
        assert step == len(logged) and set(timings) == {"sample_seconds", "update_seconds"}
        logged.append(dict(metrics))

    train_online(
        start=0,
        stop=num_steps,
        problems=problems,
        settings=SampleSettings(4, SamplingSettings(8), (0, "online")),
        sampler=sampler,
        judge={"even": RewardPart(reward)},
        learner=learner,
        algorithm=resolve_preference("dpo"),
        tokenizer=tokenizer(),
        on_step=on_step,
    )
    return logged, learner, sampler


def test_online_dpo_makes_what_is_rewarded_more_frequent() -> None:
    logged, _, sampler = online(even_tokens)
    rewards = [metrics["reward"] for metrics in logged]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2
    assert sampler.policy_version == 20  # each step samples from the weights of the last
    assert all(0 < metrics["num_pairs"] <= len(QUESTIONS) and 1 <= metrics["length_mean"] <= 8 for metrics in logged)


def test_a_batch_reward_judges_like_one_of_single_rollouts() -> None:
    together, *_ = online(BatchReward(lambda rollouts: [even_tokens(r) for r in rollouts]), num_steps=2)
    alone, *_ = online(even_tokens, num_steps=2)
    assert together == alone


def fails(_rollout: Rollout) -> float:
    raise TimeoutError("the judge is asleep")


@pytest.mark.parametrize("reward", [lambda _rollout: 1.0, fails])
def test_samples_that_are_all_alike_make_no_pair_and_change_no_weight(reward) -> None:
    """I5, I41: no failure of the judge is taken for a bad grade."""
    logged, learner, _ = online(reward, num_steps=2)
    assert [metrics["num_pairs"] for metrics in logged] == [0.0, 0.0]
    assert all(math.isfinite(metrics["reward"]) for metrics in logged)
    before = llama().state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in learner.weights().items())


@pytest.mark.parametrize("numbers", [[0, 1, 2], [3], [9], [9, 0]])
def test_a_mismatched_completion_is_that_of_another_pair(numbers: list[int]) -> None:
    """KTO's baseline: a batch of one pair borrows from the pair after it."""
    data = PairData(PAIRS, tokenizer())
    batch = data.labelled(numbers, learner_of())
    for row, number in enumerate(n for n in numbers for _ in range(2)):
        crossed = batch.mismatched.tokens[row][batch.mismatched.loss_mask[row]].tolist()
        matched = batch.rows.tokens[row][batch.rows.loss_mask[row]].tolist()
        assert crossed != matched
        others = [rows for n, rows in enumerate(data.rows) if n != number]
        assert crossed in [[t for t, m in zip(*one, strict=True) if m] for pair in others for one in pair]


def test_one_pair_has_no_mismatched_completion() -> None:
    with pytest.raises(ValueError, match="give at least two"):
        PairData(PAIRS[:1], tokenizer()).labelled([0], learner_of())


def test_an_empty_completion_has_metrics_that_are_finite() -> None:
    inputs = {f"{side}_{name}": torch.zeros(1) for side in ("chosen", "rejected") for name in ("logprobs", "lengths")}
    found = pair_metrics(resolve_preference("simpo"), inputs)
    assert all(bool(total.isfinite()) for total in found.values())
