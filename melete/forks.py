"""Work beside this process, in a copy of it: Python's lock lets two threads of a small model take turns only.

A fork has the model and all else as they are, so nothing is sent and nothing is loaded twice. A copy has one thread,
and a lock that another thread held when it was made is never free in it. So it may fail at any time: whoever asks for
it can do the work alone, with the same result.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

Tell = Callable[[Any], None]
_DONE = ".\n"  # the last line of a copy that has done its work
PATIENCE = 10.0  # seconds without any work after which a copy is taken to wait for a lock
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def can_fork() -> bool:
    """Whether copies can be made here; on other systems than Linux libraries do not survive it."""
    return sys.platform == "linux" and threading.current_thread() is threading.main_thread()


_leaving: list[Fork] = []  # copies whose work is done: the system takes a while to clear one away


class Fork:
    """A copy of this process that does `work`; `hear` is called in a thread with each JSON value that it tells."""

    def __init__(self, work: Callable[[Tell], None], hear: Callable[[Any], None]) -> None:
        """Raises `OSError` where no process can be made."""
        _leaving[:] = [copy for copy in _leaving if not copy._has_left()]
        self._hear, self._error = hear, None
        parent, (mine, theirs) = os.getpid(), os.pipe()
        libc = ctypes.CDLL(None)
        # a signal for the parent must not run its handlers in the copy
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: see above
                self._pid = os.fork()
            if self._pid == 0:
                _work_and_exit(work, theirs, parent, libc)
        except OSError:
            os.close(mine)
            raise
        finally:
            os.close(theirs)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._status: int | None = None
        self._is_done = False
        self._listener = threading.Thread(target=self._listen, args=(mine,), name="fork", daemon=True)
        self._listener.start()

    def _listen(self, mine: int) -> None:
        try:
            with os.fdopen(mine) as told:
                for line in told:
                    if line == _DONE:
                        self._is_done = True
                    elif line.endswith("\n"):  # the last one may have been cut
                        self._hear(json.loads(line))
        except BaseException as error:  # of the listener's: raised where the work is waited for
            self._error = error

    def join(self) -> bool:
        """Waits until nothing more is told; whether all of the work was done. Raises what `hear` raised."""
        worked, since = -1.0, time.monotonic()
        while self._listener.is_alive():
            self._listener.join(0.5)
            seconds = _cpu_seconds(self._pid)
            if seconds != worked:
                worked, since = seconds, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                self.kill()
        if self._is_done:
            _leaving.append(self)
        else:
            self._end()
        if self._error is not None:
            raise self._error
        return self._is_done

    def kill(self) -> None:
        """Ends it at once."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._end()

    def _has_left(self) -> bool:
        if self._status is None:
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has seen it off
                pid, status = self._pid, 0
            self._status = status if pid else None
        return self._status is not None

    def _end(self) -> None:
        if self._status is None:
            _, self._status = os.waitpid(self._pid, 0)


def _work_and_exit(work: Callable[[Tell], None], theirs: int, parent: int, libc: Any) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to the whole terminal; the parent decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        gc.disable()  # it would touch, and so copy, every page
        if os.getppid() == parent:
            with os.fdopen(theirs, "w") as out:
                work(lambda value: _say(out, value))
                out.write(_DONE)
            code = 0
    finally:
        os._exit(code)  # nothing of the parent's is flushed, closed or said twice


def _say(out: Any, value: Any) -> None:
    out.write(json.dumps(value) + "\n")
    out.flush()


def _cpu_seconds(pid: int) -> float:
    """What a process has worked; it stays the same once it cannot be told."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
