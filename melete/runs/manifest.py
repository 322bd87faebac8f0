"""Whether a checkpoint is whole, told by its manifest and checksums alone. Loads no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from melete.errors import RunError

FORMAT = 1
TENSORS, STATE, MANIFEST = "tensors.pt", "state.json", "manifest.json"


def checkpoint_paths(directory: Path) -> list[Path]:
    """The checkpoints of a stage, newest first."""
    return sorted(directory.glob("step-*"), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step of the checkpoint in this directory.

    >>> step_of(Path("rl/step-000042"))
    42
    """
    return int(path.name.removeprefix("step-"))


def whole_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are what was written.

    Raises `RunError` for one that another version wrote, and `ValueError`, `KeyError`, `TypeError` or `OSError` for a
    damaged one.
    """
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT:
        raise RunError(
            f"checkpoint of format {manifest['format']}, this version reads format {FORMAT}",
            place=str(path),
            remedy="continue with the version that wrote it, or delete the checkpoint to start the stage again",
        )
    if manifest["step"] != step_of(path):
        raise ValueError(f"{MANIFEST} names another step")
    for name, expected in manifest["sha256"].items():
        if checksum(path / name) != expected:
            raise ValueError(f"{name} is not what was written")
    return manifest


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
