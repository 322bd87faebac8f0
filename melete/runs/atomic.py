"""Writing so that no reader, and no crash, ever meets half a file."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from melete.errors import RunError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
TEMPORARY = ".partial-"
"""How names of unfinished files and directories begin; whatever still bears one after a crash may be deleted."""


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns what the system says about a failed write into a `RunError` that says how to mend it."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        if (cause := _of_the_system(error)) is None:
            raise
        raise RunError(f"cannot write: {_what(cause)}", place=str(place), remedy=_remedy(cause, place)) from error


def _of_the_system(error: Exception) -> OSError | None:
    """The error as the system gave it; libraries in Rust, such as safetensors, tell its number in their text alone."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def _what(error: OSError) -> str:
    if error.errno in _FULL:
        return "the disk is full (or a limit on size is reached)"
    return (error.strerror or str(error)).lower()


def _remedy(error: OSError, place: Path) -> str:
    if error.errno in _FULL:
        return f"free some space{_free(place)}, then give the same command again: it continues from the last checkpoint"
    if error.errno in _FORBIDDEN:
        return "make the directory writable, or choose another place for the run"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file is in the way: move it, or choose another place for the run"
    return "choose another place for the run, or mend this one and give the same command again"


def _free(place: Path) -> str:
    existing = next((parent for parent in (place, *place.parents) if parent.exists()), None)
    try:
        return f" ({shutil.disk_usage(existing).free / 2**20:.0f} MiB are free there)" if existing else ""
    except OSError:
        return ""


def write_atomically(path: Path, content: bytes | str) -> None:
    """The file is either as it was or entirely new: a temporary neighbour, flushed to the disk, takes its name."""
    data = content.encode(errors="replace") if isinstance(content, str) else content
    with writing(path):
        descriptor, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        sync_directory(path.parent)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that takes the name `path` at the end, complete or not at all; an older one is replaced."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            temporary.chmod(0o777 & ~_umask())
            sync_directory(temporary)
            if path.exists():
                os.replace(path, tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
            os.replace(temporary, path)
            sync_directory(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            remove_unfinished(path.parent)


def remove_unfinished(directory: Path) -> None:
    """Deletes what interrupted writes left behind."""
    for leftover in directory.glob(f"{TEMPORARY}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON whose bytes depend on the value alone: sorted keys, and `null` for a number that is not finite.

    >>> json_text({"b": float("nan"), "a": 1})
    '{"a": 1, "b": null}'
    """
    return json.dumps(_finite(value), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Makes a rename last through a power cut."""
    _sync(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
