"""Stages that imitate: supervised fine-tuning and distillation."""

from __future__ import annotations

from typing import Any

from melete.algorithms import resolve
from melete.batch import MaskedRow
from melete.datasets.encode import demonstration_rows
from melete.datasets.files import read_rows
from melete.datasets.lengths import fitting_rows, limit_of
from melete.learning.distill import DistillLearner
from melete.learning.local import LocalLearner
from melete.loops import distill, sft
from melete.loops.rl_rollouts import SampleSettings
from melete.models.load import load_model
from melete.models.moe import RouterBalancer
from melete.rewards.rules import accuracy
from melete.sampling.native import NativeSampler
from melete.schema import DistillStage, SFTStage
from melete.stages.context import StageContext
from melete.stages.rl import held_out_of, optimizer_settings, train_problems
from melete.stages.training import Training
from melete.tasks import make_task
from melete.tasks.base import reading_for
from melete.text.chat import opens_thought, pad_token
from melete.types import Demonstration, Rollout, SamplingSettings


def run_sft(stage: SFTStage, context: StageContext) -> dict[str, Any]:
    """Supervised fine-tuning on a data set; returns the stage's entry of `summary.json`."""
    tokenizer, model = context.policy(stage)
    rows = _demonstrations(stage, context, tokenizer, model)
    num_steps = stage.num_epochs * -(-len(rows) // stage.rows_per_step)
    sampler = NativeSampler(model, tokenizer)
    learner = LocalLearner(
        model,
        optimizer=optimizer_settings(stage, num_steps),
        max_tokens_per_microbatch=stage.max_tokens_per_microbatch,
        after_step=RouterBalancer(model).step,
        packing=stage.packing,
    )
    held_out = None
    if stage.task is not None:
        task = make_task(stage.task.name, stage.task.own_settings())
        held_out = held_out_of(stage, context, task, sampler, tokenizer)
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
    for begin, end in training.segments(start):
        sft.train(
            start=begin,
            stop=end,
            rows=rows,
            rows_per_step=stage.rows_per_step,
            pad_token_id=pad_token(tokenizer),
            learner=learner,
            algorithm=resolve("sft"),
            seed=f"{context.seed}/{stage.name}",
            on_step=training.pushing(sampler, learner),
        )
    context.keep(stage, model, tokenizer)
    num_tokens = sum(sum(mask) for _, mask in rows)
    return training.entry(num_rows=len(rows), num_completion_tokens=stage.num_epochs * num_tokens)


def _demonstrations(stage: SFTStage, context: StageContext, tokenizer: Any, model: Any) -> list[MaskedRow]:
    """The rows that are learnt from, as long as they may be."""
    path = context.data_path(stage.data)
    last_only = stage.learn_from == "last_turn"
    read = read_rows(path, Demonstration, columns=stage.columns, part=stage.part)
    rows = [row for one in read for row in demonstration_rows(tokenizer, one, last_turn_only=last_only)]
    return fitting_rows(rows, limit_of(stage.max_tokens, model.config), stage.too_long, str(path))


def run_distill(stage: DistillStage, context: StageContext) -> dict[str, Any]:
    """A student learns from a teacher; returns the stage's entry of `summary.json`.

    "sequence" and "logits" learn from the teacher's right answers, by their tokens or by its whole distribution;
    "on_policy" and "gkd" from what the student itself writes, wholly or in part.
    """
    tokenizer, model = context.policy(stage)
    teacher = load_model(context.model_path(stage.teacher))
    task = make_task(stage.task.name, stage.task.own_settings())
    student_sampler = NativeSampler(model, tokenizer)
    right = accuracy(task.grade, thought_opened=opens_thought(tokenizer), reading=reading_for(task))

    def is_right(rollout: Rollout) -> bool:
        return rollout.completion.finish_reason == "stop" and right(rollout) == 1.0

    from_teacher = stage.method in ("sequence", "logits")
    writers = distill.Writers(
        student=student_sampler,
        teacher=NativeSampler(teacher, tokenizer),
        student_share={"on_policy": 1.0, "gkd": stage.student_share}.get(stage.method, 0.0),
        accept=is_right if from_teacher else None,
    )
    learner = DistillLearner(
        model,
        teacher,
        optimizer=optimizer_settings(stage, stage.num_steps),
        divergence={"sequence": "sequence", "logits": "forward_kl", "gkd": "jsd"}.get(stage.method, "reverse_kl"),  # type: ignore[arg-type]
        jsd_beta=stage.jsd_beta,
        temperature=stage.kd_temperature,
        max_tokens_per_microbatch=stage.max_tokens_per_microbatch,
        after_step=RouterBalancer(model).step,
    )
    training = Training(
        stage,
        context,
        num_steps=stage.num_steps,
        parts={"policy": learner},
        held_out=held_out_of(stage, context, task, student_sampler, tokenizer),
        evaluation=stage.evaluation,
    )
    start = training.resume()
    student_sampler.load_weights(learner.weights(), version=start)
    for begin, end in training.segments(start):
        distill.train(
            start=begin,
            stop=end,
            problems=lambda step: train_problems(task, context.seed, step, 0, stage.prompts_per_step),
            settings=SampleSettings(1, SamplingSettings(stage.max_new_tokens), (context.seed, stage.name)),
            writers=writers,
            learner=learner,
            tokenizer=tokenizer,
            on_step=training.step_done,
        )
    context.keep(stage, model, tokenizer)
    return training.entry()
