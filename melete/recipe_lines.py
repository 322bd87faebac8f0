"""In which line of a TOML file a key stands; `tomllib`, which reads recipes, does not tell."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

_SPACE = re.compile(r"(?:[ \t]|\r?\n|#[^\n]*)*")  # comments too
_BLANK = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRINGS = (
    re.compile(r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})', re.DOTALL),
    re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)
_SIMPLE = re.compile(r"[^,\]}#\n]*")  # numbers, dates, true and false


def key_lines(text: str) -> dict[str, int]:
    """Full key -> line of every key and table of a file that `tomllib` can read.

    Entries of lists are numbered, keys keep their dots: `stage[0].rewards.my.module:f`. A list that is written with
    `[[name]]` has an entry for each header.

    >>> key_lines("seed = 1\\n[[stage]]\\nname = 'rl'\\n[stage.task]\\nname = 'verse'\\n")
    {'seed': 1, 'stage[0]': 2, 'stage[0].name': 3, 'stage[0].task': 4, 'stage[0].task.name': 5}
    """
    return _Reader(text).read()


def nearest_line(lines: Mapping[str, int], key: str) -> int | None:
    """The line of a key, else of the table or list that it belongs to or is missing from; `None` when nothing is there.

    >>> nearest_line({"stage[0]": 2, "stage[0].at": 5}, "stage[0].at[1]"), nearest_line({"seed": 1}, "name")
    (5, None)
    """
    while key:
        if key in lines:
            return lines[key]
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return None


class _Reader:
    """Walks through a file that is known to be TOML, so that nothing has to be refused."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.lines: dict[str, int] = {}
        self.counts: dict[str, int] = {}  # entries of each list that [[headers]] make

    def read(self) -> dict[str, int]:
        table = ""
        self._skip(_SPACE)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_SPACE)
        return self.lines

    def _header(self) -> str:
        """`[table]` or `[[list]]`; a list on the way stands for its last entry."""
        line, is_list = self._line(), self.text.startswith("[[", self.at)
        self.at += 2 if is_list else 1
        parts = self._key()
        self.at += 2 if is_list else 1
        key = ""
        for number, part in enumerate(parts, 1):
            key = f"{key}.{part}" if key else part
            if is_list and number == len(parts):
                self.counts[key] = self.counts.get(key, 0) + 1
            if key in self.counts:
                key = f"{key}[{self.counts[key] - 1}]"
            self.lines.setdefault(key, line)
        return key

    def _pair(self, table: str) -> None:
        line = self._line()
        key = table
        for part in self._key():
            key = f"{key}.{part}" if key else part
            self.lines.setdefault(key, line)
        self.at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(key)

    def _key(self) -> list[str]:
        """A key, bare, quoted or dotted, and the blanks around it."""
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            if self.text[self.at] in "\"'":
                quoted = self._skip(_STRINGS[2] if self.text[self.at] == '"' else _STRINGS[3])
                parts.append(next(iter(tomllib.loads(f"{quoted} = 0"))))
            else:
                parts.append(self._skip(_BARE_KEY))
            self._skip(_BLANK)
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def _value(self, key: str) -> None:
        start = self.text[self.at]
        if start == "[":
            self._list(key)
        elif start == "{":
            self._inline_table(key)
        elif start in "\"'":
            next(True for string in _STRINGS if self._skip(string))
        else:
            self._skip(_SIMPLE)

    def _list(self, key: str) -> None:
        self.at += 1
        number = 0
        self._skip(_SPACE)
        while self.text[self.at] != "]":
            entry = f"{key}[{number}]"
            self.lines.setdefault(entry, self._line())
            self._value(entry)
            self._skip(_SPACE)
            if self.text[self.at] == ",":
                self.at, number = self.at + 1, number + 1
                self._skip(_SPACE)
        self.at += 1

    def _inline_table(self, key: str) -> None:
        self.at += 1
        self._skip(_SPACE)
        while self.text[self.at] != "}":
            self._pair(key)
            self._skip(_SPACE)
            if self.text[self.at] == ",":
                self.at += 1
                self._skip(_SPACE)
        self.at += 1

    def _line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1

    def _skip(self, pattern: re.Pattern[str]) -> str:
        """Goes on behind what `pattern` matches here, and returns that."""
        found = pattern.match(self.text, self.at)
        matched = found.group() if found else ""
        self.at += len(matched)
        return matched
