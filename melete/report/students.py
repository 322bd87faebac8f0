"""Students compared: taught by the last model's samples, or by reinforcement learning alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from melete.report.charts import number
from melete.report.exam import Checkpoint, Exam, exam_of
from melete.report.files import RunFiles
from melete.report.measures import cell, interval, largest_k
from melete.report.story import standard_errors
from melete.report.words import KINDS, count

_IMITATION = ("sft", "distill")
_SURE = 1.96
"""Standard errors from which on one student is called better: the interval of the difference excludes 0."""


def content(files: RunFiles) -> dict[str, Any] | None:
    """Each student as it was, after distillation and after reinforcement learning."""
    exam = exam_of(files)
    families = exam.students.values() if exam else ()
    compared = [family for family in families if len(family) > 1]
    if exam is None or not compared:
        return None
    k = largest_k([one.on(exam.main) for family in compared for one in family])
    return {
        "says": [said for family in compared if (said := _verdict(files, exam, family))],
        "families": [[_row(files, exam, one, k) for one in family] for family in compared],
        "k": k,
        "task": exam.main,
        "teacher": [_taught(files, one) for one in _data(files, compared)],
    }


def _row(files: RunFiles, exam: Exam, one: Checkpoint, k: int) -> dict[str, str]:
    found, entry = one.on(exam.main), files.entry(one.model)
    tokens = entry.get("num_completion_tokens")
    return {
        "label": one.label,
        "how": KINDS.get(str(files.settings(one.model).get("kind")), "as it was"),
        "right": cell(found, "pass@1"),
        "interval": interval(found, "pass@1"),
        "voted": cell(found, f"maj@{k}"),
        "length": cell(found, "length_mean"),
        "tokens": number(tokens) if tokens is not None else "–",
    }


def _verdict(files: RunFiles, exam: Exam, family: Sequence[Checkpoint]) -> str:
    """The best imitator of a family against the best that had rewards only."""
    by_kind: dict[str, Checkpoint] = {}
    for one in family:
        kind = str(files.settings(one.model).get("kind"))
        group = "imitation" if kind in _IMITATION else kind
        if one.on(exam.main).get("pass@1") is not None:
            by_kind.setdefault(group, one)
    if not {"imitation", "rl"} <= set(by_kind):
        return ""
    taught, alone = by_kind["imitation"], by_kind["rl"]
    one, other = taught.on(exam.main), alone.on(exam.main)
    said = f"{taught.label}: {cell(one, 'pass@1', with_interval=True)} right; {alone.label}:"
    said += f" {cell(other, 'pass@1', with_interval=True)}."
    distance = standard_errors(other, one)
    if distance is not None and abs(distance) >= _SURE:
        better = "imitating the teacher" if distance > 0 else "rewards alone"
        said += f" Here {better} taught more, by {abs(distance):.1f} standard errors."
    elif distance is not None:
        said += f" The difference is {abs(distance):.1f} standard errors, which may be chance."
    return said + _tokens(files, taught, alone)


def _tokens(files: RunFiles, taught: Checkpoint, alone: Checkpoint) -> str:
    """How many tokens each learned from; whether that is a fair comparison is left to the reader."""
    read, tried = (files.entry(one.model).get("num_completion_tokens") for one in (taught, alone))
    if read is None or tried is None:
        return ""
    return f" It learned from {number(read)} tokens of its teacher, the other from {number(tried)} of its own attempts."


def _data(files: RunFiles, families: Sequence[Sequence[Checkpoint]]) -> list[str]:
    """The data sets that the students imitate, each once."""
    read = (files.settings(one.model).get("data") for family in families for one in family)
    return list(dict.fromkeys(data for data in read if data))


def _taught(files: RunFiles, data: str) -> str:
    entry = files.entry(data)
    by, tokens = files.settings(data).get("model"), entry.get("num_completion_tokens")
    told = f"The examples ({files.label(data)}): {count(entry.get('num_rows'), 'row')}"
    if by and tokens:
        told += f", chosen from {number(tokens)} tokens that {files.label(by)} wrote"
    return told + "."
