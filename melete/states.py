"""Which stages of a run are done, and which have to be made, again or on from where they were cut off; and why.

A stage is made from its settings, the run's seed, the content of what it reads, and the code. Where none of these has
changed since, what it made stands. Content decides, not times. Loads no torch.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from melete.errors import RecipeError, RunError
from melete.models.places import resolve_model
from melete.recipe_graph import inputs_of, readers_of, sources_of
from melete.runs.artefacts import (
    changes,
    code_version,
    content,
    digest,
    read_begun,
    read_record,
    reasons_text,
    refuse_changed,
)
from melete.schema import Recipe, Stage
from melete.suggest import did_you_mean

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FILE_SETTINGS = ("path", "held_out")  # of tasks out of files


@dataclass(frozen=True, slots=True)
class StageState:
    """What a run would do about a stage; `seconds` is what its making took, `step` where it would continue."""

    name: str
    state: Literal["done", "continue", "make", "again", "left out"]
    reason: str = ""
    seconds: float | None = None
    step: int | None = None

    def __str__(self) -> str:
        words = {
            "done": "done",
            "continue": f"would continue at step {self.step}",
            "make": "would be made",
            "again": "would be made again",
            "left out": "left out",
        }[self.state]
        return f"{words}: {self.reason}" if self.reason else words


@dataclass(frozen=True, slots=True)
class Choice:
    """What `--from` and `--only` choose: the stages that are made again in any case, and those that may be touched."""

    forced: frozenset[str]
    touched: frozenset[str]
    from_stage: str
    only: str


def choose(recipe: Recipe, from_stage: str = "", only: str = "") -> Choice:
    """The stages that are chosen.

    Raises `RecipeError` for a name that no stage has, with the nearest.
    """
    names = [stage.name for stage in recipe.stages]
    for option, name in (("--from", from_stage), ("--only", only)):
        if name and name not in names:
            raise RecipeError(f"{option} {name}: {recipe.name} has no such stage; {did_you_mean(name, names)}")
    touched = frozenset([only] if only else names)
    forced = frozenset([from_stage, *readers_of(recipe, from_stage)] if from_stage else [])
    return Choice(forced & touched, touched, from_stage, only)


def stage_states(
    recipe: Recipe, run_dir: Path, *, from_stage: str = "", only: str = "", command: str = ""
) -> list[StageState]:
    """What `melete run` would do now about each stage, in order; reads only.

    Raises `RunError` where it would refuse to work: when something that a stage made has changed on the disk, or when
    `only` reads what is not ready; and `RecipeError` for a name that no stage has. `command` is named in remedies.
    """
    choice = choose(recipe, from_stage, only)
    looked_at = {*sources_of(recipe, only), only} if only else {stage.name for stage in recipe.stages}
    found: dict[str, StageState] = {}
    for stage in recipe.stages:
        if stage.name in looked_at:
            found[stage.name] = _state(stage, recipe, run_dir, choice, found)
        else:
            found[stage.name] = StageState(stage.name, "left out")
    if only:
        _refuse_unready(recipe, only, found, command or f"melete run {recipe.name}")
    return list(found.values())


def _state(stage: Stage, recipe: Recipe, run_dir: Path, choice: Choice, before: Mapping[str, StageState]) -> StageState:
    name = stage.name
    unready = [other for other in inputs_of(stage, before) if before[other].state != "done"]
    record, begun = read_record(run_dir, name), read_begun(run_dir, name)
    known = record or begun
    if not known:
        return StageState(name, "make")
    now = made_from(stage, recipe, run_dir, unready)
    if name in choice.forced:
        return StageState(name, "again", f"--from {choice.from_stage}")
    if reasons := changes(known.made_from, now):
        return StageState(name, "again", reasons_text(reasons))
    if record:
        refuse_changed(run_dir, name, record)
    if unready:
        is_again = before[unready[0]].state == "again"
        return StageState(name, "again", f"{unready[0]}, which it reads, is {'made again' if is_again else 'not made'}")
    if record:
        return StageState(name, "done", seconds=record.entry.get("seconds"))
    step = last_step(run_dir, name)
    return StageState(name, "make" if step is None else "continue", step=step)


def last_step(run_dir: Path, stage: str) -> int | None:
    """The step of the last checkpoint of a stage, if there is one."""
    steps = [int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints" / stage).glob("step-*")]
    return max(steps, default=None)


def _refuse_unready(recipe: Recipe, only: str, found: Mapping[str, StageState], command: str) -> None:
    unready = [found[name] for name in sources_of(recipe, only) if found[name].state != "done"]
    if unready:
        told = "; ".join(f"{state.name} {_not_ready(state)}" for state in unready)
        command = without_option(command.replace(" --dry-run", ""), "--from", "--only")
        makes = " && ".join(f"{command} --only {state.name}" for state in unready)
        raise RunError(f"--only {only}: what it needs is not ready: {told}", remedy=f"make it first: {makes}")


def _not_ready(state: StageState) -> str:
    if state.state == "again":
        return f"has to be made again ({state.reason})"
    return "is not finished" if state.state == "continue" else "is not made"


def without_option(command: str, *options: str) -> str:
    """The command without these options and their values.

    >>> without_option("melete run r1 --from dev1 --only=dev2 --set seed=1", "--from", "--only")
    'melete run r1 --set seed=1'
    """
    words: list[str] = []
    given = iter(shlex.split(command))
    for word in given:
        if word in options:
            next(given, None)
        elif not word.startswith(tuple(f"{option}=" for option in options)):
            words.append(word)
    return shlex.join(words)


def made_from(stage: Stage, recipe: Recipe, run_dir: Path, unknown: Collection[str] = ()) -> dict[str, Any]:
    """All that decides what the stage makes. An input among `unknown`, or not made yet, is None.

    Raises `ModelError` for a model outside the run that cannot be used.
    """
    names = {other.name for other in recipe.stages}
    inputs: dict[str, str | None] = {}
    for name in inputs_of(stage, names):
        record = None if name in unknown else read_record(run_dir, name)
        inputs[name] = digest(record.wrote) if record else None
    for name in set(stage.reads()) - names:
        inputs[name] = digest(content(resolve_model(name)))
    for name in [*(set(stage.reads_data()) - names), *_task_files(stage)]:
        inputs[name] = digest(content(Path(name)))
    for name, path in getattr(stage, "reads_files", dict[str, Path])().items():
        inputs[name] = digest(content(path))
    settings = stage.model_dump(mode="json")
    for path, source in _own_code(settings):
        inputs[path] = digest(content(source))
    return {"settings": settings, "seed": recipe.seed, "inputs": inputs, "code": code_version()}


def _task_files(stage: Stage) -> list[str]:
    """Files and directories that hold the problems of a task."""
    tables = [task.own_settings() for task in stage.task_tables().values()]
    named = [value for table in tables for key, value in _texts(table) if key in _FILE_SETTINGS]
    return [name for name in dict.fromkeys(named) if name and Path(name).exists()]  # "" is no file, but Path("") is "."


def _own_code(settings: Any) -> Iterator[tuple[str, Path]]:
    """Functions of the user's own, such as `mypackage.rewards:mine`, with the file of their module."""
    paths = dict.fromkeys(text for pair in _texts(settings) for text in pair if _IMPORT_PATH.fullmatch(text))
    for path in paths:
        try:
            spec = importlib.util.find_spec(path.partition(":")[0])
        except (ImportError, ValueError):  # a text that only looks like one
            continue
        if spec and spec.origin and Path(spec.origin).is_file():
            yield path, Path(spec.origin)


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text below `value` with the key it stands at, and every key with an empty text."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name), ""
            yield from _texts(inner, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value
