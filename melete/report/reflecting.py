"""Whether the models reflect: words, checks, paths given up, repairs, and always what the base did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from melete.report.charts import number
from melete.report.exam import Checkpoint, exam_of
from melete.report.files import Row, RunFiles
from melete.report.measures import TableRow, cell, percent, table
from melete.report.words import capital, count

_METRICS = (
    "pass@1", "reflection_per_1k", "reflection_share", "reflection_long_per_1k", "verifications", "backtracks",
    "repair/repair_rate", "repair/break_rate", "length_mean",
)  # fmt: skip
_NOTICEABLE = 1.2
"""Times as many words, from which on a rate has changed."""


def content(files: RunFiles) -> dict[str, Any] | None:
    """Sentences, and a table over the checkpoints or from first to last."""
    exam = exam_of(files)
    if exam:
        found = [{**one.on(exam.main), "label": one.label} for one in exam.line]
        later = [one for one in exam.milestones if one is not exam.base]
        says = [verdict(exam.base.on(exam.main), one.on(exam.main), one.label, exam.base.label) for one in later]
        says += [_repairs(one, exam.main) for one in exam.milestones]
    else:
        found = files.evaluations()
        found = [found[0], found[-1]] if len(found) > 1 else []
        says = [verdict(found[0], found[-1])] if found else []
    says = [said for said in says if said]
    if not says:
        return None
    rows: list[TableRow] = [row for row in table(found) if row.metric in _METRICS] if exam else []
    return {
        "says": says,
        "labels": [one["label"] for one in found],
        "heads": [(one["label"], "") for one in found],
        "rows": rows,
        "counts_steps": any(row.metric in ("verifications", "backtracks") for row in rows),
        "words": _words(found),
    }


def verdict(base: Row, final: Row, name: str = "", base_name: str = "base") -> str:
    """What became of the words of reflection, and what may and may not be concluded."""
    before, after = base.get("reflection_per_1k"), final.get("reflection_per_1k")
    if before is None or after is None:
        return ""
    sentence = (
        f"The {base_name} already wrote {number(before)} of these words per 1,000 tokens before any training of this"
        f" kind; {f'{name} writes' if name else 'after training it writes'} {number(after)}."
    )
    if after > _NOTICEABLE * before:
        return sentence + " They grew more frequent. Whether they help is another question: compare the transcripts."
    if after < before / _NOTICEABLE and (final.get("pass@1") or 0.0) > (base.get("pass@1") or 0.0):
        subject = name or "this run"
        return sentence + f" They fell while accuracy rose: {subject} got better without more reflection of this kind."
    return sentence + (" They fell." if after < before / _NOTICEABLE else " That is about the same.")


def _repairs(one: Checkpoint, task: str) -> str:
    """What corrections did to results, both ways."""
    repair = one.on(task).get("repair") or {}
    marked, right = repair.get("marked"), repair.get("right_before")
    if not marked or right is None:
        return ""
    wrong = marked - right
    told = f"{capital(one.called)} took {count(marked, 'result')} back on {task}."
    if wrong:
        told += f" {number(wrong)} of them had been wrong, and {number(repair.get('wrong_to_right', 0))} of these"
        told += f" became right ({percent(repair.get('repair_rate'))})."
    if right:
        told += f" {number(right)} had been right, and {number(repair.get('right_to_wrong', 0))} of these became wrong"
        told += f" ({percent(repair.get('break_rate'))})."
    return told


def _words(evaluations: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Each word with its rate in every evaluation, the most frequent first."""
    rates = [one.get("reflection_words") or {} for one in evaluations]
    words = sorted({word for one in rates for word in one}, key=lambda w: (-max(one.get(w, 0) for one in rates), w))
    return [(word, [cell({"length_mean": one.get(word, 0.0)}, "length_mean") for one in rates]) for word in words]
