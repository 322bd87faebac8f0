"""Runs as a person looks them up: which there are, how far each came, and what it found. Reads only."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from melete.errors import RunError
from melete.runs.directory import LOCK, METRICS, read_rows
from melete.suggest import did_you_mean

StageState = Literal["done", "begun", "waiting"]
RunState = Literal["finished", "running", "stopped", "not begun", "unreadable"]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation: of a stage before a step or, in an exam, of a model on a task; `file` holds what was sampled."""

    stage: str
    numbers: Row
    file: Path
    step: int = 0
    model: str = ""
    task: str = ""


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What is known of a stage; `entry` is empty until it is finished."""

    name: str
    kind: str
    state: StageState
    step: int = 0
    num_steps: int = 0
    seconds: float = 0.0
    estimated_seconds: float | None = None
    entry: Row = field(default_factory=dict)
    evaluated: tuple[Evaluated, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known of a run; of one that cannot be read only its place, and `problem` says why."""

    path: Path
    name: str
    state: RunState
    recipe_name: str = ""
    seed: int = 0
    started: str = ""
    learnt: str = ""
    stages: tuple[StageFacts, ...] = ()
    recipe: Row = field(default_factory=dict)
    problem: str = ""

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def current(self) -> StageFacts | None:
        """The first stage that is not done."""
        return next((stage for stage in self.stages if stage.state != "done"), None)

    @property
    def says(self) -> str:
        """The state in words."""
        current = self.current
        if self.state == "unreadable":
            return f"cannot be read: {self.problem}"
        if self.state in ("finished", "not begun") or current is None:
            return self.state
        where = f"in {current.name}" if self.state == "running" else f"at {current.name}"
        steps = f", step {current.step} of {current.num_steps}" if current.num_steps else ""
        return f"{self.state} {where}{steps if current.state == 'begun' else ''}"

    def as_dict(self) -> dict[str, Any]:
        """Everything, for scripts."""
        stages = [
            {
                **{key: value for key, value in asdict(stage).items() if key != "evaluated"},
                "evaluations": [
                    {"step": one.step, "model": one.model, "task": one.task, **one.numbers} for one in stage.evaluated
                ],
            }
            for stage in self.stages
        ]
        return {
            "path": str(self.path),
            "name": self.name,
            "recipe": self.recipe_name,
            "seed": self.seed,
            "state": self.state,
            "says": self.says,
            "started": self.started,
            "seconds": self.seconds,
            "learnt": self.learnt,
            "stages": stages,
        }


def is_run(path: Path) -> bool:
    return (path / "recipe.json").is_file()


def list_runs(runs_dir: Path) -> list[RunFacts]:
    """The runs of a directory, the one begun last at the end.

    Raises `RunError` when there is no such directory.
    """
    if not runs_dir.is_dir():
        raise RunError("there is no such directory", place=str(runs_dir), remedy="name one with --runs-dir")
    found = [read_run(path) for path in runs_dir.iterdir() if is_run(path)]
    return sorted(found, key=lambda run: (run.started, run.name))


def find_run(name: str, runs_dir: Path) -> RunFacts:
    """The run of this name, or in the directory that is named.

    Raises `RunError` for a directory that is no run, one that cannot be read, and an unknown name, with the nearest.
    """
    path = next((place for place in (runs_dir / name, Path(name)) if is_run(place)), None)
    if path is None:
        known = sorted(place.name for place in runs_dir.iterdir() if is_run(place)) if runs_dir.is_dir() else []
        if (existing := Path(name)).is_dir() or (existing := runs_dir / name).is_dir():
            what = "this is not the directory of a run: it has no recipe.json"
            raise RunError(what, place=str(existing), remedy="name a directory that `melete run` made")
        raise RunError(
            f"there is no run {name}; {did_you_mean(name, known)}", place=str(runs_dir), remedy="melete runs ls"
        )
    run = read_run(path)
    if run.problem:
        raise RunError(f"the run cannot be read: {run.problem}", place=str(path), remedy="restore its files")
    return run


def read_run(path: Path) -> RunFacts:
    """What the files of a run say, finished or not."""
    try:
        return _read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return RunFacts(path, path.name, "unreadable", problem=f"{type(error).__name__}: {error}")


def _read(path: Path) -> RunFacts:
    recipe = json.loads((path / "recipe.json").read_text(encoding="utf-8"))
    summary = _json(path / "summary.json")
    rows = list(read_rows(path / METRICS))
    estimates = _json(path / "plan.json").get("stages", {})
    stages = tuple(_stage(path, stage, rows, estimates.get(stage["name"], {})) for stage in recipe["stage"])
    if all(stage.state == "done" for stage in stages):
        state: RunState = "finished"
    elif is_locked(path):
        state = "running"
    else:
        state = "not begun" if all(stage.state == "waiting" for stage in stages) else "stopped"
    return RunFacts(
        path=path,
        name=path.name,
        state=state,
        recipe_name=recipe["name"],
        seed=recipe["seed"],
        started=str(summary.get("started") or _started(path)),
        learnt=str(summary.get("learnt", "")),
        stages=stages,
        recipe=recipe,
    )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _started(path: Path) -> str:
    """When the run was begun: its lock is made then and stays."""
    file = path / LOCK if (path / LOCK).exists() else path / "recipe.json"
    state = file.stat()
    moment = getattr(state, "st_birthtime", min(state.st_ctime, state.st_mtime))
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment))


