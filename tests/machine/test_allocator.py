"""Memory that tensors leave behind is kept for the next ones, unless the user has said how it is to be kept."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from melete.machine.allocator import ARENA_MAX, TRIM_THRESHOLD, settings

FREED_AND_TAKEN_AGAIN = """
import resource, sys
from melete.machine.allocator import settle
if "settled" in sys.argv:
    settle(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for num_mib in range(1, 8):  # each larger than all before it, for which glibc by itself asks the system
    bytearray(num_mib * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize("said", [{"MALLOC_ARENA_MAX": "8"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}])
def test_what_the_user_says_is_left_alone(said: dict[str, str]) -> None:
    assert settings(2, said) == {}
    assert settings(3, {"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=on"})[ARENA_MAX] == 3
    assert settings(0, {})[ARENA_MAX] == 1 and settings(1, {})[TRIM_THRESHOLD] == 2**25


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is where it helps")
def test_pages_that_are_free_are_used_again() -> None:
    def faults(*arguments: str) -> int:
        command = [sys.executable, "-c", FREED_AND_TAKEN_AGAIN, *arguments]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    page = resource.getpagesize()
    assert faults("settled") < 10 * 2**20 // page, "seven MiB are taken once"
    assert faults() > 25 * 2**20 // page, "one and two and up to seven MiB are taken"
