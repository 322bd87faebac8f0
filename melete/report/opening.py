"""How the report begins: what the run made, in three sentences and a few figures."""

from __future__ import annotations

from typing import Any

from melete.report import story
from melete.report.exam import Checkpoint, Exam, exam_of
from melete.report.files import RunFiles
from melete.report.measures import cell, minutes, value
from melete.report.story import Card
from melete.report.words import count, join


def content(files: RunFiles) -> dict[str, Any]:
    """Name, sentences and figures; a run that has not finished says so."""
    exam = exam_of(files)
    learnt = files.summary.get("learnt", "")
    return {
        "name": files.summary.get("run") or files.recipe.get("name", "run"),
        "description": files.recipe.get("description", ""),
        "finished": bool(files.summary) and not files.summary.get("unfinished"),
        "lead": [] if exam else [learnt] if learnt else [],
        "says": [_what_was_made(files, exam), *_what_it_can(exam), *_students(exam)] if exam else [],
        "cards": _cards(exam) if exam else story.cards(files.evaluations()),
    }


def _what_was_made(files: RunFiles, exam: Exam) -> str:
    num_models, num_data = (sum(key in entry for entry in files.entries) for key in ("model", "data"))
    seconds = files.summary.get("seconds") or sum(entry.get("seconds") or 0.0 for entry in files.entries)
    things = f"{count(num_models, 'model')} and {count(num_data, 'data set')}"
    size = f" of {exam.base.num_parameters / 1e6:.3g} million parameters" if exam.base.num_parameters else ""
    return (
        f"Starting from one language model{size}, this run"
        f" made {things} in {count(len(files.entries), 'stage')}."
        + (f" It took {minutes(seconds)}." if seconds else "")
    )


def _what_it_can(exam: Exam) -> list[str]:
    base, final, task = exam.base.on(exam.main), exam.final.on(exam.main), exam.main
    if base.get("pass@1") is None or final.get("pass@1") is None or exam.final is exam.base:
        return []
    return [
        f"Of its answers to held-out problems ({task}), the last model, {exam.final.label}, gets"
        f" {cell(final, 'pass@1')} right; {exam.base.called} got {cell(base, 'pass@1')}."
    ]


def _students(exam: Exam) -> list[str]:
    told = []
    for family in exam.students.values():
        start, others = family[0], family[1:]
        best = max(others, key=lambda one: value(one.on(exam.main), "pass@1") or 0.0, default=None)
        if best is not None:
            went = f"from {cell(start.on(exam.main), 'pass@1')} to {cell(best.on(exam.main), 'pass@1')}"
            told.append(f"{start.label} {went} ({best.label})")
    return [f"Smaller models were taught too: {join(told)}."] if told else []


def _cards(exam: Exam) -> list[Card]:
    wanted = [("Right answers", exam.main, "pass@1"), ("Thinks first", exam.main, "share_thinking")]
    wanted += [("Tokens per answer", exam.main, "length_mean")]
    if exam.language:
        wanted.append(("Right language", exam.language, "language_share"))
    if exam.general:
        wanted += [("Everyday requests", exam.general, "score"), ("Refuses harm", exam.general, "refused_harmful")]
    cards = [_card(label, exam.base, exam.final, task, metric) for label, task, metric in wanted]
    return [card for card in cards if card]


def _card(label: str, base: Checkpoint, final: Checkpoint, task: str, metric: str) -> Card | None:
    before, after = base.on(task), final.on(task)
    if value(before, metric) is None or value(after, metric) is None:
        return None
    return Card(label, f"{task} · {metric}", cell(before, metric), cell(after, metric))
