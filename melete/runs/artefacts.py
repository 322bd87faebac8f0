"""What stages made and what they made it of: content hashes, the version of the code, and the record of each stage.

A finished stage leaves `stages/NAME.json`: its entry of the summary, and beside it

made_from  settings, seed, the content of all that it read, the version of the code
wrote      file of the run -> SHA-256, for the model or data set that it made
started    when it was begun

A stage that is under way has `stages/NAME.begun.json`, with what it was begun from.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from melete.errors import RunError
from melete.runs.atomic import json_text, write_atomically
from melete.runs.directory import differences

PACKAGE = Path(__file__).parents[1]
# files that check, estimate or tell, and change nothing that a stage makes
ONLY_TELLS = (
    "report",
    "planning",
    "claims",
    "doctor",
    "live.py",
    "api*.py",
    "cli*.py",
    "config.py",
    "one_stage.py",
    "recipe_*.py",
    "results.py",
    "suggest.py",
    "errors.py",
    "states.py",
    "algorithms/explain.py",
    "rewards/audit*.py",
    "runs/compare.py",
    "runs/listing.py",
    "tasks/show.py",
)
RECORD_KEYS = ("made_from", "wrote", "started")


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What is known of a stage that is finished or, without an entry, under way."""

    made_from: Mapping[str, Any]
    started: str
    entry: Mapping[str, Any]
    wrote: Mapping[str, str]


@functools.cache
def code_version() -> str:
    """The package's version and a hash of every file of it that can change what a stage makes."""
    try:
        version = metadata.version("melete")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        version = "0"
    return f"{version}+{code_hash(PACKAGE)[:16]}"


def code_hash(package: Path) -> str:
    """A hash of the names and the content of the Python files of a package, without those that only tell."""
    left_out = {path for pattern in ONLY_TELLS for path in package.glob(pattern)}
    code = {
        path.relative_to(package).as_posix(): _sha256(path)
        for path in package.rglob("*.py")
        if left_out.isdisjoint([path, *path.parents])
    }
    return digest(code)


def content(path: Path) -> dict[str, str]:
    """File -> SHA-256: of a file itself, or of every file below a directory; hidden ones do not count."""
    if path.is_file():
        return {path.name: _sha256(path)}
    found = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    shown = sorted(file for file in found if not any(part.startswith(".") for part in file.parts))
    return {file.as_posix(): _sha256(path / file) for file in shown}


def digest(files: Mapping[str, str]) -> str:
    """One hash for the names and the content of several files."""
    return hashlib.sha256(json_text(files).encode()).hexdigest()


def _sha256(path: Path) -> str:
    state = path.stat()
    return _hashed(path, state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=4096)
def _hashed(path: Path, size: int, modified: int, number: int) -> str:
    """Read once in a process, as long as the system says it is the same file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def made_by(run_dir: Path, entry: Mapping[str, Any]) -> dict[str, str]:
    """What the stage with this entry wrote: file below the run -> SHA-256."""
    places = [str(entry[key]) for key in ("model", "data") if entry.get(key)]
    return {
        (place if (run_dir / place).is_file() else f"{place}/{name}"): value
        for place in places
        for name, value in content(run_dir / place).items()
    }


def read_record(run_dir: Path, stage: str) -> StageRecord | None:
    """The record of a finished stage.

    Raises `RunError` for one that cannot be read.
    """
    return _read(run_dir / "stages" / f"{stage}.json", stage)


def read_begun(run_dir: Path, stage: str) -> StageRecord | None:
    """The record of a stage that was begun and is not finished."""
    return _read(run_dir / "stages" / f"{stage}.begun.json", stage)


def write_begun(run_dir: Path, stage: str, made_from: Mapping[str, Any]) -> None:
    """Says that the stage is begun now, and from what."""
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    (run_dir / "stages").mkdir(exist_ok=True)
    record = json_text({"made_from": made_from, "started": started}, indent=2) + "\n"
    write_atomically(run_dir / "stages" / f"{stage}.begun.json", record)


def write_record(run_dir: Path, stage: str, begun: StageRecord, entry: Mapping[str, Any]) -> None:
    """Says that the stage is finished; what it wrote is hashed now."""
    record = {**entry, "made_from": begun.made_from, "started": begun.started, "wrote": made_by(run_dir, entry)}
    write_atomically(run_dir / "stages" / f"{stage}.json", json_text(record, indent=2) + "\n")
    drop_begun(run_dir, stage)


def drop_begun(run_dir: Path, stage: str) -> None:
    """Says that the stage is no longer under way; a process that was killed may not have come to that."""
    (run_dir / "stages" / f"{stage}.begun.json").unlink(missing_ok=True)


def drop_records(run_dir: Path, stage: str) -> None:
    """The stage counts as never made; what it made stays."""
    for name in (f"{stage}.begun.json", f"{stage}.json"):
        (run_dir / "stages" / name).unlink(missing_ok=True)


def _read(path: Path, stage: str) -> StageRecord | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        entry = {key: value for key, value in found.items() if key not in RECORD_KEYS}
        return StageRecord(found.get("made_from", {}), found.get("started", ""), entry, found.get("wrote", {}))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, AttributeError) as error:
        remedy = f"delete this file: {stage} is then made again"
        raise RunError(f"the record of a stage cannot be read: {error}", place=str(path), remedy=remedy) from error


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Why what was made from `old` has to be made again now; empty when nothing has changed.

    An input of `new` that is None is not known yet and is left out.
    """
    if not old:
        return ["there is no record of what it was made from"]
    found = [*differences(old["settings"], new["settings"])]
    found += [f"the run's seed is {new['seed']} and was {old['seed']}"] if new["seed"] != old["seed"] else []
    before = old["inputs"]
    for name, value in new["inputs"].items():
        if value is not None and name in before and value != before[name]:
            found.append(f"{name}, which it reads, has changed")
    if not found and before.keys() != new["inputs"].keys():
        found.append(f"it reads other files: {', '.join(sorted(before.keys() ^ new['inputs'].keys()))}")
    if old["code"] != new["code"]:
        found.append("the code has changed")
    return found


def reasons_text(reasons: list[str]) -> str:
    """The first few reasons on one line."""
    return "; ".join(reasons[:3]) + (" ..." if len(reasons) > 3 else "")


def refuse_changed(run_dir: Path, stage: str, record: StageRecord) -> None:
    """Raises `RunError` when what the stage wrote is not there, or is something else now."""
    if found := list(damage(run_dir, record)):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise RunError(
            f"what stage {stage} made is not what it wrote: {found[0]}{more}",
            place=str(run_dir),
            remedy=f"restore it, or make it again with --from {stage}",
        )


def damage(run_dir: Path, record: StageRecord) -> Iterator[str]:
    """How what a stage made differs from what it wrote, one line for each file; nothing where it is whole."""
    now = made_by(run_dir, record.entry)
    for name in sorted(record.wrote.keys() | now.keys()):
        if name not in now:
            yield f"{name} is missing"
        elif name not in record.wrote:
            yield f"{name} was not there"
        elif now[name] != record.wrote[name]:
            yield f"{name} has changed"
