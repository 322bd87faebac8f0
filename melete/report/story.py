"""From the numbers of a run to plain sentences, each of which follows from the files by a rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from melete.report.charts import number
from melete.report.exam import exam_of
from melete.report.files import Row, RunFiles
from melete.report.measures import cell, is_graded, largest_k
from melete.report.words import attempts

_SURE = 3.0
"""Standard errors from which on a difference is called more than chance."""


class Card(NamedTuple):
    """A figure at the top: what it was before and after."""

    label: str
    metric: str
    before: str
    after: str


def content(files: RunFiles) -> dict[str, Any] | None:
    """The section of a run that was measured before and after, or not at all."""
    if exam_of(files) or any(entry.get("comparison") or entry.get("runs") for entry in files.entries):
        return None
    evaluations = files.evaluations()
    base, final = (evaluations[0], evaluations[-1]) if evaluations else ({}, {})
    return {
        "trained": [text for stage in files.stages() if (text := what_was_trained(files, stage))],
        "could": what_the_base_could_do(base) if base.get("pass@1") is not None else [],
        "changed": what_changed(base, final) if len(evaluations) > 1 else [],
    }


def cards(evaluations: Sequence[Row]) -> list[Card]:
    """Before and after, for the four numbers that tell most."""
    if not evaluations:
        return []
    first, last, k = evaluations[0], evaluations[-1], largest_k(evaluations)
    is_about_grades = is_graded(first) or is_graded(last)
    wanted = [("Score", "score"), ("Beats the start", "win_rate")] if is_about_grades else []
    wanted += [("Right answers", "pass@1"), (f"By majority of {k}", f"maj@{k}")]
    wanted += [("Thinks first", "share_thinking"), ("Tokens", "length_mean")]
    # against itself a model wins half the time
    first = {**first, "win_rate": 0.5}
    return [
        Card(label, metric, cell(first, metric), cell(last, metric))
        for label, metric in wanted
        if first.get(metric) is not None and last.get(metric) is not None and (first[metric] or last[metric])
    ]


def what_was_trained(files: RunFiles, stage: str) -> str:
    """What the recipe did, without words that need a course first."""
    s = files.settings(stage)
    if s.get("kind") != "rl":
        return ""
    task = (s.get("task") or {}).get("name", "the task")
    parts = ", ".join(f"{name} × {number(weight)}" for name, weight in sorted((s.get("rewards") or {}).items()))
    than = "the others at the same problem" if s.get("group_size", 1) > 1 else "was expected"
    by = "A model that was trained on preferences" if s.get("reward_models") else "A program"
    return (
        f"The model “{s.get('model')}” was trained for {s.get('num_steps')} steps with the algorithm"
        f" “{s.get('algorithm')}”. In each step it wrote {attempts(s)} at each of"
        f" {s.get('prompts_per_step')} problems of the task “{task}”. {by}, not a person, marked every attempt"
        f" ({parts}). Attempts that earned more than {than} became more likely, the rest less"
        " likely. Nobody showed the model a solution during this training."
    )


def what_the_base_could_do(base: Row) -> list[str]:
    """Sentences about the first evaluation."""
    right = cell(base, "pass@1", with_interval=True)
    found = [f"Before training, {right} of its attempts at held-out problems were right."]
    if base.get("share_thinking") is not None:
        line = f"It wrote a thought before the answer in {cell(base, 'share_thinking')} of attempts"
        if base.get("accuracy_with_thought") is not None and base.get("accuracy_without_thought") is not None:
            line += f"; with a thought {cell(base, 'accuracy_with_thought')} were right"
            line += f", without {cell(base, 'accuracy_without_thought')}"
        found.append(line + ".")
    k = largest_k([base])
    if k > 1:
        found.append(
            f"Asked {k} times, it found a right answer at least once for {cell(base, f'pass@{k}')} of the problems, and"
            f" its most frequent answer was right for {cell(base, f'maj@{k}')}. What it can do now and then is what"
            " reinforcement learning has to build on."
        )
    return found


def what_changed(base: Row, final: Row) -> list[str]:
    """Sentences about the difference between the first and the last evaluation, good or bad."""
    found = [_success(base, final)]
    if None not in (base.get("share_thinking"), final.get("share_thinking")):
        found.append(_moved("The share of attempts with a thought", base, final, "share_thinking", 0.02))
    if None not in (base.get("length_mean"), final.get("length_mean")):
        found.append(_moved("The mean length in tokens", base, final, "length_mean", 0.05 * base["length_mean"]))
    return found


def control_verdict(control: Mapping[str, Any]) -> str:
    """What the same training did with a reward that knows nothing."""
    evaluations = control.get("evaluations", [])
    if len(evaluations) < 2:
        return ""
    base, final = evaluations[0], evaluations[-1]
    return (
        "The same training was repeated with rewards drawn by lot. " + _success(base, final)
        + " What a control gains without knowing the answer is not learning from the reward."
    )  # fmt: skip


def standard_errors(base: Row, final: Row, metric: str = "pass@1") -> float | None:
    """The difference of two evaluations in standard errors, read back from their 95 % intervals."""
    widths = [e.get(f"{metric}/high", math.nan) - e.get(f"{metric}/low", math.nan) for e in (base, final)]
    error = math.hypot(*widths) / (2 * 1.96)
    return (final[metric] - base[metric]) / error if error > 0 else None


def _success(base: Row, final: Row) -> str:
    if base.get("pass@1") is None or final.get("pass@1") is None:
        return "The share of right answers is not known at both ends."
    distance = standard_errors(base, final)
    sentence = (
        f"Right answers went from {cell(base, 'pass@1', with_interval=True)} to"
        f" {cell(final, 'pass@1', with_interval=True)}"
    )
    if distance is None:
        return sentence + "."
    if abs(distance) < _SURE:
        return sentence + f": {abs(distance):.1f} standard errors, which may be chance."
    word = "a gain" if distance > 0 else "a loss"
    return sentence + f": {word} of {abs(distance):.0f} standard errors, far more than chance would give."


def _moved(subject: str, base: Row, final: Row, metric: str, noticeable: float) -> str:
    difference = final[metric] - base[metric]
    if abs(difference) < noticeable:
        return f"{subject} stayed about the same ({cell(base, metric)} and {cell(final, metric)})."
    return f"{subject} {'rose' if difference > 0 else 'fell'} from {cell(base, metric)} to {cell(final, metric)}."
