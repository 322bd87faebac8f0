"""This machine: versions, cores, memory, disk, writable places, GPU, libraries, threads, and the sandbox."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from melete.doctor.extras import installed, look_at_libraries
from melete.doctor.lines import GIB, Line, size
from melete.errors import RecipeError
from melete.machine.threads import num_threads, usable_cores
from melete.models.places import cache_directory
from melete.planning.machine import Machine, free_disk, free_memory
from melete.runs.artefacts import code_version
from melete.sandbox import EXECUTORS, INSTALL, unavailable

OLDEST_PYTHON = (3, 11)
LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 2 * GIB, 2 * GIB, GIB // 8
"""r1-tiny takes 1.2 GiB of memory and half a GiB of disk; below the last nothing can be saved."""
_GPUS = ("nvidia[0-9]*", "kfd", "dxg")  # what NVIDIA's and AMD's drivers make in /dev, and Windows for its Linux


def look_at_machine(runs_dir: Path = Path("runs"), root: Path = Path("/")) -> Iterator[Line]:
    """Everything about this machine that a run depends on, one thing after the other."""
    yield from _versions()
    yield _cores(root)
    yield _memory(root)
    yield place_line("runs", runs_dir, broken=True, mend="go to a directory of yours, or name one with --runs-dir")
    yield place_line("cache", cache_directory(), mend="set MELETE_CACHE to a directory of yours")
    yield place_line("temporary", Path(tempfile.gettempdir()), broken=True, mend="set TMPDIR to a directory of yours")
    yield accelerator(root / "dev")
    yield threads_line(os.environ, Machine.here(runs_dir))
    yield sandbox_line()
    yield from look_at_libraries()


def _versions() -> Iterator[Line]:
    python = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Line("python", f"{python} is too old", "problem", f"use Python {oldest} or newer", {"version": python})
    else:
        yield Line("python", f"{python}, {sys.executable}", facts={"version": python})
    try:
        metadata.version("melete")
    except metadata.PackageNotFoundError:
        yield Line("melete", "runs from a source tree that was never installed", "note", "pip install -e .")
    else:
        code = code_version()
        yield Line("melete", code, facts={"version": code})


def _cores(root: Path) -> Line:
    logical, usable, physical, quota = os.cpu_count() or 1, usable_cores(), physical_cores(root), cpu_quota(root)
    says = f"{logical} logical" + (f", {physical} physical" if physical else "")
    says += f", {usable} for this process" if usable != logical else ""
    says += f", and time of {quota:g} within the container" if quota and quota < usable else ""
    facts = {"logical": logical, "physical": physical, "usable": usable, "quota": quota}
    return Line("cores", says, facts=facts)


def physical_cores(root: Path = Path("/")) -> int | None:
    """Cores that are more than a second thread of another; `None` where the system does not tell."""
    found: set[tuple[str, str]] = set()
    package = ""
    for line in _lines(root / "proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() == "physical id":
            package = value.strip()
        elif key.strip() == "core id":
            found.add((package, value.strip()))
    return len(found) or None


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores whose time the container may take, by its control group (version 2); `None` for no limit."""
    paths = [line.rpartition(":")[2] for line in _lines(root / "proc/self/cgroup") if line.startswith("0::")]
    for place in [*(path.strip().lstrip("/") for path in paths), ""]:
        words = " ".join(_lines(root / "sys/fs/cgroup" / place / "cpu.max")).split()
        if len(words) == 2 and all(word.isdecimal() for word in words):
            return int(words[0]) / int(words[1])
    return None


def _memory(root: Path) -> Line:
    sizes = {line.split(":")[0]: line.split()[1] for line in _lines(root / "proc/meminfo") if ":" in line}
    total = int(sizes["MemTotal"]) * 1024 if "MemTotal" in sizes else None
    free = free_memory(root)
    facts = {"total_bytes": total, "available_bytes": free}
    says = f"{size(total)} in all, {size(free)} available"
    if free is not None and free < LITTLE_MEMORY:
        mend = "end other programs; a smaller max_tokens_per_microbatch needs less"
        return Line("memory", f"{says}: little", "note", mend, facts)
    return Line("memory", says, facts=facts)


