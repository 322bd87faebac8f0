"""How the C library keeps the memory that tensors leave behind.

By itself glibc gives the end of its heaps back to the system whenever a few MiB are free there, and an update asks for
them again at once: the system clears 200 MiB of pages in each step of a small model, a tenth of its time (LOG.md). And
it has a heap for each thread, each with holes of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

MIB = 2**20
# numbers of glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8
KEPT_AT_THE_END = 32 * MIB  # of a heap
ALONE = 8 * MIB  # from which on a tensor has memory of its own, which goes back to the system with it


def settings(num_threads: int, environment: Mapping[str, str]) -> dict[int, int]:
    """What `mallopt` is told, by its numbers; nothing where the user has said something in MALLOC_ variables.

    >>> settings(2, {})[ARENA_MAX], settings(2, {"MALLOC_ARENA_MAX": "4"})
    (2, {})
    """
    if any(name.startswith("MALLOC_") or "glibc.malloc" in value for name, value in environment.items()):
        return {}
    return {TRIM_THRESHOLD: KEPT_AT_THE_END, MMAP_THRESHOLD: ALONE, TOP_PAD: MIB, ARENA_MAX: max(num_threads, 1)}


def settle(num_threads: int, environment: Mapping[str, str] = os.environ) -> None:
    """Sets it for a process with so many threads that work; elsewhere than with glibc nothing happens."""
    for number, value in settings(num_threads, environment).items():
        _call("mallopt", number, value)


def give_back() -> None:
    """Gives the system all that is free, as who is about to wait should; it takes time to ask for it again."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    import ctypes  # some milliseconds, which a command that only prints need not wait for

    if sys.platform == "linux" and (function := getattr(ctypes.CDLL(None), name, None)) is not None:
        function(*arguments)
