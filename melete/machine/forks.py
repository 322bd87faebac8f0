"""Work beside this process, in copies of it: Python's lock lets two threads of a small model take turns only.

A copy has the model and all else as they were when it was made, so nothing is loaded twice; it waits for jobs until it
is closed or its parent ends. A copy has one thread, and a lock that another thread held when it was made is never free
in it. So it may fail at any time: whoever asks for it can do the work alone, with the same result.
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

from melete.machine.allocator import give_back

Tell = Callable[[Any], None]
Work = Callable[[Any, Tell], None]  # a job, and who is told what comes of it
_DONE = ".\n"  # the line of a copy that has done a job
PATIENCE = 10.0  # seconds without any work after which a copy is taken to wait for a lock
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def can_fork() -> bool:
    """Whether copies can be made here; on other systems than Linux libraries do not survive it."""
    return sys.platform == "linux" and threading.current_thread() is threading.main_thread()


class Fork:
    """A copy of this process that does `work` with each job that it is given, one after another."""

    def __init__(self, work: Work) -> None:
        """Raises `OSError` where no process can be made."""
        parent, (mine, theirs), (jobs, given) = os.getpid(), os.pipe(), os.pipe()
        libc = ctypes.CDLL(None)
        # a signal for the parent must not run its handlers in the copy
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: see above
                self._pid = os.fork()
            if self._pid == 0:
                os.close(mine)
                os.close(given)
                _work_and_exit(work, jobs, theirs, parent, libc)
        except OSError:
            os.close(mine)
            os.close(given)
            raise
        finally:
            os.close(theirs)
            os.close(jobs)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._parent = parent
        self._told, self._given = os.fdopen(mine), os.fdopen(given, "w")
        self._status: int | None = None
        self._is_done, self._error = False, None
        self._listener: threading.Thread | None = None

    def start(self, job: Any, hear: Callable[[Any], None]) -> None:
        """Gives it a job, a JSON value; `hear` is called in a thread with each JSON value that the work tells.

        Raises `OSError` if it is no longer there.
        """
        self._is_done, self._error = False, None
        _say(self._given, job)
        self._listener = threading.Thread(target=self._listen, args=(hear,), name="fork", daemon=True)
        self._listener.start()

    def _listen(self, hear: Callable[[Any], None]) -> None:
        try:
            for line in iter(self._told.readline, ""):
                if line == _DONE:
                    self._is_done = True
                    return
                if line.endswith("\n"):  # the last one may have been cut
                    hear(json.loads(line))
        except BaseException as error:  # of the listener's: raised where the work is waited for
            self._error = error

    def join(self) -> bool:
        """Waits for the end of its job; whether all of it was done. Raises what `hear` raised.

        A copy that has not done all of its job is ended.
        """
        worked, since = -1.0, time.monotonic()
        while self._listener is not None and self._listener.is_alive():
            self._listener.join(0.5)
            seconds = _cpu_seconds(self._pid)
            if seconds != worked:
                worked, since = seconds, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                self.close()
        if not self._is_done:
            self.close()
        if self._error is not None:
            raise self._error
        return self._is_done

    def close(self) -> None:
        """Ends it at once; in another copy, which has this object too, nothing is done."""
        if self._status is None and os.getpid() == self._parent:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            try:
                _, self._status = os.waitpid(self._pid, 0)
            except ChildProcessError:  # somebody else has seen it off
                self._status = 0
            with contextlib.suppress(OSError):
                self._given.close()


def _work_and_exit(work: Work, jobs: int, theirs: int, parent: int, libc: Any) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to the whole terminal; the parent decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        gc.freeze()  # to look through what the parent has would touch, and so copy, every page
        if os.getppid() == parent:
            with os.fdopen(jobs) as asked, os.fdopen(theirs, "w") as out:
                for job in iter(asked.readline, ""):
                    work(json.loads(job), lambda value: _say(out, value))
                    out.write(_DONE)
                    out.flush()
                    give_back()
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