def place_line(topic: str, place: Path, *, mend: str, broken: bool = False) -> Line:
    """Whether files can be made in a directory, or where it would be made, and how much is free there."""
    absolute = place.absolute()
    existing = next((parent for parent in (absolute, *absolute.parents) if parent.exists()), absolute)
    free = free_disk(place)
    facts = {"path": str(absolute), "free_bytes": free}
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        return Line(topic, f"{place} cannot be written: {why}", "problem" if broken else "note", mend, facts)
    says = f"{place} is writable, {size(free)} free"
    if free is not None and free < LITTLE_DISK:
        full = broken and free < NO_DISK
        mend = "delete old runs or files of other programs: a checkpoint is three times its model"
        return Line(topic, f"{says}: little", "problem" if full else "note", mend, facts)
    return Line(topic, says, facts=facts)


def accelerator(devices: Path = Path("/dev")) -> Line:
    """The GPUs that torch can use. It is loaded, which takes seconds, only where a device is to be seen."""
    is_apple = sys.platform == "darwin" and platform.machine() == "arm64"
    if not is_apple and not any(found for pattern in _GPUS for found in devices.glob(pattern)):
        return Line("GPU", "none to be seen: models run on the CPU", facts={"gpus": []})
    try:
        import torch
    except Exception as error:  # a library that is half installed may raise anything
        return Line("GPU", f"torch cannot be loaded: {error}", "problem", "pip install melete", {"gpus": []})
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        told = ", ".join(f"{one.name} with {size(one.total_memory)}" for one in found)
        return Line("GPU", told, facts={"gpus": [one.name for one in found]})
    if torch.backends.mps.is_available():
        return Line("GPU", "Apple's, as mps", facts={"gpus": ["mps"]})
    says = f"there is one, but torch {installed('torch')} does not use it: models run on the CPU"
    return Line("GPU", says, "note", "install the torch for your driver: pytorch.org/get-started", {"gpus": []})


def threads_line(environment: Mapping[str, str], machine: Machine) -> Line:
    """How many threads the mathematics would use, who says so, and whether that makes sense here."""
    try:
        count = num_threads(environment, machine.num_cores)
    except RecipeError as error:
        return Line("threads", error.what, "problem", error.remedy)
    chosen = next((name for name in ("MELETE_THREADS", "OMP_NUM_THREADS") if environment.get(name, "").strip()), "")
    says = f"{count}, by {chosen}" if chosen else f"{count}, by the number of cores"
    facts = {"threads": count, "by": chosen, "load": machine.load}
    quota = cpu_quota()
    if count > machine.num_cores or (quota and count > quota):
        cores = min(machine.num_cores, quota or machine.num_cores)
        what = f"{says}: more than the {cores:g} cores that there are, which is slower than fewer"
        return Line("threads", what, "note", f"OMP_NUM_THREADS={max(1, int(cores))}", facts)
    if environment.get("OMP_WAIT_POLICY", "PASSIVE").upper() == "ACTIVE":
        what = f"{says}; OMP_WAIT_POLICY=ACTIVE: waiting threads take the cores from others"
        return Line("threads", what, "note", "OMP_WAIT_POLICY=PASSIVE", facts)
    if machine.is_busy and count > 1:
        what = f"{says}; others want {machine.load:.1f} of {machine.num_cores} cores"
        return Line("threads", what, "note", "wait, or OMP_NUM_THREADS=1 for several runs at once", facts)
    if count == 1 and machine.num_cores > 1:
        what = f"{says}, of {machine.num_cores} cores: right for several runs at once, slow for a large model"
        return Line("threads", what, "note", f"unset {chosen}", facts)
    return Line("threads", says, facts=facts)


def sandbox_line() -> Line:
    """The executor that programs of a model would run in, proven by a program, and why not a stronger one."""
    refused: dict[str, str] = {}
    for name, executor in sorted(EXECUTORS.items(), key=lambda item: -item[1].strength):
        if why := unavailable(name):
            refused[name] = why
            continue
        stronger = [other for other in refused if EXECUTORS[other].strength > executor.strength]
        facts = {"executor": name, "refused": refused}
        told = "; ".join(f"{other}: {why}" for other, why in refused.items())
        if stronger:
            says = f"{name}, which is weak: recipes refuse it unless told otherwise ({told})"
            return Line("sandbox", says, "note", " or ".join(INSTALL[other] for other in stronger), facts)
        return Line("sandbox", f"{name}{f' ({told})' if told else ''}", facts=facts)
    told = "; ".join(f"{name}: {why}" for name, why in refused.items())
    says = f"none works, so the reward `code` is refused ({told})"
    mend = " or ".join(dict.fromkeys(INSTALL[name] for name in refused))
    return Line("sandbox", says, "note", mend, {"executor": None, "refused": refused})


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
