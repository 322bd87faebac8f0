"""Asking several times and voting: maj@k against k, and against the tokens that it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from melete.report.charts import Chart, Series, number
from melete.report.exam import exam_of
from melete.report.files import Row, RunFiles
from melete.report.measures import cell, largest_k

_LEAST_GAIN = 0.005


def content(files: RunFiles) -> dict[str, Any] | None:
    """Charts and table for the milestones of the exam, else for the first, middle and last evaluation."""
    evaluations = _voters(files)
    against_k = _chart(evaluations, lambda one, k: float(k))
    if against_k is None:
        return None
    counted = [one for one in evaluations if one.get("tokens_at")]
    against_tokens = _chart(counted, lambda one, k: one["tokens_at"].get(str(k)), tokens=True)
    ks = sorted({int(k) for one in evaluations for k in one["majority"]})
    return {
        "charts": [chart for chart in (against_k, against_tokens) if chart],
        "ks": ks,
        "rows": [(one["label"], [cell({"maj@1": _at(one, k)}, "maj@1") for k in ks]) for one in evaluations],
        "says": [said for one in evaluations if (said := _what_voting_gives(one))] if exam_of(files) else [],
    }


def _voters(files: RunFiles) -> list[Row]:
    exam = exam_of(files)
    if exam:
        found = [{**one.on(exam.main), "label": one.label, "called": one.called} for one in exam.milestones]
        return [one for one in found if len(one.get("majority") or {}) > 1]
    voted = [one for one in files.evaluations() if len(one.get("majority") or {}) > 1]
    return [voted[i] for i in sorted({0, len(voted) // 2, len(voted) - 1})] if voted else []


def _at(one: Row, k: int) -> float | None:
    found = one["majority"].get(str(k))
    return found[0] if found else None


def _what_voting_gives(one: Row) -> str:
    """What the largest vote adds to a single attempt, and what it costs."""
    k = largest_k([one])
    single, voted = _at(one, 1), _at(one, k)
    if single is None or voted is None:
        return ""
    tokens = one.get("tokens_at") or {}
    cost, cost_of_one = tokens.get(str(k)), tokens.get("1")
    told = (
        "" if cost is None or cost_of_one is None else f", for {number(cost)} tokens instead of {number(cost_of_one)}"
    )
    went = f"{number(single, share=True)} to {number(voted, share=True)}"
    if voted - single < _LEAST_GAIN:
        return f"For {one['called']} a vote of {k} hardly helps: {went}{told}."
    return f"A vote of {k} takes {one['called']} from {went}{told}."


def _chart(
    evaluations: Sequence[Row], place: Callable[[Row, int], float | None], *, tokens: bool = False
) -> Chart | None:
    series = []
    for colour, one in enumerate(evaluations, start=1):
        found = sorted((int(k), values) for k, values in one["majority"].items())
        points = [(x, values) for k, values in found if (x := place(one, k))]
        if points:
            series.append(
                Series(
                    name=str(one["label"]),
                    points=[(x, values[0]) for x, values in points],
                    band=[(x, values[1], values[2]) for x, values in points],
                    dots=True,
                    colour=colour,
                )
            )
    if not series:
        return None
    xs = sorted({x for one in series for x, _ in one.points})
    if tokens:
        caption = "The same votes against all the tokens that were written for one problem."
        ticks = [2.0**i for i in range(math.ceil(math.log2(xs[0])), math.floor(math.log2(xs[-1])) + 1)]
        every = -(-len(ticks) // 6)
        return Chart(
            "Majority vote, by its cost", caption, series, x_label="tokens per problem", share=True, log2=True,
            x_ticks=ticks[::every],
        )  # fmt: skip
    caption = "Share of held-out problems whose most frequent answer among k attempts is right (maj@k)."
    return Chart("Majority vote", caption, series, x_label="attempts that vote (k)", share=True, log2=True, x_ticks=xs)
