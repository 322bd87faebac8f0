"""The stage of reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from melete.algorithms import Algorithm, resolve
from melete.batch import Batch
from melete.errors import TrainingError
from melete.evaluation.held_out import HeldOut
from melete.learning.critic import LocalCritic, SharedTrunk
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.learning.scoring import score_batch
from melete.learning.throughput import Arithmetic, throughput
from melete.loops import rl
from melete.loops.rl_rollouts import SampleSettings
from melete.loops.rl_update import UpdateSettings
from melete.models.heads import new_scalar_model
from melete.models.load import load_model
from melete.models.moe import RouterBalancer
from melete.rewards import RewardContext
from melete.rewards.grade import RewardPart
from melete.runs.directory import ROLLOUTS
from melete.sampling.native import NativeSampler
from melete.sampling.protocol import Sampler
from melete.schema import RLStage, TrainingStage
from melete.stages.context import StageContext
from melete.stages.rewards import stage_rewards, step_annotators
from melete.stages.rollout_rows import refused_rows, rollout_rows
from melete.stages.samplers import StageSampler, open_sampler
from melete.stages.support import checked_support
from melete.stages.training import Stateful, Training
from melete.tasks import make_task
from melete.tasks.base import Task, reading_for, waits
from melete.tasks.mixture import Mixture, Part
from melete.text.chat import opens_thought
from melete.types import Problem, RolloutGroup, SamplingSettings

PROBLEMS_PER_SEED = 10**9
PROBLEMS_PER_DRAW = 10**8


def optimizer_settings(stage: TrainingStage, num_steps: int) -> OptimizerSettings:
    """The optimizer's part of a stage's settings."""
    return OptimizerSettings(
        lr=stage.lr,
        schedule=stage.lr_schedule,
        warmup_steps=stage.warmup_steps,
        num_steps=num_steps,
        max_grad_norm=stage.max_grad_norm,
    )


def train_problems(task: Task, seed: int, step: int, draw: int, count: int) -> list[Problem]:
    """`count` training problems: another run seed draws others, and none comes twice in a run."""
    first = seed * PROBLEMS_PER_SEED + draw * PROBLEMS_PER_DRAW + step * count
    return [task.problem("train", first + offset) for offset in range(count)]


def _main_task(stage: RLStage) -> Task:
    return make_task(stage.task.name, stage.task.own_settings())


def stage_task(stage: RLStage) -> Task:
    """The stage's task; with late problems, a mixture that grades both."""
    task = _main_task(stage)
    if stage.late is None:
        return task
    late = make_task(stage.late.task.name, stage.late.task.own_settings())
    return Mixture((Part(task, 1 - stage.late.share, "main"), Part(late, stage.late.share, "late")))


def step_problems(stage: RLStage, task: Task, seed: int, step: int, draw: int) -> list[Problem]:
    """The problems of a step: from the start of the late part on, so many of them are late ones."""
    if stage.late is None or not isinstance(task, Mixture):
        return train_problems(task, seed, step, draw, stage.prompts_per_step)
    is_late = step >= stage.late.start * stage.num_steps
    num_late = round(stage.late.share * stage.prompts_per_step) if is_late else 0
    # a part counts its problems by itself, as if it were alone
    first = seed * PROBLEMS_PER_SEED + draw * PROBLEMS_PER_DRAW + step * stage.prompts_per_step
    numbers = [0] * (stage.prompts_per_step - num_late) + [1] * num_late
    return [task.problem_of(number, "train", first + offset) for offset, number in enumerate(numbers)]


