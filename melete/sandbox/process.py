"""Talking to a sandboxed interpreter through pipes, with a clock, and never holding more than the limits allow."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from melete.sandbox.boot import FUEL_EXIT, MEMORY_EXIT, READY
from melete.sandbox.protocol import Ended, Execution, Launched, Limits, SandboxError
from melete.sandbox.wire import MAX_HEADER, frame

START_S = 20.0  # an interpreter takes 0.02 to 0.3 s; a machine may be busy
END_S = 2.0  # how long a killed process may take to close its streams
STDERR_TAIL = 2000  # bytes
_CHUNK = 2**16
_SIGXCPU = 24


class PipeExecutor:
    """What the executors share: a subclass says how an interpreter is launched."""

    name = ""
    strength = 0

    def launch(self, limits: Limits) -> Launched:
        """Starts an interpreter that runs the boot text of `boot.py`. Raises `SandboxError`."""
        raise NotImplementedError

    def run(self, program: str, *, stdin: str = "", limits: Limits = Limits()) -> Execution:  # noqa: B008  (frozen)
        with self.start(program, limits=limits) as running:
            return running.finish(stdin.encode(errors="surrogatepass"))

    def start(self, program: str, *, limits: Limits = Limits()) -> PipeConversation:  # noqa: B008
        try:
            launched = self.launch(limits)
        except OSError as error:
            raise SandboxError(f"{self.name} does not start: {error}") from error
        running = PipeConversation(launched, limits, self.name)
        try:
            running.give_program(program)
        except BaseException:
            running.close()
            raise
        return running


class PipeConversation:
    """A started interpreter. Not to be shared between threads; closing it kills what is left."""

    def __init__(self, launched: Launched, limits: Limits, name: str) -> None:
        self._launched, self._limits, self._name = launched, limits, name
        self._left_s = START_S
        self._used_s = 0.0
        self._received, self._errors = bytearray(), bytearray()
        self._counts = {launched.stdout: 0, launched.stderr: 0}
        self._open = {launched.stdin, launched.stdout, launched.stderr}
        self._to_send = memoryview(b"")
        self._why: Ended | None = None
        self._execution: Execution | None = None
        self._ready = False
        for descriptor in self._open:
            os.set_blocking(descriptor, False)

    def __enter__(self) -> PipeConversation:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def give_program(self, program: str) -> None:
        """Waits for the interpreter to be ready and hands it the program; the program's clock starts here."""
        started = time.monotonic()
        self._pump(lambda: len(self._received) >= len(READY))
        if not self._received.startswith(READY):
            self.close()
            tail = self._errors[-STDERR_TAIL:].decode(errors="replace").strip()
            took = time.monotonic() - started
            raise SandboxError(f"{self._name} does not start: {tail or f'no sign of life after {took:.1f} s'}")
        del self._received[: len(READY)]
        self._ready, self._left_s, self._used_s = True, self._limits.wall_s, 0.0
        self._counts = dict.fromkeys(self._counts, 0)
        self.send(program.encode(errors="surrogatepass"))

    def send(self, body: bytes) -> None:
        self._to_send = memoryview(bytes(self._to_send) + frame(body))
        self._pump(lambda: not self._to_send)

    def receive(self, max_bytes: int) -> bytes | None:
        self._pump(self._whole_frame)
        header, newline, _ = bytes(self._received[: MAX_HEADER + 1]).partition(b"\n")
        if not newline or not header.isdigit() or int(header) > max_bytes:
            return None
        start, size = len(header) + 1, int(header)
        if len(self._received) < start + size:
            return None
        body = bytes(self._received[start : start + size])
        del self._received[: start + size]
        return body

    def _whole_frame(self) -> bool:
        header, newline, _ = bytes(self._received[: MAX_HEADER + 1]).partition(b"\n")
        if not newline:
            return len(self._received) > MAX_HEADER
        return not header.isdigit() or len(self._received) >= len(header) + 1 + int(header)

    def finish(self, stdin: bytes = b"") -> Execution:
        """Gives the rest of the input, and waits for the program's own end."""
        self._to_send = memoryview(bytes(self._to_send) + stdin)
        self._pump(lambda: not self._to_send)
        self._close_one(self._launched.stdin)
        self._pump(lambda: False)
        return self.close(natural=True)

    def close(self, *, natural: bool = False) -> Execution:
        """Kills all of it, unless it ended by itself, and says what became of it."""
        if self._execution is not None:
            return self._execution
        if not natural or self._why is not None:
            self._launched.kill()
        code = self._wait_for_end()
        for descriptor in list(self._open):
            self._close_one(descriptor)
        ended = self._why or _how(code)
        self._execution = Execution(
            stdout=self._received.decode(errors="replace"),
            stderr=self._errors[-STDERR_TAIL:].decode(errors="replace"),
            ended=ended,
            wall_s=self._used_s,
            exit_code=code if ended == "exited" else None,
        )
        return self._execution

    def _wait_for_end(self) -> int:
        """The exit code. Streams are read to their end first: only then is nobody left who holds them."""
        self._left_s = min(self._left_s, END_S) if self._why is None else END_S
        why, self._why = self._why, None
        self._pump(lambda: False, discard=True)
        self._why = why
        code = self._launched.wait(max(0.05, self._left_s))
        if code is None:  # it closed its streams, or ours were too full, and went on
            self._why = self._why or "timeout"
            self._launched.kill()
            code = self._launched.wait(START_S)
        return -9 if code is None else code

    def _pump(self, done: Callable[[], bool], *, discard: bool = False) -> None:
        """Moves bytes until `done`, both outputs are closed, or a limit is reached (then `_why` is set)."""
        started = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for descriptor in self._open - {self._launched.stdin}:
                selector.register(descriptor, selectors.EVENT_READ)
            writing = False
            while self._why is None and not done() and self._open - {self._launched.stdin}:
                if bool(self._to_send) != writing and self._launched.stdin in self._open:
                    writing = not writing
                    change = selector.register if writing else lambda fd, _event: selector.unregister(fd)
                    change(self._launched.stdin, selectors.EVENT_WRITE)
                remaining = self._left_s - (time.monotonic() - started)
                if remaining <= 0:
                    self._why = "timeout"
                    break
                for key, _event in selector.select(remaining):
                    self._move(key.fd, selector, discard)
                writing = writing and self._launched.stdin in self._open
        used = time.monotonic() - started
        self._left_s, self._used_s = self._left_s - used, self._used_s + used

    def _move(self, descriptor: int, selector: selectors.BaseSelector, discard: bool) -> None:
        try:
            if descriptor == self._launched.stdin:
                self._to_send = self._to_send[os.write(descriptor, self._to_send[:_CHUNK]) :]
                return
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more
            chunk = b""
        if not chunk:
            selector.unregister(descriptor)
            self._close_one(descriptor)
            return
        self._counts[descriptor] += len(chunk)
        if discard:
            return
        kept = self._received if descriptor == self._launched.stdout else self._errors
        kept += chunk
        if descriptor == self._launched.stderr:
            del kept[:-STDERR_TAIL]
        if self._ready and self._counts[descriptor] > self._limits.output_bytes:
            self._why = "output"
            del self._received[self._limits.output_bytes :]

    def _close_one(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            if descriptor == self._launched.stdin:
                self._to_send = memoryview(b"")
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _how(code: int) -> Ended:
    if code == MEMORY_EXIT:
        return "memory"
    if code in (FUEL_EXIT, -_SIGXCPU, 128 + _SIGXCPU):
        return "timeout"
    return "killed" if code < 0 or code > 128 else "exited"


def popen(command: Sequence[str], *, environment: Mapping[str, str], pass_fds: Sequence[int] = ()) -> Launched:
    """An ordinary process in a session of its own, without the parent's environment and open files."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        cwd="/",
        start_new_session=True,
        close_fds=True,
        pass_fds=tuple(pass_fds),
        bufsize=0,
    )
    streams = [os.dup(stream.fileno()) for stream in (process.stdin, process.stdout, process.stderr) if stream]
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, 9)

    def wait(timeout_s: float) -> int | None:
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    return Launched(streams[0], streams[1], streams[2], kill, wait)
