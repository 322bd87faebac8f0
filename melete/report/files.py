"""Reading the files of a run: all that a report may know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melete.errors import RunError
from melete.runs.directory import METRICS, ROLLOUTS, read_rows

Row = Mapping[str, Any]
EVALUATIONS = ("evaluation", "quick_evaluation")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The content of a run directory, checked to be there and readable."""

    recipe: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Sequence[Row]
    rollouts: Sequence[Row]

    def stages(self) -> list[str]:
        """Names of the stages that logged something, in order."""
        return list(dict.fromkeys(str(row["stage"]) for row in self.metrics))

    def steps(self, stage: str) -> list[Row]:
        """The training rows of a stage."""
        return [row for row in self.metrics if row["stage"] == stage and "kind" not in row]

    def evaluation_rows(self, stage: str) -> list[Row]:
        """The evaluation rows of a stage, small ones included."""
        return [row for row in self.metrics if row["stage"] == stage and row.get("kind") in EVALUATIONS]

    def settings(self, stage: str) -> Mapping[str, Any]:
        """What the recipe says about a stage."""
        return next((s for s in self.recipe.get("stage", []) if s.get("name") == stage), {})

    def evaluations(self) -> list[Row]:
        """The full evaluations of every stage, each with its stage's name."""
        return [
            {"stage": stage["name"], **evaluation}
            for stage in self.summary.get("stages", [])
            for evaluation in stage.get("evaluations", [])
        ]


def read_run(run_dir: Path) -> RunFiles:
    """Raises `RunError` when there is no run there; a run that has not finished may lack `summary.json`."""
    if not (run_dir / "recipe.json").exists():
        raise RunError("this is not a run directory: recipe.json is missing", place=str(run_dir), remedy="name a run")
    return RunFiles(
        recipe=_read_json(run_dir / "recipe.json"),
        summary=_read_json(run_dir / "summary.json") if (run_dir / "summary.json").exists() else {},
        metrics=list(read_rows(run_dir / METRICS)),
        rollouts=list(read_rows(run_dir / ROLLOUTS)),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        remedy = "restore the file, or run the recipe again in another directory"
        raise RunError(f"not JSON: {error}", place=str(path), remedy=remedy) from error
