"""The stage that joins data sets in given proportions."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from melete.datasets.files import Row, first_rows, read_rows, write_rows
from melete.errors import DataError
from melete.schema.curation import MixStage
from melete.stages.context import StageContext
from melete.tasks.curation import normal_text
from melete.types import Demonstration


def run_mix(stage: MixStage, context: StageContext) -> dict[str, Any]:
    """Joins data sets and writes `data/<stage>.jsonl` as a whole; returns the stage's entry of `summary.json`.

    Raises `DataError` for parts of different kinds, and for one that has too few rows.
    """
    started = time.perf_counter()
    context.view.stage_started(stage.name, 1)
    # in the order of their names: what comes first keeps its duplicates, whatever order a recipe was read back in
    paths = {name: context.data_path(name) for name in sorted(stage.parts)}
    kinds = {name: kind_of(path) for name, path in paths.items()}
    first = next(iter(kinds))
    for name, kind in kinds.items():
        if kind is not kinds[first]:
            what = f"{first} holds rows of the kind {kinds[first].__name__}, but {name} {kind.__name__}"
            raise DataError(what, place=f"stage {stage.name}, parts", remedy="mix data of one kind")
    read = {name: read_rows(path, kinds[name]) for name, path in paths.items()}
    rows = without_repeats(read)
    wanted = wanted_rows({name: len(part) for name, part in rows.items()}, stage)
    seed = f"{context.seed}/{stage.name}"
    mixed = [row for name, part in rows.items() for row in _drawn(name, part, wanted[name], seed)]
    random.Random(f"{seed}/order").shuffle(mixed)
    write_rows(context.run.path / "data" / f"{stage.name}.jsonl", mixed)
    context.view.step(stage.name, 0, {"num_rows": len(mixed)}, None)
    parts = [
        {
            "name": name,
            "num_rows": wanted[name],
            "share": wanted[name] / len(mixed),
            "weight": weight,
            "num_available": len(rows[name]),
            "num_duplicates": len(read[name]) - len(rows[name]),
        }
        for name, weight in stage.parts.items()
    ]
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": time.perf_counter() - started,
        "data": f"data/{stage.name}.jsonl",
        "num_rows": len(mixed),
        "parts": parts,
        "evaluations": [],
    }


def kind_of(path: Path) -> type[Any]:
    """What kind of rows a file holds, told by its first; reading a file that has none says what is wrong."""
    rows = first_rows(path, 1)
    return type(rows[0]) if rows else Demonstration


def without_repeats(parts: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """The parts without rows that say the same as an earlier one, in their own part or in one before it."""
    seen: set[Any] = set()
    left: dict[str, list[Row]] = {}
    for name, rows in parts.items():
        left[name] = []
        for row in rows:
            said = _said(row)
            if said not in seen:
                left[name].append(row)
            seen.add(said)
    return left


def _said(row: Row) -> Any:
    """All that a row says, without its id, in normal text."""
    return _normal(dataclasses.astuple(row)[1:])


def _normal(value: Any) -> Any:
    if isinstance(value, str):
        return normal_text(value)
    return tuple(map(_normal, value)) if isinstance(value, tuple) else value


def wanted_rows(available: Mapping[str, int], stage: MixStage) -> dict[str, int]:
    """How many rows each part gives.

    Raises `DataError` with the numbers for a part that has too few.
    """
    most = largest_mix(available, stage.parts)
    wanted = shares_of(stage.num_rows or most, stage.parts)
    place = f"stage {stage.name}"
    for name, count in wanted.items():
        if count > available[name] and not stage.repeat:
            what = f"{count} of {stage.num_rows} rows should come from {name}, which has {available[name]}"
            raise DataError(what, place=place, remedy=f"set num_rows to at most {most}, or repeat = true")
        if not count or not available[name]:
            what = f"{name} gives no row: it has {available[name]} different ones, and the mix {stage.num_rows or most}"
            raise DataError(what, place=place, remedy="give it a larger weight or more rows, or leave it out")
    return wanted


def shares_of(num_rows: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`num_rows` divided in proportion to the weights: rounded down, the rest to the largest remainders.

    >>> shares_of(10, {"reasoning": 3, "general": 1})
    {'general': 2, 'reasoning': 8}
    """
    exact = _exact_shares(num_rows, weights)
    whole = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (whole[name] - exact[name], -exact[name]))
    for name in by_remainder[: num_rows - sum(whole.values())]:
        whole[name] += 1
    return whole


def largest_mix(available: Mapping[str, int], weights: Mapping[str, float]) -> int:
    """The most rows in these proportions that need no row twice.

    >>> largest_mix({"reasoning": 300, "general": 200}, {"reasoning": 3, "general": 1})
    400
    """
    one = _exact_shares(1, weights)
    # rounding up may ask for one row more than a part has, and rounding down for less
    num_rows = min(int((available[name] + 1) / share) for name, share in one.items())
    while any(count > available[name] for name, count in shares_of(num_rows, weights).items()):
        num_rows -= 1
    return num_rows


def _exact_shares(num_rows: int, weights: Mapping[str, float]) -> dict[str, Fraction]:
    """In the order of the names, without what binary fractions make of 0.7."""
    exact = {name: Fraction(str(weights[name])) for name in sorted(weights)}
    return {name: num_rows * weight / sum(exact.values()) for name, weight in exact.items()}


def _drawn(part: str, rows: Sequence[Row], count: int, seed: str) -> Iterator[Row]:
    """`count` rows by chance; none comes once more before all have come. Ids tell the part, and which time it is."""
    order = list(rows)
    random.Random(f"{seed}/{part}").shuffle(order)
    for number in range(count):
        row, times = order[number % len(order)], number // len(order)
        id_name = dataclasses.fields(row)[0].name
        row_id = f"{part}/{getattr(row, id_name)}" + (f"#{times + 1}" if times else "")
        yield dataclasses.replace(row, **{id_name: row_id})
