"""Data sets: a row per line, of one kind and one form per file; the form is told by the columns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

from melete.datasets.formats import (
    CALLED,
    FORMATS,
    MESSAGES,
    NOTHING_ASKED,
    TAKEN_BY,
    USUAL_NAMES,
    Format,
    Row,
    check_roles,
    format_of,
    formats_of,
    renamed,
)
from melete.datasets.tables import TableRow, read_table
from melete.errors import DataError, MeleteError
from melete.runs.atomic import write_atomically
from melete.suggest import did_you_mean, nearest
from melete.types import (
    Demonstration,
    LabelledCompletion,
    LabelledSteps,
    PreferencePair,
    RankedCompletions,
)

_Kind = TypeVar("_Kind", PreferencePair, RankedCompletions, Demonstration, LabelledCompletion, LabelledSteps)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes the file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, "".join(lines))


def read_rows(path: Path, kind: type[_Kind], *, columns: Mapping[str, str] = {}, part: str = "") -> list[_Kind]:
    """All rows of a file or a `datasets` directory as `kind`, in any form that `formats` knows.

    `columns` gives roles to columns of other names, `part` chooses a part of a directory. Raises `DataError` that names
    file, line and column for the first row that is not of this kind, and both lines where a file mixes forms.
    """
    rows, _ = read_any(path, [kind], columns=columns, part=part)
    return cast(list[_Kind], rows)


def read_any(
    path: Path, kinds: Sequence[type[Row]], *, columns: Mapping[str, str] = {}, part: str = ""
) -> tuple[list[Row], Format]:
    """The rows of a file as the first of these kinds that fits, and the form in which they stand."""
    check_roles(columns, str(path))
    found = [renamed(row, columns) for row in read_table(path, part=part)]
    formats = [one for kind in kinds for one in formats_of(kind)]
    several = _readable(found[0], formats, columns) if len(kinds) > 1 else None  # a label may be another program's
    first = several or format_of(found[0], formats, columns)
    if first is None:
        raise _unfit(found[0], kinds[0], formats, columns)
    rows: list[Row] = []
    formats = formats_of(first.kind)
    for row in found:
        form = first if row is found[0] else format_of(row, formats, columns)
        if form is not first:
            raise _mixed(found[0], first, row, form, columns)
        rows.append(first.row(row))
    return rows, first


def first_rows(path: Path, count: int, *, columns: Mapping[str, str] = {}, part: str = "") -> list[Row]:
    """The rows of whatever kind among the first `count` of a file that can be read; none where it cannot be read."""
    try:
        table = [renamed(row, columns) for row in read_table(path, part=part, limit=count)]
    except MeleteError:
        return []
    found: list[Row] = []
    for row in table:
        with contextlib.suppress(DataError):
            form = _readable(row, FORMATS, columns)
            found += [form.row(row)] if form else []
    return found


def num_rows(path: Path, *, part: str = "") -> int:
    """Rows of a file or directory; those of JSONL are counted without reading them. Raises `DataError`."""
    if path.is_dir() or path.suffix.lower() not in (".jsonl", ".ndjson"):
        return len(read_table(path, part=part))
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _mixed(first: TableRow, form: Format, row: TableRow, other: Format | None, columns: Mapping[str, str]) -> DataError:
    """What is wrong with a row that is not in the form of the first."""
    missing = _missing(form, row)
    is_misnamed = len(missing) == 1 and _other_name(missing[0], [str(name) for name in row.values]) is not None
    other = other or _readable(row, FORMATS, columns)
    if other is None or other is form or is_misnamed:
        return _unfit(row, form.kind, [form], columns)
    what = f"two forms in one file: {first.place} is of the form {form.name!r}, this row of {other.name!r}"
    return DataError(what, place=row.place, remedy="keep one form in a file, or split it")


def _unfit(row: TableRow, kind: type[Row], formats: Sequence[Format], columns: Mapping[str, str]) -> DataError:
    """Why no form fits a row: a column under another name, data of another kind, or columns of no form at all."""
    there = [str(name) for name in row.values]
    shown = f"columns found: {', '.join(there) or 'none'}"
    gaps = [{role: _other_name(role, there) for role in _missing(one, row)} for one in formats]
    near = min(gaps, key=lambda gap: (sum(name is None for name in gap.values()), len(gap)))
    missing = list(near)
    other = _readable(row, [one for one in FORMATS if one.kind is not kind], columns)
    if other and not (len(missing) == 1 and near[missing[0]]):
        what = f"these are {CALLED[other.kind]} ({other.name}), not {CALLED[kind]}; {shown}"
        return DataError(what, place=row.place, remedy=f"{CALLED[other.kind]} are for {TAKEN_BY[other.kind]}")
    named = {role: name for role, name in near.items() if name}
    mapping = ", ".join(f'{role} = "{name}"' for role, name in named.items())
    options = " ".join(f"--columns {role}={name}" for role, name in named.items())
    remedy = f"columns = {{ {mapping} }} (as options: {options}), or " if named else ""
    remedy += "one of these forms: "
    remedy += "; ".join(", ".join("/".join(roles) for roles in one.needs) for one in formats)
    if missing == ["prompt"] and not near["prompt"]:
        return DataError(f"{NOTHING_ASKED}; {shown}", place=row.place, remedy=MESSAGES)
    if not missing:
        return DataError(f"these columns make no {CALLED[kind]}; {shown}", place=row.place, remedy=remedy)
    what = " and ".join(f"column {role} is missing; {did_you_mean(near[role] or role, there)}" for role in missing)
    return DataError(f"{what}; {shown}", place=row.place, remedy=remedy)


def _missing(form: Format, row: TableRow) -> list[str]:
    return [roles[0] for roles in form.needs if not any(role in row.values for role in roles)]


def _other_name(role: str, there: Sequence[str]) -> str | None:
    """The column that probably plays a role: by what others call it, else by its spelling."""
    usual = next((name for name in USUAL_NAMES[role] if name in there), None) if role in USUAL_NAMES else None
    return usual or nearest(role, [name for name in there if name not in USUAL_NAMES or name[:5] == role[:5]])


def _readable(row: TableRow, formats: Iterable[Format], columns: Mapping[str, str]) -> Format | None:
    """The first form that the row not only fits, but can be read in."""
    for one in formats:
        if format_of(row, [one], columns):
            try:
                one.row(row)
            except DataError:
                continue
            return one
    return None
