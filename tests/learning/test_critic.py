"""The critic: one step towards the returns, however its rows are split; values never meet a temperature."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import MODELS, assert_close_gradients, copied, equal, llama, sampled_batch, scalar_model, tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from melete.algorithms import resolve
from melete.batch import Annotations, Batch, TrainBatch
from melete.credit import credit
from melete.errors import TrainingError
from melete.functional.value import explained_variance, value_loss
from melete.learning.critic import LocalCritic, SharedTrunk
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.models.heads import new_scalar_model
from melete.models.load import save_model

UNCLIPPED = OptimizerSettings(lr=1e-3, max_grad_norm=1e9)


def critic_of(model: PreTrainedModel, **settings: object) -> LocalCritic:
    return LocalCritic(model, **({"optimizer": UNCLIPPED} | settings))


def batch_for(critic: LocalCritic) -> TrainBatch:
    """Rollouts with the credit of PPO; old values are a little off, so that some are clipped."""
    batch = sampled_batch(llama())
    streams = {
        "old_logprobs": batch.rollout_logprobs,
        "ref_logprobs": batch.rollout_logprobs,
        "values": critic.values(batch),
    }
    algorithm = resolve("ppo", max_new_tokens=12)
    update = credit(batch, Annotations({name: streams[name] for name in algorithm.needs}), algorithm)
    noise = torch.rand(update.tokens.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return with_streams(update, old_values=update.streams["old_values"] + noise)


def with_streams(batch: TrainBatch, **streams: Tensor) -> TrainBatch:
    return replace(batch, streams={**batch.streams, **streams})


def values_by_rows(model: PreTrainedModel, batch: Batch | TrainBatch) -> Tensor:
    """The head on the hidden state of the token before, one row at a time."""
    rows = []
    for row, length in enumerate(batch.lengths.tolist()):
        hidden = model.model(input_ids=batch.tokens[[row], :length]).last_hidden_state[0]
        before = torch.nn.functional.pad(model.score(hidden)[:-1, 0], (1, batch.tokens.shape[1] - length))
        rows.append(torch.where(batch.loss_mask[row], before, 0.0))
    return torch.stack(rows)


def gradient_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def watch_gradient(critic: LocalCritic) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    critic.updater.optimizer.register_step_pre_hook(lambda *_: seen.update(gradient_of(critic.model)))
    return seen


@pytest.mark.parametrize("max_tokens", [1, 50, 10_000])
@pytest.mark.parametrize("kind", MODELS)
def test_a_value_is_that_of_the_state_before_the_token(kind: str, max_tokens: int) -> None:
    """I4, I34: the head's number as it is, at any batch size, and 0 outside the mask."""
    model = scalar_model(kind)
    batch = sampled_batch(llama(), temperature=0.7)
    model.train()  # dropout is switched off by itself
    values = critic_of(model, max_tokens_per_microbatch=max_tokens).values(batch)
    assert not values.requires_grad and values.dtype == torch.float32 and not model.training
    torch.testing.assert_close(values, values_by_rows(model, batch).detach(), rtol=1e-5, atol=1e-5)
    assert float(values[batch.loss_mask].std()) > 0.05 and not values[~batch.loss_mask].any()


@pytest.mark.parametrize("value_clip", [0.2, None])
@pytest.mark.parametrize("kind", MODELS)
def test_loss_and_gradient_do_not_depend_on_the_split(kind: str, value_clip: float | None) -> None:
    """I1, I9, I30: against the mean over all tokens, written out over rows on their own."""
    batch = batch_for(critic_of(scalar_model(kind)))
    assert len(set(batch.lengths.tolist())) > 3
    old, returns, mask = batch.streams["old_values"], batch.streams["returns"], batch.loss_mask
    twin = scalar_model(kind)
    values = values_by_rows(twin, batch)
    expected = value_loss(values, old, returns, value_clip=value_clip)[mask].mean()
    expected.backward()
    for max_tokens in (1, 50, 10_000):
        critic = critic_of(scalar_model(kind), max_tokens_per_microbatch=max_tokens, value_clip=value_clip)
        seen = watch_gradient(critic)
        metrics = critic.update(batch)
        assert metrics["critic/value_loss"] == pytest.approx(float(expected.detach()), abs=1e-5)
        assert_close_gradients(seen, gradient_of(twin))
        explained = explained_variance(values.detach(), returns, mask)
        assert metrics["critic/explained_variance"] == pytest.approx(float(explained), abs=1e-4)
        moved = (values.detach() - old).abs()[mask] > 0.2
        assert 0 < float(moved.float().mean()) < 1
        share = float(moved.float().mean()) if value_clip else 0.0
        assert metrics["critic/value_clip_fraction"] == pytest.approx(share, abs=1e-6)


