"""Policy losses, corrections and advantages against TRL's own code, run on a stand-in for its trainers.

A stand-in has the attributes that the trainer's method reads, and hands over log-probs instead of running a model.
Written for TRL 1.16. Each docstring says what TRL counts differently and which of our settings give the same.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from melete.functional import advantages as credits
from melete.functional import kl, off_policy, policy
from melete.functional.aggregate import Mode, aggregate, denominators
from melete.functional.logprobs import log_ratio

pytest.importorskip("trl", minversion="1.16")

from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

MAX_COMPLETION_LENGTH = 8
LENGTHS = tensor([6, 3, 1, 4])
MASK = torch.arange(6) < LENGTHS[:, None]
VLLM = {"use_vllm": True, "vllm_importance_sampling_correction": True}
ADVANTAGES = tensor([1.5, -0.7, -1.2, 0.4], dtype=torch.float64)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fake_model(logprobs: Tensor) -> SimpleNamespace:
    return SimpleNamespace(training=True, is_gradient_checkpointing=False, logprobs=logprobs)


def stand_in(**settings: Any) -> SimpleNamespace:
    """What `_compute_loss` and `_generate_and_score_completions` read from GRPOTrainer and RLOOTrainer."""
    args = {
        "delta": None,
        "use_bias_correction_kl": False,
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 4,
        "gradient_checkpointing_kwargs": None,
    }
    trainer = {
        "accelerator": SimpleNamespace(
            device=torch.device("cpu"),
            num_processes=1,
            process_index=0,
            gather=lambda x: x,
            reduce=lambda x, reduction: x,
        ),
        "model": fake_model(torch.zeros(0)),
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "off_policy_mask_threshold": None,
        "get_off_policy_mask": GRPOTrainer.get_off_policy_mask,
        "top_entropy_quantile": 1.0,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "current_gradient_accumulation_steps": 1,
        "num_iterations": 1,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        # read only by `_generate_and_score_completions`
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "pad_to_multiple_of": None,
        "mask_truncated_completions": False,
        "ref_model": None,
        "num_generations": 4,
        "reward_clip_range": None,
        "normalize_advantages": False,
        "multi_objective_aggregation": "sum_then_normalize",
        "vllm_importance_sampling_clip_min": None,
        "_get_per_token_logps_and_entropies": lambda model, *_, **__: (
            model.logprobs,
            torch.zeros_like(model.logprobs),
            None,
        ),
        "_logs": defaultdict(list, rewards=defaultdict(list)),
        "_pending_extra_logs": {},
        "_pending_metrics": {},
    }
    args |= {name: settings.pop(name) for name in [*settings] if name in args}
    return SimpleNamespace(args=SimpleNamespace(**args), **trainer | settings)


def trl_loss(
    trainer: type, logprobs: Tensor, advantages: Tensor, mask: Tensor, extra: Mapping[str, Tensor], **settings: Any
) -> Tensor:
    inputs = {
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "num_items_in_batch": mask.sum(),
        "advantages": advantages,
        **extra,
    }
    return trainer._compute_loss(stand_in(**settings), fake_model(logprobs), inputs)


def drifted(scale: float = 0.4) -> tuple[Tensor, Tensor]:
    """Current log-probs, and the old ones that ratios on both sides of both bounds come from."""
    logprobs = noise(4, 6, seed=0) - 2
    return logprobs.requires_grad_(), logprobs.detach() - scale * noise(4, 6, seed=1)


def per_row(advantages: Tensor = ADVANTAGES) -> Tensor:
    return advantages[:, None].expand(MASK.shape)


def ours(losses: Tensor, mode: Mode, mask: Tensor = MASK) -> Tensor:
    return aggregate(losses, mask, mode, denominators(mask, mode, constant=MAX_COMPLETION_LENGTH))


def assert_same(loss: Tensor, other: Tensor, logprobs: Tensor) -> None:
    torch.testing.assert_close(loss, other, atol=1e-6, rtol=1e-6)
    grads, other_grads = torch.autograd.grad(loss, logprobs)[0], torch.autograd.grad(other, logprobs)[0]
    assert grads.abs().max() > 0
    torch.testing.assert_close(grads, other_grads, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("delta", [None, 1.4])
@pytest.mark.parametrize(
    ("loss_type", "mode"),
    [("grpo", "sequence_mean_token_mean"), ("bnpo", "token_mean"), ("dr_grpo", "constant"), ("dapo", "token_mean")],
)
def test_the_clipped_losses_are_those_of_trl(loss_type: str, mode: Mode, delta: float | None) -> None:
    """TRL's delta is our dual_clip; its dr_grpo divides by max_completion_length, our constant.

    dapo divides by the tokens of the generation batch over accumulation and processes, bnpo by those of the local
    batch; both are our token_mean, whose denominator is that of the optimizer step, where the batch is the step.
    """
    logprobs, old = drifted()
    extra = {"old_per_token_logps": old}
    theirs = trl_loss(GRPOTrainer, logprobs, ADVANTAGES, MASK, extra, loss_type=loss_type, delta=delta)
    losses = policy.clipped(logprobs, old, per_row(), clip_low=0.2, clip_high=0.28, dual_clip=delta)
    stopped = policy.clip_fraction(logprobs, old, per_row(), clip_low=0.2, clip_high=0.28, dual_clip=delta)
    assert 0 < stopped[MASK].mean() < 1
    assert_same(ours(losses, mode), theirs, logprobs)


def test_the_two_sided_clip_changes_the_loss() -> None:
    """I12: without this the comparison with a delta could hold with the bound never reached."""
    logprobs, old = drifted()
    one, two = (policy.clipped(logprobs, old, per_row(), clip_high=0.28, dual_clip=d) for d in (None, 1.4))
    assert not torch.equal(one[MASK], two[MASK])


def test_a_row_without_tokens_counts_as_a_row_for_trl_and_not_for_us() -> None:
    """TRL's grpo takes the mean over all four rows, ours over the three that have tokens."""
    logprobs, old = drifted()
    mask = MASK & (torch.arange(4) != 2)[:, None]
    theirs = trl_loss(GRPOTrainer, logprobs, ADVANTAGES, mask, {"old_per_token_logps": old})
    losses = policy.clipped(logprobs, old, per_row(), clip_low=0.2, clip_high=0.28)
    assert_same(ours(losses, "sequence_mean_token_mean", mask), theirs * 4 / 3, logprobs)


