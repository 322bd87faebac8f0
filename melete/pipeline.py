"""Runs a recipe: each stage in order, unchanged ones skipped, one that was cut off continued; then the report."""

from __future__ import annotations

import io
import json
import platform
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from melete.errors import TrainingError
from melete.live import View
from melete.models.card import Card, licence_of, write_card
from melete.models.places import resolve_model
from melete.report.build import build_report
from melete.runs.artefacts import (
    changes,
    drop_begun,
    drop_records,
    read_begun,
    read_record,
    reasons_text,
    write_begun,
    write_record,
)
from melete.runs.atomic import json_text
from melete.runs.directory import RunDirectory
from melete.runs.trackers import Trackers
from melete.schema import Recipe
from melete.stages import RUNNERS, StageContext
from melete.states import Choice, StageState, choose, last_step, made_from, stage_states

__all__ = ["StageState", "run_quietly", "run_recipe", "stage_states"]
OF_THE_PROCESS = ("command", "versions", "hardware")  # that made the last stage
LIBRARIES = ("melete", "torch", "transformers", "tokenizers", "safetensors", "numpy")


def run_quietly(recipe: Recipe, run_dir: Path) -> None:
    """Runs a recipe without a word; what it did is in the files of the run. One stage alone has no report."""
    with View([stage.name for stage in recipe.stages], True, console=Console(file=io.StringIO())) as view:
        command, with_report = f"melete run {run_dir.name}.json", len(recipe.stages) > 1
        run_recipe(recipe, run_dir, view=view, command=command, with_report=with_report)


def run_recipe(
    recipe: Recipe,
    run_dir: Path,
    *,
    view: View,
    command: str,
    with_report: bool = True,
    from_stage: str = "",
    only: str = "",
    track: Sequence[str] = (),
) -> Path:
    """Makes what is not made or not up to date and returns the run's directory.

    With `from_stage` that stage and all that read it are made again; with `only` no other stage is touched. Raises
    `ModelError` for a model that is not there, before anything is written; `RunError` when the directory belongs to
    another recipe or process or cannot be written, when something in it has changed on the disk, or when `only` reads
    what is not ready; `RecipeError` for the name of no stage; and `Interrupted` after a Ctrl-C or SIGTERM, when
    everything needed to continue is saved.
    """
    choice = choose(recipe, from_stage, only)
    _refuse_missing_models(recipe, choice)
    if not run_dir.exists():  # what is refused leaves no directory behind
        stage_states(recipe, run_dir, from_stage=from_stage, only=only, command=command)
    with (
        RunDirectory.create_or_open(run_dir, recipe.as_dict()) as run,
        Trackers(run.path, track, recipe.as_dict(), view.message, run.metrics() if track else ()) as trackers,
        _stop_request() as should_stop,
    ):
        run.observers.append(trackers)
        states = stage_states(recipe, run.path, from_stage=from_stage, only=only, command=command)
        run.update_recipe(recipe.as_dict())
        context = StageContext(
            run=run,
            seed=recipe.seed,
            view=view,
            should_stop=should_stop,
            model_path=_model_path(run, recipe),
            data_path=_data_path(run, recipe),
            run_recipe=run_quietly,
        )
        again = {state.name: state.reason for state in states if state.name in choice.forced and state.reason}
        for name in choice.forced:  # all at once, so that an interrupted run goes on without --from
            _start_again(run, name)
            run.forget_runs(name)
        for stage in recipe.stages:
            if stage.name in choice.touched:
                _finished_or_run(stage, recipe, context, again.get(stage.name, ""))
        run.sort_logs([stage.name for stage in recipe.stages])
        _write_summary(recipe, run, command)
        if with_report:
            build_report(run.path)
        return run.path


def _refuse_missing_models(recipe: Recipe, choice: Choice) -> None:
    names = {stage.name for stage in recipe.stages}
    for stage in recipe.stages:
        for source in stage.reads() if stage.name in choice.touched else ():
            if source not in names:
                resolve_model(source)


def _start_again(run: RunDirectory, name: str) -> None:
    """Drops what an earlier making of a stage left; what it made stays until it is replaced."""
    if read_record(run.path, name):
        (run.path / "summary.json").unlink(missing_ok=True)  # it speaks of a stage that is no longer there
    drop_records(run.path, name)
    run.forget(name)


