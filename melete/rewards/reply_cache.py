"""Replies kept on disk, so that the same question is not asked, and paid for, twice.

An SQLite file that several processes may use at once and that a killed process leaves whole. It is in WAL mode, so it
belongs on a local disk, not on a network share. What goes wrong with it is logged and never fails a grader.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

_LOG = logging.getLogger(__name__)
_PATIENCE = 30.0  # seconds that one process waits for another's write
_TABLE = "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID"
_Result = TypeVar("_Result")


class ReplyCache:
    """Key -> reply, from any thread and any process. A file that is no database is set aside, with a warning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def get(self, key: str) -> str | None:
        """The reply that is kept under `key`."""
        row = self._do(lambda at: at.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone())
        return row[0] if row and isinstance(row[0], str) else None

    def put(self, key: str, reply: str) -> None:
        """Keeps a reply; the first that was kept stays."""
        self._do(lambda at: at.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, reply)))

    def close(self) -> None:
        """Lets go of the file; it is opened again when it is needed."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._drop()

    def _do(self, action: Callable[[sqlite3.Connection], _Result]) -> _Result | None:
        if os.getpid() != self._pid:  # a connection must not be used, nor closed, in a forked process
            self._pid, self._lock, self._connection = os.getpid(), threading.Lock(), None
        with self._lock:
            for _ in range(2):
                try:
                    if self._connection is None:
                        self._connection = self._open()
                    return action(self._connection)
                except (sqlite3.Error, OSError, UnicodeError) as error:
                    self._drop()
                    if not _is_corrupt(error):
                        _LOG.warning("the cache of replies %s is not used: %s", self._path, error)
                        return None
                    self._set_aside()
        return None

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():  # going over to WAL does not wait for another process that does the same
            return _connect(self._path)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._path.with_name(f"{self._path.name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
            yield

    def _set_aside(self) -> None:
        """Renames what cannot be read, unless another process has done so already."""
        with contextlib.suppress(OSError), self._alone():
            try:
                _connect(self._path).close()
                return  # what stands there now is sound
            except sqlite3.Error as error:
                if not _is_corrupt(error):
                    return
            new_name = f"{self._path.name}.corrupt-{time.time_ns()}"
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self._path}{suffix}", self._path.with_name(new_name + suffix))
            _LOG.warning("the cache of replies %s is corrupt: it was renamed to %s", self._path, new_name)


def _connect(path: Path) -> sqlite3.Connection:
    """An open cache whose every page was looked at."""
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(_TABLE)
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_corrupt(error: BaseException) -> bool:
    """Whether it is the file, and not a lock, a full disk or a missing right: those are subclasses."""
    return type(error) is sqlite3.DatabaseError
