"""Calling the functions of an untrusted program: arguments go in as plain data, results come out as plain data.

The program shares an interpreter with the loop below and may take it over entirely. It then decides what it answers,
which it does anyway; what an answer is compared with is never in there. An answer must repeat the number that came with
its question, so none can be given before it is asked.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from melete.sandbox import wire
from melete.sandbox.protocol import Execution, Executor, Limits

WIRE = Path(wire.__file__).read_text(encoding="utf-8")
_NUMBER = 16  # bytes of a question's number, in hexadecimal

_LOOP = """
def _serve(source):
    import io, sys
    sys.stdout = sys.__stdout__ = sys.stderr  # the stream is the answers' own
    sys.stdin = sys.__stdin__ = io.StringIO()
    sys.modules["solution"] = solution = type(sys)("solution")
    exec(compile(source, "<solution>", "exec"), solution.__dict__)
    while (question := read_frame()) is not None:
        number, (name, args, kwargs) = question[:16], decode(question[16:])
        try:
            answer = b"R" + encode(solution.__dict__[name](*args, **kwargs))
        except BaseException as error:
            answer = b"E" + encode((type(error).__name__, str(error)[:200]))
        write_frame(number + answer)
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call came to: `result` is the encoding of what was returned, else `raised` that of (type, message)."""

    result: bytes | None = None
    raised: bytes | None = None


class Functions:
    """An untrusted program whose functions can be called. Not to be shared between threads."""

    def __init__(self, executor: Executor, source: str, limits: Limits) -> None:
        """Starts it. Raises `SandboxError` when the sandbox cannot."""
        self._max_bytes = limits.output_bytes
        self._running = executor.start(f"{WIRE}\n{_LOOP}\n_serve({source!r})\n", limits=limits)
        self.ended = False

    def __enter__(self) -> Functions:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def call(self, call: bytes) -> Answer | None:
        """The answer to the encoding of (name, args, kwargs); `None` once the program ended or broke the rules."""
        if self.ended:
            return None
        number = secrets.token_hex(_NUMBER // 2).encode()
        self._running.send(number + call)
        frame = self._running.receive(self._max_bytes)
        kind = b"" if frame is None else frame[_NUMBER : _NUMBER + 1]
        if frame is None or not frame.startswith(number) or kind not in (b"R", b"E"):
            self.ended = True
            return None
        return Answer(result=frame[_NUMBER + 1 :]) if kind == b"R" else Answer(raised=frame[_NUMBER + 1 :])

    def close(self) -> Execution:
        """Ends the program; says how it ended."""
        self.ended = True
        return self._running.close()
