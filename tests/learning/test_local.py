"""The local learner: one optimizer step, however its rows are split, and nothing else than that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import (
    MODELS,
    assert_close_gradients,
    copied,
    deepseek,
    ending_often,
    equal,
    llama,
    requests,
    sampled_batch,
    tokenizer,
)
from torch import Tensor
from transformers import PreTrainedModel

from melete.algorithms import ALGORITHMS, Algorithm, resolve, token_losses
from melete.batch import Annotations, Batch, TrainBatch
from melete.credit import credit
from melete.errors import TrainingError
from melete.functional.aggregate import MODES, aggregate
from melete.functional.logprobs import logprobs
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.sampling.native import NativeSampler
from melete.types import SamplingSettings

UNCLIPPED = OptimizerSettings(lr=1e-3, max_grad_norm=1e9)


def learner_of(model: PreTrainedModel, **settings: object) -> LocalLearner:
    return LocalLearner(model, optimizer=UNCLIPPED, **settings)


def mixed_rewards(group: int, sibling: int) -> float:
    """Every group has a winner but the last, which teaches nothing."""
    return float(sibling == group) if group < 3 else 1.0


def batch_for(model: PreTrainedModel, learner: LocalLearner, algorithm: Algorithm) -> TrainBatch:
    batch = sampled_batch(model, reward=mixed_rewards)
    streams = {"old_logprobs": learner.logprobs(batch)}
    if "ref_logprobs" in algorithm.needs:
        streams["ref_logprobs"] = learner.ref_logprobs(batch)
    return credit(batch, Annotations(streams), algorithm)


def watch_gradient(learner: LocalLearner) -> dict[str, Tensor]:
    """The gradient that the optimizer is about to use, by name, once `update` has been called."""
    seen: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        seen.update({n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None})

    learner.updater.optimizer.register_step_pre_hook(keep)
    return seen


def gradient_of(update: TrainBatch, algorithm: Algorithm, make: Callable[[], PreTrainedModel], **settings: object):
    learner = learner_of(make(), **settings)
    seen = watch_gradient(learner)
    metrics = learner.update(update, algorithm)
    return seen, metrics


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradient_do_not_depend_on_the_split(kind: str, mode: str) -> None:
    """I1, I9: one micro-batch, a few or one row each, against the loss written out over the whole logits."""
    algorithm = resolve("grpo", aggregation=mode, max_new_tokens=12)
    model = MODELS[kind]()
    update = batch_for(model, learner_of(model), algorithm)
    assert len(set(update.lengths.tolist())) > 3
    old = update.streams["old_logprobs"] - 0.1 * update.loss_mask  # a ratio that is not 1
    update = replace(update, streams={**update.streams, "old_logprobs": old})

    twin = MODELS[kind]()
    whole = logprobs(twin(input_ids=update.tokens, attention_mask=update.attention_mask.long()).logits, update.tokens)
    losses, _ = token_losses(
        algorithm,
        logprobs=whole,
        advantages=update.advantages,
        old_logprobs=old,
        ref_logprobs=update.streams["ref_logprobs"],
        mask=update.loss_mask,
    )
    expected = aggregate(losses, update.loss_mask, algorithm.aggregation, update.totals)
    expected.backward()
    gradient = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    assert max(float(g.abs().max()) for g in gradient.values()) > 1e-4
    for max_tokens in (1, 50, 10_000):
        seen, metrics = gradient_of(update, algorithm, MODELS[kind], max_tokens_per_microbatch=max_tokens)
        assert metrics["loss"] == pytest.approx(float(expected.detach()), abs=1e-5)
        assert_close_gradients(seen, gradient)


def test_the_order_of_the_rows_changes_nothing() -> None:
    """I4."""
    algorithm = resolve("dapo")
    model = llama()
    update = batch_for(model, learner_of(model), algorithm)
    one, _ = gradient_of(update, algorithm, llama)
    other, _ = gradient_of(update.select(torch.arange(update.num_rows).flip(0)), algorithm, llama)
    assert_close_gradients(one, other)


@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e9])
def test_the_whole_gradient_is_clipped_once(max_grad_norm: float) -> None:
    """I9."""
    algorithm = resolve("dapo")
    update = batch_for(llama(), learner_of(llama()), algorithm)
    learner = LocalLearner(
        llama(), optimizer=replace(UNCLIPPED, max_grad_norm=max_grad_norm), max_tokens_per_microbatch=1
    )
    seen = watch_gradient(learner)
    metrics = learner.update(update, algorithm)
    used = math.sqrt(sum(float(gradient.square().sum()) for gradient in seen.values()))
    assert metrics["grad_norm"] > 1e-2
    assert used == pytest.approx(min(max_grad_norm, metrics["grad_norm"]), rel=1e-3)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("with_old", [True, False])
def test_the_first_step_on_its_own_rollouts_has_ratio_one(kind: str, with_old: bool) -> None:
    """I10: with log-probs computed before, or standing in for themselves."""
    model = MODELS[kind]()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    learner = learner_of(model, temperature=0.7, max_tokens_per_microbatch=60)
    batch = sampled_batch(model, temperature=0.7)
    model.train()  # sampler and learner switch dropout off by themselves
    algorithm = resolve("dapo")
    streams = {"old_logprobs": learner.logprobs(batch)} if with_old else {}
    model.train()
    metrics = learner.update(credit(batch, Annotations(streams), algorithm), algorithm)
    assert metrics["ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["clip_fraction"] == 0.0
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["sampler_mismatch"] == pytest.approx(0.0, abs=1e-5)


def test_old_logprobs_stay_those_of_the_weights_that_wrote_the_rows() -> None:
    """I15: a second step on the same rows meets the old values, bit for bit, and a ratio that is not 1."""
    model = llama()
    learner, algorithm = learner_of(model), resolve("dapo")
    update = batch_for(model, learner, algorithm)
    kept = update.streams["old_logprobs"].clone()
    first, second = learner.update(update, algorithm), learner.update(update, algorithm)
    assert update.streams["old_logprobs"].equal(kept)
    assert not kept.requires_grad
    assert first["approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert second["ratio_max"] > 1.001
    assert second["approx_kl"] > 1e-6


def every_stream(algorithm: Algorithm, learner: LocalLearner, batch: Batch) -> dict[str, Tensor]:
    """What the row asks for; a teacher likes what was rewarded, and the last token ends the only step."""
    last = batch.loss_mask & ~torch.nn.functional.pad(batch.loss_mask[:, 1:], (0, 1))
    old = learner.logprobs(batch)
    streams = {
        "old_logprobs": old,
        "ref_logprobs": learner.ref_logprobs(batch),
        "values": torch.zeros(batch.tokens.shape),
        "teacher_logprobs": old + batch.rewards[:, None] - batch.rewards.mean(),
        "step_ends": last,
        "step_rewards": torch.where(last, batch.rewards[:, None], 0.0),
    }
    return {name: streams[name] for name in algorithm.needs}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_raises_what_was_rewarded(name: str) -> None:
    """After some steps on the same rows, winners are likelier relative to losers (SFT: all are likelier)."""
    algorithm = resolve(name, max_new_tokens=12)
    model = llama()
    learner = learner_of(model)
    batch = sampled_batch(model)
    update = credit(batch, Annotations(every_stream(algorithm, learner, batch)), algorithm)
    before = learner.logprobs(update)
    for _ in range(3):
        learner.update(update, algorithm)
    gain = (learner.logprobs(update) - before) * update.advantages
    assert float(gain.sum()) > 0.1


def test_a_rate_of_zero_keeps_every_parameter() -> None:
    """I39."""
    model = llama()
    learner = LocalLearner(model, optimizer=OptimizerSettings(lr=0.0, weight_decay=0.1))
    before = copied(model)
    algorithm = resolve("dapo")
    update = batch_for(model, learner, algorithm)
    mismatches = [learner.update(update, algorithm)["sampler_mismatch"] for _ in range(3)]
    assert equal(copied(model), before)
    assert mismatches == [mismatches[0]] * 3
    assert mismatches[0] < 1e-5


def test_a_dropped_row_leaves_the_gradient_as_it_was() -> None:
    """Rows of a group with equal rewards cost nothing, whether they are in the batch or only in its denominators."""
    algorithm = resolve("dapo")
    model = llama()
    batch = sampled_batch(model, reward=mixed_rewards)
    update = credit(batch, Annotations(), algorithm)
    assert update.num_dropped_rows == 3
    per_row = algorithm.advantages(batch.rewards, batch.group_ids, batch.valid)
    advantages = torch.where(batch.loss_mask, per_row[:, None], 0.0)
    everything = replace(
        update,
        tokens=batch.tokens,
        attention_mask=batch.attention_mask,
        loss_mask=batch.loss_mask,
        advantages=advantages,
        rollout_logprobs=batch.rollout_logprobs,
        num_dropped_rows=0,
    )
    assert everything.num_rows == update.num_rows + 3
    kept, metrics = gradient_of(update, algorithm, llama)
    full, full_metrics = gradient_of(everything, algorithm, llama)
    assert_close_gradients(kept, full)
    assert metrics["loss"] == pytest.approx(full_metrics["loss"], abs=1e-6)
    assert (metrics["num_dropped_rows"], full_metrics["num_dropped_rows"]) == (3.0, 0.0)


@pytest.mark.parametrize("reward", [lambda *_: 1.0, lambda *_: None])
def test_a_batch_whose_rows_are_all_dropped_changes_no_weight(reward: Callable[..., float | None]) -> None:
    """I5: all equal, or no grader could judge."""
    model = llama()
    learner = learner_of(model)
    algorithm = resolve("dapo")
    learner.update(batch_for(model, learner, algorithm), algorithm)  # so that there is momentum
    before = copied(model)
    update = credit(sampled_batch(model, reward=reward), Annotations(), algorithm)
    metrics = learner.update(update, algorithm)
    assert update.num_rows == 0
    assert equal(copied(model), before)
    assert metrics["num_dropped_rows"] == 12.0
    assert (metrics["loss"], metrics["grad_norm"]) == (0.0, 0.0)


def test_what_stands_outside_the_mask_is_not_read() -> None:
    """I6."""
    algorithm = resolve("grpo")
    model = llama()
    update = batch_for(model, learner_of(model), algorithm)
    outside = ~update.loss_mask
    broken = {name: stream.masked_fill(outside, math.nan) for name, stream in update.streams.items()}
    broken_update = replace(update, streams=broken, advantages=update.advantages.masked_fill(outside, math.nan))
    plain, _ = gradient_of(update, algorithm, llama)
    same, metrics = gradient_of(broken_update, algorithm, llama)
    assert_close_gradients(plain, same)
    assert all(math.isfinite(value) for value in metrics.values())


def test_the_tokens_of_a_prompt_are_never_labels() -> None:
    """I32: the head is applied once for each token that the policy wrote."""
    model = llama()
    batch = sampled_batch(model)
    heads: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: heads.append(output.shape[0]))
    learner, algorithm = learner_of(model), resolve("sft")
    update = credit(batch, Annotations(), algorithm)
    learner.update(update, algorithm)
    assert sum(heads) == int(batch.loss_mask.sum()) == update.totals.num_tokens


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused_and_leaves_everything_as_it_was(value: float) -> None:
    """The next good step is bitwise that of a learner which never saw the bad one."""
    algorithm = resolve("grpo")

    def begun() -> tuple[LocalLearner, TrainBatch]:
        model = llama()
        learner = learner_of(model, max_tokens_per_microbatch=50)
        update = batch_for(model, learner, algorithm)
        learner.update(update, algorithm)
        return learner, update

    learner, update = begun()
    before = copied(learner.model)
    row, column = update.loss_mask.nonzero()[-1].tolist()
    advantages = update.advantages.clone()
    advantages[row, column] = value
    with pytest.raises(TrainingError, match="not a finite number") as refusal:
        learner.update(replace(update, advantages=advantages), algorithm)
    assert refusal.value.place == "update 1" and refusal.value.remedy
    assert equal(copied(learner.model), before)
    assert all(p.grad is None for p in learner.model.parameters())

    undisturbed, same_update = begun()
    assert learner.update(update, algorithm) == undisturbed.update(same_update, algorithm)
    assert equal(copied(learner.model), copied(undisturbed.model))


@pytest.mark.parametrize("kind", MODELS)
def test_a_refreshed_reference_is_the_policy(kind: str) -> None:
    model = MODELS[kind]()
    learner, algorithm = learner_of(model), resolve("grpo")
    update = batch_for(model, learner, algorithm)
    assert learner.update(update, algorithm)["kl"] == pytest.approx(0.0, abs=1e-9)
    for _ in range(2):
        moved = learner.update(update, algorithm)["kl"]
    assert moved > 1e-6
    drifted = learner.ref_logprobs(update)
    assert not torch.allclose(drifted, learner.logprobs(update), atol=1e-4)
    learner.refresh_reference()
    assert learner.ref_logprobs(update).equal(learner.logprobs(update))
    streams = {**update.streams, "ref_logprobs": learner.ref_logprobs(update)}
    assert learner.update(replace(update, streams=streams), algorithm)["kl"] == pytest.approx(0.0, abs=1e-9)


def test_the_reference_does_not_follow_the_policy() -> None:
    model = llama()
    learner, algorithm = learner_of(model), resolve("grpo")
    update = batch_for(model, learner, algorithm)
    before = learner.ref_logprobs(update)
    for _ in range(2):
        learner.update(update, algorithm)
    assert learner.ref_logprobs(update).equal(before)


@pytest.mark.parametrize("kind", MODELS)
def test_a_learner_that_is_saved_and_loaded_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """I37 for weights, optimizer, schedule and reference."""
    algorithm = resolve("grpo")
    settings = OptimizerSettings(lr=1e-3, warmup_steps=2, schedule="cosine", num_steps=8, weight_decay=0.1)

    def fresh(seed: int = 0) -> LocalLearner:
        return LocalLearner(MODELS[kind](seed), optimizer=settings, max_tokens_per_microbatch=60)

    def step(learner: LocalLearner, batch: Batch) -> dict[str, float]:
        streams = {"ref_logprobs": learner.ref_logprobs(batch)}
        return learner.update(credit(batch, Annotations(streams), algorithm), algorithm)

    batch = sampled_batch(MODELS[kind]())
    straight = fresh()
    straight_metrics = [step(straight, batch) for _ in range(4)]
    assert straight_metrics[3]["kl"] > 1e-6

    first = fresh()
    [step(first, batch) for _ in range(2)]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = fresh(seed=5)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [step(second, batch) for _ in range(2)] == straight_metrics[2:]
    assert equal(copied(second.model), copied(straight.model))


def test_logprobs_are_zero_outside_the_mask_carry_no_gradient_and_do_not_depend_on_the_split() -> None:
    """I33."""
    model = deepseek()
    batch = sampled_batch(model)
    whole = learner_of(model).logprobs(batch)
    assert not whole.requires_grad
    assert not whole[~batch.loss_mask].any()
    for max_tokens in (1, 40):
        split = learner_of(model, max_tokens_per_microbatch=max_tokens).logprobs(batch)
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-5)


def test_after_an_update_the_sampler_writes_with_the_new_weights() -> None:
    """I38: pushed into a sampler of its own, or shared with it."""
    model = llama()
    learner, algorithm = learner_of(model), resolve("dapo")
    apart = NativeSampler(ending_often(llama()), tokenizer())
    shared = NativeSampler(ending_often(model), tokenizer())
    learner.update(batch_for(model, learner, algorithm), algorithm)
    for sampler in (apart, shared):
        sampler.load_weights(learner.weights(), version=1)
    ours, theirs = (sampler.sample(requests(), SamplingSettings(8)) for sampler in (shared, apart))
    assert ours == theirs
    assert ours[0][0].policy_version == 1
    assert ours != NativeSampler(ending_often(llama()), tokenizer(), version=1).sample(requests(), SamplingSettings(8))


def test_metrics_of_a_step_are_finite_numbers_of_the_documented_names() -> None:
    model = llama()
    learner, algorithm = learner_of(model, after_step=lambda: {"from_after_step": 1.0}), resolve("grpo")
    metrics = learner.update(batch_for(model, learner, algorithm), algorithm)
    assert set(metrics) == {
        *("lr", "grad_norm", "loss", "entropy", "sampler_mismatch", "num_dropped_rows", "from_after_step"),
        *("approx_kl", "clip_fraction", "ratio_max", "kl"),
    }
    assert all(math.isfinite(value) for value in metrics.values())
    assert 0 < metrics["entropy"] <= math.log(len(tokenizer()))
