"""What each claim holds against what: functions from the runs of one seed to a comparison, or to what is lacking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from melete.claims.estimates import Estimate, of_values
from melete.claims.facts import (
    MAIN,
    PASS,
    SUMS,
    Number,
    RunFacts,
    SeedFacts,
    largest_k,
    majority,
    mean_over,
    over_tasks,
)
from melete.claims.verdicts import Comparison, Missing

Measure: TypeAlias = Callable[[SeedFacts], Comparison | Missing]
PARTS_OF_STAGE = 8  # a quarter is the stage's usual length; an eighth is looked at before its end, and at the very end


class At(NamedTuple):
    """A model, by the stage that made it, in an arm."""

    role: str
    arm: str = MAIN


def between(number: Number, before: At, after: At, tasks: Sequence[str] = SUMS) -> Measure:
    """A number of two models, on the same tasks: the mean over those that both were tried on."""

    def measure(runs: SeedFacts) -> Comparison | Missing:
        for place in (before, after):
            if lacking := _lacking(runs, place, tasks):
                return lacking
        first = over_tasks(runs[before.arm], before.role, number, tasks)
        last = over_tasks(runs[after.arm], after.role, number, tasks)
        both = [task for task in tasks if task in first and task in last]
        if not both:
            what = f"there was nothing to count for {number.name} of {runs[after.arm].label(after.role)}"
            return Missing(what, may_be_measured=False)
        return Comparison(
            number.name,
            (runs[before.arm].label(before.role), runs[after.arm].label(after.role)),
            mean_over(first, both),
            mean_over(last, both),
            number.digits,
        )

    return measure


def _lacking(runs: SeedFacts, place: At, tasks: Sequence[str]) -> Missing | None:
    if place.arm not in runs:
        return Missing(f"it needs the arm {place.arm}", place.arm)
    run = runs[place.arm]
    if not any(run.exam(place.role, task) for task in tasks):
        return Missing(f"it needs {run.label(place.role)} in the exam, on {' or '.join(tasks)}", _arm(place.arm))
    return None


def _arm(arm: str) -> str:
    return "" if arm == MAIN else arm


def voting(role: str) -> Measure:
    """maj@k for the largest k against pass@1, of the same answers."""

    def measure(runs: SeedFacts) -> Comparison | Missing:
        if lacking := _lacking(runs, At(role), SUMS):
            return lacking
        summary = runs[MAIN].exam(role, SUMS[0]) or {}
        k = largest_k(summary)
        one, many = PASS.read(summary), majority(k).read(summary)
        if k < 2 or one is None or many is None:
            return Missing("it needs more than one answer to each problem of the exam")
        place = runs[MAIN].label(role)
        return Comparison(f"pass@1 -> maj@{k}", (place, place), one, many)

    return measure


def tokens(before: str, after: str) -> Measure:
    """Completion tokens that two students were trained on, in thousands."""

    def measure(runs: SeedFacts) -> Comparison | Missing:
        run = runs.get(MAIN)
        numbers = [run and run.stages.get(name, {}).get("num_completion_tokens") for name in (before, after)]
        if run is None or not all(numbers):
            return Missing("it needs the numbers of tokens that the students were trained on")
        first, last = (Estimate(float(number or 0) / 1e3, 0.0) for number in numbers)
        return Comparison("thousand tokens to learn from", (run.label(before), run.label(after)), first, last, 0)

    return measure


def learned_score(stage: str, arm: str) -> Measure:
    """The sum of the reward models' scores: where the stage would usually end, and at the end of the long one."""

    def measure(runs: SeedFacts) -> Comparison | Missing:
        learned = [f"reward/{name}" for name in _reward_models(runs[arm])] if arm in runs else []
        return _course(runs, stage, arm, learned, "reward models' score")

    return measure


def verifier_score(stage: str, arm: str, parts: Sequence[str] = ("rule", "accuracy")) -> Measure:
    """The same of what can be checked: the first of these parts of the reward that the stage has."""

    def measure(runs: SeedFacts) -> Comparison | Missing:
        rows = runs[arm].rows.get(stage, ()) if arm in runs else ()
        known = next((f"reward/{part}" for part in parts if any(f"reward/{part}" in row for row in rows)), "")
        name = {"reward/rule": "score by rule of general answers"}.get(known, "right answers")
        return _course(runs, stage, arm, [known] if known else [], name)

    return measure


def _reward_models(run: RunFacts) -> list[str]:
    return [name for name, entry in run.stages.items() if entry.get("kind") == "reward_model"]


def _course(runs: SeedFacts, stage: str, arm: str, parts: Sequence[str], name: str) -> Comparison | Missing:
    if arm not in runs:
        return Missing(f"it needs the arm {arm}", arm)
    rows = runs[arm].rows.get(stage, ())
    sums = [_sum_over(rows, parts, window) for window in _windows(rows)]
    if not parts or None in sums:
        return Missing(f"it needs the rows of stage {stage} in the arm {arm}, with {' and '.join(parts) or name}", arm)
    first, last = (found for found in sums if found is not None)
    return Comparison(name, (f"where {stage} usually ends", "after 4 times the steps"), first, last)


def _windows(rows: Sequence[Mapping[str, Any]]) -> tuple[range, range]:
    """The steps before a quarter of the stage, and the last ones, an eighth each."""
    num_steps = max((row["step"] for row in rows), default=-1) + 1
    width = max(num_steps // PARTS_OF_STAGE, 1)
    usual = num_steps // 4
    return range(max(usual - width, 0), usual), range(num_steps - width, num_steps)


def _sum_over(rows: Sequence[Mapping[str, Any]], parts: Sequence[str], window: range) -> Estimate | None:
    """Means over the steps, added up; a part that was hardly asked for in these steps is none."""
    total = Estimate(0.0, 0.0)
    for part in parts:
        values = [row[part] for row in rows if row["step"] in window and row.get(part) is not None]
        if len(values) < 2:
            return None
        found = of_values(values)
        total = Estimate(total.mean + found.mean, (total - found).error)
    return total