def test_the_order_of_the_rows_changes_nothing() -> None:
    """I4."""
    one, other = critic_of(scalar_model()), critic_of(scalar_model())
    batch = batch_for(one)
    seen, turned = watch_gradient(one), watch_gradient(other)
    metrics = one.update(batch)
    assert other.update(batch.select(torch.arange(batch.num_rows).flip(0))) == pytest.approx(metrics, abs=1e-5)
    assert_close_gradients(seen, turned)


def test_values_come_to_foretell_fixed_returns() -> None:
    critic = critic_of(scalar_model(), optimizer=OptimizerSettings(lr=3e-3, num_steps=30), value_clip=None)
    batch = batch_for(critic)
    goal = torch.where(batch.loss_mask, batch.tokens % 2 - 0.5, 0.0)  # of the token itself, which a row shows once
    batch = with_streams(batch, returns=goal)
    logged = [critic.update(batch) for _ in range(30)]
    assert logged[-1]["critic/value_loss"] < 0.3 * logged[0]["critic/value_loss"]
    assert logged[-1]["critic/explained_variance"] > 0.7
    assert logged[-1]["critic/explained_variance"] > logged[0]["critic/explained_variance"]


def test_a_rate_of_zero_keeps_every_parameter() -> None:
    """I39."""
    critic = critic_of(scalar_model(), optimizer=OptimizerSettings(lr=0.0, weight_decay=0.1))
    before, batch = copied(critic.model), batch_for(critic)
    assert len({critic.update(batch)["critic/value_loss"] for _ in range(2)}) == 1
    assert equal(copied(critic.model), before)


@pytest.mark.parametrize("kind", MODELS)
def test_a_critic_started_from_a_reward_model_has_its_trunk_and_head(kind: str, tmp_path: Path) -> None:
    reward_model = scalar_model(kind)
    save_model(reward_model, tokenizer(), tmp_path / "model")
    critic = critic_of(new_scalar_model(tmp_path / "model", seed=7))
    assert equal(copied(critic.model), copied(reward_model))
    batch = sampled_batch(llama())
    torch.testing.assert_close(critic.values(batch), critic_of(reward_model).values(batch))


@pytest.mark.parametrize("kind", MODELS)
def test_a_critic_started_from_a_language_model_foretells_nothing_at_first(kind: str, tmp_path: Path) -> None:
    save_model(MODELS[kind](), tokenizer(), tmp_path / "model")
    critic = critic_of(new_scalar_model(tmp_path / "model"))
    batch = sampled_batch(llama())
    assert not critic.values(batch).any()
    assert critic.update(batch_for(critic))["critic/grad_norm"] > 0


def test_what_stands_outside_the_mask_is_not_read() -> None:
    """I6."""
    one, other = critic_of(scalar_model()), critic_of(scalar_model())
    batch = batch_for(one)
    nan = torch.tensor(float("nan"))
    outside = {name: torch.where(batch.loss_mask, batch.streams[name], nan) for name in ("old_values", "returns")}
    assert other.update(with_streams(batch, **outside)) == one.update(batch)
    assert equal(copied(one.model), copied(other.model))


def test_the_policys_loss_and_metrics_keep_their_names() -> None:
    critic = critic_of(scalar_model())
    assert all(name.startswith("critic/") for name in critic.update(batch_for(critic)))


def test_a_batch_whose_tokens_are_all_masked_changes_no_weight() -> None:
    """I5."""
    critic = critic_of(scalar_model())
    batch = batch_for(critic)
    before = copied(critic.model)
    metrics = critic.update(replace(batch, loss_mask=torch.zeros_like(batch.loss_mask)))
    assert metrics["critic/value_loss"] == 0.0
    assert equal(copied(critic.model), before)


def test_streams_that_are_missing_are_named() -> None:
    critic = critic_of(scalar_model())
    batch = batch_for(critic)
    with pytest.raises(ValueError, match="old_values, returns"):
        critic.update(replace(batch, streams={}))


