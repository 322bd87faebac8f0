"""Checkpoints: complete or absent, checksummed, the last two kept; a damaged one gives way to the one before."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from melete.errors import RunError
from melete.runs.atomic import json_text, new_directory, writing
from melete.runs.manifest import FORMAT, MANIFEST, STATE, TENSORS, checkpoint_paths, checksum, whole_manifest


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was saved after `step` steps: `tensors` (nested containers of tensors and numbers) and a JSON `state`."""

    step: int
    path: Path
    tensors: Any
    state: dict[str, Any]


def save_checkpoint(directory: Path, step: int, tensors: Any, state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Writes `directory/step-000042` as a whole or not at all, then forgets all but the last `keep`.

    `tensors` may be any nesting of dicts, lists, numbers and tensors: a learner's or an optimizer's `state_dict()`.
    """
    path = directory / f"step-{step:06d}"
    with new_directory(path) as unfinished:
        with writing(path):
            _save_tensors(tensors, unfinished / TENSORS)
        (unfinished / STATE).write_text(json_text(state, indent=2), encoding="utf-8")
        sums = {name: checksum(unfinished / name) for name in (TENSORS, STATE)}
        manifest = json_text({"format": FORMAT, "step": step, "sha256": sums}, indent=2)
        (unfinished / MANIFEST).write_text(manifest, encoding="utf-8")
    for old in checkpoint_paths(directory)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def latest_checkpoint(directory: Path, warn: Callable[[str], None] = warnings.warn) -> Checkpoint | None:
    """The newest checkpoint that is whole, or `None`; each damaged one on the way is passed over and `warn`ed about.

    Raises `RunError` for one that another version wrote: it is not damaged, and going back would lose its work.
    """
    paths = checkpoint_paths(directory)
    for path in paths:
        try:
            return _load(path)
        except (RunError, MemoryError):
            raise
        except Exception as error:  # whatever a damaged file provokes, the one before may be whole
            has_other = path is not paths[-1]
            instead = "the one before it is used" if has_other else "there is none before it: the stage begins anew"
            warn(f"checkpoint {path} is damaged ({error}); {instead}")
    return None


def _load(path: Path) -> Checkpoint:
    manifest = whole_manifest(path)
    tensors = torch.load(path / TENSORS, map_location="cpu", weights_only=True)
    return Checkpoint(manifest["step"], path, tensors, json.loads((path / STATE).read_text(encoding="utf-8")))


def _save_tensors(tensors: Any, path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(tensors, file)
    except RuntimeError as error:
        # torch reports a failed write as its own error and hides the system's
        cause = error.__context__ if isinstance(error.__context__, OSError) else _why_unwritable(path)
        raise cause or error from error


def _why_unwritable(path: Path) -> OSError | None:
    try:
        with path.open("ab") as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        return error
    return None