def _finished_or_run(stage: Any, recipe: Recipe, context: StageContext, forced: str) -> None:
    """Runs a stage unless it is done; says so, or why it is made again."""
    run, name = context.run, stage.name
    now = made_from(stage, recipe, run.path)
    record, begun = read_record(run.path, name), read_begun(run.path, name)
    known = record or begun
    reasons = [forced] if forced else changes(known.made_from, now) if known else []
    if record and not reasons:
        drop_begun(run.path, name)
        context.view.stage_finished(name, "already done")
        return
    if reasons:
        saved = None if record else last_step(run.path, name)
        dropped = "" if saved is None else f"; what it had saved at step {saved} cannot be continued"
        context.view.message(f"{name}: made again: {reasons_text(reasons)}{dropped}")
    if reasons or not begun:
        _start_again(run, name)
        write_begun(run.path, name, now)
    elif last_step(run.path, name) is None:
        run.truncate_metrics(name, 0)  # a stage without checkpoints starts from nothing
    entry = _made(stage, context)
    if entry.get("model"):
        _write_card(stage, recipe, context, entry)
    begun = read_begun(run.path, name)
    assert begun is not None
    write_record(run.path, name, begun, entry)
    context.view.stage_finished(name, what_was_learnt([entry]))


def _made(stage: Any, context: StageContext) -> dict[str, Any]:
    try:
        return RUNNERS[stage.kind](stage, context)
    except TrainingError as error:  # which stage a step belongs to is not known further down
        raise TrainingError(error.what, place=f"{stage.name}, {error.place}", remedy=error.remedy) from error


def _write_card(stage: Any, recipe: Recipe, context: StageContext, entry: Mapping[str, Any]) -> None:
    """The card of what a stage made; a base made from nothing has none to take a licence from."""
    base = getattr(stage, "model", "")
    # not as it was typed: other options, and a run directory elsewhere, make the same model
    is_command = [other.name for other in recipe.stages] == [recipe.name]
    card = Card.of_stage(
        stage.model_dump(mode="json"),
        recipe=recipe.name,
        seed=recipe.seed,
        base=base,
        licence=licence_of(context.model_path(base)) if base else "",
        command=f"melete {recipe.name}" if is_command else f"melete run {recipe.name}",
        data=[*stage.reads_data(), *(f"task {task.name}" for task in stage.task_tables().values())],
        entry=entry,
    )
    write_card(card, context.run.path / str(entry["model"]))


def _write_summary(recipe: Recipe, run: RunDirectory, command: str) -> None:
    """Writes `summary.json`, unless it says the same already: it tells when, by what and how the run was made."""
    summary = json.loads(json_text(_summary(recipe, run, command)))
    file = run.path / "summary.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if any(before.get(key) != value for key, value in summary.items() if key not in OF_THE_PROCESS):
        run.write_summary(summary)


def what_was_learnt(entries: Sequence[Mapping[str, Any]]) -> str:
    """One line about the last stage that can tell: held-out success before and after, or what was compared."""
    return next((told for entry in reversed(entries) if (told := _told(entry))), "no evaluation to compare")


def _told(entry: Mapping[str, Any]) -> str:
    told = ""
    evaluations = entry.get("evaluations", ())
    if len(evaluations) >= 2:
        told = _change(evaluations[0], evaluations[-1])
    elif checkpoints := entry.get("checkpoints"):
        told = _examined(checkpoints)
    elif claims := entry.get("claims"):
        told = f"{sum(claim['verdict'] == 'holds' for claim in claims)} of {len(claims)} claims hold"
    elif rows := entry.get("comparison"):
        best = max(rows, key=lambda row: row["gain_mean"])
        gains = f"{best['algorithm']} gained most in held-out pass@1 ({best['gain_mean']:+.2f})"
        told = f"{gains}, the median of {len(rows)} algorithms {_median(rows):+.2f}"
    elif measured := entry.get("held_out"):
        told = ", ".join(f"{name} {value:.2f}" for name, value in measured.items() if name != "num_rows")
    elif "num_rows" in entry and entry.get("data"):
        told = f"{entry['num_rows']} rows written"
    return told


def _examined(checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """pass@1 of every checkpoint on the exam's first task."""
    task = next(iter(checkpoints[0]["tasks"]))
    told = ", ".join(f"{one['label']} {one['tasks'][task]['pass@1']:.2f}" for one in checkpoints)
    return f"held-out pass@1 on {task}: {told}"


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


def _summary(recipe: Recipe, run: RunDirectory, command: str) -> dict[str, Any]:
    """The stages that are finished, whenever they were made."""
    records = {stage.name: read_record(run.path, stage.name) for stage in recipe.stages}
    finished = [record for record in records.values() if record]
    unfinished = [name for name, record in records.items() if not record]
    entries = [record.entry for record in finished]
    transcripts = [transcript for entry in entries for transcript in entry.get("transcripts", ())]
    return {
        "run": run.path.name,
        "recipe": recipe.name,
        "description": recipe.description,
        "command": command,
        "seed": recipe.seed,
        "versions": {name: _version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "hardware": {"machine": platform.machine(), "system": platform.system(), "threads": torch.get_num_threads()},
        "started": min((record.started for record in finished), default=""),
        "seconds": sum(entry["seconds"] for entry in entries),
        "stages": [{key: value for key, value in entry.items() if key != "transcripts"} for entry in entries],
        "learnt": what_was_learnt(entries),
        "transcripts": transcripts,
        "control": _control(run.path, recipe),
        **({"unfinished": unfinished} if unfinished else {}),
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
