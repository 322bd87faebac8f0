"""A child process: answers one line of JSON for each line of JSON that it reads."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil


class Line:
    """The line to the parent. Standard output goes to standard error from here on, for libraries print to it."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, row: Mapping[str, Any]) -> None:
        self.out.write(json.dumps(row) + "\n")

    def hear(self) -> dict[str, Any] | None:
        """The next request; None once the parent has no more."""
        line = sys.stdin.readline()
        return json.loads(line) if line.strip() else None


def serve(line: Line, ready: Mapping[str, Any], answer: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Says `ready`, then answers until the parent stops asking."""
    line.say(ready)
    while (request := line.hear()) is not None:
        line.say(answer(request))


def _children() -> list[psutil.Process]:
    """The processes that this one has made and that go on."""
    return psutil.Process().children(recursive=True)


def peak_mb() -> float:
    """The most memory that this process has held, in MiB, and what its children now have for themselves."""
    own = sum(child.memory_full_info().uss for child in _children())
    return _own_peak_mb() + own / 2**20


def _own_peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # the other figure is not below what the parent held when it made this process
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def cpu_seconds() -> float:
    """What this process and its children have worked, all threads together."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    going_on = (child.cpu_times() for child in _children())
    return sum(used.ru_utime + used.ru_stime for used in both) + sum(used.user + used.system for used in going_on)


def now_mb() -> float:
    """The memory that this process holds, in MiB; 0 where the system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() / 2**20 if pages.exists() else 0.0


def loaded(started: float, versions: Mapping[str, str]) -> dict[str, Any]:
    """What a child says once it is ready for its first step."""
    import torch

    return {
        "ready_seconds": time.perf_counter() - started,
        "loaded_mb": now_mb(),
        "threads": torch.get_num_threads(),
        "versions": dict(versions),
    }


def step_row(
    *,
    rollout: float,
    step: float,
    cpu: float,
    prompts: Iterable[Sequence[int]],
    lengths: Sequence[int],
    fixed: Mapping[str, Any],
) -> dict[str, Any]:
    """What a child says of a step.

    `cpu` are the seconds of its threads together, `prompts` the tokens of all prompts, `lengths` those of completions.
    """
    different = sorted({tuple(int(token) for token in prompt) for prompt in prompts})
    quantiles = np.quantile(np.array(lengths), [0, 0.25, 0.5, 0.75, 1.0]).tolist()
    return {
        "rollout_seconds": rollout,
        "update_seconds": step - rollout,
        "step_seconds": step,
        "cpu_seconds": cpu,
        "completion_tokens": int(sum(lengths)),
        "prompt_tokens": sum(len(prompt) for prompt in different),
        "prompts_hash": hashlib.sha256(json.dumps(different).encode()).hexdigest()[:16],
        "lengths": [int(length) for length in lengths],
        "length_quantiles": quantiles,
        "peak_mb": peak_mb(),
        **fixed,
    }
