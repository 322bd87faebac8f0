"""Rules on rows of real, tiny training runs: what is broken on purpose is found, and what is not broken is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from melete.algorithms import resolve
from melete.health import Finding, findings
from melete.learning.local import LocalLearner, OptimizerSettings
from melete.loops import rl
from melete.loops.rl_rollouts import SampleSettings
from melete.loops.rl_update import UpdateSettings
from melete.models.tiny import tiny_model, train_tokenizer
from melete.rewards.grade import RewardPart
from melete.rewards.rules import AnyReward
from melete.sampling.native import NativeSampler
from melete.tasks import make_task
from melete.types import Rollout, SamplingSettings

TASK = make_task("arithmetic_chain", {})
TOKENIZER = train_tokenizer(["What is 3+5?", "Compute 9-4.", "<think>3+5=8</think><answer>8</answer>"] * 20, 380)
PROMPTS, GROUP, LIMIT = 2, 8, 8


def even(rollout: Rollout) -> float:
    """Share of even tokens: easily learnt."""
    tokens = rollout.completion.tokens
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def constant(rollout: Rollout) -> float:
    return 1.0


def noisily_even(rollout: Rollout) -> float:
    """Never the same for two siblings, so that there is always something to update for."""
    return even(rollout) + 0.01 * rollout.sibling


def fails_sometimes(rollout: Rollout) -> float:
    if rollout.completion.tokens[0] % 4 == 0:
        raise ValueError("this grader fails on a quarter")
    return even(rollout)


def ending(model: PreTrainedModel) -> PreTrainedModel:
    """The model with so many end-of-turn tokens that most rows end before the limit."""
    model.generation_config.eos_token_id = list(range(len(TOKENIZER) - 180, len(TOKENIZER)))
    return model


def found(
    reward: AnyReward,
    *,
    num_steps: int = 10,
    lr: float = 5e-3,
    updates: int = 1,
    prepared: Callable[[PreTrainedModel], PreTrainedModel] = ending,
    learner_temperature: float = 1.0,
    **algorithm_settings: Any,
) -> dict[str, Finding]:
    """Trains a random model and returns what is found in its rows, by rule."""
    torch.manual_seed(0)
    model = prepared(tiny_model(TOKENIZER, hidden_size=32, num_layers=2).eval())
    rows: list[dict[str, Any]] = []
    rl.train(
        start=0,
        stop=num_steps,
        settings=rl.RLSettings(
            SampleSettings(GROUP, SamplingSettings(LIMIT), (0, "rl")), UpdateSettings(num_epochs=updates, seed="s")
        ),
        problems=lambda step, draw: [TASK.problem("train", step * PROMPTS + at) for at in range(PROMPTS)],
        sampler=NativeSampler(copy.deepcopy(model), TOKENIZER),
        learner=LocalLearner(
            model,
            optimizer=OptimizerSettings(lr=lr, num_steps=num_steps * updates),
            temperature=learner_temperature,
        ),
        tokenizer=TOKENIZER,
        rewards={"mine": RewardPart(reward)},
        algorithm=resolve("grpo", max_new_tokens=LIMIT, **algorithm_settings),
        on_step=lambda step: rows.append({"stage": "rl", "step": step.number, **step.metrics}),
    )
    stage = {
        "name": "rl",
        "kind": "rl",
        "lr": lr,
        "group_size": GROUP,
        "prompts_per_step": PROMPTS,
        "max_new_tokens": LIMIT,
        "rewards": {"mine": 1.0},
        "algorithm_settings": algorithm_settings,
    }
    return {finding.rule: finding for finding in findings(rows, stage)}


def test_a_reward_that_is_learnt_at_a_sound_rate_gives_no_findings() -> None:
    assert found(even, num_steps=20) == {}


def test_a_reward_that_is_always_the_same_gives_dead_groups() -> None:
    finding = found(constant, num_steps=5)["dead_groups"]
    assert finding.severity == "serious" and finding.value == 1.0


def test_a_model_that_never_ends_its_turn_is_truncated() -> None:
    finding = found(even, num_steps=5, prepared=lambda model: model)["truncation"]
    assert finding.severity == "serious" and finding.value > 0.9


def test_a_grader_that_fails_on_a_quarter_is_found_with_its_share() -> None:
    finding = found(fails_sometimes, num_steps=5)["grader_failures"]
    assert finding.severity == "serious" and finding.value == pytest.approx(0.25, abs=0.15)


def test_a_far_too_high_learning_rate_collapses_the_entropy_and_leaves_the_reference() -> None:
    rules = found(noisily_even, lr=0.1, num_steps=16, kl_coef=1e-6)
    assert rules["entropy_collapse"].severity == "serious" and rules["entropy_collapse"].value < 0.2
    assert rules["kl"].value > 4


def test_many_large_updates_on_the_same_rollouts_move_the_policy_too_far() -> None:
    rules = found(even, lr=3e-2, updates=4)
    assert rules["clip_fraction"].value > 0.3 and rules["approx_kl"].value > 0.2
    assert "sampler_mismatch" not in rules  # the updates explain it


def test_a_learner_with_another_temperature_than_the_sampler_disagrees_with_it() -> None:
    finding = found(even, num_steps=5, learner_temperature=0.3, lr=1e-6)["sampler_mismatch"]
    assert finding.severity in ("warning", "serious") and finding.value > 0.05
