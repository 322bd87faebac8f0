"""Run directories with made-up numbers, finished or cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TASK = {"name": "arithmetic_chain", "seed": 0, "min_terms": 3, "max_terms": 3}


def evaluation(step: int, mean: float, width: float = 0.05, **more: Any) -> dict[str, Any]:
    return {
        "label": "base" if step == 0 else "final",
        "step": step,
        "score": mean,
        "pass@1": mean,
        "pass@1/low": mean - width,
        "pass@1/high": mean + width,
        "maj@4": mean + 0.1,
        "maj@4/low": mean,
        "maj@4/high": mean + 0.2,
        "length_mean": 20.0 + 10 * mean,
        "share_thinking": mean,
        **more,
    }


def stage(name: str = "rl", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "rl", "model": "tiny", "num_steps": 10, "lr": 0.001, "task": TASK, **more}


def write_run(
    path: Path,
    *stages: dict[str, Any],
    entries: dict[str, dict[str, Any]] | None = None,
    rows: tuple[dict[str, Any], ...] = (),
    seed: int = 0,
    **summary: Any,
) -> Path:
    """A run; `entries` are those of its finished stages, `rows` what has been logged."""
    (path / "stages").mkdir(parents=True)
    recipe = {"name": "made-up", "seed": seed, "description": "", "stage": list(stages)}
    (path / "recipe.json").write_text(json.dumps(recipe))
    for name, entry in (entries or {}).items():
        kind = next(one["kind"] for one in stages if one["name"] == name)
        whole = {"name": name, "kind": kind, "seconds": 60.0, "evaluations": [], **entry}
        (path / "stages" / f"{name}.json").write_text(json.dumps(whole))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary:
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def finished(path: Path, before: float, after: float, *, seed: int = 0, **settings: Any) -> Path:
    entry = {"evaluations": [evaluation(0, before), evaluation(10, after)]}
    learnt = f"pass@1 {before:.2f} -> {after:.2f}"
    started = "2026-01-05 09:30:00"
    return write_run(path, stage(**settings), entries={"rl": entry}, seed=seed, learnt=learnt, started=started)
