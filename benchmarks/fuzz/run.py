"""Cases by number, and many of them in several processes."""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

PER_ROUND = 250  # cases that a process runs before it tells
SHARES = {"recipes": 20, "overrides": 25, "data": 25, "templates": 15, "servers": 20}
MAX_SHOWN = 10
Case = Callable[[random.Random, Path], str]


def kinds() -> dict[str, Case]:
    """The kinds of cases; importing them loads torch."""
    from benchmarks.fuzz import data, recipes, servers, templates

    return {**recipes.KINDS, **data.KINDS, **templates.KINDS, **servers.KINDS}


def run_case(kind: str, seed: int, number: int) -> str:
    """What came of a case, which its kind, seed and number determine: "accepted" or "refused", else how it broke."""
    draw = random.Random(f"{kind}-{seed}-{number}")
    with tempfile.TemporaryDirectory(prefix="melete-fuzz-") as directory:
        try:
            return kinds()[kind](draw, Path(directory))
        except AssertionError as broken:
            return f"broken: {broken}"


def _round(asked: tuple[str, int, int, int]) -> tuple[str, Counter[str], list[tuple[int, str]]]:
    kind, seed, begin, end = asked
    found = [(number, run_case(kind, seed, number)) for number in range(begin, end)]
    broken = [(number, result) for number, result in found if result.startswith("broken")]
    return kind, Counter(result.partition(":")[0] for _, result in found), broken


def run_all(num_cases: int, seed: int, only_kind: str, num_processes: int) -> int:
    """How many cases broke the law."""
    shares = {kind: share for kind, share in SHARES.items() if only_kind in ("", kind)}
    counts = {kind: round(num_cases * share / sum(shares.values())) for kind, share in shares.items()}
    rounds = [
        (kind, seed, begin, min(begin + PER_ROUND, count))
        for kind, count in counts.items()
        for begin in range(0, count, PER_ROUND)
    ]
    random.Random(0).shuffle(rounds)  # so that no process has all the slow ones
    tallies = {kind: Counter[str]() for kind in counts}
    broken: list[tuple[str, int, str]] = []
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        for done, (kind, tally, wrong) in enumerate(pool.imap_unordered(_round, rounds), 1):
            tallies[kind] += tally
            broken += [(kind, number, result) for number, result in wrong]
            if done % 40 == 0:
                print(f"{done} of {len(rounds)} rounds, {len(broken)} broken", flush=True)
    for kind, number, result in broken[:MAX_SHOWN]:
        print(f"\n{result}\n  again: python -m benchmarks.fuzz --kind {kind} --seed {seed} --only {number}")
    print(f"\n{'kind':12}{'cases':>9}{'accepted':>10}{'refused':>9}{'broken':>8}")
    for kind, tally in tallies.items():
        print(f"{kind:12}{tally.total():9}{tally['accepted']:10}{tally['refused']:9}{tally['broken']:8}")
    total = sum(tally.total() for tally in tallies.values())
    print(f"{total} cases, {len(broken)} broken, {time.monotonic() - began:.0f} seconds")
    return len(broken)
