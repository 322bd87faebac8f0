"""Whether two run directories are the same, byte for byte, but for what tells the time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

TIMED = {"report.html", "report.md", "plan.json", ".lock"}  # they tell the time, or the number of a process
OF_THE_CLOCK = ("started", "made", "command", "hardware")  # and every key with "second" in it

OF_NO_CLOCK = ("stage", "step", "model", "task")  # of timings.jsonl, where all else is measured


def differences(one: Path, other: Path) -> list[str]:
    """How one run directory differs from another, without what tells the time, and which checkpoints are left."""
    names = [_files(directory) for directory in (one, other)]
    found = [f"{name} is in one of them only" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        if _meaning(one / name) != _meaning(other / name):
            found.append(f"{name} differs")
    return found + [f"the last checkpoint of {stage} differs" for stage in _other_checkpoints(one, other)]


def _files(directory: Path) -> set[str]:
    files = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in files
        if path.name not in TIMED
        and not (path.parts[0] == "checkpoints" and path.parts[2:3] and "step-" in path.parts[2])
    }


def _meaning(path: Path) -> Any:
    """The bytes of a file; of the few that hold seconds, everything else."""
    if path.name == "timings.jsonl":
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return [{key: row.get(key) for key in OF_NO_CLOCK} for row in rows]
    if path.name == "summary.json" or path.parent.name == "stages":
        return _timeless(json.loads(path.read_text(encoding="utf-8")))
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in OF_THE_CLOCK and "second" not in k}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _other_checkpoints(one: Path, other: Path) -> list[str]:
    stages = {folder.name for run in (one, other) for folder in (run / "checkpoints").glob("*")}
    return [stage for stage in sorted(stages) if not _equal(*(_last_checkpoint(run, stage) for run in (one, other)))]


def _last_checkpoint(run: Path, stage: str) -> Any:
    """What the last checkpoint of a stage holds: tensors, and what goes with them."""
    last = max((run / "checkpoints" / stage).glob("step-*"), default=None)
    if last is None:
        return None
    state = json.loads((last / "state.json").read_text(encoding="utf-8"))
    return [last.name, torch.load(last / "tensors.pt", weights_only=True), _timeless(state)]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
