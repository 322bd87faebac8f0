"""The health of the stages of reinforcement learning, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from melete.report.charts import number
from melete.report.files import Row, RunFiles
from melete.report.measures import percent

_STYLES: Mapping[str, str] = {"serious": "bad", "warning": "warn", "note": "none"}

_HEIGHT = 48  # px of the highest bar


def content(files: RunFiles) -> dict[str, Any] | None:
    """The check before each stage, and what was found while it ran."""
    watched = [entry for entry in files.entries if entry.get("health") is not None or entry.get("support")]
    if not watched:
        return None
    stages = [_stage(files, entry) for entry in watched]
    return {
        "stages": stages,
        "num_found": sum(len(stage["findings"]) for stage in stages),
    }


def _stage(files: RunFiles, entry: Row) -> dict[str, Any]:
    support = entry.get("support") or {}
    return {
        "name": files.label(entry["name"]),
        "support": _support(support),
        "histogram": _bars(support.get("histogram") or []),
        "findings": [_finding(finding) for finding in entry.get("health") or ()],
    }


def _support(found: Row) -> str:
    """What the check before training saw."""
    if not found:
        return ""
    tried = f"{number(found['num_problems'])} problems, {number(found['group_size'])} times each"
    said = f"Before training it tried {tried}."
    if found.get("mean_pass_rate") is not None:
        said += f" {percent(found['mean_pass_rate'])} of the answers were right."
    if found.get("dead_share") is not None:
        said += f" In {percent(found['dead_share'])} of the groups all answers earned the same, which teaches nothing."
    if found.get("refusals"):
        said += f" {'; '.join(found['refusals'])}. What would help: {found.get('help', '')}."
    return said


def _bars(histogram: Sequence[int]) -> list[dict[str, Any]]:
    """A bar for each number of right answers, as high as the problems that had so many."""
    most = max(histogram, default=0)
    heights = [round(_HEIGHT * num / most) for num in histogram] if most else []
    return [{"right": i, "num": histogram[i], "height": height} for i, height in enumerate(heights)]


def _finding(found: Row) -> dict[str, Any]:
    first, last = found.get("first_step"), found.get("last_step")
    return {
        **found,
        "style": _STYLES.get(str(found.get("severity")), "none"),
        "when": f"step {first}" if first == last else f"steps {first} to {last}",
        "remedy": found.get("try", ""),
    }
