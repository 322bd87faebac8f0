"""A disk that fills up, at any moment: the message says so, and with space again the same command ends the same."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from melete.errors import RunError

Differences = Callable[[Path, Path], list[str]]
TOUCHES = {"os.rename", "os.mkdir"}
KIB = 1024


class _Disk:
    """Counts what needs room below a directory and, once it is full, refuses it as the system does."""

    place, left, is_watched = "", 0, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_watched or (event != "open" and event not in TOUCHES):
            return
        path, mode = arguments[0], arguments[1] if event == "open" else "w"
        if (
            isinstance(path, str | os.PathLike)
            and os.fspath(path).startswith(self.place)
            and set(mode or "") & set("wax")
        ):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))

    @contextmanager
    def full_after(self, place: Path, touches: int) -> Iterator[None]:
        self.place, self.left, self.is_watched = str(place), touches, True
        try:
            yield
        finally:
            self.is_watched = False


@pytest.fixture(scope="module")
def disk() -> _Disk:
    found = _Disk()
    sys.addaudithook(found)  # for good, but idle
    return found


@pytest.fixture(scope="module")
def num_touches(disk: _Disk, tables: dict[str, Any], run: Any, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a run that has room asks for it."""
    run_dir = tmp_path_factory.mktemp("counted") / "little"
    with disk.full_after(run_dir, 10**6):
        run(tables, run_dir)
    return 10**6 - disk.left


@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.97])
def test_a_disk_that_is_full_at_any_moment_is_said_and_nothing_is_lost(
    share: float,
    disk: _Disk,
    num_touches: int,
    tables: dict[str, Any],
    run: Any,
    whole: Path,
    differences: Differences,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "little"
    with disk.full_after(run_dir, round(share * num_touches)), pytest.raises(RunError, match="disk is full") as refusal:
        run(tables, run_dir)
    assert refusal.value.place.startswith(str(run_dir)) and "free some space" in refusal.value.remedy
    run(tables, run_dir)
    assert differences(whole, run_dir) == []


@contextmanager
def small_disk(place: Path, kib: int) -> Iterator[None]:
    """A file system of its own, so large."""
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip(f"this process may not mount a file system: {made.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("free_kib", [16, 96, 192, 300, 420, 560, 700, 840])
def test_a_small_file_system_that_fills_up_is_said_and_with_more_room_the_run_ends_the_same(
    free_kib: int, tables: dict[str, Any], run: Any, whole: Path, differences: Differences, tmp_path: Path
) -> None:
    """No half file, whoever writes it: Python, torch, safetensors or the tokenizer."""
    with small_disk(tmp_path / "disk", 8 * KIB):
        ballast = tmp_path / "disk" / "ballast"
        space = os.statvfs(tmp_path / "disk")
        ballast.write_bytes(b"\0" * (space.f_bavail * space.f_frsize - free_kib * KIB))
        run_dir = tmp_path / "disk" / "little"
        with pytest.raises(RunError, match="disk is full"):
            run(tables, run_dir)
        ballast.unlink()
        run(tables, run_dir)
        assert differences(whole, run_dir) == []
