"""What each kind of stage does: it reads artefacts, trains, and writes artefacts.

This is the only layer that sees both the recipe's settings and the machinery below; everything it calls takes plain
values. A stage that was cut off continues from its last checkpoint with the same result as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from melete.algorithms import Algorithm, resolve
from melete.corpus.mix import sample_texts
from melete.evaluation.evaluate import EvaluationResult
from melete.evaluation.held_out import HeldOut
from melete.evaluation.transcripts import choose_transcripts
from melete.learning.local import LocalLearner, OptimizerSettings
from melete.live import View
from melete.loops import rl
from melete.loops.pretrain import PretrainSettings, pretrain_with_workers
from melete.models.load import load_model, load_tokenizer, save_model
from melete.models.moe import RouterBalancer
from melete.models.tiny import tiny_model, train_tokenizer
from melete.rewards import RewardContext, make_rewards
from melete.runs.checkpoints import latest_checkpoint, save_checkpoint
from melete.runs.directory import RunDirectory
from melete.sampling.native import NativeSampler
from melete.schema import PretrainStage, RLStage
from melete.tasks import make_task
from melete.text.chat import opens_thought
from melete.threads import threads_for
from melete.types import Problem, SamplingSettings

PROBLEMS_PER_SEED = 10**9


class Interrupted(KeyboardInterrupt):
    """The user asked to stop, and everything that is needed to continue has been saved."""


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage needs from its run."""

    run: RunDirectory
    seed: int
    view: View
    should_stop: Callable[[], bool]
    model_path: Callable[[str], Path]


def run_rl(stage: RLStage, context: StageContext) -> dict[str, Any]:
    """Trains with verifiable rewards; returns the stage's entry of `summary.json`."""
    started = time.perf_counter()
    source = context.model_path(stage.model)
    tokenizer, model = load_tokenizer(source), load_model(source)
    torch.set_num_threads(threads_for(model.num_parameters(), torch.get_num_threads()))
    balancer = RouterBalancer(model)
    sampler = NativeSampler(model, tokenizer)
    learner = LocalLearner(
        model,
        optimizer=OptimizerSettings(
            lr=stage.lr,
            schedule=stage.lr_schedule,
            warmup_steps=stage.warmup_steps,
            num_steps=stage.num_steps,
            max_grad_norm=stage.max_grad_norm,
        ),
        max_tokens_per_microbatch=stage.max_tokens_per_microbatch,
        temperature=stage.temperature,
        after_step=balancer.step,
    )
    task = make_task(stage.task.name, stage.task.own_settings())
    reward_context = RewardContext(task.grade, context.seed, opens_thought(tokenizer))
    rewards = make_rewards(stage.rewards, reward_context)
    settings = rl.RLSettings(
        group_size=stage.group_size,
        sampling=SamplingSettings(stage.max_new_tokens, stage.temperature),
        key_parts=(context.seed, stage.name),
        reference_refresh_steps=stage.reference_refresh_steps,
        thought_opened=reward_context.thought_opened,
    )
    held_out = HeldOut(
        directory=context.run.path / "evaluations" / stage.name,
        task=task,
        sampler=sampler,
        tokenizer=tokenizer,
        settings=settings.sampling,
        num_problems=stage.evaluation.num_problems,
        num_samples=stage.evaluation.num_samples,
        seed=context.seed,
        thought_opened=reward_context.thought_opened,
    )

    def problems(step: int) -> list[Problem]:
        # another run seed draws other problems, and the same problem never comes twice in a run
        first = context.seed * PROBLEMS_PER_SEED + step * stage.prompts_per_step
        return [task.problem("train", first + offset) for offset in range(stage.prompts_per_step)]

    recorder = Recorder(stage, context, learner, held_out)
    start = recorder.resume()
    sampler.load_weights(learner.weights(), version=start)
    context.view.stage_started(stage.name, stage.num_steps)
    points = sorted({round(share * stage.num_steps) for share in stage.evaluation.at})
    for point, following in zip([-1, *points], [*points, stage.num_steps], strict=True):
        if point >= 0:
            recorder.evaluated(point, held_out.evaluate(point, may_sample=start <= point), is_new=start <= point)
        if start < following:
            rl.train(
                start=max(start, point),
                stop=following,
                settings=settings,
                problems=problems,
                sampler=sampler,
                learner=learner,
                tokenizer=tokenizer,
                rewards=rewards,
                reward_weights=stage.rewards,
                algorithm=_algorithm(stage),
                on_step=recorder,
            )
    save_model(model, tokenizer, context.run.models / stage.name)
    return recorder.entry(time.perf_counter() - started)


def _algorithm(stage: RLStage) -> Algorithm:
    return resolve(stage.algorithm, max_new_tokens=stage.max_new_tokens, **stage.algorithm_settings)


