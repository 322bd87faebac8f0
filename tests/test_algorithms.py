"""The table of algorithms, and the one place where a row's loss and its KL meet."""

from __future__ import annotations

import inspect
import math
import sys
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from melete.algorithms import ALGORITHMS, Algorithm, resolve, token_losses
from melete.algorithms.late import actual
from melete.batch import Annotations, Batch, TrainBatch
from melete.credit import credit
from melete.errors import RecipeError
from melete.functional import kl, policy
from melete.functional.aggregate import aggregate, denominators

OVERRIDES: dict[str, Any] = {
    "clip_low": 0.05,
    "clip_high": 0.05,
    "dual_clip": 1.3,
    "kl_coef": 0.5,
    "kl_estimator": None,  # another one
    "kl_place": None,  # the other one of the two
    "aggregation": None,  # another mode
    "aggregation_constant": 3.0,
    "std_epsilon": 0.5,
    "std_correction": 0,
    "entropy_coef": 0.3,
    "gamma": 0.8,
    "gae_lambda": 0.5,
    "whiten_advantages": None,  # the other one
    "overlong_filter": None,  # the other one
    "correction": None,  # another one
    "correction_cap": 1.05,
    "correction_low": 0.95,
    "correction_high": 1.05,
    "drift_limit": 0.01,
}
# these act in the loop or in the critic, and have tests of their own there
ELSEWHERE = {"dynamic_sampling", "value_clip", "kl_target", "kl_horizon"}


def row_of(name: str, **overrides: Any) -> Algorithm:
    if name == "dr_grpo":
        overrides = {"aggregation_constant": 8.0} | overrides
    return resolve(name, **overrides)


def loss_and_gradient(algorithm: Algorithm) -> tuple[Tensor, Tensor]:
    """A step of two groups whose ratios lie inside and outside the clip, with every stream that a row may want."""
    update, current, entropy = a_step(algorithm)
    losses, _ = token_losses(
        algorithm,
        logprobs=current,
        old_logprobs=update.streams.get("old_logprobs"),
        ref_logprobs=update.streams.get("ref_logprobs"),
        rollout_logprobs=update.rollout_logprobs,
        entropy=entropy,
        advantages=update.advantages,
        mask=update.loss_mask,
    )
    loss = aggregate(losses, update.loss_mask, algorithm.aggregation, update.totals)
    loss.backward()
    assert current.grad is not None
    return loss.detach(), current.grad


def a_step(algorithm: Algorithm) -> tuple[TrainBatch, Tensor, Tensor]:
    """Rows with advantages, and log-probs and entropies of a policy that has moved on."""
    generator = torch.Generator().manual_seed(2)
    old, ref, teacher, values = (-torch.rand(12, 5, generator=generator) - 0.5 for _ in range(4))
    columns = torch.arange(5)[None]
    lengths = tensor([5, 2, 3, 4, 5, 3, 4, 5, 2, 5, 4, 3])
    mask = (columns < lengths[:, None]) & (columns > 0)
    rewards = tensor([1.0, 0.0, 0.5, 0.0, 1.0, 0.3, 0.7, 0.2, 0.9, 0.1, 0.4, 0.6])
    ends = mask & (columns < 3)
    batch = Batch(
        tokens=torch.ones(12, 5, dtype=torch.long),
        attention_mask=mask | (columns == 0),
        loss_mask=mask,
        rollout_logprobs=torch.where(mask, old + 0.5 * torch.randn(12, 5, generator=generator), 0.0),
        group_ids=torch.arange(12) // 4,
        rewards=rewards,
        valid=torch.ones(12, dtype=torch.bool),
        truncated=torch.arange(12) % 5 == 0,
        reward_parts=torch.stack([rewards, rewards.round()], dim=1),
        part_names=("accuracy", "format"),
        policy_versions=torch.zeros(12, dtype=torch.long),
    )
    streams = {
        "old_logprobs": old,
        "ref_logprobs": ref,
        "teacher_logprobs": teacher,
        "values": values,
        "step_rewards": torch.where(ends, rewards[:, None] - values, 0.0),
        "step_ends": ends,
    }
    notes = Annotations({name: streams[name] for name in algorithm.needs})
    update = credit(batch, notes, algorithm)
    drift = torch.randn(12, 5, generator=generator) / 2
    # by where a row's log-probs stand in the batch, because rows without signal are left out
    position = {tuple(row.tolist()): number for number, row in enumerate(batch.rollout_logprobs)}
    assert update.rollout_logprobs is not None
    kept = [position[tuple(row.tolist())] for row in update.rollout_logprobs]
    current = (old + drift)[kept].requires_grad_()
    return update, current, (-current.exp() * current).clone()


