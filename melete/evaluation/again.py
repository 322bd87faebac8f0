"""What was sampled in an evaluation, judged again problem by problem; and two evaluations of the same problems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from melete.errors import DataError
from melete.evaluation.judgement import judge
from melete.evaluation.metrics import bootstrap_interval, majority_at_k
from melete.rewards.rules import accuracy
from melete.runs.directory import read_rows
from melete.tasks.base import Task, reading_for
from melete.text.chat import decode_completion, opens_thought, prompt_tokens
from melete.types import Completion, Problem, Rollout

PerProblem = Mapping[str, Mapping[str, float]]
_TRIES = 20  # problems looked through for each one that is sought: the same ones are drawn again and again


def per_problem(file: Path, task: Task, tokenizer: PreTrainedTokenizerBase) -> PerProblem:
    """For each problem the means over its samples, by the names of an evaluation's summary, and the vote of all.

    A sample whose grader fails leaves pass@1 and score. Raises `DataError` for problems that the task does not give.
    """
    rows = {row["problem_id"]: row["samples"] for row in read_rows(file)}
    problems = _problems(task, set(rows))
    if missing := sorted(rows.keys() - problems.keys()):
        raise DataError(f"task {task.name} gives no problem {missing[0]}", place=str(file))
    return {name: _judged(task, tokenizer, problems[name], samples) for name, samples in rows.items()}


def _problems(task: Task, wanted: set[str]) -> dict[str, Problem]:
    found: dict[str, Problem] = {}
    for index in range(_TRIES * len(wanted)):
        problem = task.problem("held_out", index)
        if problem.problem_id in wanted:
            found.setdefault(problem.problem_id, problem)
        if len(found) == len(wanted):
            break
    return found


def _judged(
    task: Task, tokenizer: PreTrainedTokenizerBase, problem: Problem, samples: list[dict[str, Any]]
) -> dict[str, float]:
    opened = opens_thought(tokenizer)
    reading = reading_for(task)
    functions = {"accuracy": accuracy(task.grade, thought_opened=opened, reading=reading)}
    prompt = prompt_tokens(tokenizer, problem.messages)
    found = []
    for sibling, sample in enumerate(samples):
        completion = Completion(tuple(sample["tokens"]), (), sample["finish_reason"], sample["policy_version"])
        rollout = Rollout(problem, sibling, prompt, completion, decode_completion(tokenizer, completion.tokens))
        found.append(judge(rollout, functions, {"accuracy": 1.0}, thought_opened=opened, reading=reading))
    numbers = {
        "share_thinking": fmean(judgement.has_thought for judgement in found),
        "format_share": fmean(judgement.has_format for judgement in found),
        "length_mean": fmean(len(sample["tokens"]) for sample in samples),
        "truncated_share": fmean(sample["finish_reason"] == "length" for sample in samples),
    }
    if judged := [judgement for judgement in found if judgement.correct is not None]:
        numbers["pass@1"] = fmean(bool(judgement.correct) for judgement in judged)
        numbers["score"] = fmean(judgement.reward.parts["accuracy"] or 0.0 for judgement in judged)
        answers, k = [judgement.answer for judgement in judged], len(judged)
        numbers[f"maj@{k}"] = majority_at_k(answers, [bool(judgement.correct) for judgement in judged], k)
    return numbers


def paired_differences(before: PerProblem, after: PerProblem) -> dict[str, tuple[float, float, float, int]]:
    """By measure the mean of (after - before) over the problems that both tried, its interval, and their number.

    Problems are resampled, each with both of its results: what makes a problem hard is in both and cancels.

    >>> paired_differences({"p": {"pass@1": 0.5}, "q": {"pass@1": 0.0}}, {"p": {"pass@1": 0.75}, "q": {"pass@1": 0.25}})
    {'pass@1': (0.25, 0.25, 0.25, 2)}
    """
    shared = [name for name in before if name in after]
    found = {}
    for measure in dict.fromkeys(key for name in shared for key in before[name]):
        differences = [
            after[name][measure] - before[name][measure]
            for name in shared
            if measure in before[name] and measure in after[name]
        ]
        if differences:
            found[measure] = (*bootstrap_interval(differences, rng=np.random.default_rng(0)), len(differences))
    return found
