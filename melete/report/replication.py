"""A recipe repeated with several seeds: the claims over all of them, the numbers of each, and where its report is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from melete.report.files import Row, RunFiles
from melete.report.measures import cell, interval, minutes
from melete.report.verdicts import counts, ordered

_METRICS = ("pass@1", "score")


def content(files: RunFiles) -> dict[str, Any] | None:
    """What the stages that repeat another recipe have found."""
    entries = [entry for entry in files.entries if entry.get("kind") == "replicate"]
    return {"stages": [_stage(entry) for entry in entries]} if entries else None


def _stage(entry: Row) -> dict[str, Any]:
    claims, runs = entry.get("claims") or [], entry.get("runs") or []
    return {
        "name": entry["name"],
        "claims": ordered(claims),
        "counts": counts(claims),
        "tables": [table for task in _tasks(runs) if (table := _table(runs, task))],
        "runs": [_run(run) for run in runs],
    }


def _run(run: Row) -> dict[str, Any]:
    directory = PurePosixPath(str(run.get("dir") or "."))
    inside = not directory.is_absolute() and ".." not in directory.parts
    return {
        "seed": run.get("seed"),
        "arm": run.get("arm") or "main",
        "report": quote(str(directory / "report.html")) if inside and run.get("dir") else "",
        "time": minutes(run.get("seconds")),
    }


def _checkpoints(run: Row) -> list[Row]:
    return list(run.get("checkpoints") or ())


def _tasks(runs: Sequence[Row]) -> list[str]:
    tasks = (task for run in runs for one in _checkpoints(run) for task in one.get("tasks") or {})
    return list(dict.fromkeys(tasks))


def _table(runs: Sequence[Row], task: str) -> dict[str, Any] | None:
    """Each checkpoint of each arm with its number for every seed, where any run has tried the task."""
    seeds = list(dict.fromkeys(run.get("seed") for run in runs))
    found: dict[tuple[str, str], dict[Any, Row]] = {}
    for run in runs:
        for one in _checkpoints(run):
            if task in (one.get("tasks") or {}):
                key = (run.get("arm") or "main", one.get("label") or one["model"])
                found.setdefault(key, {})[run.get("seed")] = _flat(one["tasks"][task])
    metric = "score" if any(one.get("refused_harmful") is not None for per in found.values() for one in per.values()) \
        else "pass@1"  # fmt: skip
    rows = [
        {
            "arm": arm,
            "label": label,
            "cells": [(cell(per.get(seed, {}), metric), interval(per.get(seed, {}), metric)) for seed in seeds],
        }
        for (arm, label), per in found.items()
        if any(one.get(metric) is not None for one in per.values())
    ]
    return {"task": task, "metric": metric, "seeds": seeds, "rows": rows} if rows else None


def _flat(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation in which [mean, low, high] stands for a number with its interval."""
    found = dict(evaluation)
    for metric in _METRICS:
        if isinstance(three := evaluation.get(metric), list):
            found |= dict(zip((metric, f"{metric}/low", f"{metric}/high"), three, strict=False))
    return found