def _first_problems(stage: RLStage, task: Task, seed: int) -> list[Problem]:
    """The problems of the first steps, each once: those that the check before training tries."""
    num_steps = -(-stage.support.num_problems // stage.prompts_per_step)
    drawn = [problem for step in range(num_steps) for problem in step_problems(stage, task, seed, step, 0)]
    return list({problem.problem_id: problem for problem in drawn}.values())[: stage.support.num_problems]


def run_rl(stage: RLStage, context: StageContext) -> dict[str, Any]:
    """Trains with rewards; returns the stage's entry of `summary.json`."""
    tokenizer, model = context.policy(stage)
    with open_sampler(stage, model, tokenizer, lags_behind=stage.max_staleness > 0) as sampler:
        return _run(stage, context, tokenizer, model, sampler)


def _run(
    stage: RLStage,
    context: StageContext,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    sampler: StageSampler,
) -> dict[str, Any]:
    work = _Workshop.of(stage, context, tokenizer, model, sampler)
    training = Training(
        stage,
        context,
        num_steps=stage.num_steps,
        parts=work.parts,
        held_out=work.held_out,
        evaluation=stage.evaluation,
    )
    start = training.resume()
    arithmetic = Arithmetic.of(model)
    num_tokens = int(training.extra.get("num_completion_tokens", 0))
    if stage.max_staleness == 0 or start == 0:
        work.sampler.load_weights(work.learner.weights(), version=start)
    support = checked_support(
        stage,
        context,
        _first_problems(stage, work.task, context.seed),
        may_sample=start == 0,
        sampler=work.sampler,
        tokenizer=tokenizer,
        rewards=work.rewards,
        sampling=work.settings.sampling,
        algorithm=stage_algorithm(stage),
    )

    def on_step(step: rl.Step) -> None:
        nonlocal num_tokens
        num_tokens += int(step.metrics["num_completion_tokens"])
        shown = step.groups[0].rollouts[0]
        seconds = step.timings["sample_seconds"] + step.timings["update_seconds"]
        training.step_done(
            step.number,
            step.metrics,
            dict(step.timings) | throughput(model, arithmetic, step.groups, stage.num_epochs, seconds),
            rollouts=rollout_rows(stage.name, step, work.rewards, tokenizer),
            shown=f"{shown.problem.messages[-1].content}\n{shown.text}",
            extra={"kl_coef": step.kl_coef, "num_completion_tokens": num_tokens},
        )

    def on_refused(number: int, groups: Sequence[RolloutGroup], error: TrainingError) -> None:
        rows = refused_rows(stage.name, number, groups, work.rewards)
        context.run.log_rollouts(rows)
        place = f"step {number}, {error.place}; its {len(rows)} rollouts are the last of {context.run.path / ROLLOUTS}"
        raise TrainingError(error.what, place=place, remedy=error.remedy) from error

    for begin, end in training.segments(start):
        rl.train(
            start=begin,
            stop=end,
            settings=work.settings,
            problems=lambda step, draw: step_problems(stage, work.task, context.seed, step, draw),
            sampler=work.sampler,
            learner=work.learner,
            tokenizer=tokenizer,
            rewards=work.rewards,
            algorithm=_with_kl_coef(stage_algorithm(stage), training.extra.get("kl_coef")),
            on_step=on_step,
            on_refused=on_refused,
            critic=work.critic,
            annotators=work.annotators,
        )
    context.keep(stage, model, tokenizer)
    return training.entry(num_completion_tokens=num_tokens, support=support)


def stage_algorithm(stage: RLStage) -> Algorithm:
    """The row that the stage names, with its settings."""
    return resolve(stage.algorithm, max_new_tokens=stage.max_new_tokens, **stage.algorithm_settings)


def _with_kl_coef(algorithm: Algorithm, kl_coef: float | None) -> Algorithm:
    """The row with the weight that an adaptive controller has come to."""
    return algorithm if kl_coef is None else replace(algorithm, settings=replace(algorithm.settings, kl_coef=kl_coef))


@dataclass(frozen=True, slots=True)
class _Workshop:
    """Everything that the loop is handed."""

    task: Task
    sampler: StageSampler
    learner: LocalLearner
    critic: LocalCritic | None
    held_out: HeldOut
    rewards: Mapping[str, RewardPart]
    annotators: Mapping[str, rl.Annotator]
    settings: rl.RLSettings
    parts: Mapping[str, Stateful]

    @classmethod
    def of(
        cls,
        stage: RLStage,
        context: StageContext,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        sampler: StageSampler,
    ) -> _Workshop:
        critic = _critic(stage, context, model)
        learner = _learner(stage, context, model, sampler, critic)
        task = stage_task(stage)
        opened = opens_thought(tokenizer)
        reward_context = RewardContext(
            task.grade,
            context.seed,
            opened,
            reading_for(task),
            stage.max_new_tokens,
            slow_grade=waits(task),
            graded_by=getattr(task, "graded_by", ""),
        )
        if left_out := getattr(getattr(task, "report", None), "dropped", ()):
            context.view.message(f"{task.name}: {len(left_out)} rows are left out; melete tasks show lists them")
        rewards = stage_rewards(stage, reward_context, context, tokenizer)
        annotators: dict[str, rl.Annotator] = step_annotators(stage.step_rewards, context, task, tokenizer)
        if stage.teacher:
            annotators["teacher_logprobs"] = _teacher(stage, context)
        parts: dict[str, Stateful] = {"policy": learner}
        if critic:
            parts["critic"] = critic
        if stage.max_staleness:
            parts["sampler"] = sampler
        return cls(
            task=task,
            sampler=sampler,
            learner=learner,
            critic=critic,
            held_out=held_out_of(stage, context, _main_task(stage), sampler, tokenizer),
            rewards=rewards,
            annotators=annotators,
            settings=_loop_settings(stage, context.seed, thought_opened=opened),
            parts=parts,
        )


def _learner(
    stage: RLStage, context: StageContext, model: PreTrainedModel, sampler: StageSampler, critic: LocalCritic | None
) -> LocalLearner:
    return LocalLearner(
        model,
        optimizer=optimizer_settings(stage, stage.num_steps * stage.num_epochs * stage.num_minibatches),
        max_tokens_per_microbatch=stage.max_tokens_per_microbatch,
        temperature=stage.temperature,
        after_step=RouterBalancer(model).step,
        reference=_other_model(stage.reference, context) if stage.reference not in ("start", "none") else None,
        value_head=critic.model.score if critic and isinstance(critic.model, SharedTrunk) else None,
        value_coef=stage.critic.value_coef if stage.critic else 0.0,
        # a sampler that lags behind writes with weights of its own
        memory=sampler.memory if isinstance(sampler, NativeSampler) and not stage.max_staleness else None,
    )


def _loop_settings(stage: RLStage, seed: int, *, thought_opened: bool) -> rl.RLSettings:
    return rl.RLSettings(
        sampling=SampleSettings(
            group_size=stage.group_size,
            sampling=SamplingSettings(stage.max_new_tokens, stage.temperature),
            key_parts=(seed, stage.name),
            thought_opened=thought_opened,
            max_draws=stage.max_draws,
        ),
        update=UpdateSettings(
            num_epochs=stage.num_epochs,
            num_minibatches=stage.num_minibatches,
            approx_kl_limit=stage.approx_kl_limit,
            critic_warmup_steps=stage.critic.warmup_steps if stage.critic else 0,
            seed=f"{seed}/{stage.name}",
        ),
        reference_refresh_steps=stage.reference_refresh_steps,
        max_staleness=stage.max_staleness,
    )


def held_out_of(
    stage: Any, context: StageContext, task: Task, sampler: Sampler, tokenizer: PreTrainedTokenizerBase
) -> HeldOut:
    """The held-out problems of a stage that has `evaluation` and `max_new_tokens`."""
    return HeldOut(
        directory=context.run.path / "evaluations" / stage.name,
        task=task,
        sampler=sampler,
        tokenizer=tokenizer,
        settings=SamplingSettings(stage.max_new_tokens, getattr(stage, "temperature", 1.0)),
        num_problems=stage.evaluation.num_problems,
        num_samples=stage.evaluation.num_samples,
        seed=context.seed,
        thought_opened=opens_thought(tokenizer),
    )


def _critic(stage: RLStage, context: StageContext, policy: PreTrainedModel) -> LocalCritic | None:
    if stage.critic is None:
        return None
    if stage.critic.trunk == "shared":
        model = SharedTrunk(policy)
    else:
        model = new_scalar_model(context.model_path(stage.critic.model or stage.model), seed=context.seed)
    num_updates = stage.num_steps * stage.num_epochs * stage.num_minibatches
    settings = replace(optimizer_settings(stage, num_updates), lr=stage.critic.lr)
    return LocalCritic(
        model,
        optimizer=settings,
        max_tokens_per_microbatch=stage.max_tokens_per_microbatch,
        value_clip=stage_algorithm(stage).settings.value_clip,
    )


def _other_model(name: str, context: StageContext) -> PreTrainedModel:
    return load_model(context.model_path(name)).requires_grad_(False)


def _teacher(stage: RLStage, context: StageContext) -> rl.Annotator:
    teacher = _other_model(stage.teacher, context)

    def logprobs(batch: Batch, _groups: Sequence[RolloutGroup]) -> Tensor:
        # the temperature belongs to the policy: a teacher is asked what it believes
        return score_batch(teacher, batch, stage.max_tokens_per_microbatch, 1.0)

    return logprobs
