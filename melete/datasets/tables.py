"""Tables on disk: JSONL, CSV, Parquet and directories of the `datasets` library, read into rows that know their place.

Nothing here is trusted and nothing is executed: a file is parsed as data, by its name alone (`.jsonl`, `.ndjson`,
`.json` as a list, `.csv`, `.tsv`, `.parquet`, each text form also with `.gz`; a directory that `save_to_disk` wrote).
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melete.errors import DataError
from melete.imports import require
from melete.suggest import did_you_mean
from melete.types import Message

MAX_CSV_FIELD = 2**26  # characters; the library's own limit of 2^17 is shorter than some solutions
FORMS = ".jsonl, .ndjson, .json, .csv, .tsv (each also .gz), .parquet, or a directory of `datasets`"


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: its values by column, and where it stands, such as "a.jsonl, line 3"."""

    values: Mapping[str, Any]
    place: str

    def has(self, column: str) -> bool:
        """Whether the column is there and holds something; `null` counts as not there."""
        return self.values.get(column) is not None

    def get(self, column: str) -> Any:
        """The value of a column. Raises `DataError` with the columns that are there and the nearest of them."""
        if column not in self.values:
            found = [str(name) for name in self.values]
            raise DataError(
                f"column {column} is missing; {did_you_mean(column, found)}",
                place=self.place,
                remedy=f"columns found: {', '.join(found) or 'none'}",
            )
        return self.values[column]

    def text(self, column: str) -> str:
        """The text in a column. Raises `DataError` where it is something else."""
        value = self.get(column)
        if not isinstance(value, str):
            raise DataError(f"must be text, not {short(value)}", place=f"{self.place}, column {column}")
        return value

    def text_or_number(self, column: str) -> str:
        """The text in a column, or a number as text. Raises `DataError` where it is neither."""
        value = self.get(column)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        return self.text(column)

    def messages(self, column: str) -> tuple[Message, ...]:
        """The turns in a column. Raises `DataError` where it is no list of {"role": ..., "content": ...}."""
        found, place = self.get(column), f"{self.place}, column {column}"
        remedy = '[{"role": "user", "content": "..."}]'
        if not isinstance(found, Sequence) or isinstance(found, str | bytes) or not found:
            raise DataError(f"must be a list of messages, not {short(found)}", place=place, remedy=remedy)
        for message in found:
            is_whole = isinstance(message, Mapping) and isinstance(message.get("content"), str)
            if not is_whole or message.get("role") not in ("system", "user", "assistant"):
                raise DataError(f"{short(message)} is no message", place=place, remedy=remedy)
        return tuple(Message(message["role"], message["content"]) for message in found)

    def column_of(self, role: str, columns: Mapping[str, str], usual: Sequence[str]) -> str:
        """The column that plays a role: the one that `columns` names, else the first of the usual ones that is there.

        Raises `DataError` with the columns that are there when there is none.

        >>> TableRow({"problem": "1+1?"}, "line 1").column_of("question", {}, ("question", "problem"))
        'problem'
        """
        if role in columns:
            self.get(columns[role])
            return columns[role]
        for name in usual:
            if self.has(name):
                return name
        found = [str(name) for name in self.values]
        near = " ".join(f"{name}: {did_you_mean(name, found)}" for name in usual[:1])
        raise DataError(
            f"no column for the {role}, such as {', '.join(usual)}; {near}",
            place=self.place,
            remedy=f'say which it is: columns = {{ {role} = "..." }}; columns found: {", ".join(found) or "none"}',
        )


def read_table(path: Path, *, part: str = "", limit: int | None = None) -> list[TableRow]:
    """All rows of a file or directory, in order, or the first `limit`. `part` chooses one of several parts of a
    `datasets` directory.

    Raises `DataError` that names file and line for what cannot be read, and for an empty table; `RecipeError` with the
    line that installs it when a library is missing.
    """
    path = Path(path)
    if path.is_dir():
        rows = list(itertools.islice(_directory(path, part), limit))
    else:
        if part:
            raise DataError(f"a file has no part {part!r}", place=str(path), remedy="leave `part` out")
        rows = list(itertools.islice(_reader(path)(path), limit))
    if not rows:
        raise DataError("the table is empty", place=str(path), remedy="write at least one row")
    return rows


def json_object(line: str, place: str) -> dict[str, Any]:
    """The object that a line of JSONL is. Raises `DataError` for anything else, numbers of 5000 digits included."""
    try:
        columns = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a JSON object: {error}", place=place, remedy="one object per line") from error
    if not isinstance(columns, dict):
        raise DataError("not a JSON object", place=place, remedy="one object per line")
    _refuse_halves(columns, line, place)
    return columns


