"""Reading the files of a run: all that a report may know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melete.errors import RunError
from melete.runs.directory import METRICS, ROLLOUTS, TIMINGS, read_rows

Row = Mapping[str, Any]
EVALUATIONS = ("evaluation", "quick_evaluation")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The content of a run directory, checked to be there and readable. `entries` are those of the finished stages."""

    recipe: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Sequence[Row]
    rollouts: Sequence[Row]
    entries: Sequence[Row] = ()
    timings: Sequence[Row] = ()

    def stages(self) -> list[str]:
        """Names of the stages that logged something as they went, in order."""
        return list(dict.fromkeys(str(row["stage"]) for row in self.metrics if "model" not in row))

    def entry(self, stage: str) -> Row:
        """What a finished stage left; empty for one that has not finished."""
        return next((entry for entry in self.entries if entry["name"] == stage), {})

    def label(self, model: str) -> str:
        """What people call a model or data set: the name that an exam gives it, else its own."""
        labels = (stage.get("labels") or {} for stage in self.planned() if stage.get("kind") == "evaluate")
        return next((found[model] for found in labels if model in found), model)

    def planned(self) -> Sequence[Row]:
        """The settings of every stage of the recipe."""
        return self.recipe.get("stage", [])

    def root(self, model: str) -> str:
        """The model that no stage made, from which the training of this one began."""
        seen = set()
        while model not in seen and (start := self.settings(model).get("model")):
            seen.add(model)
            model = start
        return model

    def steps(self, stage: str) -> list[Row]:
        """The training rows of a stage."""
        return [row for row in self.metrics if row["stage"] == stage and "kind" not in row]

    def evaluation_rows(self, stage: str) -> list[Row]:
        """The evaluation rows of a stage, small ones included."""
        return [row for row in self.metrics if row["stage"] == stage and row.get("kind") in EVALUATIONS]

    def settings(self, stage: str) -> Mapping[str, Any]:
        """What the recipe says about a stage."""
        return next((s for s in self.planned() if s.get("name") == stage), {})

    def evaluations(self) -> list[Row]:
        """The full evaluations of every stage, each with its stage's name."""
        return [
            {"stage": stage["name"], **evaluation}
            for stage in self.entries
            for evaluation in stage.get("evaluations", [])
        ]

    def transcripts(self) -> Sequence[Row]:
        """The same problems before and after a stage; while the run has not finished, those of finished stages."""
        stages = (entry.get("transcripts") or () for entry in self.entries)
        return self.summary.get("transcripts") or [transcript for found in stages for transcript in found]


def read_run(run_dir: Path) -> RunFiles:
    """Raises `RunError` when there is no run there; a run that has not finished may lack `summary.json`."""
    if not (run_dir / "recipe.json").exists():
        raise RunError("this is not a run directory: recipe.json is missing", place=str(run_dir), remedy="name a run")
    recipe = _read_json(run_dir / "recipe.json")
    summary = _read_json(run_dir / "summary.json") if (run_dir / "summary.json").exists() else {}
    return RunFiles(
        recipe=recipe,
        summary=summary,
        metrics=list(read_rows(run_dir / METRICS)),
        rollouts=list(read_rows(run_dir / ROLLOUTS)),
        timings=list(read_rows(run_dir / TIMINGS)),
        entries=summary["stages"] if "stages" in summary else _finished_stages(run_dir, recipe),
    )


def _finished_stages(run_dir: Path, recipe: Row) -> list[Row]:
    """The entries of the stages that have finished, while the run has not."""
    files = [run_dir / "stages" / f"{stage['name']}.json" for stage in recipe.get("stage", [])]
    return [_read_json(file) for file in files if file.exists()]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        remedy = "restore the file, or run the recipe again in another directory"
        raise RunError(f"not JSON: {error}", place=str(path), remedy=remedy) from error
