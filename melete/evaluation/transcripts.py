"""Choosing which transcripts a report shows, by a rule that does not look for the prettiest ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the rule below is read by the report, which does not load torch
    from melete.evaluation.evaluate import EvaluationResult, ProblemResult, Sample

QUOTAS = {"learnt": 2, "still wrong": 1, "lost": 1, "right both times": 1}
RULE = (
    "The first sample of each held-out problem, in the order of the problems: the first two that went from wrong to"
    " right, and the first each that stayed wrong, that went from right to wrong, and that was right both times."
)


def choose_transcripts(before: EvaluationResult, after: EvaluationResult) -> list[dict[str, Any]]:
    """Entries of `summary.json`: the same problems answered by two checkpoints, chosen by `RULE`."""
    left = dict(QUOTAS)
    chosen: list[dict[str, Any]] = []
    for first, second in zip(before.problems, after.problems, strict=True):
        if first.problem != second.problem:
            raise ValueError(f"the evaluations differ in their problems: {first.problem} and {second.problem}")
        kind = _kind(first, second)
        if left.get(kind, 0):
            left[kind] -= 1
            chosen.append(_entry(kind, first, second))
    order = list(QUOTAS)
    return sorted(chosen, key=lambda entry: order.index(entry["kind"]))


def _kind(before: ProblemResult, after: ProblemResult) -> str:
    outcome = before.samples[0].judgement.correct, after.samples[0].judgement.correct
    kinds: dict[tuple[bool | None, bool | None], str] = {
        (False, True): "learnt",
        (False, False): "still wrong",
        (True, False): "lost",
        (True, True): "right both times",
    }
    return kinds.get(outcome, "not judged")


def _entry(kind: str, before: ProblemResult, after: ProblemResult) -> dict[str, Any]:
    problem = before.problem
    return {
        "kind": kind,
        "problem_id": problem.problem_id,
        "prompt": problem.messages[-1].content,
        "gold": problem.gold,
        "before": _side(before.samples[0]) | {"num_correct": before.num_correct, "num_samples": len(before.judged)},
        "after": _side(after.samples[0]) | {"num_correct": after.num_correct, "num_samples": len(after.judged)},
    }


def _side(sample: Sample) -> dict[str, Any]:
    return {
        "text": sample.rollout.text,
        "reward": sample.judgement.reward.total,
        "reward_parts": dict(sample.judgement.reward.parts),
        "finish_reason": sample.rollout.completion.finish_reason,
        "num_tokens": sample.num_tokens,
    }