def _refuse_halves(value: Any, source: str, place: str) -> None:
    r"""Raises `DataError` for text with half a character: "\ud83d" is JSON, but can be written to no file."""
    if "\\u" not in source:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        what = f"half a character (a lone surrogate) stands in a text: {error.object[error.start : error.end]!a}"
        raise DataError(what, place=place, remedy="write the text as UTF-8") from error


def _reader(path: Path) -> Callable[[Path], Iterator[TableRow]]:
    name = path.name.lower().removesuffix(".gz")
    readers = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
    }
    for suffix, reader in readers.items():
        if name.endswith(suffix):
            return reader
    raise DataError(f"{path.name} is of no known form", place=str(path), remedy=FORMS)


def _content(path: Path) -> str:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.name.lower().endswith(".gz") else content
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            "the table cannot be read: it is not there", place=str(path), remedy="check the path"
        ) from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"the table cannot be read: {error}", place=str(path), remedy="text in UTF-8") from error


def _jsonl(path: Path) -> Iterator[TableRow]:
    for number, line in enumerate(_content(path).split("\n"), 1):  # other separators may stand inside a text
        if line.strip():
            place = f"{path}, line {number}"
            yield TableRow(json_object(line, place), place)


def _json(path: Path) -> Iterator[TableRow]:
    content = _content(path)
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", place=str(path), remedy="a list of objects") from error
    if not isinstance(rows, list):
        raise DataError("not a list of objects", place=str(path), remedy="a list of objects, or .jsonl")
    for number, row in enumerate(rows):
        place = f"{path}, item {number}"
        if not isinstance(row, dict):
            raise DataError("not a JSON object", place=place, remedy="a list of objects")
        _refuse_halves(row, content, place)
        yield TableRow(row, place)


def _csv(path: Path) -> Iterator[TableRow]:
    delimiter = "\t" if path.name.lower().removesuffix(".gz").endswith(".tsv") else ","
    reader = csv.reader(_csv_lines(_content(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    before = csv.field_size_limit(MAX_CSV_FIELD)
    line = 1
    try:
        for fields in reader:
            place = f"{path}, line {line}"
            line = reader.line_num + 1  # a quoted field may hold line ends: a row begins where the last one ended
            if header is None:
                header = _header(fields, place)
            elif fields:
                if len(fields) != len(header):
                    what = f"{len(fields)} fields, but the header has {len(header)}: {', '.join(header)}"
                    raise DataError(what, place=place, remedy="quote fields that hold a comma or a line end")
                yield TableRow(dict(zip(header, fields, strict=True)), place)
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", place=f"{path}, line {line}", remedy="quote as RFC 4180 says") from error
    finally:
        csv.field_size_limit(before)


def _csv_lines(content: str) -> Iterator[str]:
    """Lines with their ends, cut at newlines only."""
    begin = 0
    while begin < len(content):
        end = content.find("\n", begin) + 1 or len(content)
        yield content[begin:end]
        begin = end


def _header(fields: Sequence[str], place: str) -> list[str]:
    names = [field.strip() for field in fields]
    if not all(names) or len(set(names)) < len(names):
        raise DataError(f"a column has no name of its own: {names}", place=place, remedy="name every column once")
    return names


def _parquet(path: Path) -> Iterator[TableRow]:
    arrow, parquet = require("pyarrow", extra="data"), require("pyarrow.parquet", extra="data")
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise DataError(f"the table cannot be read: {error}", place=str(path), remedy="a Parquet file") from error
    yield from (TableRow(row, f"{path}, row {number}") for number, row in enumerate(rows))


def _directory(path: Path, part: str) -> Iterator[TableRow]:
    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
        raise DataError("not a directory that `save_to_disk` wrote", place=str(path), remedy=FORMS)
    library = require("datasets", extra="data")
    try:
        found = library.load_from_disk(str(path))
    except Exception as error:  # whatever the library raises for files that it did not write
        raise DataError(f"the data set cannot be read: {error}", place=str(path), remedy=FORMS) from error
    if isinstance(found, library.DatasetDict):
        names = [str(name) for name in found]
        part = part or (names[0] if len(names) == 1 else "")
        if part not in names:
            what = f"part {part!r} is not there; {did_you_mean(part, names)}" if part else "it has several parts"
            raise DataError(what, place=str(path), remedy=f"part: one of {', '.join(names)}")
        found = found[part]
    elif part:
        raise DataError(f"it has no parts, so no part {part!r}", place=str(path), remedy="leave `part` out")
    yield from (TableRow(dict(row), f"{path}, row {number}") for number, row in enumerate(found))


def short(value: Any) -> str:
    """A value as messages show it, cut after 80 letters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