def is_locked(path: Path) -> bool:
    """Whether a process is working in this run directory."""
    try:
        with (path / LOCK).open(encoding="utf-8") as lock:
            # a shared lock is let go at once; it fails where a run holds its own
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _stage(path: Path, settings: Row, rows: Sequence[Row], estimate: Row) -> StageFacts:
    name = settings["name"]
    entry = _json(path / "stages" / f"{name}.json")
    own = [row for row in rows if row.get("stage") == name]
    saved = _last_saved(path / "checkpoints" / name)
    is_begun = bool(own or saved or (path / "stages" / f"{name}.begun.json").exists())
    steps = [int(row["step"]) + 1 for row in own if "kind" not in row and "step" in row]
    return StageFacts(
        name=name,
        kind=settings["kind"],
        state="done" if entry else "begun" if is_begun else "waiting",
        step=max(steps, default=0),
        num_steps=settings.get("num_steps") or 0,
        seconds=float(entry.get("seconds", saved.get("seconds", 0.0))),
        estimated_seconds=estimate.get("seconds"),
        entry=entry,
        evaluated=tuple(_evaluated(path, name, entry, own)),
    )


def _last_saved(checkpoints: Path) -> dict[str, Any]:
    """The state beside the newest checkpoint of a stage that is under way."""
    newest = max(checkpoints.glob("step-*"), key=lambda place: place.name, default=None)
    return _json(newest / "state.json") if newest else {}


def _evaluated(path: Path, stage: str, entry: Row, rows: Sequence[Row]) -> Iterator[Evaluated]:
    """From the stage's entry or, where it is not finished, from what it has logged so far."""
    folder = path / "evaluations" / stage
    if checkpoints := entry.get("checkpoints"):
        for number, one in enumerate(checkpoints):
            for task, numbers in one["tasks"].items():
                file = _exam_file(folder, one["model"], number, task)
                yield Evaluated(stage, numbers, file, model=one["model"], task=task)
        return
    logged = entry.get("evaluations") or [row for row in rows if row.get("kind") == "evaluation"]
    models = list(dict.fromkeys(row["model"] for row in logged if "model" in row))
    for row in logged:
        if "model" in row:
            file = _exam_file(folder, row["model"], models.index(row["model"]), row["task"])
            yield Evaluated(stage, row, file, model=row["model"], task=row["task"])
        else:
            yield Evaluated(stage, row, folder / f"step-{row['step']:06d}.jsonl", step=row["step"])


def _exam_file(folder: Path, model: str, number: int, task: str) -> Path:
    """What a model wrote on a task; the folder of a model that is a path begins with its place in the list."""
    named = folder / model / f"{task}.jsonl"
    return next(folder.glob(f"{number}-*/{task}.jsonl"), named) if Path(model).name != model else named


def with_interval(numbers: Row, key: str) -> str:
    """A number with its 95 % interval where it has one.

    >>> with_interval({"pass@1": 0.5, "pass@1/low": 0.4, "pass@1/high": 0.61}, "pass@1")
    '0.50 [0.40, 0.61]'
    """
    value, low, high = (numbers.get(name) for name in (key, f"{key}/low", f"{key}/high"))
    if value is None:
        return "-"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def key_figures(stage: StageFacts) -> list[str]:
    """What a stage found, in a few lines."""
    entry, lines = stage.entry, list[str]()
    trained = [one.numbers for one in stage.evaluated if not one.model]
    if trained:
        lines.append(f"pass@1 {' -> '.join(with_interval(one, 'pass@1') for one in _ends(trained))}")
        lengths = [f"{one['length_mean']:.0f}" for one in _ends(trained) if one.get("length_mean") is not None]
        lines.append(f"length {' -> '.join(lengths)} tokens")
    if "num_rows" in entry:
        share = entry.get("share_kept")
        kept = "" if share is None else f", {share:.0%} of {entry.get('num_sampled')} samples kept"
        lines.append(f"{entry['num_rows']} rows{kept}")
    if measured := entry.get("held_out"):
        lines.append("held out: " + ", ".join(f"{name} {_short(value)}" for name, value in measured.items()))
    if rows := entry.get("comparison"):
        best = max(rows, key=lambda row: row["gain_mean"])
        lines.append(f"{len(rows)} algorithms; {best['algorithm']} gained most, {best['gain_mean']:+.2f}")
    for claim in entry.get("claims") or ():
        lines.append(f"{claim['verdict']}: {claim['title']}")
    for finding in entry.get("health") or ():
        lines.append(f"{finding['severity']}: {finding['says']}")
    return lines


def _ends(rows: Sequence[Row]) -> list[Row]:
    return [rows[0], rows[-1]] if len(rows) > 1 else list(rows)


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def exam_table(stage: StageFacts) -> tuple[list[str], list[list[str]]]:
    """Models by tasks of an exam: the head, and a row of pass@1 (or the score) with its interval for each model."""
    tasks = list(dict.fromkeys(one.task for one in stage.evaluated if one.model))
    labels = {row["model"]: row.get("label", row["model"]) for row in stage.entry.get("checkpoints", ())}
    found = {(one.model, one.task): one.numbers for one in stage.evaluated if one.model}
    models = list(dict.fromkeys(one.model for one in stage.evaluated if one.model))
    rows = [
        [str(labels.get(model, model)), *(_best(found.get((model, task), {})) for task in tasks)] for model in models
    ]
    return ["model", *tasks], rows


def _best(numbers: Row) -> str:
    is_graded = numbers.get("score") is not None and numbers.get("score") != numbers.get("pass@1")
    return with_interval(numbers, "score" if is_graded else "pass@1")
