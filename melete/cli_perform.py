"""What every command that runs a recipe does: show the plan, refuse what is too much, work, and say what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from melete.schema import Recipe


def perform(
    recipe: Recipe,
    run_dir: Path,
    *,
    command: str,
    from_stage: str = "",
    only: str = "",
    dry_run: bool = False,
    max_minutes: float | None = None,
    track: Sequence[str] = (),
    say: Callable[[str], object] = typer.echo,
    console: Console | None = None,
) -> bool:
    """Whether it was run; after a dry run it was not. The live view goes to `console`, by default the terminal's."""
    from melete.planning import make_plan, save_plan
    from melete.runs.trackers import tracker_names
    from melete.states import stage_states

    trackers = tracker_names(track)
    states = stage_states(recipe, run_dir, from_stage=from_stage, only=only, command=command)
    plan = make_plan(recipe, run_dir, {state.name: str(state) for state in states})
    say(plan.text())
    if dry_run:
        place = f"{run_dir} exists" if run_dir.exists() else f"{run_dir} would be made"
        say(f"{place}; nothing was done")
        return False
    plan.refuse_if_too_large(max_minutes)
    from melete.live import View
    from melete.pipeline import run_recipe

    try:
        with View([only] if only else [stage.name for stage in recipe.stages], None, console=console) as view:
            run_recipe(recipe, run_dir, view=view, command=command, from_stage=from_stage, only=only, track=trackers)
    finally:
        if run_dir.exists():
            save_plan(plan, run_dir)
    return True


def closing_lines(run_dir: Path) -> str:
    """Where the report is and what was learnt."""
    learnt = json.loads((run_dir / "summary.json").read_text(encoding="utf-8")).get("learnt", "")
    return f"report: {run_dir / 'report.html'}\nlearnt: {learnt}"
