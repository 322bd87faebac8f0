"""The stage of rejection sampling: demonstrations out of what a model writes that is right and readable."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from melete.datasets.files import write_rows
from melete.errors import DataError
from melete.loops.reject import (
    BROKEN,
    CUT,
    FORMAT,
    NO_VERDICT,
    REASONS,
    UNGRADED,
    WRONG,
    Graders,
    Rules,
    Sifted,
    agreement,
    counts,
    rejection_sampling,
)
from melete.loops.rl_rollouts import SampleSettings
from melete.rewards import RewardContext, make_reward
from melete.rewards.grade import RewardPart
from melete.schema.curation import ReadableSettings, RejectStage
from melete.stages.context import Interrupted, StageContext
from melete.stages.rewards import judge_reward
from melete.stages.rl import PROBLEMS_PER_DRAW, PROBLEMS_PER_SEED
from melete.stages.samplers import open_sampler
from melete.tasks import make_task
from melete.tasks.base import Task, plain_for, reading_for, waits
from melete.tasks.curation import normal_text, question_of
from melete.text.chat import opens_thought
from melete.text.readable import FAULTS, ReadableLimits
from melete.types import Demonstration, Problem, SamplingSettings

ROLLOUTS_AT_ONCE = 512
_OWN_DRAW = 9  # of the ten draws per step that `train_problems` has room for, one that no training reaches
_PROBLEMS_PER_STAGE = 10**5
_MAX_MISSES = 200  # draws in a row that give a known question: there are hardly any others
_NUM_KEPT_SHOWN = 3
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_HELP = {
    CUT: "raise max_new_tokens",
    FORMAT: "train the format first, or set require_format = false",
    UNGRADED: "see what the task's grader says",
    NO_VERDICT: "see what the judge replies, or raise judge.max_new_tokens",
    WRONG: "take easier problems or a better model, raise samples_per_prompt, or lower min_score",
    BROKEN: 'set form = "keep"',
    **dict.fromkeys(FAULTS, "loosen the settings under readable"),
}


def run_reject(stage: RejectStage, context: StageContext) -> dict[str, Any]:
    """Samples, sifts, and writes `data/<stage>.jsonl` as a whole; returns the stage's entry of `summary.json`.

    Raises `DataError` when nothing is worth keeping, with the counts and what could be changed.
    """
    started = time.perf_counter()
    tokenizer, model = context.load(stage.model)
    task = make_task(stage.task.name, stage.task.own_settings())
    problems = different_problems(task, context.seed, stage.name, stage.num_prompts)
    if len(problems) < stage.num_prompts:
        context.view.message(f"{stage.name}: the task has {len(problems)} different problems, not {stage.num_prompts}")
    size = max(1, ROLLOUTS_AT_ONCE // stage.samples_per_prompt)
    batches = [problems[begin : begin + size] for begin in range(0, len(problems), size)]
    context.view.stage_started(stage.name, len(batches))
    done: list[Sequence[Sifted]] = []

    def on_batch(found: Sequence[Sifted]) -> None:
        done.append(found)
        num_kept = sum(not sample.reason for batch in done for sample in batch)
        context.view.step(stage.name, len(done) - 1, {"num_rows": num_kept}, _shown(found[0]))
        if context.should_stop():
            raise Interrupted

    with open_sampler(stage, model, tokenizer) as sampler:
        samples = rejection_sampling(
            batches=batches,
            settings=SampleSettings(
                stage.samples_per_prompt,
                SamplingSettings(stage.max_new_tokens, stage.temperature, stage.top_p),
                (context.seed, stage.name),
            ),
            sampler=sampler,
            tokenizer=tokenizer,
            graders=graders_of(stage, context, task, tokenizer),
            rules=rules_of(stage, task, tokenizer, f"{context.seed}/{stage.name}"),
            max_rows=stage.max_rows,
            on_batch=on_batch,
        )
    kept = [sample for sample in samples if not sample.reason]
    if not kept:
        raise _nothing_kept(stage, samples)
    write_rows(context.run.path / "data" / f"{stage.name}.jsonl", map(_demonstration, kept))
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": time.perf_counter() - started,
        "data": f"data/{stage.name}.jsonl",
        "num_rows": len(kept),
        "num_prompts": len({sample.rollout.problem.problem_id for sample in samples}),
        "num_prompts_kept": len({sample.rollout.problem.problem_id for sample in kept}),
        "num_sampled": len(samples),
        "num_completion_tokens": sum(len(sample.rollout.completion.tokens) for sample in samples),
        "dropped": counts(samples),
        "filters": list(REASONS),
        "share_kept": len(kept) / len(samples),
        "judge_agreement": agreement(samples, stage.min_score),
        "examples": examples(samples),
        "evaluations": [],
    }


def different_problems(task: Task, seed: int, stage: str, count: int) -> list[Problem]:
    """The first `count` training problems of a stage of this name that ask different things; fewer if there are none.

    Seed and stage have problems of their own. What is held out never comes: its split is decided by what is asked.
    """
    first = seed * PROBLEMS_PER_SEED + _OWN_DRAW * PROBLEMS_PER_DRAW
    first += zlib.crc32(stage.encode()) % (PROBLEMS_PER_DRAW // _PROBLEMS_PER_STAGE) * _PROBLEMS_PER_STAGE
    found: dict[str, Problem] = {}
    misses = index = 0
    while len(found) < count and misses < _MAX_MISSES:
        problem = task.problem("train", first + index)
        question = normal_text(question_of(problem))
        misses = misses + 1 if question in found else 0
        found.setdefault(question, problem)
        index += 1
    return list(found.values())


def graders_of(stage: RejectStage, context: StageContext, task: Task, tokenizer: PreTrainedTokenizerBase) -> Graders:
    """The task's grade decides, or a judge; then the grade is what the judge is compared with."""
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
    grade = RewardPart(make_reward("accuracy", reward_context, {}))
    if stage.judge is None:
        return Graders(grade)
    return Graders(RewardPart(judge_reward(stage.judge, context, thought_opened=opened)), grade)


