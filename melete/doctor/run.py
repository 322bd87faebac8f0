"""A run: how far it came, what stopped it, the command that continues, its health, and what differs from here."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from melete.config import load_recipe, parse_recipe
from melete.doctor.extras import installed
from melete.doctor.files import damaged_files
from melete.doctor.lines import Level, Line, size
from melete.doctor.machine import LITTLE_DISK
from melete.errors import MeleteError, RunError
from melete.health import health_of_run
from melete.planning import load_estimates
from melete.planning.machine import free_disk, free_memory
from melete.runs.directory import LOCK, METRICS, read_rows
from melete.runs.listing import RunFacts, is_locked, is_run, read_run
from melete.schema import Recipe
from melete.states import StageState, stage_states, without_option

_LEVEL_OF: Mapping[str, Level] = {"serious": "problem", "warning": "note", "note": "note"}
_TOLD = {"serious": "serious", "warning": "warning", "note": "note"}


def look_at_run(run_dir: Path) -> Iterator[Line]:
    """What is to be said about a run, finished or not.

    Raises `RunError` for a directory that is none.
    """
    if not is_run(run_dir):
        what = "this is not the directory of a run: it has no recipe.json"
        raise RunError(what, place=str(run_dir), remedy="name a directory that `melete run` made; melete runs ls")
    facts, is_running = read_run(run_dir), is_locked(run_dir)
    tables = _tables(run_dir)
    recipe, refusal = _recipe(tables)
    found: list[Line] = []

    def continuing(from_stage: str = "") -> str:
        return command_for(run_dir, tables, recipe, from_stage)

    yield _state(facts, is_running)
    yield from _lock(run_dir, facts, is_running)
    if refusal:
        yield refusal
    if not is_running:
        names = [str(stage.get("name", "")) for stage in tables.get("stage", ()) if isinstance(stage, dict)]
        found = list(damaged_files(run_dir, names, continuing))
        yield from found
        if recipe:
            yield from _left_to_do(
                run_dir, recipe, continuing(), is_damaged=any(one.level == "problem" for one in found)
            )
    yield from _health(run_dir, tables)
    yield from _versions(run_dir)
    yield _disk(run_dir, facts)
    if not found and not is_running:
        yield Line("files", "logs, records, artefacts and checkpoints are as they were written")


def command_for(run_dir: Path, tables: Mapping[str, Any], recipe: Recipe | None, from_stage: str = "") -> str:
    """The command that continues this run with the settings that it has, whatever it was begun with."""
    name = str(tables.get("name", ""))
    try:
        is_bundled = recipe is not None and load_recipe(name).as_dict() == recipe.as_dict()
    except MeleteError:
        is_bundled = False
    words = ["melete", "run", name if is_bundled else str(run_dir / "recipe.json")]
    if run_dir.absolute() != Path("runs", name).absolute():
        place = run_dir.absolute() if run_dir.name in ("", "..") else run_dir
        words += ["--runs-dir", str(place.parent), "--name", place.name]
    return shlex.join([*words, *(["--from", from_stage] if from_stage else [])])


def _tables(run_dir: Path) -> dict[str, Any]:
    try:
        found = json.loads((run_dir / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _recipe(tables: dict[str, Any]) -> tuple[Recipe | None, Line | None]:
    try:
        return parse_recipe(tables, place="recipe.json"), None
    except MeleteError as error:
        says = f"it cannot be continued from here: {' '.join(error.what.split())}"
        mend = "give commands in the directory where the run was begun, with the version that began it"
        return None, Line("recipe", says, "note", mend)


def _state(facts: RunFacts, is_running: bool) -> Line:
    topic, told = "run", {"state": facts.state, "path": str(facts.path)}
    if facts.state == "unreadable":
        return Line(topic, f"{facts.name} cannot be read: {facts.problem}", "problem", "restore its files", told)
    done = sum(stage.state == "done" for stage in facts.stages)
    says = f"{facts.name}: {facts.says}, {done} of {len(facts.stages)} stages done"
    return Line(topic, says, "ok" if is_running or facts.state == "finished" else "note", facts=told)


def _lock(run_dir: Path, facts: RunFacts, is_running: bool) -> Iterator[Line]:
    """Who works in it; who should not hold it any more; and what a process that has ended may have ended of."""
    number = _number(run_dir / LOCK)
    is_alive = number is not None and _is_alive(number)
    if not is_running:
        if facts.state == "stopped" and number is not None:
            needed = max((one.get("memory_bytes") or 0 for one in load_estimates(run_dir).values()), default=0)
            free = free_memory()
            memory = f" (it was estimated at {size(needed)}, {size(free)} are available now)" if needed and free else ""
            says = f"process {number} ended before the run did. If it said nothing, it was killed, mostly for memory"
            yield Line("ended", says + memory, "note", facts={"process": number})
    elif is_alive:
        yield Line("lock", f"process {number} is working in it; what is being written is not looked at")
    elif holders := _holders(run_dir / LOCK):
        says = f"stale: process {number} has ended, and what it had started still holds the lock"
        mend = f"kill {' '.join(map(str, holders))}"
        yield Line("lock", says, "problem", mend, {"process": number, "holders": holders})
    else:
        says = f"process {number} of another machine or container is working in it"
        yield Line("lock", says, "note", "wait for it, or end it there")


def _number(lock: Path) -> int | None:
    try:
        text = lock.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


def _holders(lock: Path, processes: Path = Path("/proc")) -> list[int]:
    """Processes that have this file open, as far as the system tells."""
    found = set[int]()
    target = lock.resolve()
    for process in processes.glob("[0-9]*"):
        try:
            if any(Path(os.readlink(entry)) == target for entry in (process / "fd").iterdir()):
                found.add(int(process.name))
        except OSError:  # it has ended, or is somebody else's
            continue
    return sorted(found - {os.getpid()})


def _left_to_do(run_dir: Path, recipe: Recipe, command: str, *, is_damaged: bool) -> Iterator[Line]:
    """What the command that continues would do."""
    try:
        states = stage_states(recipe, run_dir, command=command)
    except MeleteError as error:
        if not is_damaged:  # else it has been said
            yield Line("stages", error.what, "problem", error.remedy)
        return
    unfinished = [state for state in states if state.state in ("continue", "make")]
    again = [state for state in states if state.state == "again"]
    if unfinished:
        says = ", ".join(f"{state.name} ({_would(state)})" for state in unfinished[:6])
        says += f" and {len(unfinished) - 6} more" if len(unfinished) > 6 else ""
        facts = {"stages": [state.name for state in unfinished], "command": command}
        yield Line("unfinished", says, "note", f"continue: {command}", facts)
    if again:
        says = "; ".join(f"{state.name}: {state.reason}" for state in again[:4])
        says += f"; and {len(again) - 4} more" if len(again) > 4 else ""
        facts = {"stages": [state.name for state in again], "command": without_option(command, "--from")}
        mend = "leave the run as it is to keep them; the command makes them again: " + command
        yield Line("out of date", says, "note", mend, facts)


def _would(state: StageState) -> str:
    return f"continues at step {state.step}" if state.state == "continue" else "from its beginning"


def _health(run_dir: Path, tables: Mapping[str, Any]) -> Iterator[Line]:
    try:
        findings = health_of_run(read_rows(run_dir / METRICS), tables)
    except (
        RunError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ):  # damage, which has been said, or another version
        return
    for finding in findings:
        says = f"{finding.stage}, step {finding.last_step}: {_TOLD[finding.severity]}: {finding.says} {finding.cause}"
        yield Line(
            "health", says, _LEVEL_OF[finding.severity], f"try {finding.remedy}", finding.as_dict() | {"says": says}
        )


def _versions(run_dir: Path) -> Iterator[Line]:
    try:
        versions = json.loads((run_dir / "summary.json").read_text(encoding="utf-8")).get("versions") or {}
        here = {name: platform.python_version() if name == "python" else installed(name) for name in versions}
    except (OSError, ValueError, AttributeError):
        return
    other = [f"{name} {was} (here {here[name]})" for name, was in versions.items() if was != here[name]]
    if other:
        says = f"made with {', '.join(other)}: the last digits of numbers may differ here"
        yield Line("versions", says, "note", "install the same versions to repeat it exactly", {"made_with": versions})


def _disk(run_dir: Path, facts: RunFacts) -> Line:
    free = free_disk(run_dir)
    left = {stage.name for stage in facts.stages if stage.state != "done"}
    estimates = load_estimates(run_dir)
    needed = sum(int(estimates[name].get("disk_bytes") or 0) for name in left & estimates.keys())
    told = {"free_bytes": free, "needed_bytes": needed}
    says = f"{size(free)} free" + (f", about {size(needed)} needed" if needed else "")
    if free is not None and free < needed:
        return Line("disk", says, "problem", "delete old runs or files of other programs", told)
    if free is not None and left and free < LITTLE_DISK:
        return Line("disk", f"{says}: little", "note", "delete old runs or files of other programs", told)
    return Line("disk", says, facts=told)
