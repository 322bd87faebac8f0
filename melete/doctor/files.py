"""What is damaged among the files of a run: logs, records, artefacts, checkpoints, and what a crash left behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from melete.doctor.lines import Line
from melete.errors import RunError
from melete.runs.artefacts import damage, read_begun, read_record
from melete.runs.atomic import TEMPORARY
from melete.runs.directory import ARTEFACTS, LOGS, read_rows
from melete.runs.manifest import STATE, checkpoint_paths, step_of, whole_manifest

Continuing = Callable[..., str]
"""The command that continues the run; `from_stage` makes a stage again."""


def damaged_files(run_dir: Path, stages: Sequence[str], continuing: Continuing) -> Iterator[Line]:
    """Everything that is not as it was written, in a run that no process works in."""
    counts: dict[str, Counter[str]] = {}
    for name in LOGS:
        yield from _log(run_dir / name, counts, continuing)
    for name in ("summary.json", "plan.json"):
        yield from _json_file(run_dir / name)
    for path in sorted((run_dir / "evaluations").rglob("*.jsonl")):
        yield from _rows(path)
    for stage in stages:
        yield from _artefacts(run_dir, stage, continuing)
        yield from _checkpoints(run_dir, stage, counts, continuing)
    yield from _leftovers(run_dir, continuing)


def _rows(path: Path) -> Iterator[Line]:
    try:
        for _ in read_rows(path):
            pass
    except (RunError, UnicodeDecodeError) as error:
        yield _unreadable(path, error)


def _log(path: Path, counts: dict[str, Counter[str]], continuing: Continuing) -> Iterator[Line]:
    try:
        counts[path.name] = Counter(str(row.get("stage", "")) for row in read_rows(path))
    except (RunError, UnicodeDecodeError) as error:
        yield _unreadable(path, error)
        return
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                says = f"the last row of {path.name} was cut off: the process was killed while it wrote"
                yield Line("log", says, "note", f"nothing is lost, it is written again: {continuing()}")


def _unreadable(path: Path, error: Exception) -> Line:
    what = error.what if isinstance(error, RunError) else "it is not text in UTF-8"
    remedy = error.remedy if isinstance(error, RunError) else "restore the file"
    return Line("log", f"{path} is damaged: {what}", "problem", remedy, {"path": str(path)})


def _json_file(path: Path) -> Iterator[Line]:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        yield Line("file", f"{path} cannot be read: {error}", "problem", "delete it: the next run writes it again")


def _artefacts(run_dir: Path, stage: str, continuing: Continuing) -> Iterator[Line]:
    """Records that cannot be read, and what a finished stage made that is something else now."""
    try:
        record = read_record(run_dir, stage)
        read_begun(run_dir, stage)
        found = list(damage(run_dir, record)) if record else []
    except (OSError, RunError) as error:
        yield Line("stage", f"{stage}: {getattr(error, 'what', error)}", "problem", getattr(error, "remedy", ""))
        return
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        says = f"{stage}: what it made is not what it wrote: {found[0]}{more}"
        mend = f"restore it, or make it again: {continuing(from_stage=stage)}"
        yield Line("artefact", says, "problem", mend, {"stage": stage, "damaged": found})


def _checkpoints(run_dir: Path, stage: str, counts: dict[str, Counter[str]], continuing: Continuing) -> Iterator[Line]:
    paths = checkpoint_paths(run_dir / "checkpoints" / stage)
    whole: list[Path] = []
    damaged: list[tuple[Path, str]] = []
    for path in paths:
        try:
            whole_manifest(path)
            whole.append(path)
        except RunError as error:
            yield Line("checkpoint", f"{path}: {error.what}", "problem", error.remedy)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            damaged.append((path, str(error)))
    for path, why in damaged:
        older = next((other for other in whole if step_of(other) < step_of(path)), None)
        goes_on = f"goes on from step {step_of(older)}" if older else "begins the stage again"
        mend = f"the same command passes it over and {goes_on}: {continuing()}"
        yield Line("checkpoint", f"{path} is damaged: {why}", "problem", mend, {"stage": stage, "path": str(path)})
    if whole and not (run_dir / "stages" / f"{stage}.json").exists():
        yield from _lost_rows(run_dir, stage, whole[0], counts, continuing)


def _lost_rows(
    run_dir: Path, stage: str, newest: Path, counts: dict[str, Counter[str]], continuing: Continuing
) -> Iterator[Line]:
    """Logs that hold less than the newest checkpoint says: continuing would be refused."""
    marks = json.loads((newest / STATE).read_text(encoding="utf-8")).get("marks") or {}
    for name, expected in marks.items():
        if name in counts and (found := counts[name][stage]) < expected:
            says = f"{name} has {found} rows of {stage}, and its checkpoint says {expected}: rows were lost"
            mend = f"restore {run_dir / name}, or make the stage again: {continuing(from_stage=stage)}"
            yield Line("log", says, "problem", mend, {"stage": stage})


def _leftovers(run_dir: Path, continuing: Continuing) -> Iterator[Line]:
    places = [run_dir, run_dir / "stages", *(run_dir / name for name in ARTEFACTS)]
    places += [path for path in (run_dir / "checkpoints").glob("*") if path.is_dir()]
    found = [path for place in places for path in place.glob(f"{TEMPORARY}*")]
    if found:
        says = f"{len(found)} unfinished files, such as {found[0].name}: a write was cut off"
        yield Line("leftovers", says, "note", f"nothing is lost, they are removed by: {continuing()}")