class Recorder:
    """Writes what happens in a stage to the run directory, and saves it in time."""

    def __init__(self, stage: RLStage, context: StageContext, learner: LocalLearner, held_out: HeldOut) -> None:
        self.stage, self.context, self.learner, self.held_out = stage, context, learner, held_out
        self.directory = context.run.checkpoints / stage.name
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def resume(self) -> int:
        """Goes back to the last checkpoint, if there is one; returns the first step to do."""
        checkpoint = latest_checkpoint(self.directory, self.context.view.message)
        if checkpoint is None:
            self.context.run.truncate_metrics(self.stage.name, 0)
            return 0
        self.learner.load_state_dict(checkpoint.tensors)
        self.context.run.rewind(checkpoint.state["marks"])
        self.seconds_before = checkpoint.state["seconds"]
        self.context.view.message(f"{self.stage.name}: continues at step {checkpoint.step} of {self.stage.num_steps}")
        return checkpoint.step

    def evaluated(self, step: int, result: EvaluationResult, *, is_new: bool) -> None:
        """Logs a full evaluation, made before step `step`, unless an earlier process did."""
        if is_new:
            row = {"stage": self.stage.name, "step": step, "kind": "evaluation", "label": self._label(step)}
            self.context.run.log_metrics(row | result.row())
        self.context.view.step(self.stage.name, step, result.row(), None)

    def _label(self, step: int) -> str:
        return {0: "base", self.stage.num_steps: "final"}.get(step, "midway")

    def __call__(self, step: rl.Step) -> None:
        run, name, done = self.context.run, self.stage.name, step.number + 1
        run.log_metrics({"stage": name, "step": step.number, **step.metrics})
        run.log_timings({"stage": name, "step": step.number, **step.timings})
        run.log_rollouts(_rollout_rows(name, step))
        shown = step.groups[0].rollouts[0]
        self.context.view.step(name, step.number, step.metrics, f"{shown.problem.messages[-1].content}\n{shown.text}")
        every = self.stage.evaluation.quick_every_steps
        if every and done % every == 0 and done < self.stage.num_steps:
            quick = self.held_out.quick(self.stage.evaluation.quick_num_problems)
            run.log_metrics({"stage": name, "step": done, "kind": "quick_evaluation", **quick})
            self.context.view.step(name, done, quick, None)
        stop = self.context.should_stop()
        due = self.stage.checkpoint_every_steps and done % self.stage.checkpoint_every_steps == 0
        if stop or due or done == self.stage.num_steps:
            self._save(done)
        if stop:
            raise Interrupted

    def _save(self, done: int) -> None:
        seconds = self.seconds_before + time.perf_counter() - self.started
        state = {"marks": self.context.run.marks(), "seconds": seconds}
        save_checkpoint(self.directory, done, self.learner.state_dict(), state)

    def entry(self, seconds: float) -> dict[str, Any]:
        """The stage's entry of `summary.json`, with transcripts of the same problems before and after."""
        results = self.held_out.results
        evaluations = [
            {"label": self._label(step), "step": step, **result.summary()} for step, result in results.items()
        ]
        ordered = list(results.values())
        transcripts = choose_transcripts(ordered[0], ordered[-1]) if len(ordered) > 1 else []
        return {
            "name": self.stage.name,
            "kind": self.stage.kind,
            "seconds": self.seconds_before + seconds,
            "model": f"models/{self.stage.name}",
            "evaluations": evaluations,
            "transcripts": transcripts,
        }


def _rollout_rows(stage: str, step: rl.Step) -> list[dict[str, Any]]:
    """The siblings of the step's first problem: enough to see what is being learnt."""
    group = step.groups[0]
    rows = []
    for rollout, reward in zip(group.rollouts, group.rewards, strict=True):
        rows.append(
            {
                "stage": stage,
                "step": step.number,
                "problem_id": rollout.problem.problem_id,
                "prompt": rollout.problem.messages[-1].content,
                "gold": rollout.problem.gold,
                "sibling": rollout.sibling,
                "text": rollout.text,
                "reward": reward.total,
                "reward_parts": dict(reward.parts),
                "reason": reward.reason,
                "finish_reason": rollout.completion.finish_reason,
                "num_tokens": len(rollout.completion.tokens),
            }
        )
    return rows


def run_pretrain(stage: PretrainStage, context: StageContext) -> dict[str, Any]:
    """Makes a tokenizer and trains a base model from nothing; returns the stage's entry of `summary.json`.

    It does not continue where it was cut off: it starts again.
    """
    started = time.perf_counter()
    context.run.truncate_metrics(stage.name, 0)
    settings = PretrainSettings(
        seed=stage.corpus_seed,
        num_tokens=stage.num_tokens,
        tokens_per_batch=stage.tokens_per_batch,
        lr=stage.lr,
        warmup_share=stage.warmup_share,
        decay_share=stage.decay_share,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        router_bias_rate=stage.router_bias_rate,
        num_workers=stage.num_workers,
    )
    tokenizer = train_tokenizer(sample_texts(), stage.vocab_size)
    torch.manual_seed(context.seed)
    model = tiny_model(tokenizer, hidden_size=stage.hidden_size, num_layers=stage.num_layers)
    context.view.stage_started(stage.name, stage.num_tokens // stage.tokens_per_batch)

    def on_step(step: int, metrics: dict[str, float]) -> None:
        speed = metrics.pop("tokens_per_second")
        context.run.log_metrics({"stage": stage.name, "step": step, **metrics})
        context.run.log_timings({"stage": stage.name, "step": step, "tokens_per_second": speed})
        context.view.step(stage.name, step + 1, metrics, None)
        if context.should_stop():
            raise Interrupted

    pretrain_with_workers(model, tokenizer, settings, on_step)
    for directory in [context.run.models / stage.name, *([Path(stage.out)] if stage.out else [])]:
        save_model(model, tokenizer, directory)
    seconds = time.perf_counter() - started
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": seconds,
        "model": f"models/{stage.name}",
        "evaluations": [],
    }
