"""Runs a recipe: each stage in order, finished ones skipped, one that was cut off continued; then the report."""

from __future__ import annotations

import io
import json
import platform
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from melete.live import View
from melete.models.load import resolve_model
from melete.report.build import build_report
from melete.runs.atomic import json_text, write_atomically
from melete.runs.directory import RunDirectory
from melete.schema import Recipe
from melete.stages import RUNNERS, StageContext

LIBRARIES = ("melete", "torch", "transformers", "tokenizers", "safetensors", "numpy")


def run_quietly(recipe: Recipe, run_dir: Path) -> None:
    """Runs a recipe without a word and without a report; what it did is in the files of the run."""
    with View([stage.name for stage in recipe.stages], True, console=Console(file=io.StringIO())) as view:
        run_recipe(recipe, run_dir, view=view, command=f"melete run {run_dir}.json", with_report=False)


def run_recipe(recipe: Recipe, run_dir: Path, *, view: View, command: str, with_report: bool = True) -> Path:
    """Runs what is left to run and returns the run's directory.

    Raises `ModelError` for a model that is not there, before anything is written; `RunError` when the directory belongs
    to another recipe or process, or cannot be written; and `Interrupted` after a Ctrl-C or SIGTERM, when everything
    needed to continue is saved.
    """
    _refuse_missing_models(recipe)
    with RunDirectory.create_or_open(run_dir, recipe.as_dict()) as run, _stop_request() as should_stop:
        started = time.time()
        context = StageContext(
            run=run,
            seed=recipe.seed,
            view=view,
            should_stop=should_stop,
            model_path=_model_path(run, recipe),
            data_path=_data_path(run, recipe),
            run_recipe=run_quietly,
        )
        was_finished = all(_stage_file(run, stage).exists() for stage in recipe.stages)
        entries = [_finished_or_run(stage, context) for stage in recipe.stages]
        if not (was_finished and (run.path / "summary.json").exists()):  # it tells when, by what and how it was made
            run.write_summary(_summary(recipe, run, command, started, entries))
        if with_report:
            build_report(run.path)
        return run.path


def _refuse_missing_models(recipe: Recipe) -> None:
    earlier: set[str] = set()
    for stage in recipe.stages:
        for source in stage.reads():
            if source not in earlier:
                resolve_model(source)
        earlier.add(stage.name)


def _stage_file(run: RunDirectory, stage: Any) -> Path:
    return run.path / "stages" / f"{stage.name}.json"


def _finished_or_run(stage: Any, context: StageContext) -> dict[str, Any]:
    file = _stage_file(context.run, stage)
    if file.exists():
        context.view.stage_finished(stage.name, "already done")
        return json.loads(file.read_text(encoding="utf-8"))
    entry = RUNNERS[stage.kind](stage, context)
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json_text(entry, indent=2) + "\n")
    context.view.stage_finished(stage.name, what_was_learnt([entry]))
    return entry


def what_was_learnt(entries: Sequence[Mapping[str, Any]]) -> str:
    """One line about the last stage that can tell: held-out success before and after, or what was compared."""
    for entry in reversed(entries):
        evaluations = entry.get("evaluations", ())
        if len(evaluations) >= 2:
            return _change(evaluations[0], evaluations[-1])
        if rows := entry.get("comparison"):
            best = max(rows, key=lambda row: row["gain_mean"])
            gains = f"{best['algorithm']} gained most in held-out pass@1 ({best['gain_mean']:+.2f})"
            return f"{gains}, the median of {len(rows)} algorithms {_median(rows):+.2f}"
        if measured := entry.get("held_out"):
            return ", ".join(f"{name} {value:.2f}" for name, value in measured.items() if name != "num_rows")
        if "num_rows" in entry:
            return f"{entry['num_rows']} rows written"
    return "no evaluation to compare"


def _median(rows: Sequence[Mapping[str, Any]]) -> float:
    return statistics.median(row["gain_mean"] for row in rows)


def _change(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    is_graded = first.get("score", first["pass@1"]) != first["pass@1"] or last.get("score", 0) != last["pass@1"]
    name, key = ("score", "score") if is_graded and "score" in last else ("pass@1", "pass@1")
    thinking = [evaluation["share_thinking"] for evaluation in (first, last)]
    thinks = f"thinks in {thinking[0]:.0%} -> {thinking[1]:.0%} of its answers, " if max(thinking) > 0.02 else ""
    return (
        f"held-out {name} {first[key]:.2f} -> {last[key]:.2f}, {thinks}"
        f"{first['length_mean']:.0f} -> {last['length_mean']:.0f} tokens long"
    )


def _model_path(run: RunDirectory, recipe: Recipe) -> Callable[[str], Path]:
    """Where a stage's `model` lies: an earlier stage's output, a bundled name or a directory."""
    names = {stage.name for stage in recipe.stages}
    return lambda name: run.models / name if name in names else resolve_model(name)


def _data_path(run: RunDirectory, recipe: Recipe) -> Callable[[str], Path]:
    """Where a stage's `data` lies: what an earlier stage wrote, or a file."""
    names = {stage.name for stage in recipe.stages}
    return lambda name: run.path / "data" / f"{name}.jsonl" if name in names else Path(name)


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "not installed"


def _summary(
    recipe: Recipe, run: RunDirectory, command: str, started: float, entries: list[dict[str, Any]]
) -> dict[str, Any]:
    transcripts = [transcript for entry in entries for transcript in entry.get("transcripts", ())]
    return {
        "run": run.path.name,
        "recipe": recipe.name,
        "description": recipe.description,
        "command": command,
        "seed": recipe.seed,
        "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "hardware": {"machine": platform.machine(), "system": platform.system(), "threads": torch.get_num_threads()},
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(started)),
        "seconds": sum(entry["seconds"] for entry in entries),
        "stages": [{key: value for key, value in entry.items() if key != "transcripts"} for entry in entries],
        "learnt": what_was_learnt(entries),
        "transcripts": transcripts,
        "control": _control(run.path, recipe),
    }


def _control(run_dir: Path, recipe: Recipe) -> dict[str, Any] | None:
    """What the run `<name>-control` beside this one found, if there is one of the same seed."""
    file = run_dir.with_name(f"{run_dir.name}-control") / "summary.json"
    if not file.exists():
        return None
    summary = json.loads(file.read_text(encoding="utf-8"))
    evaluations = [evaluation for stage in summary["stages"] for evaluation in stage.get("evaluations", ())]
    if summary["seed"] != recipe.seed or not evaluations:
        return None
    return {"name": summary["run"], "evaluations": [evaluations[0], evaluations[-1]]}


@contextmanager
def _stop_request() -> Iterator[Callable[[], bool]]:
    """Whether the user has asked to stop. The first request waits for the end of a step, a second one does not."""
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield lambda: bool(asked)
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)
