"""What the stages measured on held-out problems as they went, and what the control did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from melete.report import story
from melete.report.exam import exam_of
from melete.report.files import Row, RunFiles
from melete.report.measures import table


def content(files: RunFiles) -> dict[str, Any] | None:
    """Every number of every evaluation inside a stage."""
    evaluations = files.evaluations()
    if not evaluations:
        return None
    title = {"title": "Measured along the way"} if exam_of(files) else {}
    return {"evaluations": evaluations, "rows": table(evaluations), "heads": _heads(evaluations), **title}


def control(files: RunFiles) -> dict[str, Any] | None:
    """The same training with a reward that knows nothing."""
    found = files.summary.get("control") or {}
    said = story.control_verdict(found)
    evaluations = found.get("evaluations", [])
    return {"says": said, "rows": table(evaluations), "heads": _heads(evaluations)} if said else None


def _heads(evaluations: Sequence[Row]) -> list[tuple[str, str]]:
    """Name, and stage with step."""
    return [
        (str(one["label"]), ", ".join(filter(None, [str(one.get("stage", "")), f"step {one.get('step', '–')}"])))
        for one in evaluations
    ]
