"""The rows of a file that grows, and is sometimes cut back or replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_CHECKED = 64  # so many of the bytes last read have to be there still
MAX_BYTES = 2**20  # read at once


class Tail:
    """Reads each whole line once. `read` says when the file is not the one that was read before.

    `only_last` bytes: an older part of a long file is passed over.
    """

    def __init__(self, path: Path, only_last: int | None = None) -> None:
        self.path, self.only_last = path, only_last
        self._start_again()

    def _start_again(self) -> None:
        self._offset, self._inode, self._last = 0, -1, b""

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether all rows from before are void, and up to a mebibyte of new ones; a line without its end waits."""
        try:
            with self.path.open("rb") as file:
                status = self.path.stat()
                is_void = self._inode >= 0 and not self._goes_on(file, status.st_ino, status.st_size)
                if is_void:
                    self._start_again()
                if self._inode < 0:
                    self._inode = status.st_ino
                    self._skip(file, status.st_size)
                file.seek(self._offset)
                content = file.read(MAX_BYTES)
                if b"\n" not in content and len(content) == MAX_BYTES:
                    content += file.readline()  # a line of more than that
        except OSError:  # not there yet, or just being replaced
            is_void = self._inode >= 0
            self._start_again()
            return is_void, []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._last = (self._last + whole)[-_CHECKED:]
        return is_void, [row for line in whole.splitlines() if (row := _row(line)) is not None]

    def _goes_on(self, file: Any, inode: int, size: int) -> bool:
        if inode != self._inode or size < self._offset:
            return False
        file.seek(self._offset - len(self._last))
        return file.read(len(self._last)) == self._last

    def _skip(self, file: Any, size: int) -> None:
        if self.only_last is not None and size > self.only_last:
            file.seek(size - self.only_last)
            file.readline()
            self._offset = file.tell()


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
