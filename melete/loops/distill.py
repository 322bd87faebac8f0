"""Distillation: teacher or student writes, the student learns what the teacher would have said."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from melete.batch import TokenRows, rollout_row
from melete.learning.protocol import Student
from melete.loops.passes import OnStep
from melete.loops.rl_rollouts import SampleSettings, sample_rollouts
from melete.sampling.protocol import Sampler
from melete.text.chat import pad_token
from melete.types import Problem, Rollout

Accept = Callable[[Rollout], bool]


@dataclass(frozen=True, slots=True)
class Writers:
    """Who writes the completions: on a share `student_share` of the prompts the student, else the teacher.

    What the teacher wrote is kept only where `accept` says so; None keeps all of it.
    """

    student: Sampler
    teacher: Sampler
    student_share: float
    accept: Accept | None = None


def train(
    *,
    start: int,
    stop: int,
    problems: Callable[[int], Sequence[Problem]],
    settings: SampleSettings,
    writers: Writers,
    learner: Student,
    tokenizer: PreTrainedTokenizerBase,
    on_step: OnStep,
) -> None:
    """Steps `start` to `stop - 1`: GKD (Agarwal et al. 2023, 2306.13649), with one completion per prompt."""
    settings = replace(settings, group_size=1)
    for step in range(start, stop):
        clock = time.perf_counter()
        rollouts = written(problems(step), settings, writers, tokenizer, step)
        sampled = time.perf_counter()
        rows = TokenRows.pack([rollout_row(rollout) for rollout in rollouts], pad_token(tokenizer))
        metrics = learner.update(rows) if rollouts else {}
        writers.student.load_weights(learner.weights(), version=step + 1)
        metrics |= {"num_rows": float(len(rollouts))}
        timings = {"sample_seconds": sampled - clock, "update_seconds": time.perf_counter() - sampled}
        on_step(step, metrics, timings)


def written(
    problems: Sequence[Problem],
    settings: SampleSettings,
    writers: Writers,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
) -> list[Rollout]:
    """One completion per problem, by whoever's turn it is; which turn is a function of seed, step and place."""
    source = random.Random("/".join(str(part) for part in (*settings.key_parts, step, "writer")))
    is_students = [source.random() < writers.student_share for _ in problems]
    rollouts: list[Rollout] = []
    for sampler, mine in ((writers.student, True), (writers.teacher, False)):
        picked = [problem for problem, student in zip(problems, is_students, strict=True) if student == mine]
        groups = sample_rollouts(sampler, tokenizer, picked, settings, step) if picked else []
        found = [rollout for group in groups for rollout in group]
        rollouts += [r for r in found if mine or writers.accept is None or writers.accept(r)]
    return rollouts