@pytest.mark.parametrize(("scale", "low", "high"), [(1e-3, 3e-4, 4e-4), (0.4, 0.2, 0.28)])
def test_the_sequence_level_is_trls(scale: float, low: float, high: float) -> None:
    """GSPO: TRL differentiates the row's ratio itself, one value per row; ours is the token form with stop-gradient."""
    logprobs, old = drifted(scale)
    settings = {"importance_sampling_level": "sequence", "epsilon_low": low, "epsilon_high": high}
    theirs = trl_loss(GRPOTrainer, logprobs, ADVANTAGES, MASK, {"old_per_token_logps": old}, **settings)
    losses = policy.sequence_clipped(logprobs, old, per_row(), MASK, clip_low=low, clip_high=high)
    assert_same(ours(losses, "sequence_mean_token_mean"), theirs, logprobs)


@pytest.mark.parametrize("cap", [5.0, 1.2])
def test_cispo_is_trls(cap: float) -> None:
    """TRL's epsilon_high is the bound itself, our 1 + clip_high, and it has no lower bound: clip_low = 1."""
    logprobs, old = drifted()
    extra = {"old_per_token_logps": old}
    theirs = trl_loss(GRPOTrainer, logprobs, ADVANTAGES, MASK, extra, loss_type="cispo", epsilon_high=cap)
    losses = policy.cispo(logprobs, old, per_row(), clip_low=1.0, clip_high=cap - 1)
    assert_same(ours(losses, "token_mean"), theirs, logprobs)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_kl_term_is_trls(weighted: bool) -> None:
    """k3 times beta. By default TRL also multiplies it by the ratio, with its gradient (DeepSeek-V3.2)."""
    logprobs, old = drifted()
    ref = old + 0.3 * noise(4, 6, seed=2)
    extra = {"old_per_token_logps": old, "ref_per_token_logps": ref}
    settings = {"beta": 0.04, "use_bias_correction_kl": weighted}
    theirs = trl_loss(GRPOTrainer, logprobs, ADVANTAGES, MASK, extra, **settings)
    penalty = kl.k3(logprobs, ref) * (log_ratio(logprobs, old).exp() if weighted else 1)
    losses = policy.clipped(logprobs, old, per_row(), clip_low=0.2, clip_high=0.28) + 0.04 * penalty
    assert_same(ours(losses, "sequence_mean_token_mean"), theirs, logprobs)