@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, key) for name in ALGORITHMS for key in sorted(set(row_of(name).defaults) - ELSEWHERE)],
)
def test_changing_any_declared_setting_changes_the_loss_or_the_gradient(name: str, setting: str) -> None:
    """I16."""
    base = row_of(name, **({"kl_coef": 0.1} if "kl_coef" in row_of(name).defaults else {}))
    if setting == "dual_clip" and base.settings.dual_clip is None:
        base = row_of(name, kl_coef=0.1)
    others: dict[str, Any] = {
        "kl_estimator": "k2" if base.settings.kl_estimator != "k2" else "k3",
        "kl_place": {"loss": "reward", "reward": "loss"}[base.settings.kl_place],
        "aggregation": "token_mean" if base.aggregation != "token_mean" else "sequence_mean_token_mean",
        "whiten_advantages": not base.settings.whiten_advantages,
        "overlong_filter": not base.settings.overlong_filter,
        "correction": "sequence_weights" if base.settings.correction == "none" else "none",
    }
    kept = {key: value for key, value in base.defaults.items() if value is not None}
    kept[setting] = OVERRIDES[setting] if OVERRIDES[setting] is not None else others[setting]
    changed = replace(base, settings=replace(base.settings, **kept))
    before, after = loss_and_gradient(base), loss_and_gradient(changed)
    same_rows = before[1].shape == after[1].shape
    assert not same_rows or not torch.allclose(before[1], after[1]) or not torch.allclose(before[0], after[0])


@pytest.mark.parametrize("correction", ["token_weights", "sequence_weights", "token_mask", "sequence_mask"])
def test_every_setting_of_a_correction_changes_the_loss(correction: str) -> None:
    """I16."""
    base = resolve("dapo", correction=correction)
    active = set(base.defaults) & {"correction_cap", "correction_low", "correction_high"}
    assert len(active) == (1 if correction.endswith("weights") else 2)
    for key in active:
        changed = resolve("dapo", correction=correction, **{key: OVERRIDES[key]})
        assert not torch.allclose(loss_and_gradient(base)[1], loss_and_gradient(changed)[1])


def test_decoupled_ppo_weighs_each_token_by_its_distance_from_the_sampler() -> None:
    """Ratio 1.1 to the start of the update, which was 2 or 100 times as likely as when the token was drawn."""
    logprobs, old = tensor([[2.2, 110.0]]).log(), tensor([[2.0, 100.0]]).log()
    losses, metrics = token_losses(
        resolve("decoupled_ppo"),
        logprobs=logprobs,
        old_logprobs=old,
        rollout_logprobs=torch.zeros(1, 2),
        advantages=torch.ones(1, 2),
    )
    torch.testing.assert_close(losses, tensor([[-2.2, -5.5]]))
    assert metrics["correction"].tolist() == [[2.0, 5.0]]


def test_each_row_has_the_published_settings() -> None:
    assert dict(ALGORITHMS["sft"].defaults) == {"aggregation": "token_mean"}
    grpo, dr, dapo, rloo = (ALGORITHMS[name] for name in ("grpo", "dr_grpo", "dapo", "rloo"))
    assert (grpo.aggregation, grpo.kl, grpo.kl_coef) == ("sequence_mean_token_mean", ("k3", "loss"), 0.001)
    assert (dr.aggregation, dr.kl[1]) == ("constant", None)
    assert (dapo.aggregation, dapo.kl[1]) == ("token_mean", None)
    assert (dapo.settings.clip_low, dapo.settings.clip_high) == (0.2, 0.28)
    assert (rloo.aggregation, rloo.kl, rloo.kl_coef) == ("sequence_mean_token_sum", ("k1", "reward"), 0.03)


