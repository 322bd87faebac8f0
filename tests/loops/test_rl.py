"""The loop of reinforcement learning, whole, on a tiny random model."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_critic
from torch import Tensor
from torch.nn import functional as F

from melete.algorithms import ALGORITHMS, resolve
from melete.batch import Batch
from melete.learning.local import LocalLearner, OptimizerSettings
from melete.loops import rl
from melete.loops.rl_rollouts import SampleSettings, collect, has_signal
from melete.loops.rl_update import UpdateSettings
from melete.models.tiny import tiny_model, train_tokenizer
from melete.rewards import RewardContext, make_rewards
from melete.rewards.grade import RewardPart
from melete.rewards.rules import ConcurrentReward
from melete.sampling.native import NativeSampler
from melete.tasks import make_task
from melete.text.chat import decode_completion, prompt_tokens
from melete.types import Problem, Rollout, SamplingSettings

sys.path.insert(0, str(Path(__file__).parent))  # where a user's own rewards would lie

EVEN = "tiny_rewards:even_tokens"
TASK = make_task("arithmetic_chain", {})
TOKENIZER = train_tokenizer(["What is 3+5?", "Compute 9-4.", "<think>3+5=8</think><answer>8</answer>"] * 20, 380)
PROMPTS, GROUP = 4, 8
RL_ALGORITHMS = sorted(set(ALGORITHMS) - {"sft"})


def problems(step: int, draw: int = 0) -> list[Problem]:
    return [TASK.problem("train", draw * 10**6 + step * PROMPTS + offset) for offset in range(PROMPTS)]


def last_tokens(batch: Batch) -> Tensor:
    return batch.loss_mask & ~F.pad(batch.loss_mask[:, 1:], (0, 1))


# a teacher that likes even tokens, and a judge of steps for whom the completion is one step
ANNOTATORS: dict[str, rl.Annotator] = {
    "teacher_logprobs": lambda batch, _groups: -1.0 - 4.0 * (batch.tokens % 2),
    "step_ends": lambda batch, _groups: last_tokens(batch),
    "step_rewards": lambda batch, _groups: torch.where(last_tokens(batch), batch.rewards[:, None], 0.0),
}


def trained(
    weights: dict[str, float],
    *,
    num_steps: int = 16,
    lr: float = 1e-2,
    algorithm: str = "grpo",
    seed: int = 0,
    update: UpdateSettings | None = None,
    max_staleness: int = 0,
    max_draws: int = 4,
    **overrides: Any,
) -> tuple[list[rl.Step], LocalLearner]:
    torch.manual_seed(seed)
    model = tiny_model(TOKENIZER, hidden_size=32, num_layers=2).eval()
    row = resolve(algorithm, max_new_tokens=8, **overrides)
    updates = update or UpdateSettings()
    optimizer = OptimizerSettings(lr=lr, num_steps=num_steps * updates.num_updates)
    learner = LocalLearner(model, optimizer=optimizer)
    steps: list[rl.Step] = []
    rl.train(
        start=0,
        stop=num_steps,
        settings=rl.RLSettings(
            SampleSettings(GROUP, SamplingSettings(8), (seed, "rl"), max_draws=max_draws),
            updates,
            max_staleness=max_staleness,
        ),
        problems=problems,
        sampler=NativeSampler(copy.deepcopy(model) if max_staleness else model, TOKENIZER),
        learner=learner,
        tokenizer=TOKENIZER,
        rewards={
            name: RewardPart(function, weights[name])
            for name, function in make_rewards(weights, RewardContext(TASK.grade, seed)).items()
        },
        algorithm=row,
        on_step=steps.append,
        critic=tiny_critic(optimizer, TOKENIZER) if "values" in row.needs else None,
        annotators=ANNOTATORS,
    )
    return steps, learner


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def share_of_even_tokens(steps: Sequence[rl.Step]) -> float:
    tokens = [t for step in steps for group in step.groups for r in group.rollouts for t in r.completion.tokens]
    return mean([float(token % 2 == 0) for token in tokens])


@pytest.mark.parametrize("algorithm", RL_ALGORITHMS)
def test_what_is_rewarded_becomes_more_frequent(algorithm: str) -> None:
    # an untrained model never ends its turn, so all of its completions are overlong
    overrides = {"overlong_filter": False} if algorithm == "dapo" else {}
    steps, _ = trained({EVEN: 1.0}, algorithm=algorithm, num_steps=16, **overrides)
    first, last = share_of_even_tokens(steps[:3]), share_of_even_tokens(steps[-3:])
    assert last > first + 0.2
    rewards = [step.metrics["reward"] for step in steps]
    assert mean(rewards[-3:]) > mean(rewards[:3]) + 0.2


def test_random_rewards_teach_nothing() -> None:
    steps, _ = trained({"random": 1.0})
    assert abs(share_of_even_tokens(steps[-3:]) - share_of_even_tokens(steps[:3])) < 0.12
    assert mean([step.metrics["reward"] for step in steps]) == pytest.approx(0.5, abs=0.1)


def test_without_a_learning_rate_nothing_moves_and_the_sampler_agrees_with_the_learner() -> None:
    """I39, I33: parameters stay bit for bit, and the mismatch stays flat."""
    torch.manual_seed(0)
    before = tiny_model(TOKENIZER, hidden_size=32, num_layers=2).state_dict()
    steps, learner = trained({EVEN: 1.0}, num_steps=3, lr=0.0)
    assert all(torch.equal(before[name], weight) for name, weight in learner.weights().items())
    assert all(step.metrics["sampler_mismatch"] < 1e-5 for step in steps)


def test_the_first_update_of_fresh_rollouts_is_on_policy() -> None:
    """I10: ratio 1, nothing clipped, no divergence, at every step of a run with one update per step."""
    steps, _ = trained({EVEN: 1.0}, num_steps=4)
    for step in steps:
        assert step.metrics["ratio_max"] == pytest.approx(1.0, abs=1e-6)
        assert step.metrics["clip_fraction"] == 0.0
        assert step.metrics["approx_kl"] == pytest.approx(0.0, abs=1e-9)
        assert step.metrics["sampler_mismatch"] < 1e-5


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    runs = [trained({EVEN: 1.0}, num_steps=3, seed=seed) for seed in (0, 0, 1)]
    metrics = [[dict(step.metrics) for step in steps] for steps, _ in runs]
    weights = [learner.weights() for _, learner in runs]
    assert metrics[0] == metrics[1] != metrics[2]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_every_group_is_one_problem_written_by_the_weights_of_its_step_from_its_own_prompt() -> None:
    """I38, I40: the version rises with each push, no sample is lost, and a group never mixes prompts."""
    steps, _ = trained({EVEN: 1.0}, num_steps=3)
    for number, step in enumerate(steps):
        assert step.number == number
        assert [group.problem for group in step.groups] == problems(number)
        for group in step.groups:
            assert [rollout.sibling for rollout in group.rollouts] == list(range(GROUP))
            for rollout in group.rollouts:
                assert rollout.problem == group.problem
                assert rollout.prompt_tokens == prompt_tokens(TOKENIZER, group.problem.messages)
                assert rollout.completion.policy_version == number
                assert rollout.text == decode_completion(TOKENIZER, rollout.completion.tokens)


def test_metrics_are_means_of_what_was_sampled_and_timings_are_apart() -> None:
    (step, *_), _ = trained({EVEN: 2.0, "format": 0.5}, num_steps=1)
    rollouts = [rollout for group in step.groups for rollout in group.rollouts]
    rewards = [reward for group in step.groups for reward in group.rewards]
    assert step.metrics["num_completion_tokens"] == sum(len(rollout.completion.tokens) for rollout in rollouts)
    assert step.metrics["reward"] == pytest.approx(mean([reward.total or 0.0 for reward in rewards]))
    parts = step.metrics[f"reward/{EVEN}"], step.metrics["reward/format"]
    assert step.metrics["reward"] == pytest.approx(2 * parts[0] + 0.5 * parts[1])
    truncated = mean([float(rollout.completion.finish_reason == "length") for rollout in rollouts])
    assert step.metrics["truncated_share"] == truncated
    assert set(step.timings) == {"sample_seconds", "grade_seconds", "update_seconds"}
    assert not set(step.timings) & set(step.metrics)


def test_a_step_on_which_every_grader_fails_is_counted_and_changes_nothing() -> None:
    """I5: a batch without signal leaves the weights as they were."""
    torch.manual_seed(0)
    before = tiny_model(TOKENIZER, hidden_size=32, num_layers=2).state_dict()
    steps, learner = trained({"math:sqrt": 1.0}, num_steps=1)  # the root of a rollout is a TypeError
    assert steps[0].metrics["grader_failures"] == PROMPTS * GROUP
    assert steps[0].update.num_rows == 0
    assert all(torch.equal(before[name], weight) for name, weight in learner.weights().items())


def test_several_updates_of_one_batch_use_the_log_probs_from_before_the_first() -> None:
    """I15: the ratio leaves 1 as soon as the weights have moved, and each pass deals the rows anew."""
    updates = UpdateSettings(num_epochs=2, num_minibatches=2, seed="s")
    steps, _ = trained({EVEN: 1.0}, num_steps=3, algorithm="dr_grpo", update=updates)
    assert all(step.metrics["num_updates"] == 4 for step in steps)
    assert all(step.metrics["ratio_max"] > 1.001 for step in steps)
    assert all("old_logprobs" in step.update.streams for step in steps)


def test_updates_end_early_once_the_policy_has_moved_too_far() -> None:
    updates = UpdateSettings(num_epochs=4, num_minibatches=2, approx_kl_limit=1e-6, seed="s")
    steps, _ = trained({EVEN: 1.0}, num_steps=2, algorithm="dr_grpo", update=updates)
    assert all(step.metrics["num_updates"] == 2 for step in steps)  # the first is on-policy, the second is not


def test_the_samplers_weights_are_never_further_behind_than_is_allowed() -> None:
    """I40: pushed every third step, so 0, 1 and 2 steps behind, and never more."""
    steps, _ = trained({EVEN: 1.0}, num_steps=7, algorithm="decoupled_ppo", max_staleness=2)
    assert [step.metrics["staleness_max"] for step in steps] == [0, 1, 2, 0, 1, 2, 0]
    assert steps[0].metrics["ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert steps[1].metrics["sampler_mismatch"] > 1e-4 > steps[3].metrics["sampler_mismatch"]


def test_dynamic_sampling_draws_until_every_group_has_something_to_teach() -> None:
    """I28: decided by raw rewards; what was drawn in vain is counted and not learnt from."""
    weights = {"tiny_rewards:rarely_right": 1.0}
    plain, _ = trained(weights, num_steps=2, algorithm="dapo", dynamic_sampling=False)
    dynamic, _ = trained(weights, num_steps=2, algorithm="dapo", max_draws=20)
    assert any(not has_signal(group) for step in plain for group in step.groups)
    for step in dynamic:
        assert len(step.groups) == PROMPTS
        assert all(has_signal(group) for group in step.groups)
        assert step.metrics["num_sampled_groups"] > PROMPTS
        assert step.metrics["dead_groups"] > 0
    few, _ = trained(weights, num_steps=1, algorithm="dapo", max_draws=1)
    assert 0 < len(few[0].groups) <= PROMPTS


def test_an_adaptive_kl_weight_moves_towards_its_target() -> None:
    """I21: the KL is far below a target of 10, so the weight falls; far above one of 1e-9, it rises."""
    for target, rises in ((10.0, False), (1e-9, True)):
        steps, _ = trained({EVEN: 1.0}, num_steps=4, kl_coef=0.1, kl_target=target, kl_horizon=1000.0)
        assert (steps[-1].kl_coef > 0.1) == rises
        assert len({step.kl_coef for step in steps}) > 1


def test_a_policy_stands_still_while_its_critic_warms_up() -> None:
    updates = UpdateSettings(critic_warmup_steps=2)
    steps, _ = trained({EVEN: 1.0}, num_steps=3, algorithm="ppo", update=updates)
    assert ["grad_norm" in step.metrics for step in steps] == [False, False, True]
    assert all("critic/value_loss" in step.metrics for step in steps)


def test_what_waits_is_graded_while_others_are_written() -> None:
    """The first grade is asked for before the last token is drawn."""
    model = tiny_model(TOKENIZER, hidden_size=32, num_layers=2)
    model.generation_config.eos_token_id = list(range(len(TOKENIZER) - 60, len(TOKENIZER)))  # rows end at random
    sampler, seen = NativeSampler(model, TOKENIZER), list[int]()

    def waits(rollout: Rollout) -> float:
        seen.append(sampler.num_decoded_tokens)
        return float(len(rollout.text))

    found = collect(
        sampler,
        TOKENIZER,
        problems,
        0,
        SampleSettings(GROUP, SamplingSettings(16), (0, "rl")),
        {"waits": RewardPart(ConcurrentReward(waits, 2))},
        resolve("grpo"),
    )
    assert len(seen) == PROMPTS * GROUP and min(seen) < sampler.num_decoded_tokens
    for group in found.groups:
        for rollout, reward in zip(group.rollouts, group.rewards, strict=True):
            assert reward.total == float(len(rollout.text))
