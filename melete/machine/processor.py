"""What the processor is, without loading torch: who made it and which instructions it has."""

from __future__ import annotations

import platform
from functools import cache
from itertools import takewhile
from pathlib import Path

INTEL = "GenuineIntel"
_WIDE = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@cache
def _facts() -> dict[str, str]:
    """What the system says of the first core; nothing where it says nothing."""
    try:
        with Path("/proc/cpuinfo").open() as file:  # of a machine with many cores the whole takes long
            lines = [line.partition(":") for line in takewhile(str.strip, file)]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in lines}


def vendor() -> str:
    """Who made the processor; empty where the system does not say."""
    return _facts().get("vendor_id", "") if _facts() else platform.processor()


def has_wide_instructions() -> bool:
    """Whether it has instructions of 512 bits for every kind of number."""
    return set(_facts().get("flags", "").split()) >= _WIDE
