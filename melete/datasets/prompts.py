"""Prompts out of a file: what is asked, without what is answered."""

from __future__ import annotations

from pathlib import Path

from melete.datasets.formats import turns_of
from melete.datasets.tables import TableRow, read_table
from melete.errors import DataError
from melete.types import Message

COLUMNS = ("prompt", "question", "problem", "instruction", "text")


def read_prompts(path: Path) -> list[tuple[Message, ...]]:
    """The conversations of a table, each up to its last user's turn, or the lines of a .txt file that are not blank.

    Raises `DataError` that names file, line and the columns found for what cannot be read.
    """
    if path.suffix.lower() == ".txt":
        return _lines(path)
    return [_prompt(row) for row in read_table(path)]


def _lines(path: Path) -> list[tuple[Message, ...]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the prompts cannot be read: {error}", place=str(path), remedy="text in UTF-8") from error
    found = [(Message("user", line.strip()),) for line in text.split("\n") if line.strip()]
    if not found:
        raise DataError("there is no prompt in this file", place=str(path), remedy="write one in each line")
    return found


def _prompt(row: TableRow) -> tuple[Message, ...]:
    for column in ("messages", "conversations", "prompt"):
        if row.has(column) and not isinstance(row.get(column), str):
            return _asked(turns_of(row, column), f"{row.place}, column {column}")
    return (Message("user", row.text(row.column_of("prompt", {}, COLUMNS))),)


def _asked(turns: tuple[Message, ...], place: str) -> tuple[Message, ...]:
    last = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        raise DataError("the user says nothing", place=place, remedy="end in a user's turn")
    return turns[: last + 1]