def rules_of(stage: RejectStage, task: Task, tokenizer: PreTrainedTokenizerBase, seed: str) -> Rules:
    """The stage's settings as the loop takes them."""
    special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return Rules(
        plain=plain_for(task),
        seed=seed,
        limits=limits_of(stage.readable),
        min_score=stage.min_score,
        require_format=stage.require_format,
        require_thought=stage.require_thought,
        tidy=stage.form == "tidy",
        max_similarity=stage.max_similarity,
        keep_per_prompt=stage.keep_per_prompt,
        prefer=stage.prefer,
        thought_opened=opens_thought(tokenizer),
        control_tokens=frozenset(number for text, number in special if text not in _TAGS),
    )


def limits_of(settings: ReadableSettings) -> ReadableLimits:
    """The settings of what is readable as limits."""
    return ReadableLimits(
        settings.max_repeated_share,
        settings.repeated_ngram,
        settings.min_language_share if settings.one_language else 0.0,
        settings.max_paragraph_chars,
        settings.no_code_blocks,
    )


def examples(samples: Sequence[Sifted]) -> list[dict[str, Any]]:
    """A few samples that are kept, and one for each reason not to; `before` is a text that was tidied."""
    shown = [sample for sample in samples if not sample.reason][:_NUM_KEPT_SHOWN]
    for reason in REASONS:
        shown += [sample for sample in samples if sample.reason == reason][:1]
    return [
        {
            "prompt": sample.rollout.problem.messages[-1].content,
            "text": sample.text,
            "kept": not sample.reason,
            "reason": sample.reason,
            "told": sample.told,
            **({"before": sample.rollout.text} if sample.text != sample.rollout.text else {}),
        }
        for sample in shown
    ]


def _shown(sample: Sifted) -> str:
    return f"{sample.rollout.problem.messages[-1].content}\n{sample.text}"


def _demonstration(sample: Sifted) -> Demonstration:
    problem = sample.rollout.problem
    return Demonstration(f"{problem.problem_id}/{sample.rollout.sibling}", problem.messages, sample.text)


def _nothing_kept(stage: RejectStage, samples: Sequence[Sifted]) -> DataError:
    dropped = {reason: count for reason, count in counts(samples).items() if count}
    told = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    most = max(dropped, key=lambda reason: dropped[reason])
    return DataError(
        f"none of {len(samples)} samples of {stage.model} is kept: {told}",
        place=f"stage {stage.name}",
        remedy=_HELP.get(most, "see the settings of the stage"),
    )
