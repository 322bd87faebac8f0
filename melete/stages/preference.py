"""Stages that make preferences and learn from them without a reward model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from melete.algorithms.preference import PreferenceAlgorithm, resolve_preference
from melete.datasets.files import read_rows, write_rows
from melete.datasets.lengths import fitting, limit_of
from melete.learning.preference import PreferenceLearner
from melete.loops import preference
from melete.loops.pairs import sampled_pairs
from melete.loops.passes import OnStep
from melete.loops.rl_rollouts import SampleSettings, sample_rollouts
from melete.models.moe import RouterBalancer
from melete.rewards.endpoint import ChatModel
from melete.rewards.grade import RewardPart, grade_groups
from melete.rewards.judge import Contest, JudgedPairs, preference_pairs
from melete.rewards.rules import accuracy
from melete.sampling.native import NativeSampler
from melete.schema import JudgePart, PairsStage, PreferenceStage
from melete.stages.context import Interrupted, StageContext
from melete.stages.rewards import judge_model, judge_reward, score_reward
from melete.stages.rl import held_out_of, optimizer_settings, train_problems
from melete.stages.training import Training
from melete.tasks import make_task
from melete.tasks.base import Task, reading_for
from melete.text.chat import opens_thought
from melete.types import PreferencePair, Rollout, SamplingSettings

PROMPTS_AT_ONCE = 32


def run_pairs(stage: PairsStage, context: StageContext) -> dict[str, Any]:
    """Samples, grades and pairs; writes `data/<stage>.jsonl` as a whole."""
    started = time.perf_counter()
    tokenizer, model = context.load(stage.model)
    sampler, task = NativeSampler(model, tokenizer), make_task(stage.task.name, stage.task.own_settings())
    settings = SampleSettings(
        stage.samples_per_prompt,
        SamplingSettings(stage.max_new_tokens, stage.temperature),
        (context.seed, stage.name),
    )
    rewards = _by_grade(task, tokenizer)
    judge = judge_model(stage.judge, context) if stage.judge else None
    failures: list[str] = []
    num_steps = -(-stage.num_prompts // PROMPTS_AT_ONCE)
    context.view.stage_started(stage.name, num_steps)
    pairs: list[PreferencePair] = []
    for step in range(num_steps):
        if context.should_stop():
            raise Interrupted
        count = min(PROMPTS_AT_ONCE, stage.num_prompts - step * PROMPTS_AT_ONCE)
        problems = train_problems(task, context.seed, step, 0, PROMPTS_AT_ONCE)[:count]
        rollouts = sample_rollouts(sampler, tokenizer, problems, settings, step)
        if judge and stage.judge:
            judged = judged_pairs(rollouts, judge, stage.judge, stage.judge_threshold, tokenizer)
            pairs += judged.pairs
            failures += [reason for reason in judged.reasons if reason]
            context.view.step(stage.name, step, {"num_pairs": float(len(pairs))}, None)
            continue
        groups = grade_groups(rollouts, rewards)
        for group in groups:
            pairs += sampled_pairs(
                group, stage.pairs_per_prompt, stage.label_noise, f"{context.seed}/{stage.name}/{step}"
            )
        context.view.step(stage.name, step, {"num_pairs": float(len(pairs))}, None)
    write_rows(context.run.path / "data" / f"{stage.name}.jsonl", pairs)
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": time.perf_counter() - started,
        "data": f"data/{stage.name}.jsonl",
        "num_rows": len(pairs),
        "num_without_verdict": len(failures),
        "evaluations": [],
    }


def judged_pairs(
    rollouts: Sequence[Sequence[Rollout]],
    judge: ChatModel,
    part: JudgePart,
    threshold: float,
    tokenizer: PreTrainedTokenizerBase,
) -> JudgedPairs:
    """The first two samples of each prompt that ended and differ, as a judge sees them."""
    contests = []
    for siblings in rollouts:
        ended = {r.text: r for r in siblings if r.completion.finish_reason == "stop"}
        if len(ended) > 1:
            (one, two), problem = list(ended)[:2], siblings[0].problem
            contests.append(Contest(problem.problem_id, problem.messages, one, two))
    return preference_pairs(
        judge,
        contests,
        threshold=threshold,
        num_calls=part.num_calls,
        scope=part.scope,
        thought_opened=opens_thought(tokenizer),
    )


def _by_grade(task: Task, tokenizer: PreTrainedTokenizerBase) -> dict[str, RewardPart]:
    """The task's own grade and nothing else."""
    right = accuracy(task.grade, thought_opened=opens_thought(tokenizer), reading=reading_for(task))
    return {"accuracy": RewardPart(right)}


