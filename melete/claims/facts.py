"""What the claims are judged by: checkpoints, stages and training rows of a run, by the names that r1-tiny gives them.

A recipe of your own is judged by the same claims if its stages and the tasks of its exam have these names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from melete.claims.estimates import (
    Estimate,
    independent_cases,
    mean_of,
    of_count,
    of_interval,
    of_length,
    of_share,
)

MAIN = "main"
"""The arm that is the recipe itself."""
BASE = "(base)"
"""Stands for the first model of the exam that no stage of the run made."""
ROLES = (
    "zero",
    "dev1",
    "dev2",
    "dev3",
    "r1",
    "distilled_qwen",
    "distilled_llama",
    "rl_qwen",
    "rl_llama",
)
"""Stages whose models the claims are about."""
SUMS = ("arithmetic",)
REASONING = ("arithmetic", "countdown", "spanish")
GENERAL = ("general",)

Summary = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One finished run: its seed, which arm it is, and what its stages left in summary.json and metrics.jsonl."""

    seed: int
    arm: str = MAIN
    checkpoints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of each model in the exam: its label and its summary by task."""
    stages: Mapping[str, Summary] = field(default_factory=dict)
    rows: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Rows of training by stage."""

    @classmethod
    def of(cls, summary: Summary, rows: Sequence[Mapping[str, Any]] = (), *, arm: str = MAIN) -> RunFacts:
        """From a run's summary.json and, for claims about the course of a stage, the rows of metrics.jsonl."""
        stages = {entry["name"]: entry for entry in summary.get("stages", ())}
        checkpoints = {found["model"]: found for entry in stages.values() for found in entry.get("checkpoints") or ()}
        by_stage: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            if "kind" not in row:
                by_stage.setdefault(row.get("stage", ""), []).append(row)
        return cls(summary.get("seed", 0), arm, checkpoints, stages, by_stage)

    def name_of(self, role: str) -> str:
        """The model that plays a role; empty for a base that the exam does not know."""
        if role != BASE:
            return role
        return next((name for name in self.checkpoints if name not in self.stages), "")

    def label(self, role: str) -> str:
        """What people call the model."""
        found = self.checkpoints.get(self.name_of(role), {}).get("label") or ("base" if role == BASE else role)
        return found if self.arm == MAIN else f"{found} of the arm {self.arm}"

    def exam(self, role: str, task: str) -> Summary | None:
        """How a model did on a task of the exam."""
        return self.checkpoints.get(self.name_of(role), {}).get("tasks", {}).get(task)


SeedFacts = Mapping[str, RunFacts]
"""The runs of one seed, by arm."""


class Number(NamedTuple):
    """A number of an evaluation: what people call it, how it is read, and its digits after the point."""

    name: str
    read: Callable[[Summary], Estimate | None]
    digits: int = 2


def _cases(summary: Summary) -> float:
    """Independent samples of an evaluation: its samples are taken to be as alike in all things as in being right."""
    found = summary.get("pass", {}).get("1")
    if not found or None in found:
        return float(summary["num_problems"])
    return independent_cases(found, summary["num_problems"], summary["num_samples"])


def _interval(table: str, k: str = "1") -> Callable[[Summary], Estimate | None]:
    def read(summary: Summary) -> Estimate | None:
        found = summary.get(table, {}).get(k)
        return of_interval(found, summary["num_problems"]) if found and None not in found else None

    return read


def _share(key: str) -> Callable[[Summary], Estimate | None]:
    def read(summary: Summary) -> Estimate | None:
        value = summary.get(key)
        return None if value is None else of_share(value, _cases(summary))

    return read


def _count(key: str) -> Callable[[Summary], Estimate | None]:
    def read(summary: Summary) -> Estimate | None:
        value = summary.get(key)
        return None if value is None else of_count(value, _cases(summary))

    return read


def _score(summary: Summary) -> Estimate | None:
    found = [summary.get(key) for key in ("score", "score/low", "score/high")]
    return None if None in found else of_interval(found, summary["num_problems"])  # type: ignore[arg-type]


def _length(summary: Summary) -> Estimate | None:
    mean, p95 = summary.get("length_mean"), summary.get("length_p95")
    return None if mean is None or p95 is None else of_length(mean, p95, _cases(summary))


def _reflection(summary: Summary) -> Estimate | None:
    per_1k, tokens = summary.get("reflection_per_1k"), summary.get("num_tokens")
    if per_1k is None or not tokens:
        return None
    independent = tokens * _cases(summary) / (summary["num_problems"] * summary["num_samples"])
    rate = of_count(per_1k / 1000, independent)
    return Estimate(per_1k, 1000 * rate.error)


def _repair(summary: Summary) -> Estimate | None:
    repair = summary.get("repair") or {}
    rate = repair.get("repair_rate")
    if rate is None:
        return None
    share = _cases(summary) / (summary["num_problems"] * summary["num_samples"])
    return of_share(rate, share * (repair["marked"] - repair["right_before"]))


def largest_k(summary: Summary) -> int:
    """The most samples that a majority was taken of; 1 for none."""
    return max((int(k) for k in summary.get("majority", {})), default=1)


def majority(k: int) -> Number:
    """maj@k."""
    return Number(f"maj@{k}", _interval("majority", str(k)))


PASS = Number("pass@1", _interval("pass"))
SCORE = Number("score", _score)
THINKING = Number("share of answers with a thought", _share("share_thinking"))
LENGTH = Number("length in tokens", _length, 1)
FORMAT = Number("share in the format", _share("format_share"))
LANGUAGE = Number("share of words in the language of the question", _share("language_share"))
REFLECTION = Number("words of reflection per 1,000 tokens", _reflection, 1)
VERIFICATIONS = Number("checks per answer", _count("verifications"))
BACKTRACKS = Number("abandoned paths per answer", _count("backtracks"))
REPAIR = Number("share of wrong results mended", _repair)


def over_tasks(run: RunFacts, role: str, number: Number, tasks: Sequence[str]) -> dict[str, Estimate]:
    """A number of a model on each of these tasks that the exam has and that it can be counted on."""
    summaries = {task: summary for task in tasks if (summary := run.exam(role, task)) is not None}
    found = {task: number.read(summary) for task, summary in summaries.items()}
    return {task: estimate for task, estimate in found.items() if estimate is not None}


def mean_over(estimates: Mapping[str, Estimate], tasks: Sequence[str]) -> Estimate:
    """The mean over tasks."""
    return mean_of([estimates[task] for task in tasks])
