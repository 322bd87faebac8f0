"""Grading one completion after another in a forked process, so that a grader may hang or die."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Literal

from melete.rewards.audit_probes import Must
from melete.rewards.errors import GradingError
from melete.rewards.grade import RewardPart, grade_groups
from melete.rewards.rules import AnyReward, BatchReward, RewardFunction
from melete.types import Completion, Problem, Rollout

Ended = Literal["graded", "refused", "crashed", "hung", "not tried"]
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Attempt:
    """A completion of a problem, the probe it belongs to, and what should become of it."""

    probe: str
    must: Must
    problem: Problem
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the reward made of an attempt; `total` is a number where it was graded. "refused" is a `GradingError`."""

    ended: Ended
    total: float = 0.0
    seconds: float = 0.0
    reason: str = ""


def rollout_of(attempt: Attempt) -> Rollout:
    """The attempt as a sampler would have returned it: ended by itself, about 4 characters a token."""
    length = len(attempt.text) // _CHARACTERS_PER_TOKEN + 1
    completion = Completion((0,) * length, (0.0,) * length, "stop", 0)
    return Rollout(attempt.problem, 0, (0,), completion, attempt.text)


def _grade(attempt: Attempt, parts: Mapping[str, RewardPart]) -> Outcome:
    failures: dict[str, Exception] = {}
    watched = {
        name: replace(part, function=_watched(name, part.function, failures), normalise="none")
        for name, part in parts.items()
    }
    began = time.perf_counter()
    ((group,), seconds) = grade_groups([[rollout_of(attempt)]], watched), time.perf_counter() - began
    if not failures:
        return Outcome("graded", group.rewards[0].total or 0.0, seconds)
    is_refused = all(isinstance(error, GradingError) for error in failures.values())
    reason = "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in failures.items())
    return Outcome("refused" if is_refused else "crashed", 0.0, seconds, reason[:500])


def _watched(name: str, function: AnyReward, failures: dict[str, Exception]) -> RewardFunction:
    """The reward of one rollout; what it raises is kept, so that a refusal can be told from a crash."""

    def reward(rollout: Rollout) -> float:
        try:
            value = function([rollout])[0] if isinstance(function, BatchReward) else function(rollout)
            if isinstance(value, Exception):
                raise value
            if not math.isfinite(value):
                raise ArithmeticError(f"not finite ({value})")
            return value
        except Exception as error:
            failures[name] = error
            raise

    return reward


@dataclass(frozen=True, slots=True)
class Workers:
    """Grades attempts one after the other in a forked process, and in a fresh one after one that was killed or died."""

    attempts: Sequence[Attempt]
    parts: Mapping[str, RewardPart]
    time_limit: float
    warm_up: float
    max_hangs: int

    def run(self) -> tuple[list[Outcome], str]:
        """An outcome for each attempt, and why the rest was not tried, if so."""
        outcomes: list[Outcome] = []
        losses = 0
        while len(outcomes) < len(self.attempts):
            is_warm, lost = self._one_process(outcomes)
            if lost is None:
                continue
            losses += 1
            if not is_warm:
                stopped = f"the first gold answer was not graded: {lost.reason}"
            elif losses >= self.max_hangs:
                stopped = f"stopped after {losses} attempts that hung or ended the process"
            else:
                continue
            return outcomes + [Outcome("not tried")] * (len(self.attempts) - len(outcomes)), stopped
        return outcomes, ""

    def _one_process(self, outcomes: list[Outcome]) -> tuple[bool, Outcome | None]:
        """Adds outcomes until all are there or one is lost; whether it got past its warm-up, and the lost one."""
        receiving, sending = multiprocessing.Pipe(duplex=False)
        # forked, because a reward may be a closure, which cannot be sent to a fresh interpreter
        process = multiprocessing.get_context("fork").Process(
            target=self._work, args=(receiving, sending, len(outcomes))
        )
        process.start()
        sending.close()
        is_warm = False
        try:
            while len(outcomes) < len(self.attempts):
                limit = self.time_limit if is_warm else self.warm_up
                if not receiving.poll(limit):
                    lost = Outcome("hung", seconds=limit, reason=f"no result within {limit:g} s")
                else:
                    try:
                        found = receiving.recv()
                    except EOFError:
                        process.join(self.time_limit)
                        lost = Outcome("crashed", reason=f"the process of the grader ended ({process.exitcode})")
                    else:
                        if is_warm:
                            outcomes.append(found)
                        is_warm = True
                        continue
                outcomes.append(lost)
                return is_warm, lost
            return True, None
        finally:
            _end(process)
            receiving.close()

    def _work(self, receiving: Connection, sending: Connection, start: int) -> None:
        receiving.close()  # so that sending fails when the parent is gone
        os.setpgid(0, 0)  # what a grader starts is ended together with it
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        # the first attempt is graded once more than needed, so that loading libraries is not counted
        for attempt in (self.attempts[0], *self.attempts[start:]):
            sending.send(_grade(attempt, self.parts))


def _end(process: BaseProcess) -> None:
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    process.close()
