"""What a sandbox promises: a Python program goes in, what it printed and how it ended comes out, and nothing else.

A program sees a read-only Python and its standard streams: no files of the host, no place to write, no network, no
environment, no other process, and it cannot start one. Time, memory and output are bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

Ended = Literal["exited", "timeout", "memory", "output", "killed"]
"""How a program ended: by itself (whatever its exit code), out of time, of memory or of output, or by a signal."""

MIB = 2**20
WEAK, STRONG = 1, 2
"""Strengths: a filter on the system calls of an ordinary process; a machine of its own, or name spaces of its own."""


class SandboxError(Exception):
    """The sandbox itself failed, so nothing is known about the program; never the program's doing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use: seconds on the clock and of the processor, bytes of memory, output and error text.

    The clock starts when the interpreter is ready. `output_bytes` holds for each of the two streams.
    """

    wall_s: float = 5.0
    cpu_s: float = 5.0
    memory_bytes: int = 256 * MIB
    output_bytes: int = MIB

    def __post_init__(self) -> None:
        if self.wall_s <= 0 or self.cpu_s <= 0:
            raise ValueError(f"wall_s and cpu_s must be more than 0, not {self.wall_s} and {self.cpu_s}")
        if self.memory_bytes < 64 * MIB:
            raise ValueError(f"memory_bytes must be at least 64 MiB for the interpreter, not {self.memory_bytes}")
        if self.output_bytes < 1:
            raise ValueError(f"output_bytes must be at least 1, not {self.output_bytes}")


@dataclass(frozen=True, slots=True)
class Execution:
    """What became of a program: its output, the tail of its error text, how it ended and after how many seconds.

    `exit_code` is what the program chose to say, `None` when it was ended; it proves nothing.
    """

    stdout: str
    stderr: str
    ended: Ended
    wall_s: float
    exit_code: int | None


class Conversation(Protocol):
    """A running program that is talked to in frames of bytes; its clock runs only while it is waited for."""

    def send(self, body: bytes) -> None:
        """Gives the program a frame; nothing happens when it has ended."""
        ...

    def receive(self, max_bytes: int) -> bytes | None:
        """The next frame, or `None` when the program ended, talked nonsense or reached a limit."""
        ...

    def close(self) -> Execution:
        """Ends the program and whatever belongs to it. Calling it again is harmless."""
        ...


class Executor(Protocol):
    """Runs Python programs in isolation, from any thread, several at a time."""

    @property
    def name(self) -> str: ...

    @property
    def strength(self) -> int: ...

    def run(self, program: str, *, stdin: str = "", limits: Limits = ...) -> Execution:
        """The finished program. Raises `SandboxError` when the sandbox cannot start."""
        ...

    def start(self, program: str, *, limits: Limits = ...) -> Conversation:
        """A program to talk to. Raises `SandboxError` when the sandbox cannot start."""
        ...


@dataclass(frozen=True, slots=True)
class Launched:
    """A started interpreter: our ends of its streams, how to kill all of it, and how to get its exit status.

    `wait` reaps and returns the exit code, negative or above 128 for a signal; `None` when it takes longer than that.
    """

    stdin: int
    stdout: int
    stderr: int
    kill: Callable[[], None]
    wait: Callable[[float], int | None]
