"""From the numbers of a run to plain sentences, each of which follows from the files by a rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from melete.report.charts import PERCENT, number
from melete.report.files import Row, RunFiles

_SURE = 3.0
"""Standard errors from which on a difference is called more than chance."""


class Card(NamedTuple):
    """A figure at the top: what it was before and after."""

    label: str
    metric: str
    before: str
    after: str


class TableRow(NamedTuple):
    """A metric over all evaluations: its name in the files, what it means, and each value with its interval."""

    metric: str
    meaning: str
    cells: Sequence[tuple[str, str]]


TABLE = (
    ("pass@1", "attempts that are right", "share"),
    ("pass@16", "problems with at least one right attempt in 16", "share"),
    ("maj@16", "problems whose most frequent answer of 16 is right", "share"),
    ("share_thinking", "attempts with a thought", "share"),
    ("accuracy_with_thought", "right, when it thought", "share"),
    ("accuracy_without_thought", "right, when it did not", "share"),
    ("format_share", "attempts with the tags in order", "share"),
    ("length_mean", "mean length in tokens", "number"),
    ("length_p95", "length that 95 % stay below", "number"),
    ("truncated_share", "attempts cut off at the limit", "share"),
    ("reflection_per_1k", "words of reflection per 1,000 tokens", "number"),
    ("reflection_share", "attempts with at least one such word", "share"),
    ("reflection_long_per_1k", "phrases of the longer list per 1,000 tokens", "number"),
)
CARDS = (
    ("Right answers", "pass@1"),
    ("By majority of 16", "maj@16"),
    ("Thinks first", "share_thinking"),
    ("Tokens", "length_mean"),
)


def cards(evaluations: Sequence[Row]) -> list[Card]:
    """Before and after, for the four numbers that tell most."""
    if not evaluations:
        return []
    first, last = evaluations[0], evaluations[-1]
    return [
        Card(label, metric, cell(first, metric), cell(last, metric))
        for label, metric in CARDS
        if first.get(metric) is not None and last.get(metric) is not None
    ]


def table(evaluations: Sequence[Row]) -> list[TableRow]:
    """Every metric that at least one evaluation has."""
    return [
        TableRow(metric, meaning, [(cell(e, metric), interval(e, metric)) for e in evaluations])
        for metric, meaning, _ in TABLE
        if any(e.get(metric) is not None for e in evaluations)
    ]


def cell(evaluation: Row, metric: str, *, with_interval: bool = False) -> str:
    """A number for people, with its interval where there is one."""
    value = evaluation.get(metric)
    if value is None:
        return "–"
    bounds = interval(evaluation, metric) if with_interval else ""
    return f"{number(value, _is_share(metric))} {bounds}".strip()


def interval(evaluation: Row, metric: str) -> str:
    """The interval of a metric in the unit of its value, or nothing."""
    low, high = evaluation.get(f"{metric}/low"), evaluation.get(f"{metric}/high")
    if low is None or high is None:
        return ""
    return f"[{', '.join(number(bound, _is_share(metric)).removesuffix(PERCENT) for bound in (low, high))}]"


def _is_share(metric: str) -> bool:
    return any(name == metric and kind == "share" for name, _, kind in TABLE)


def what_was_trained(files: RunFiles, stage: str) -> str:
    """What the recipe did, without words that need a course first."""
    s = files.settings(stage)
    if s.get("kind") != "rl":
        return ""
    task = (s.get("task") or {}).get("name", "the task")
    parts = ", ".join(f"{name} × {number(weight)}" for name, weight in sorted((s.get("rewards") or {}).items()))
    return (
        f"The model “{s.get('model')}” was trained for {s.get('num_steps')} steps with the algorithm"
        f" “{s.get('algorithm')}”. In each step it wrote {s.get('group_size')} attempts at each of"
        f" {s.get('prompts_per_step')} problems of the task “{task}”. A program, not a person, marked every attempt"
        f" ({parts}). Attempts that earned more than the others at the same problem became more likely, the rest less"
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
    if base.get("maj@16") is not None and base.get("pass@16") is not None:
        found.append(
            f"Asked 16 times, it found a right answer at least once for {cell(base, 'pass@16')} of the problems, and"
            f" its most frequent answer was right for {cell(base, 'maj@16')}. What it can do now and then is what"
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


def reflection_verdict(base: Row, final: Row) -> str:
    """What became of the words of reflection, and what may and may not be concluded."""
    before, after = base.get("reflection_per_1k"), final.get("reflection_per_1k")
    if before is None or after is None:
        return ""
    sentence = (
        f"The base already wrote {number(before)} of these words per 1,000 tokens before any training of this kind;"
        f" after training it writes {number(after)}."
    )
    if after > 1.2 * before:
        return sentence + " They grew more frequent. Whether they help is another question: compare the transcripts."
    if after < before / 1.2 and (final.get("pass@1") or 0.0) > (base.get("pass@1") or 0.0):
        return sentence + " They fell while accuracy rose: this run got better without more reflection of this kind."
    return sentence + (" They fell." if after < before / 1.2 else " That is about the same.")


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
