"""What the run cost: seconds and tokens, stage by stage."""

from __future__ import annotations

from statistics import median
from typing import Any

from melete.report.charts import number
from melete.report.files import Row, RunFiles
from melete.report.measures import minutes, percent
from melete.report.path import LEAST_STAGES, MAKES
from melete.report.words import KINDS


def content(files: RunFiles) -> dict[str, Any] | None:
    """A bar for each stage that has finished, of a run with several."""
    entries = [entry for entry in files.entries if entry.get("seconds") is not None]
    if len(files.planned()) < LEAST_STAGES or not entries:
        return None
    longest = max(entry["seconds"] for entry in entries) or 1.0
    total = sum(entry["seconds"] for entry in entries)
    tokens = [num for entry in entries if (num := num_tokens(entry)) is not None]
    return {
        "rows": [_row(files, entry, longest) for entry in entries],
        "total": minutes(total),
        "tokens": number(sum(tokens)) if tokens else "–",
        "speeds": "; ".join(filter(None, (_speed(files, entry["name"]) for entry in entries))),
    }


def num_tokens(entry: Row) -> int | None:
    """Tokens that a stage sampled, learned from, or wrote in an exam."""
    if (found := entry.get("num_completion_tokens")) is not None:
        return int(found)
    tasks = (task for one in entry.get("checkpoints") or () for task in one.get("tasks", {}).values())
    known = [num for task in tasks if (num := task.get("num_tokens")) is not None]
    return sum(known) if known else None


def _row(files: RunFiles, entry: Row, longest: float) -> dict[str, Any]:
    tokens, kind = num_tokens(entry), str(entry.get("kind"))
    return {
        "name": files.label(entry["name"]),
        "kind": KINDS.get(kind, kind),
        "style": MAKES.get(kind, "model").replace(" ", "-"),
        "time": minutes(entry["seconds"]),
        "width": round(100 * entry["seconds"] / longest, 2),
        "tokens": number(tokens) if tokens is not None else "–",
    }


def _speed(files: RunFiles, stage: str) -> str:
    """Completion tokens per second of the middle RL step, and the share of its time that bare products would take."""
    steps = [row for row in files.timings if row.get("stage") == stage and "floor_share" in row]
    if not steps:
        return ""
    speed, share = (median(float(row[name]) for row in steps) for name in ("tokens_per_second", "floor_share"))
    return f"{files.label(stage)} {number(round(speed))} ({percent(share)})"