def test_a_row_needs_only_the_logprobs_that_it_reads() -> None:
    needs = {name: row_of(name).needs for name in ALGORITHMS}
    both = frozenset({"old_logprobs", "ref_logprobs"})
    old = frozenset({"old_logprobs"})
    expected = {"sft": frozenset(), "grpo": both, "dr_grpo": old, "dapo": old, "rloo": both}
    expected |= {"ppo": both | {"values"}, "grpo_process": both | {"step_rewards", "step_ends"}}
    expected |= {"on_policy_distillation": old | {"teacher_logprobs"}, "decoupled_ppo": old, "gspo": old}
    assert {name: needs[name] for name in expected} == expected
    assert row_of("grpo", kl_coef=0.0).needs == old
    assert row_of("rloo", kl_coef=0.0).needs == frozenset()


def test_every_row_says_where_it_comes_from() -> None:
    for name, row in ALGORITHMS.items():
        assert row.name == row.settings.name == name
        assert row.paper
        assert "loss" in row.formula


def test_grpo_is_the_clipped_loss_plus_kl_coef_times_k3() -> None:
    """Ratio 1.5 cut to 1.2, advantage 2, ref twice as likely: -2.4 + 0.5 * (2 - 1 - log 2)."""
    current, old = tensor([[0.3]]).log(), tensor([[0.2]]).log()
    ref = tensor([[0.6]]).log()
    losses, metrics = token_losses(
        resolve("grpo", kl_coef=0.5), logprobs=current, old_logprobs=old, ref_logprobs=ref, advantages=tensor([[2.0]])
    )
    torch.testing.assert_close(losses, tensor([[-2.4 + 0.5 * (1 - math.log(2))]]))
    torch.testing.assert_close(metrics["ratio"], tensor([[1.5]]))
    torch.testing.assert_close(metrics["kl"], tensor([[1 - math.log(2)]]))
    # KL(old || policy) at this token: u = 1.5
    torch.testing.assert_close(metrics["approx_kl"], tensor([[1.5 - 1 - math.log(1.5)]]))
    assert metrics["clip_fraction"].item() == 1.0


@pytest.mark.parametrize("old", ["given", "left out"])
def test_on_the_first_update_the_ratio_is_one_and_nothing_is_cut(old: str) -> None:
    """I10."""
    torch.manual_seed(0)
    current, advantages = torch.randn(2, 3).requires_grad_(), torch.randn(2, 3)
    given = {"old_logprobs": current.detach().clone()} if old == "given" else {}
    losses, metrics = token_losses(resolve("dapo"), logprobs=current, advantages=advantages, **given)
    assert metrics["ratio"].eq(1).all()
    assert metrics["approx_kl"].eq(0).all()
    assert metrics["clip_fraction"].eq(0).all()
    (gradient,) = torch.autograd.grad(losses.sum(), current)
    torch.testing.assert_close(gradient, -advantages)


@pytest.mark.parametrize("name", list(ALGORITHMS))
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_what_stands_at_a_masked_position_reaches_neither_loss_nor_gradient(name: str, junk: float) -> None:
    """I6, I21: in any stream, the current log-probs included; the KL is masked like the rest."""
    algorithm = row_of(name)
    mask = tensor([[True, False, True]])
    names = ("old_logprobs", "ref_logprobs", "rollout_logprobs", "entropy")
    streams = {key: torch.full((1, 3), -0.5).masked_fill(~mask, junk) for key in names}
    streams["advantages"] = torch.ones(1, 3).masked_fill(~mask, junk)
    current = torch.full((1, 3), -0.6).masked_fill(~mask, junk).requires_grad_()
    losses, metrics = token_losses(algorithm, logprobs=current, mask=mask, **streams)
    loss = aggregate(losses, mask, "token_mean", denominators(mask, "token_mean"))
    loss.backward()
    assert current.grad is not None
    assert loss.isfinite()
    assert current.grad[~mask].eq(0).all()
    assert current.grad[mask].ne(0).all()
    assert all(metric.isfinite().all() for metric in metrics.values())


def test_kl_in_the_loss_has_a_gradient_and_its_metric_is_the_estimate() -> None:
    """I20, I21: with advantage 0, what is left is kl_coef times the gradient of k3, (1 - u)."""
    current, ref = tensor([[0.5]]).log().requires_grad_(), tensor([[0.25]]).log()
    losses, metrics = token_losses(
        resolve("grpo", kl_coef=0.1), logprobs=current, ref_logprobs=ref, advantages=torch.zeros(1, 1)
    )
    losses.sum().backward()
    torch.testing.assert_close(current.grad, tensor([[0.1 * (1 - 0.5)]]))
    torch.testing.assert_close(metrics["kl"], kl.k3(current, ref).detach())
    assert not any(metric.requires_grad for metric in metrics.values())


