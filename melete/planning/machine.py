"""What this machine has: memory within the limits of its container, and free disk."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from melete.machine.threads import num_threads, usable_cores


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes that a run may use, `None` where the system does not tell, and the cores it may run on."""

    free_memory: int | None
    free_disk: int | None
    num_cores: int = 1
    load: float = 0.0
    """Processes that want a core, this one not counted, as a mean over the last minute."""

    @property
    def is_busy(self) -> bool:
        """Whether others take what a run would need: it will take longer than estimated."""
        return self.load > max(self.num_cores - 1, 0.5)

    @classmethod
    def here(cls, run_dir: Path) -> Machine:
        """The machine this process runs on; the disk is the one that the run directory lies on."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return cls(free_memory(), free_disk(run_dir), usable_cores(), max(load - 0.5, 0.0))


def free_memory(root: Path = Path("/")) -> int | None:
    """Memory that this process and its children may come to use in all: what is available, and what it has already.

    The tightest limit of the process's control groups counts where it is below what the machine has.
    """
    own = _own_memory(root)
    limits = [found + own for found in (_available(root), *_within_groups(root)) if found is not None]
    return min(limits) if limits else None


def _available(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _own_memory(root: Path) -> int:
    for line in _lines(root / "proc/self/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _within_groups(root: Path) -> Iterator[int]:
    """What is left under each limit of the process's control groups and of those above them, versions 1 and 2."""
    for line in _lines(root / "proc/self/cgroup"):
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers not in ("", "memory"):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        limit, usage = (
            ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        group = Path(path.strip().lstrip("/"))
        for directory in (mount / group, *(mount / parent for parent in group.parents), mount):
            most, used = _number(directory / limit), _number(directory / usage)
            if most is not None and used is not None:
                yield max(most - used + _reclaimable(directory), 0)


def _reclaimable(group: Path) -> int:
    """Pages of files, which the system gives up when memory is wanted."""
    for line in _lines(group / "memory.stat"):
        if line.startswith(("inactive_file ", "total_inactive_file ")):
            return int(line.split()[1])
    return 0


def _number(file: Path) -> int | None:
    text = "".join(_lines(file)[:1]).strip()
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def free_disk(directory: Path) -> int | None:
    """Free bytes where `directory` lies or would lie."""
    try:
        existing = next(place for place in (directory, *directory.absolute().parents) if place.exists())
        return shutil.disk_usage(existing).free
    except (OSError, StopIteration):
        return None


def fingerprint() -> str:
    """What a speed depends on besides the model: processor, cores, threads and libraries."""
    model = next((line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")), "")
    versions = [metadata.version(name) for name in ("torch", "transformers")]
    cores = usable_cores()
    parts = [
        platform.machine(),
        platform.processor(),
        model,
        str(cores),
        str(num_threads(os.environ, cores)),
        *versions,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