def test_the_mask_of_negative_drift_is_trls() -> None:
    """TRL reads the sampler's log-probs where it has them; here, as with us, those of the start of the update.

    It multiplies the loss by the mask, which we do with `torch.where`; both leave the denominators alone.
    """
    logprobs, old = drifted(1.0)
    settings = {"off_policy_mask_threshold": 0.1}
    extra = {"old_per_token_logps": old}
    theirs = trl_loss(GRPOTrainer, logprobs, -ADVANTAGES.abs(), MASK, extra, **settings)
    bad = per_row(-ADVANTAGES.abs())
    kept = off_policy.negative_drift_kept(logprobs, old, bad, MASK, drift_limit=0.1)
    assert 0 < kept.all(dim=1).sum() < 4
    mask = GRPOTrainer.get_off_policy_mask(bad[:, :1], logprobs, old, MASK.double(), 0.1)
    assert torch.equal(mask.bool().expand(4, 6)[MASK], kept[MASK])
    losses = torch.where(kept, policy.clipped(logprobs, old, bad, clip_low=0.2, clip_high=0.28), 0.0)
    assert_same(ours(losses, "sequence_mean_token_mean"), theirs, logprobs)


def test_the_first_update_of_rloo_has_trls_gradient() -> None:
    """TRL's RLOO clips the ratio of the whole row, the product; ours is REINFORCE. They agree where the ratio is 1.

    The values differ, -mean(A) there and the log-probs times A here; only the gradient is the algorithm.
    """
    logprobs, _ = drifted()
    old = torch.where(MASK, logprobs.detach(), 0.0).sum(1)
    theirs = trl_loss(RLOOTrainer, logprobs, ADVANTAGES, MASK, {"old_logps": old})
    loss = ours(policy.reinforce(logprobs, per_row()), "sequence_mean_token_sum")
    (grads,), (expected,) = (torch.autograd.grad(x, logprobs) for x in (loss, theirs))
    torch.testing.assert_close(grads, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(theirs, -ADVANTAGES.mean())


def trl_rollouts(
    trainer: type,
    rewards: Tensor,
    old: Tensor,
    rollout: Tensor | None = None,
    ref: Tensor | None = None,
    **settings: Any,
) -> dict[str, Tensor]:
    """What TRL makes of `rewards` [B, K] and the log-probs of rows that hold as many tokens as LENGTHS says."""
    lengths = LENGTHS.repeat(len(rewards) // 4).tolist()
    num_parts = rewards.shape[1]
    tokens = [[1] * length for length in lengths]
    sampled = None if rollout is None else [x[:n].tolist() for x, n in zip(rollout, lengths, strict=True)]
    generated = ([[1]] * len(rewards), tokens, None, [""] * len(rewards), sampled, {}, None, None)
    if trainer is RLOOTrainer:
        generated = generated[:2] + generated[3:4]
    this = stand_in(
        model=fake_model(old),
        ref_model=None if ref is None else fake_model(ref),
        _generate=lambda prompts: generated,
        _calculate_rewards=lambda *_: rewards.clone(),
        reward_funcs=[None] * num_parts,
        reward_func_names=[str(k) for k in range(num_parts)],
        **{"reward_weights": torch.ones(num_parts, dtype=torch.float64), "scale_rewards": "group"} | settings,
    )
    return trainer._generate_and_score_completions(this, [{"prompt": ""}] * len(rewards))


REWARDS = tensor([1.0, 0.0, 0.5, 0.0, 2.0, 2.0, 2.0, 2.0, 0.3, 0.1, -4.0, 9.0], dtype=torch.float64)
GROUP_IDS = torch.arange(3).repeat_interleave(4)
OLD = noise(12, 6, seed=3) - 2


@pytest.mark.parametrize("failed", [[], [1], [0, 1, 2, 8]])
@pytest.mark.parametrize("scale_rewards", ["group", "none", "batch"])
def test_the_advantages_of_a_group_are_trls(scale_rewards: str, failed: list[int]) -> None:
    """TRL adds 1e-4 to the deviation (divided by n - 1), here std_epsilon.

    A reward that no function could give is NaN there, not `valid` here; a group with one reward gets 0 in both.
    """
    valid = torch.ones(12, dtype=torch.bool)
    valid[failed] = False
    rewards = REWARDS.masked_fill(~valid, math.nan)
    theirs = trl_rollouts(GRPOTrainer, rewards[:, None], OLD, scale_rewards=scale_rewards)["advantages"]
    if scale_rewards == "none":
        got = credits.group_mean(rewards, GROUP_IDS, valid)
    else:
        credit = credits.group_mean_std if scale_rewards == "group" else credits.batch_std
        got = credit(rewards, GROUP_IDS, valid, std_epsilon=1e-4)
    torch.testing.assert_close(got, theirs, atol=1e-6, rtol=1e-6)


def test_the_advantages_of_several_rewards_are_trls() -> None:
    """GDPO, TRL's "normalize_then_sum"; 1e-4 in both normalisations."""
    parts, weights = torch.stack([REWARDS, noise(12, seed=4)], 1), tensor([1.0, 0.3], dtype=torch.float64)
    settings = {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": weights}
    theirs = trl_rollouts(GRPOTrainer, parts, OLD, **settings)["advantages"]
    valid = torch.ones(12, dtype=torch.bool)
    got = credits.per_reward_group_mean_std(parts, weights, GROUP_IDS, valid, std_epsilon=1e-4)
    torch.testing.assert_close(got, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("failed", [[], [1], [0, 1, 2, 8]])
@pytest.mark.parametrize("kl_coef", [0.0, 0.05])
def test_the_advantages_of_rloo_are_trls(failed: list[int], kl_coef: float) -> None:
    """The KL in the reward is k1 summed over the row, in both; TRL's normalize_advantages is off, as by default."""
    valid = torch.ones(12, dtype=torch.bool)
    valid[failed] = False
    rewards, ref = REWARDS.masked_fill(~valid, math.nan), OLD + 0.3 * noise(12, 6, seed=5)
    theirs = trl_rollouts(RLOOTrainer, rewards[:, None], OLD, ref=ref, beta=kl_coef)["advantages"]
    drift = torch.where(MASK.repeat(3, 1), kl.k1(OLD, ref), 0.0).sum(1)
    got = credits.leave_one_out(rewards - kl_coef * drift, GROUP_IDS, valid)
    torch.testing.assert_close(got, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("level", off_policy.LEVELS)
def test_the_truncated_weights_are_trls(level: off_policy.Level) -> None:
    """I17: the modes token_truncate and sequence_truncate, without a lower end; TRL's cap is 3 by default, ours 2."""
    mask, rollout = MASK.repeat(3, 1), (OLD - 0.5 * noise(12, 6, seed=6)).float().double()  # TRL keeps them in fp32
    settings = {"vllm_importance_sampling_mode": f"{level}_truncate", "vllm_importance_sampling_clip_max": 2.0}
    theirs = trl_rollouts(GRPOTrainer, REWARDS[:, None], OLD, rollout, **VLLM | settings)["importance_sampling_ratio"]
    got = off_policy.truncated_weights(OLD, rollout, mask, level=level, weight_cap=2.0)
    assert (got[mask] == 2.0).any()
    assert (got[mask] < 2.0).any()
    torch.testing.assert_close(got, theirs.expand(12, 6), atol=1e-6, rtol=1e-6)


def test_what_is_kept_of_a_token_is_trls() -> None:
    """I17: the mode token_mask; what TRL keeps it also multiplies by the ratio, our weights up to the same bound.

    There is no comparison for rows: TRL's sequence_mask asks the product of the ratios, ours their geometric mean.
    """
    mask, rollout = MASK.repeat(3, 1), (OLD - 0.5 * noise(12, 6, seed=6)).float().double()
    band = {"vllm_importance_sampling_clip_min": 0.5, "vllm_importance_sampling_clip_max": 2.0}
    settings = {"vllm_importance_sampling_mode": "token_mask"} | band
    theirs = trl_rollouts(GRPOTrainer, REWARDS[:, None], OLD, rollout, **VLLM | settings)["importance_sampling_ratio"]
    kept = off_policy.ratio_kept(OLD, rollout, mask, ratio_low=0.5, ratio_high=2.0)
    assert 0 < kept[mask].sum() < mask.sum()
    weights = off_policy.truncated_weights(OLD, rollout, mask, weight_cap=2.0)
    torch.testing.assert_close(torch.where(kept, weights, 0.0), theirs, atol=1e-6, rtol=1e-6)


def test_trl_multiplies_the_surrogate_by_the_weight_and_not_the_kl() -> None:
    """As `policy` with `off_policy` and `kl`: the penalty is added after the correction."""
    logprobs, old = drifted()
    rollout, ref = old - 0.5 * noise(4, 6, seed=6), old + 0.3 * noise(4, 6, seed=2)
    weights = off_policy.truncated_weights(old, rollout, MASK)
    extra = {"old_per_token_logps": old, "ref_per_token_logps": ref, "importance_sampling_ratio": weights}
    theirs = trl_loss(GRPOTrainer, logprobs, ADVANTAGES, MASK, extra, beta=0.04, **VLLM)
    losses = weights * policy.clipped(logprobs, old, per_row(), clip_high=0.28) + 0.04 * kl.k3(logprobs, ref)
    assert_same(ours(losses, "sequence_mean_token_mean"), theirs, logprobs)