def test_kl_in_the_loss_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="ref_logprobs"):
        token_losses(resolve("grpo"), logprobs=torch.zeros(1, 1), advantages=torch.zeros(1, 1))


def test_the_constant_is_max_new_tokens_unless_it_is_given() -> None:
    assert resolve("dr_grpo", max_new_tokens=64).settings.aggregation_constant == 64.0
    assert resolve("dr_grpo", max_new_tokens=64, aggregation_constant=8.0).settings.aggregation_constant == 8.0
    assert resolve("dapo", max_new_tokens=64).settings.aggregation_constant is None


def test_an_override_of_none_keeps_the_rows_value() -> None:
    assert resolve("dapo", clip_high=None) == ALGORITHMS["dapo"]


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("gpro", {}, "did you mean g.po"),
        ("grpo", {"clip_hihg": 0.3}, "did you mean clip_high"),
        ("dr_grpo", {"std_epsilon": 0.1, "aggregation_constant": 8}, "no setting std_epsilon"),
        ("dapo", {"aggregation_constant": 8}, "aggregation_constant changes nothing here"),
        ("grpo", {"kl_estimator": "k4"}, "no kl_estimator k4"),
        ("grpo", {"aggregation": "mean"}, "no aggregation mean"),
        ("grpo", {"kl_place": "both"}, "no kl_place both"),
        ("grpo", {"kl_coef": -1.0}, "kl_coef must be 0 or more"),
        ("grpo", {"kl_coef": math.nan}, "kl_coef must be 0 or more"),
        ("grpo", {"clip_low": 1.5}, "clip_low must be"),
        ("grpo", {"std_correction": 2}, "std_correction must be 0 or 1"),
        ("dr_grpo", {}, "max_new_tokens"),
        ("nowhere.at.all:loss", {}, "cannot import"),
        ("math:no_such_name", {}, "cannot import"),
        ("math:pi", {}, "not a function"),
        ("melete.functional.aggregate:denominators", {}, "asks for mode"),
        ("gspo", {"correction": "token_mask"}, "cannot be corrected token by token"),
        ("gspo", {"correction": "token_weights"}, "cannot be corrected token by token"),
        ("dapo", {"correction_cap": 3.0}, "correction_cap changes nothing here"),
        ("dapo", {"kl_estimator": "k2"}, "kl_estimator changes nothing here"),
        ("dapo", {"dual_clip": 1.0}, "dual_clip must be more than 1"),
        ("ppo", {"gae_lambda": 1.5}, "gae_lambda must be in"),
        ("dapo", {"correction": "token_mask", "correction_low": 3.0}, "correction_high must be more"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        resolve(name, **overrides)
    assert isinstance(caught.value, ValueError)


def test_a_loss_of_your_own_is_named_by_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def soft(logprobs: Tensor, advantages: Tensor, clip_high: float, power: float = 2.0) -> Tensor:
        """loss = -A logprobs clip_high^power"""
        return -advantages * logprobs * clip_high**power

    module = types.ModuleType("someones_losses")
    monkeypatch.setattr(module, "soft", soft, raising=False)
    monkeypatch.setitem(sys.modules, "someones_losses", module)
    algorithm = resolve("someones_losses:soft", clip_high=3.0)
    losses, _ = token_losses(algorithm, logprobs=tensor([[-1.0]]), advantages=tensor([[2.0]]))
    assert losses.item() == 2.0 * 9.0
    assert algorithm.needs == frozenset()
    assert algorithm.formula == inspect.getdoc(soft)
    assert set(algorithm.defaults) >= {"clip_high", "kl_coef", "std_epsilon", "aggregation"}
    assert "clip_low" not in algorithm.defaults


def test_the_functions_of_the_table_can_be_called_with_plain_tensors() -> None:
    row = ALGORITHMS["dapo"]
    assert actual(row.loss) is policy.clipped
    assert row.credit(tensor([1.0, 0.0]), tensor([0, 0]), tensor([True, True])).tolist()[0] > 0
