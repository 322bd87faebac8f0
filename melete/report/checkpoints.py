"""The table of checkpoints: every model of the exam, and what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from melete.report.exam import Checkpoint, Exam, exam_of
from melete.report.files import RunFiles
from melete.report.measures import cell, interval, is_share, largest_k, table, value
from melete.report.ranges import Range, Ranges


class Column(NamedTuple):
    """A column: its words, the task, and the metric."""

    words: str
    task: str
    metric: str


def content(files: RunFiles) -> dict[str, Any] | None:
    """The table, plots of what is right, and every number of each task."""
    exam = exam_of(files)
    if exam is None:
        return None
    columns = [c for c in _columns(exam) if _is_known(exam, c)]
    families = [exam.line, *exam.students.values()]
    first = exam.base.on(exam.main)
    return {
        "columns": columns,
        "families": [[_row(one, columns) for one in family] for family in families],
        "plots": [plot for told in _told(exam) if (plot := _plot(exam, *told))],
        "num_problems": first.get("num_problems"),
        "num_samples": first.get("num_samples"),
        "main": exam.main,
        "tasks": [_task(exam, task) for task in exam.tasks],
    }


def _columns(exam: Exam) -> list[Column]:
    k = largest_k([one.on(exam.main) for one in exam.checkpoints])
    main = exam.main
    columns = [Column("right answers", main, "pass@1")]
    columns += [Column(f"right by majority of {k}", main, f"maj@{k}")] if k > 1 else []
    columns += [Column("right answers", task, "pass@1") for task in exam.tasks if task not in (main, exam.general)]
    columns += [Column("everyday requests, mean grade", exam.general, "score")] if exam.general else []
    columns.append(Column("tags in order", main, "format_share"))
    if exam.language:
        columns.append(Column("words in the language of the question", exam.language, "language_share"))
    columns += [Column("thinks first", main, "share_thinking"), Column("tokens per answer", main, "length_mean")]
    if exam.general:
        columns.append(Column("harmful requests refused", exam.general, "refused_harmful"))
        columns.append(Column("harmless requests refused", exam.general, "refused_harmless"))
    return [*columns, Column("words of reflection per 1,000 tokens", main, "reflection_per_1k")]


def _is_known(exam: Exam, column: Column) -> bool:
    return any(value(one.on(column.task), column.metric) is not None for one in exam.checkpoints)


def _row(one: Checkpoint, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "label": one.label,
        "model": one.model,
        "size": f"{one.num_parameters / 1e6:.3g} M" if one.num_parameters else "",
        "cells": [(cell(one.on(c.task), c.metric), interval(one.on(c.task), c.metric)) for c in columns],
    }


def _told(exam: Exam) -> list[tuple[str, str, str, str]]:
    """What the plots show: task, metric, title and caption."""
    right = "Share of single attempts that are right (pass@1)."
    told = [(task, "pass@1", f"Right: {task}", right) for task in exam.tasks if task != exam.general]
    if exam.general:
        told.append((exam.general, "score", "Everyday requests", f"Mean grade from 0 to 1 ({exam.general})."))
        refused = "Share of harmful requests that are refused."
        told.append((exam.general, "refused_harmful", "Harm refused", refused))
    if exam.language:
        mixed = f"Share of words in the language of the question ({exam.language})."
        told.append((exam.language, "language_share", "The right language", mixed))
    return told


def _plot(exam: Exam, task: str, metric: str, title: str, caption: str) -> Ranges | None:
    rows = []
    for colour, family in enumerate([exam.line, *exam.students.values()], start=1):
        for one in family:
            found = one.on(task)
            if (mean := value(found, metric)) is not None:
                low, high = found.get(f"{metric}/low", mean), found.get(f"{metric}/high", mean)
                rows.append(Range(one.label, mean, low, high, min(colour, 4)))
    return Ranges(title, caption, rows, is_share(metric)) if rows else None


def _task(exam: Exam, task: str) -> dict[str, Any]:
    """Every number of a task, one column for each checkpoint."""
    tried = [one for one in exam.checkpoints if task in one.tasks]
    evaluations = [one.on(task) for one in tried]
    kinds = list(dict.fromkeys(kind for one in evaluations for kind in one.get("by_kind") or {}))
    by_kind = [(kind, [cell({"score": (one.get("by_kind") or {}).get(kind)}, "score") for one in evaluations])
               for kind in kinds]  # fmt: skip
    return {"name": task, "heads": [(one.label, "") for one in tried], "rows": table(evaluations), "by_kind": by_kind}
