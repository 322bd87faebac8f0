"""What an evaluation measures: the words for each number, and how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from melete.report.charts import PERCENT, number
from melete.report.files import Row

_MEASURES = {
    "score": ("mean grade, from 0 to 1", False),
    "win_rate": ("attempts graded above one of the first model, ties counted half", True),
    "pass@1": ("attempts that are right", True),
    "pass@k": ("problems with at least one right attempt in {k}", True),
    "maj@k": ("problems whose most frequent answer of {k} is right", True),
    "share_thinking": ("attempts with a thought", True),
    "accuracy_with_thought": ("right, when it thought", True),
    "accuracy_without_thought": ("right, when it did not", True),
    "format_share": ("attempts with the tags in order", True),
    "language_share": ("words in the language of the question", True),
    "length_mean": ("mean length in tokens", False),
    "length_p95": ("length that 95 % stay below", False),
    "truncated_share": ("attempts cut off at the limit", True),
    "reflection_per_1k": ("words of reflection per 1,000 tokens", False),
    "reflection_share": ("attempts with at least one such word", True),
    "reflection_long_per_1k": ("phrases of the longer list per 1,000 tokens", False),
    "verifications": ("results checked, per attempt", False),
    "backtracks": ("paths given up, per attempt", False),
    "repair/repair_rate": ("wrong results that a correction put right", True),
    "repair/break_rate": ("right results that a correction made wrong", True),
    "refused_harmful": ("harmful requests refused", True),
    "refused_harmless": ("harmless requests refused", True),
}


class TableRow(NamedTuple):
    """A metric over all evaluations: its name in the files, what it means, and each value with its interval."""

    metric: str
    meaning: str
    cells: Sequence[tuple[str, str]]


def value(evaluation: Row, metric: str) -> float | None:
    """A number of an evaluation; "repair/repair_rate" is the `repair_rate` in `repair`."""
    outer, _, inner = metric.partition("/")
    found = evaluation.get(outer)
    return (found or {}).get(inner) if inner else found


def meaning(metric: str) -> str:
    """What a metric says, in words.

    >>> meaning("maj@16")
    'problems whose most frequent answer of 16 is right'
    """
    name, k = _kind_of(metric)
    return _MEASURES[name][0].format(k=k)


def is_share(metric: str) -> bool:
    """Whether it is written as a percentage."""
    name, _ = _kind_of(metric)
    return _MEASURES.get(name, ("", False))[1]


def _kind_of(metric: str) -> tuple[str, str]:
    name, at, k = metric.partition("@")
    return (f"{name}@k", k) if at and metric not in _MEASURES else (metric, k)


def largest_k(evaluations: Sequence[Row]) -> int:
    """The largest k that is known of any of them; 1 where there was no vote."""
    return max((int(k) for one in evaluations for k in one.get("majority") or ()), default=1)


def table(evaluations: Sequence[Row]) -> list[TableRow]:
    """Every metric that at least one evaluation has; pass@k and maj@k with the largest k."""
    k = largest_k(evaluations)
    names = [name.replace("@k", f"@{k}") for name in _MEASURES if "@k" not in name or k > 1]
    if not any(is_graded(one) for one in evaluations):
        names = [name for name in names if name not in ("score", "win_rate")]  # both are pass@1 in other words
    return [
        TableRow(name, meaning(name), [(cell(one, name), interval(one, name)) for one in evaluations])
        for name in names
        if any(value(one, name) is not None for one in evaluations)
    ]


def is_graded(evaluation: Row) -> bool:
    """Whether an answer can be better or worse, not only right or wrong."""
    return evaluation.get("score") is not None and evaluation["score"] != evaluation.get("pass@1")


def cell(evaluation: Row, metric: str, *, with_interval: bool = False) -> str:
    """A number for people, with its interval where there is one."""
    found = value(evaluation, metric)
    if found is None:
        return "–"
    bounds = interval(evaluation, metric) if with_interval else ""
    return f"{number(found, is_share(metric))} {bounds}".strip()


def interval(evaluation: Row, metric: str) -> str:
    """The interval of a metric in the unit of its value, or nothing."""
    low, high = evaluation.get(f"{metric}/low"), evaluation.get(f"{metric}/high")
    if low is None or high is None:
        return ""
    return f"[{', '.join(number(bound, is_share(metric)).removesuffix(PERCENT) for bound in (low, high))}]"


def percent(share: float | None) -> str:
    """A share for people, and a dash for none."""
    return "–" if share is None else number(share, share=True)


_INSTANT = 0.1


def minutes(seconds: float | None) -> str:
    """A time for people.

    >>> minutes(8.2), minutes(75.0), minutes(0.01)
    ('8.2 s', '1.2 min', 'under 0.1 s')
    """
    if seconds is None:
        return ""
    if seconds < _INSTANT:
        return f"under {_INSTANT} s"
    value, unit = (seconds / 60, "min") if seconds >= 60 else (seconds, "s")
    return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
