"""Worker processes for graders that may hang, crash or eat memory: every item has a hard limit of time.

A signal cannot stop such code reliably (it works in the main thread only, and not inside C), so each item runs in a
process that is killed. Workers are fresh interpreters that have inherited no threads and no descriptors, and never load
the parent's main module. Requests and results are JSON, so nothing that a worker says is executed here.

Pebble's `ProcessPool` has the same limits per item, but its workers begin with the parent's main module (and so torch),
wait for pickles, and its license is the LGPL; what is needed here is small.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from melete.rewards.errors import GradingError

STARTUP_SECONDS = 120.0  # importing sympy on a busy machine
MAX_MESSAGE = 16 * 2**20  # bytes of one request or result
_BOOT = (
    "import json, sys; fd, path, setup, memory = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from melete.rewards.pool import _serve; _serve(fd, setup, memory)"
)


class Pool:
    """At most `size` processes, started when they are needed, each doing one item at a time.

    `setup`: "package.module:function" that each worker calls when it starts, outside the limit of any item. `memory`:
    bytes of address space per worker (where the system has RLIMIT_AS). A worker is replaced after `max_items`, so that
    what libraries cache does not grow. Any thread may call; a forked child starts workers of its own.
    """

    def __init__(self, size: int, *, setup: str = "", memory: int = 2 * 2**30, max_items: int = 5000) -> None:
        if size < 1 or memory < 1 or max_items < 1:
            raise ValueError(f"size, memory and max_items must be at least 1, not {size}, {memory} and {max_items}")
        self.size, self.setup, self.memory, self.max_items = size, setup, memory, max_items
        self._closed = False
        self._forget()
        _POOLS.add(self)

    def _forget(self) -> None:
        """No workers; in a forked child the old ones belong to the parent, and so does whatever lock was held."""
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._free = threading.Semaphore(self.size)

    def call(self, function: str, args: Sequence[Any], timeout: float) -> Any:
        """What "package.module:function" returns for `args` (JSON values both), computed in a worker.

        `timeout` in seconds counts from when a worker takes the item; waiting for a worker is not counted. Raises
        `GradingError` when the function raises, does not end in time, or takes its process down.
        """
        with self._free:
            worker = self._take()
            try:
                result = worker.call(function, args, timeout)
            except BaseException:  # also Ctrl-C: a late reply must never meet the next item
                self._discard(worker)
                raise
            if worker.num_items >= self.max_items:
                self._discard(worker)
            else:
                with self._lock:
                    self._idle.append(worker)
        if "error" in result:
            raise GradingError(result["error"])
        return result["value"]

    def close(self) -> None:
        """Ends all workers at once; an item under way raises `GradingError`, and so does every later call."""
        with self._lock:
            self._closed = True
            workers, self._all, self._idle = self._all, set(), []
        for worker in workers:
            worker.kill()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> _Worker:
        while True:
            with self._lock:
                if self._closed:
                    raise GradingError("the pool is closed")
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return self._start()
            if worker.process.poll() is None:
                return worker
            self._discard(worker)  # it died while it had nothing to do: nobody's item is lost

    def _start(self) -> _Worker:
        worker = _Worker(self.setup, self.memory)
        with self._lock:
            self._all.add(worker)
            closed = self._closed
        try:
            if closed:
                raise GradingError("the pool is closed")
            worker.wait_ready()
        except BaseException:
            self._discard(worker)
            raise
        return worker

    def _discard(self, worker: _Worker) -> None:
        worker.kill()
        with self._lock:
            self._all.discard(worker)


class _Worker:
    """One process and the socket to it."""

    def __init__(self, setup: str, memory: int) -> None:
        self.num_items = 0
        self._kill_lock, self._killed = threading.Lock(), False
        self.socket, theirs = socket.socketpair()
        with theirs:
            boot = json.dumps([theirs.fileno(), sys.path, setup, memory])
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, boot],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent to handle
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            )

    def wait_ready(self) -> None:
        ready = self._reply(time.monotonic() + STARTUP_SECONDS, f"did not start within {STARTUP_SECONDS:g} s")
        if "error" in ready:
            raise GradingError(f"a worker could not start: {ready['error']}")

    def call(self, function: str, args: Sequence[Any], timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        self.num_items += 1
        request = json.dumps([function, list(args), timeout]).encode()
        if len(request) > MAX_MESSAGE:
            raise GradingError(f"{function}: a request of {len(request)} bytes is larger than {MAX_MESSAGE}")
        too_slow = f"{function} did not end within {timeout:g} s"
        try:
            self.socket.settimeout(timeout)
            self.socket.sendall(len(request).to_bytes(4, "big") + request)
        except TimeoutError:
            raise GradingError(too_slow) from None
        except OSError as error:
            raise GradingError(f"{function}: {self._death()}") from error
        return self._reply(deadline, too_slow, function)

    def _reply(self, deadline: float, too_slow: str, function: str = "starting") -> dict[str, Any]:
        try:
            length = int.from_bytes(self._receive(4, deadline), "big")
            if length > MAX_MESSAGE:
                raise GradingError(f"{function}: a result of {length} bytes is larger than {MAX_MESSAGE}")
            reply = json.loads(self._receive(length, deadline))
        except TimeoutError:
            raise GradingError(too_slow) from None
        except EOFError:
            raise GradingError(f"{function}: {self._death()}") from None
        except ValueError as error:
            raise GradingError(f"{function}: a worker's reply cannot be read") from error
        if not isinstance(reply, dict) or not reply.keys() & {"value", "error"}:
            raise GradingError(f"{function}: a worker's reply cannot be read")
        return reply

    def _receive(self, count: int, deadline: float) -> bytes:
        received = bytearray()
        while len(received) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.socket.settimeout(left)
            try:
                piece = self.socket.recv(min(count - len(received), 2**16))
            except TimeoutError:
                raise
            except OSError as error:
                raise EOFError from error
            if not piece:
                raise EOFError
            received += piece
        return bytes(received)

    def _death(self) -> str:
        try:
            status = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "the worker closed its connection"
        return f"the worker died ({signal.Signals(-status).name if status < 0 else f'exit status {status}'})"

    def kill(self) -> None:
        """Ends the process and whatever it started, and collects it."""
        with self._kill_lock:
            if self._killed:
                return  # once collected, the number may belong to another process
            self._killed = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            with contextlib.suppress(OSError):  # wakes a thread that waits for a reply
                self.socket.shutdown(socket.SHUT_RDWR)
            self.process.wait()
            self.socket.close()

    def leave_to_parent(self) -> None:
        """In a forked child: closes the copy of the socket; the process goes on for the parent."""
        self.socket.close()
        self.process.returncode = 0  # not a child of this process, so never to be waited for


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for pool in list(_POOLS):
        pool.close()


def _after_fork() -> None:
    for pool in list(_POOLS):
        for worker in list(pool._all):
            worker.leave_to_parent()
        pool._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ---- in the worker ----


def _serve(fd: int, setup: str, memory: int) -> None:
    """A worker's life: set up, then one request after another until the parent is gone."""
    connection = socket.socket(fileno=fd)
    try:
        _limit_memory(memory)
        if setup:
            _find(setup)()
        reply: dict[str, Any] = {"value": None}
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {error}"}
    functions: dict[str, Callable[..., Any]] = {}
    with connection.makefile("rb") as requests:
        while _send(connection, reply):
            head = requests.read(4)
            if len(head) < 4:
                return
            name, args, timeout = json.loads(requests.read(int.from_bytes(head, "big")))
            signal.setitimer(signal.ITIMER_REAL, timeout + 1)  # should the parent be gone: SIGALRM ends this process
            try:
                function = functions.get(name) or functions.setdefault(name, _find(name))
                reply = {"value": function(*args)}
            except MemoryError:
                os._exit(os.EX_OSERR)  # what is left of the heap is not to be trusted
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {str(error)[:1000]}"}
            signal.setitimer(signal.ITIMER_REAL, 0)


def _send(connection: socket.socket, reply: dict[str, Any]) -> bool:
    """Whether there is still somebody to send to."""
    try:
        message = json.dumps(reply).encode()
    except (TypeError, ValueError, RecursionError) as error:
        message = json.dumps({"error": f"the result is not JSON: {error}"}).encode()
    try:
        connection.sendall(len(message).to_bytes(4, "big") + message)
    except OSError:
        return False
    return True


def _find(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _limit_memory(memory: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # no such limit on this system
        return
