"""The journal of a person's answers: one line each, on the disk before the page moves on.

Nothing is ever changed in it. An undo is a line too, and the last line about an item counts. Several processes may
write into one journal: each reads what the others wrote before it adds a line of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from melete.errors import DataError
from melete.runs.atomic import json_text, writing

FIRST, SECOND, TIE, SKIP, UNDO = "first", "second", "tie", "skip", "undo"
SAFE, UNSAFE = "safe", "unsafe"
ANSWERS = {"compare": (FIRST, SECOND, TIE, SKIP), "safety": (SAFE, UNSAFE, SKIP)}
_NEEDED = ("id", "item", "by", "answer", "messages", "completions")


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer. `swapped` says that the second completion stood on the left; `unsafe` numbers completions."""

    id: str
    item: str
    by: str
    answer: str
    messages: tuple[Mapping[str, str], ...]
    completions: tuple[str, ...]
    unsafe: tuple[int, ...] = ()
    swapped: bool = False
    seconds: float = 0.0
    review: bool = False
    at: str = ""

    def row(self) -> dict[str, Any]:
        """The entry as a line of the journal."""
        return {name: getattr(self, name) for name in self.__slots__}


class AlreadyAnswered(DataError):
    """An answer to an item that the same person has answered, in another tab or process."""


class Journal:
    """An open journal; `notes` says what was mended when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self.entries: list[Entry] = []
        self._ids: dict[str, Entry] = {}
        self._offset = 0
        self._num_lines = 0
        self._guard = threading.RLock()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def refresh(self) -> None:
        """Reads what other processes have added."""
        with self._locked() as file:
            self._read(file)

    def add(self, entry: Entry, *, refuse: Callable[[Entry], str | None] = lambda _: None) -> Entry:
        """Writes an entry to the disk. One with an id that is there is a repeated request and changes nothing.

        `refuse` is asked after everything that others wrote is read; what it says is raised as `AlreadyAnswered`.
        """
        with self._locked() as file:
            self._read(file)
            if known := self._ids.get(entry.id):
                return known
            if why := refuse(entry):
                raise AlreadyAnswered(why)
            data = (json_text(entry.row()) + "\n").encode(errors="replace")
            size = file.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(data):
                    written += file.write(data[written:])
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)  # a full disk must not leave half a line
                raise
            self._read(file)
            return self._ids[entry.id]

    def current(self, by: str | None = None, *, independent: bool = False) -> dict[tuple[str, str], Entry]:
        """The answer that counts for each (person, item); `independent` leaves out what was changed in a review."""
        found: dict[tuple[str, str], Entry] = {}
        for entry in self.entries:
            if (by is not None and entry.by != by) or (independent and entry.review):
                continue
            found.pop((entry.by, entry.item), None)  # the newest stands last
            if entry.answer != UNDO:
                found[entry.by, entry.item] = entry
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        with self._guard, writing(self.path), self.path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _read(self, file: IO[bytes]) -> None:
        size = file.seek(0, os.SEEK_END)
        if size < self._offset:
            what = "the journal has become shorter while it was open"
            raise DataError(what, place=str(self.path), remedy="restore it from a copy and start again")
        file.seek(self._offset)
        content = file.read(size - self._offset)
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self.notes.append(f"the last line of {self.path.name} was cut off and is left out")
            file.truncate(self._offset + whole)
        for line in content[:whole].splitlines():
            self._num_lines += 1
            if line.strip():
                entry = self._entry(line)
                if entry.id not in self._ids:
                    self._ids[entry.id] = entry
                    self.entries.append(entry)
        self._offset += whole

    def _entry(self, line: bytes) -> Entry:
        try:
            row = json.loads(line)
            return _entry(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            place = f"{self.path}:{self._num_lines}"
            remedy = "is it another kind of file? `melete label` writes journals; give another --out"
            raise DataError(f"this is no line of a journal of answers ({error})", place=place, remedy=remedy) from error


def _entry(row: Mapping[str, Any]) -> Entry:
    if missing := [name for name in _NEEDED if name not in row]:
        raise ValueError(f"{', '.join(missing)} missing")
    lists = {"messages": tuple(row["messages"]), "completions": tuple(map(str, row["completions"]))}
    lists["unsafe"] = tuple(int(number) for number in row.get("unsafe", ()))
    known = {name: row[name] for name in Entry.__slots__ if name in row}
    return Entry(**(known | lists))


def newest(entries: Sequence[Entry], by: str) -> Entry | None:
    """What this person answered last and has not taken back."""
    undone: set[str] = set()
    for entry in reversed(entries):
        if entry.by != by:
            continue
        if entry.answer == UNDO:
            undone.add(entry.item)
        elif entry.item in undone:
            undone.discard(entry.item)
        else:
            return entry
    return None
