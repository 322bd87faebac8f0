"""The stage that samples a model and keeps everything, batch by batch."""

from __future__ import annotations

import bisect
import itertools
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from melete.datasets.prompts import read_prompts
from melete.errors import DataError
from melete.evaluation.judgement import judge
from melete.loops.rl_rollouts import SampleSettings, sample_rollouts
from melete.rewards.rules import ReadBy, accuracy
from melete.runs.atomic import write_atomically, writing
from melete.runs.directory import read_rows
from melete.schema.generation import PROBLEMS_OF_A_TASK, GenerateStage
from melete.stages.context import Interrupted, StageContext
from melete.stages.reject import different_problems
from melete.stages.samplers import open_sampler
from melete.tasks import make_task
from melete.tasks.base import Task, reading_for
from melete.tasks.curation import normal_text, question_of
from melete.text.chat import opens_thought
from melete.types import Message, Problem, Rollout, SamplingSettings

_NUM_SHOWN = 3
_MAX_MISSES = 200  # draws in a row that give a known question: there are hardly any others


def run_generate(stage: GenerateStage, context: StageContext) -> dict[str, Any]:
    """Writes `data/<stage>.jsonl`; returns the stage's entry of `summary.json`.

    What is written is kept after every batch, and a stage that goes on after a cut samples the rest only, in the
    batches that it would have had: the last bits of a log-prob may depend on what it was computed with.
    """
    started = time.perf_counter()
    task = make_task(stage.task.name, stage.task.own_settings()) if stage.task else None
    problems = _problems(stage, context, task)
    kept = context.run.checkpoints / stage.name / "written.jsonl"
    at_once = max(1, stage.max_rows // stage.samples_per_prompt)
    batches = [problems[begin : begin + at_once] for begin in range(0, len(problems), at_once)]
    sizes = [len(batch) * stage.samples_per_prompt for batch in batches]
    num_done = _whole_batches(kept, sizes)
    num_rows = sum(sizes[:num_done])
    batches = batches[num_done:]
    context.view.stage_started(stage.name, len(batches))
    if batches:
        tokenizer, model = context.load(stage.model)
        grader = _Grader(task, tokenizer)
        with open_sampler(stage, model, tokenizer, max_rows=stage.max_rows) as sampler:
            for number, batch in enumerate(batches):
                if context.should_stop():
                    raise Interrupted
                rollouts = sample_rollouts(sampler, tokenizer, batch, _settings(stage, context.seed), 0)
                rows = [grader.row(rollout) for siblings in rollouts for rollout in siblings]
                _append(kept, rows)
                num_rows += len(rows)
                shown = f"{question_of(batch[0])}\n{rows[0]['completion']}"
                context.view.step(stage.name, number, {"num_rows": float(num_rows)}, shown)
    rows = list(read_rows(kept))
    path = context.run.path / "data" / f"{stage.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, kept.read_text(encoding="utf-8"))
    shutil.rmtree(kept.parent)
    return _entry(stage, rows, time.perf_counter() - started)


def _problems(stage: GenerateStage, context: StageContext, task: Task | None) -> list[Problem]:
    """What is asked, as problems; your own prompts have no gold answer."""
    if task and stage.split == "train":
        problems = different_problems(task, context.seed, stage.name, stage.num_prompts or PROBLEMS_OF_A_TASK)
    elif task:
        problems = _held_out(task, stage.num_prompts or PROBLEMS_OF_A_TASK)
    else:
        asked = read_prompts(context.data_path(stage.data)) if stage.data else _own(stage.prompts)
        problems = [Problem(f"{stage.name}/{number}", stage.name, turns, "") for number, turns in enumerate(asked)]
    if stage.num_prompts and len(problems) < stage.num_prompts:
        context.view.message(f"{stage.name}: there are {len(problems)} different prompts, not {stage.num_prompts}")
    chosen = problems[: stage.num_prompts or None]
    return [_with_system(problem, stage.system) for problem in chosen] if stage.system else chosen


def _own(prompts: Sequence[str]) -> list[tuple[Message, ...]]:
    return [(Message("user", prompt),) for prompt in prompts]


def _held_out(task: Task, count: int) -> list[Problem]:
    """The first `count` different held-out problems; fewer if there are none."""
    found: dict[str, Problem] = {}
    misses = index = 0
    while len(found) < count and misses < _MAX_MISSES:
        problem = task.problem("held_out", index)
        question = normal_text(question_of(problem))
        misses = misses + 1 if question in found else 0
        found.setdefault(question, problem)
        index += 1
    return list(found.values())


def _with_system(problem: Problem, system: str) -> Problem:
    if problem.messages[0].role == "system":
        return problem
    turns = (Message("system", system), *problem.messages)
    return Problem(problem.problem_id, problem.task, turns, problem.gold, problem.meta)


def _settings(stage: GenerateStage, seed: int) -> SampleSettings:
    sampling = SamplingSettings(stage.max_new_tokens, stage.temperature, stage.top_p, stage.top_k, tuple(stage.stop))
    return SampleSettings(stage.samples_per_prompt, sampling, (seed, stage.name))


class _Grader:
    """Makes the row of a completion, with its grade where there is a task."""

    def __init__(self, task: Task | None, tokenizer: PreTrainedTokenizerBase) -> None:
        self.opened = opens_thought(tokenizer)
        self.reading: ReadBy = reading_for(task) if task else "tags"
        self.functions = (
            {"accuracy": accuracy(task.grade, thought_opened=self.opened, reading=self.reading)} if task else None
        )

    def row(self, rollout: Rollout) -> dict[str, Any]:
        problem, completion = rollout.problem, rollout.completion
        row = {
            "row_id": f"{problem.problem_id}/{rollout.sibling}",
            "messages": [{"role": turn.role, "content": turn.content} for turn in problem.messages],
            "completion": rollout.text,
            "finish_reason": completion.finish_reason,
            "num_tokens": len(completion.tokens),
            "logprob": round(sum(completion.logprobs), 4),
        }
        if self.functions:
            found = judge(rollout, self.functions, {"accuracy": 1.0}, thought_opened=self.opened, reading=self.reading)
            row |= {"score": found.reward.parts["accuracy"], "answer": found.answer, "gold": problem.gold}
        return row


def _whole_batches(path: Path, sizes: Sequence[int]) -> int:
    """How many batches of so many rows are whole in the file, which is cut off behind them."""
    if not path.exists():
        return 0
    lines = path.read_bytes().split(b"\n")[:-1]
    whole = bisect.bisect_right(list(itertools.accumulate(sizes)), len(lines))
    write_atomically(path, b"".join(line + b"\n" for line in lines[: sum(sizes[:whole])]))
    return whole


def _append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())


def _entry(stage: GenerateStage, rows: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    if not rows:
        raise DataError("there is nothing to sample from", place=f"stage {stage.name}", remedy="give prompts")
    scores = [row["score"] for row in rows if row.get("score") is not None]
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": seconds,
        "data": f"data/{stage.name}.jsonl",
        "num_rows": len(rows),
        "num_prompts": len(rows) // stage.samples_per_prompt,
        "num_completion_tokens": sum(row["num_tokens"] for row in rows),
        "truncated_share": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
        **({"score": sum(scores) / len(scores)} if scores else {}),
        "examples": [
            {"prompt": row["messages"][-1]["content"], "text": row["completion"]} for row in rows[:_NUM_SHOWN]
        ],
        "evaluations": [],
    }