def test_a_step_that_is_not_finite_is_refused() -> None:
    critic = critic_of(scalar_model())
    batch = batch_for(critic)
    critic.update(batch)
    before = copied(critic.model)
    with pytest.raises(TrainingError, match="not a finite number"):
        critic.update(with_streams(batch, returns=torch.full_like(batch.streams["returns"], float("inf"))))
    assert equal(copied(critic.model), before)


def test_a_saved_state_is_continued_bit_for_bit() -> None:
    """I37."""
    critic = critic_of(scalar_model())
    batch = batch_for(critic)
    critic.update(batch)
    saved = io.BytesIO()
    torch.save(critic.state_dict(), saved)
    expected = critic.update(batch)
    saved.seek(0)
    other = critic_of(scalar_model())
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert other.update(batch) == expected
    assert equal(copied(other.model), copied(critic.model))


def shared(policy: PreTrainedModel, head: float = 0.1, **settings: object) -> tuple[LocalCritic, LocalLearner]:
    """A critic and a learner on one trunk; the head is random, so that the trunk has something to learn."""
    trunk = SharedTrunk(policy)
    with torch.no_grad():
        trunk.score.weight.copy_(scalar_model(head=head).score.weight)
    learner = LocalLearner(policy, optimizer=UNCLIPPED, value_head=trunk.score, **settings)
    return critic_of(trunk), learner


def test_a_new_head_on_a_shared_trunk_says_nothing() -> None:
    assert not bool(critic_of(SharedTrunk(llama())).values(sampled_batch(llama())).any())


def test_the_values_of_a_shared_trunk_are_those_of_the_same_trunk_of_its_own() -> None:
    critic, _ = shared(llama())
    batch = sampled_batch(llama())
    torch.testing.assert_close(critic.values(batch), critic_of(scalar_model()).values(batch), rtol=0, atol=1e-6)


def test_the_critic_of_a_shared_trunk_trains_the_head_alone() -> None:
    policy = llama()
    critic, _ = shared(policy)
    before, head = copied(policy), critic.model.score.weight.clone()
    alone = critic_of(scalar_model())
    update = batch_for(critic)
    metrics = critic.update(update)
    assert equal(copied(policy), before) and not torch.equal(critic.model.score.weight, head)
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert metrics["critic/value_loss"] == pytest.approx(alone.update(update)["critic/value_loss"], abs=1e-6)


@pytest.mark.parametrize("max_tokens", [30, 10_000])
def test_the_trunk_learns_from_both_losses(max_tokens: int) -> None:
    """The gradient is that of policy loss + value_coef * value loss, with the head held fast."""
    policy, algorithm = llama(), resolve("ppo", max_new_tokens=12, kl_coef=0.0)
    critic, learner = shared(policy, value_coef=0.3, max_tokens_per_microbatch=max_tokens)
    update, seen = batch_for(critic), dict[str, Tensor]()
    learner.updater.optimizer.register_step_pre_hook(lambda *_: seen.update(gradient_of(policy)))
    head = critic.model.score.weight.clone()
    learner.update(update, algorithm)
    assert torch.equal(critic.model.score.weight, head)

    twin, plain = llama(), LocalLearner(llama(), optimizer=UNCLIPPED)
    wanted = dict[str, Tensor]()
    plain.updater.optimizer.register_step_pre_hook(lambda *_: wanted.update(gradient_of(plain.model)))
    plain.update(update, algorithm)
    hidden = twin.model(input_ids=update.tokens).last_hidden_state
    values = torch.nn.functional.pad((hidden @ head.T).squeeze(-1)[:, :-1], (1, 0))
    losses = value_loss(values, update.streams["old_values"], update.streams["returns"], value_clip=0.2)
    (0.3 * torch.where(update.loss_mask, losses, 0.0).sum() / update.loss_mask.sum()).backward()
    for name, parameter in twin.named_parameters():
        if parameter.grad is not None:
            wanted[name] = wanted[name] + parameter.grad
    assert_close_gradients(seen, wanted)


def test_a_shared_trunk_is_saved_as_its_head() -> None:
    """I37: the policy saves the trunk."""
    policy = llama()
    critic, _ = shared(policy)
    update = batch_for(critic)
    critic.update(update)
    state = copy.deepcopy(critic.state_dict())
    assert set(state["model"]) == {"score.weight"}
    later = critic.update(update)
    other = critic_of(SharedTrunk(policy))
    other.load_state_dict(state)
    assert other.update(update) == later
