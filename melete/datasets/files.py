"""JSONL data sets: a row per line, of one kind per file; the kind is told by the columns."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from melete.datasets.tables import json_object
from melete.errors import DataError
from melete.runs.atomic import write_atomically
from melete.suggest import did_you_mean
from melete.types import (
    Demonstration,
    LabelledCompletion,
    LabelledSteps,
    Message,
    PreferencePair,
    RankedCompletions,
)

Row = PreferencePair | RankedCompletions | Demonstration | LabelledCompletion | LabelledSteps
_Kind = TypeVar("_Kind", PreferencePair, RankedCompletions, Demonstration, LabelledCompletion, LabelledSteps)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes the file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, "".join(lines))


def read_rows(path: Path, kind: type[_Kind]) -> list[_Kind]:
    """All rows of a file as `kind`. `prompt` (text) may stand for `messages`, and the id may be left out.

    Raises `DataError` that names file, line and column for the first row that is not of this kind.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the data cannot be read: {error}", place=str(path), remedy="a .jsonl file in UTF-8"
        ) from error
    rows = [_row(line, kind, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError("the data set is empty", place=str(path), remedy="write at least one row")
    return rows


def _row(line: str, kind: type[_Kind], place: str) -> _Kind:
    columns = json_object(line, place)
    fields = [field.name for field in dataclasses.fields(kind)]
    optional = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    id_name = fields[0]
    values: dict[str, Any] = {
        id_name: str(columns.get(id_name, place.rpartition(" ")[2])),
        "messages": _messages(columns, place),
    }
    for name in fields[2:]:
        if name not in columns and name in optional:
            continue
        if name not in columns:
            near = did_you_mean(name, list(columns))
            raise DataError(f"column {name} is missing; {near}", place=place, remedy=f"columns: {', '.join(fields)}")
        values[name] = _CHECKS[name](columns[name], f"{place}, column {name}")
    try:
        return kind(**values)
    except ValueError as error:
        raise DataError(str(error), place=place) from error


def _messages(columns: Mapping[str, Any], place: str) -> tuple[Message, ...]:
    if isinstance(columns.get("prompt"), str):
        return (Message("user", columns["prompt"]),)
    found = columns.get("messages")
    remedy = 'messages: [{"role": "user", "content": "..."}], or prompt: "..."'
    if not isinstance(found, list) or not found:
        raise DataError("neither prompt nor messages is given", place=place, remedy=remedy)
    for message in found:
        is_whole = isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not is_whole:
            raise DataError(f"{message!r} is no message", place=f"{place}, column messages", remedy=remedy)
    return tuple(Message(message["role"], message["content"]) for message in found)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"must be text, not {value!r}", place=place)
    return value


def _flag(value: Any, place: str) -> bool:
    if value not in (True, False):
        raise DataError(f"must be true or false, not {value!r}", place=place)
    return bool(value)


def _each(check: Callable[[Any, str], Any]) -> Callable[[Any, str], tuple[Any, ...]]:
    def whole(value: Any, place: str) -> tuple[Any, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise DataError(f"must be a list, not {value!r}", place=place)
        return tuple(check(item, place) for item in value)

    return whole


def _number(value: Any, place: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0:
        raise DataError(f"must be a number of at least 0, not {value!r}", place=place)
    return float(value)


_CHECKS: Mapping[str, Callable[[Any, str], Any]] = {
    "chosen": _text,
    "rejected": _text,
    "completion": _text,
    "completions": _each(_text),
    "label": _flag,
    "margin": _number,
    "steps": _each(_text),
    "labels": _each(_flag),
}
