"""The same prompt, answered by every checkpoint."""

from __future__ import annotations

from typing import Any

from melete.report.charts import number
from melete.report.exam import Exam, exam_of
from melete.report.files import Row, RunFiles
from melete.report.transcripts import segments


def content(files: RunFiles) -> dict[str, Any] | None:
    """The prompts of the exam; the first is open."""
    exam = exam_of(files)
    prompts = [_prompt(exam, prompt) for prompt in exam.same_prompts] if exam else []
    prompts = [prompt for prompt in prompts if prompt["answers"]]
    if exam is None or not prompts:
        return None
    return {"prompts": prompts, "rule": files.entry(exam.name).get("same_prompts_rule", "")}


def _prompt(exam: Exam, prompt: Row) -> dict[str, Any]:
    labels = {one.model: one.label for one in exam.checkpoints}
    answers = [_answer(answer, labels) for answer in prompt.get("answers") or ()]
    return {
        "task": prompt.get("task", ""),
        "prompt": prompt["prompt"],
        "gold": prompt.get("gold", ""),
        "kind": prompt.get("kind") or "",
        "answers": answers,
    }


def _answer(answer: Row, labels: dict[str, str]) -> dict[str, Any]:
    correct, score = answer.get("correct"), answer.get("score")
    mark = "not graded" if correct is None else "right" if correct else "wrong"
    if score is not None and score not in (0.0, 1.0):
        mark = f"grade {number(score)}"
    return {
        "label": labels.get(answer["model"], answer["model"]),
        "text": answer["text"],
        "segments": segments(answer["text"]),
        "mark": mark,
        "style": {"right": "good", "wrong": "bad"}.get(mark, "soft"),
        "sign": {"right": "✓", "wrong": "✗"}.get(mark, "·"),
        "num_tokens": answer.get("num_tokens"),
    }
