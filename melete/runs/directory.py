"""The directory of a run: every file that the run writes, and the lock that keeps a second process out.

recipe.json     the resolved recipe            metrics.jsonl   deterministic numbers, one row per step
summary.json    what the report is made of     timings.jsonl   seconds, which differ from run to run
stages/         a record of each stage         rollouts.jsonl  sampled completions with their reward parts
checkpoints/    to continue from               evaluations/    what was written on held-out problems
models/         trained models                 data/           data sets that stages made
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from melete.errors import RunError
from melete.runs.atomic import TEMPORARY, json_text, remove_unfinished, write_atomically, writing

METRICS, TIMINGS, ROLLOUTS = "metrics.jsonl", "timings.jsonl", "rollouts.jsonl"
LOGS = (METRICS, TIMINGS, ROLLOUTS)
LOCK = ".lock"
ARTEFACTS = ("models", "data")  # one model directory or data file for each stage that makes one
OF_A_STAGE = ("checkpoints", "evaluations")  # what a stage keeps besides, in a directory of its own name
RUNS_WITHIN = ("compare", "seeds")  # whole runs of their own, in a directory for each stage or seed


class Observer(Protocol):
    """Hears of each metrics row once it is written, and of stages that are made again."""

    def __call__(self, row: Mapping[str, Any]) -> None:
        """A row that was written."""
        ...

    def forget(self, stage: str) -> None:
        """The rows of `stage` are dropped."""
        ...


class RunDirectory:
    """An open run directory. Use as a context manager: leaving it lets the next process in."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.models = path / "models"
        self.observers: list[Observer] = []
        self._counts: dict[str, Counter[str]] = {}
        self._lock = lock

    @classmethod
    def create_or_open(cls, path: str | Path, recipe: Mapping[str, Any]) -> RunDirectory:
        """Makes the directory, or opens the one that a recipe of the same name made, and locks it.

        A recipe that is there stays as it is until `update_recipe`. Raises `RunError` when the directory cannot be
        written, another process holds it, or another recipe made it; nothing already there is touched in any of these
        cases.
        """
        path = Path(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path, _locked(path))
        try:
            run._adopt(recipe)
        except BaseException:
            run.close()
            raise
        return run

    def _adopt(self, recipe: Mapping[str, Any]) -> None:
        file = self.path / "recipe.json"
        if file.exists():
            _refuse_another(file, recipe)
        else:
            write_atomically(file, json_text(recipe, indent=2) + "\n")
        self._remove_unfinished()
        with writing(self.path):
            self.checkpoints.mkdir(exist_ok=True)
            self.models.mkdir(exist_ok=True)
            for name in LOGS:
                _end_on_whole_row(self.path / name)

    def _remove_unfinished(self) -> None:
        """Deletes what killed processes left half written; a run within this one may be at work, and does so itself."""
        folders = [self.path, *(self.path / place for place in ("stages", *ARTEFACTS))]
        folders += [folder for place in RUNS_WITHIN for folder in self.path.glob(f"{place}/*")]
        folders += [leftover.parent for place in OF_A_STAGE for leftover in self.path.glob(f"{place}/**/{TEMPORARY}*")]
        for folder in folders:
            remove_unfinished(folder)

    def update_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Keeps the recipe as it is now, if any setting of it has changed."""
        resolved = json_text(recipe, indent=2) + "\n"
        if (self.path / "recipe.json").read_text(encoding="utf-8") != resolved:
            write_atomically(self.path / "recipe.json", resolved)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the next process in; the system does so too when this one is killed."""
        self._lock.close()

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """One row of numbers that the same seed and recipe give again, byte for byte."""
        self._append(METRICS, [row])
        for observer in self.observers:
            observer(row)

    def log_timings(self, row: Mapping[str, Any]) -> None:
        """One row of seconds and tokens per second."""
        self._append(TIMINGS, [row])

    def log_rollouts(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Sampled completions, one row each."""
        self._append(ROLLOUTS, rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces `summary.json` as a whole."""
        write_atomically(self.path / "summary.json", json_text(summary, indent=2) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The rows logged so far."""
        return list(read_rows(self.path / METRICS))

    def marks(self, stage: str) -> dict[str, int]:
        """How many rows each log has of `stage`, on the disk for certain: put this into a checkpoint, to `rewind` to.

        Rows are counted by stage, so that nothing changes when another stage is made again and its rows move.
        """
        marks = {}
        for name in LOGS:
            file = self.path / name
            with writing(file), file.open("ab") as log:
                os.fsync(log.fileno())
            marks[name] = self._num_rows(name)[stage]
        return marks

    def rewind(self, stage: str, marks: Mapping[str, int]) -> None:
        """Drops the rows of `stage` that came after `marks` were taken, from every log: they will be made again."""
        for name, num_rows in marks.items():
            found = self._num_rows(name)[stage]
            if found < num_rows:
                raise RunError(
                    f"{name} has fewer rows of {stage} ({found}) than the checkpoint says ({num_rows})",
                    place=str(self.path / name),
                    remedy=f"rows were lost: make the stage again with --from {stage}",
                )
            if found > num_rows:
                self._keep(name, _first_rows(stage, num_rows))

    def truncate_metrics(self, stage: str, step: int) -> None:
        """Drops the rows of `stage` from `step` on from every log; rows of other stages stay.

        Where a checkpoint exists, prefer `rewind`: it needs no agreement on which rows come before a checkpoint.
        """

        def stays(row: Mapping[str, Any]) -> bool:
            return row.get("stage") != stage or row.get("step", 0) < step

        for name in LOGS:
            self._keep(name, stays)

    def sort_logs(self, stages: Sequence[str]) -> None:
        """Brings the rows into the order of `stages`, where a stage that was made again has put its own last."""
        order = {stage: number for number, stage in enumerate(stages)}
        for name in LOGS:
            rows = list(_lines(self.path / name))
            in_order = sorted(rows, key=lambda row: order.get(row[1].get("stage", ""), len(order)))
            if in_order != rows:
                write_atomically(self.path / name, "".join(line for line, _ in in_order))

    def forget(self, stage: str) -> None:
        """Drops all that is left of an earlier making of `stage` but what it made, which stays until it is replaced."""
        for place in OF_A_STAGE:
            shutil.rmtree(self.path / place / stage, ignore_errors=True)
        self.truncate_metrics(stage, 0)
        for observer in self.observers:
            observer.forget(stage)

    def forget_runs(self, stage: str) -> None:
        """Drops the runs within this run that a comparison has made; else they are continued, as runs are."""
        shutil.rmtree(self.path / "compare" / stage, ignore_errors=True)

    def _keep(self, name: str, stays: Callable[[Mapping[str, Any]], bool]) -> None:
        rows = list(_lines(self.path / name))
        kept = [(line, row) for line, row in rows if stays(row)]
        if len(kept) < len(rows):
            write_atomically(self.path / name, "".join(line for line, _ in kept))
            self._counts.pop(name, None)

    def _num_rows(self, name: str) -> Counter[str]:
        """Rows of each stage in a log, counted once and then kept up to date."""
        if name not in self._counts:
            self._counts[name] = Counter(row.get("stage", "") for row in read_rows(self.path / name))
        return self._counts[name]

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        rows = list(rows)
        data = "".join(json_text(row) + "\n" for row in rows).encode(errors="replace")
        file = self.path / name
        with writing(file), open(file, "ab", buffering=0) as log:
            size = log.tell()
            try:
                written = 0
                while written < len(data):
                    written += log.write(data[written:])
            except BaseException:
                log.truncate(size)  # a full disk must not leave half a row
                raise
        if name in self._counts:
            self._counts[name].update(row.get("stage", "") for row in rows)


def _first_rows(stage: str, count: int) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a row stays, asked of one after the other: of `stage` the first `count`, of others all."""
    seen = 0

    def stays(row: Mapping[str, Any]) -> bool:
        nonlocal seen
        seen += row.get("stage") == stage
        return row.get("stage") != stage or seen <= count

    return stays


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a `.jsonl` file; none when it is missing. A last line without its end was cut off and is left out."""
    yield from (row for _, row in _lines(path))


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each whole line, as it stands and as a row."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield line, json.loads(line)
            except ValueError as error:
                remedy = "restore the file, or delete this run directory and start again"
                raise RunError(f"line {number} is not JSON: {error}", place=str(path), remedy=remedy) from error


def _end_on_whole_row(path: Path) -> None:
    """A process that was killed while writing leaves part of a row; the next row must not be glued to it."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _locked(path: Path) -> IO[str]:
    file = path / LOCK
    with writing(file):
        lock = open(file, "a+", encoding="utf-8")  # noqa: SIM115 - it stays open as long as the run
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise RunError(
            f"another process (number {holder}) is working in this run directory",
            place=str(path),
            remedy="wait for it or stop it, or give this run another directory",
        ) from error
    with writing(file):
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
    return lock


def _refuse_another(file: Path, recipe: Mapping[str, Any]) -> None:
    try:
        made_by = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "restore the file, or choose another directory for the run"
        raise RunError(f"the recipe of this run cannot be read: {error}", place=str(file), remedy=remedy) from error
    was, now = (found.get("name") if isinstance(found, Mapping) else None for found in (made_by, recipe))
    if was != now:
        raise RunError(
            f"another recipe made this run directory: its name is {was!r}, not {now!r}",
            place=str(file),
            remedy="choose another directory for this run, or delete this one",
        )


def differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """What changed between two recipes, one line for each key.

    >>> list(differences({"rl": {"lr": 1e-4}}, {"rl": {"lr": 2e-4}}))
    ['rl.lr is 0.0002 and was 0.0001']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif _is_list(old) and _is_list(new) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{key}[{index}]")
    elif old != new:
        yield f"{key} is {json.dumps(new)} and was {json.dumps(old)}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