def run_preference(stage: PreferenceStage, context: StageContext) -> dict[str, Any]:
    """DPO and its family, offline or online; returns the stage's entry of `summary.json`."""
    tokenizer, model = context.policy(stage)
    task = make_task(stage.task.name, stage.task.own_settings()) if stage.task else None
    sampler = NativeSampler(model, tokenizer)
    algorithm = resolve_preference(stage.algorithm, **stage.algorithm_settings)
    data = None
    num_steps = stage.num_steps
    if stage.data:
        path = context.data_path(stage.data)
        pairs = read_rows(path, PreferencePair, columns=stage.columns, part=stage.part)
        limit = limit_of(stage.max_tokens, model.config)
        data = preference.PairData(fitting(pairs, tokenizer, limit, stage.too_long, str(path)), tokenizer)
        whole = stage.num_epochs * -(-len(data.rows) // stage.pairs_per_step)
        num_steps = min(stage.num_steps or whole, whole)
    learner = PreferenceLearner(
        model,
        optimizer=optimizer_settings(stage, num_steps),
        max_tokens_per_microbatch=stage.max_tokens_per_microbatch,
        temperature=stage.temperature,
        after_step=RouterBalancer(model).step,
    )
    held_out = held_out_of(stage, context, task, sampler, tokenizer) if task else None
    training = Training(
        stage,
        context,
        num_steps=num_steps,
        parts={"policy": learner},
        held_out=held_out,
        evaluation=stage.evaluation,
    )
    start = training.resume()
    sampler.load_weights(learner.weights(), version=start)
    on_step = training.pushing(sampler, learner)
    for begin, end in training.segments(start):
        if data is not None:
            preference.train_offline(
                start=begin,
                stop=end,
                data=data,
                pairs_per_step=stage.pairs_per_step,
                learner=learner,
                algorithm=algorithm,
                seed=f"{context.seed}/{stage.name}",
                on_step=on_step,
            )
        else:
            _online(stage, context, begin, end, tokenizer, task, sampler, learner, algorithm, on_step)
    context.keep(stage, model, tokenizer)
    return training.entry()


def _online(
    stage: PreferenceStage,
    context: StageContext,
    begin: int,
    end: int,
    tokenizer: Any,
    task: Any,
    sampler: NativeSampler,
    learner: PreferenceLearner,
    algorithm: PreferenceAlgorithm,
    on_step: OnStep,
) -> None:
    judge = _by_grade(task, tokenizer)
    if stage.reward_model:
        judge = {"score": RewardPart(score_reward(stage.reward_model, "whole", context, tokenizer))}
    if stage.judge:
        verdict = judge_reward(stage.judge, context, thought_opened=opens_thought(tokenizer))
        judge = {"judge": RewardPart(verdict)}
    preference.train_online(
        start=begin,
        stop=end,
        problems=lambda step: train_problems(task, context.seed, step, 0, stage.pairs_per_step),
        settings=SampleSettings(
            stage.samples_per_prompt,
            SamplingSettings(stage.max_new_tokens, stage.temperature),
            (context.seed, stage.name),
        ),
        sampler=sampler,
        judge=judge,
        learner=learner,
        algorithm=algorithm,
        tokenizer=tokenizer,
        on_step=on_step,
    )
