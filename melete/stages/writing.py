"""Stages that make data without learning: written demonstrations, and labels of safety."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from melete.corpus.written import written
from melete.datasets.files import write_rows
from melete.errors import DataError, RecipeError
from melete.loops.rl_rollouts import SampleSettings, sample_rollouts
from melete.sampling.native import NativeSampler
from melete.schema import LabelsStage, WriteStage
from melete.stages.context import Interrupted, StageContext
from melete.stages.rl import train_problems
from melete.tasks import make_task
from melete.text.answers import without_thought
from melete.text.chat import opens_thought
from melete.types import LabelledCompletion, SamplingSettings

PROMPTS_AT_ONCE = 32


def run_write(stage: WriteStage, context: StageContext) -> dict[str, Any]:
    """Writes `data/<stage>.jsonl`; the entry says how many rows of each there are."""
    started = time.perf_counter()
    context.view.stage_started(stage.name, 1)
    parts = {name: written(name, count, f"{context.seed}/{stage.name}") for name, count in stage.rows.items()}
    rows = [row for part in parts.values() for row in part]
    write_rows(context.run.path / "data" / f"{stage.name}.jsonl", rows)
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": time.perf_counter() - started,
        "data": f"data/{stage.name}.jsonl",
        "num_rows": len(rows),
        "parts": [{"name": name, "num_rows": len(part)} for name, part in parts.items()],
        "evaluations": [],
    }


def run_labels(stage: LabelsStage, context: StageContext) -> dict[str, Any]:
    """Samples, labels, and leaves out what one label has too many of; writes `data/<stage>.jsonl`.

    Raises `RecipeError` for a task that cannot tell what is safe, and `DataError` when every completion is of one kind.
    """
    started = time.perf_counter()
    tokenizer, model = context.load(stage.model)
    sampler, task = NativeSampler(model, tokenizer), make_task(stage.task.name, stage.task.own_settings())
    is_safe = getattr(task, "is_safe", None)
    if is_safe is None:
        raise RecipeError(
            f"task {task.name} cannot tell what is safe", place=f"{stage.name}.task", remedy="use the task general"
        )
    settings = SampleSettings(
        stage.samples_per_prompt, SamplingSettings(stage.max_new_tokens, stage.temperature), (context.seed, stage.name)
    )
    opened = opens_thought(tokenizer)
    rows: dict[tuple[str, str], LabelledCompletion] = {}
    num_steps = -(-stage.num_prompts // PROMPTS_AT_ONCE)
    context.view.stage_started(stage.name, num_steps)
    for step in range(num_steps):
        count = min(PROMPTS_AT_ONCE, stage.num_prompts - step * PROMPTS_AT_ONCE)
        problems = train_problems(task, context.seed, step, 0, PROMPTS_AT_ONCE)[:count]
        for siblings in sample_rollouts(sampler, tokenizer, problems, settings, step):
            for rollout in siblings:
                problem, text = rollout.problem, rollout.text
                safe = is_safe(problem, without_thought(text, thought_opened=opened))
                row = LabelledCompletion(f"{problem.problem_id}/{rollout.sibling}", problem.messages, text, safe)
                rows.setdefault((problem.messages[-1].content, text), row)
        context.view.step(stage.name, step, {"num_rows": float(len(rows))}, None)
        if context.should_stop():
            raise Interrupted
    found = Counter(row.label for row in rows.values())
    kept = balanced(list(rows.values()), stage.max_share)
    if not kept:
        what = f"all {len(rows)} completions are {'safe' if found[True] else 'unsafe'}"
        raise DataError(what, place=stage.name, remedy="ask for more samples, or of a model that does both")
    write_rows(context.run.path / "data" / f"{stage.name}.jsonl", kept)
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": time.perf_counter() - started,
        "data": f"data/{stage.name}.jsonl",
        "num_rows": len(kept),
        "num_safe": sum(row.label for row in kept),
        "num_sampled_safe": found[True],
        "num_sampled_unsafe": found[False],
        "evaluations": [],
    }


def balanced(rows: Sequence[LabelledCompletion], max_share: float) -> list[LabelledCompletion]:
    """The rows without so many of the commoner label that it has more than `max_share`; none of one label alone."""
    counts = Counter(row.label for row in rows)
    if len(counts) < 2:
        return []
    label, rarer = counts.most_common(1)[0][0], min(counts.values())
    left = int(rarer * max_share / (1 - max_share)) if max_share < 1 else len(rows)
    kept = []
    for row in rows:
        if row.label == label:
            left -= 1
            if left < 0:
                continue
        kept.append(row)
    return kept
