"""The pool of grader processes under load: 100,000 items, one in a hundred of which hangs, dies, shouts or eats memory.

    python -m benchmarks.grader_load --items 100000 --seed 0

No item may be lost, none judged twice, each good one has its own verdict, and each hostile one fails with a reason.
Ends with status 1 where that is not so.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from melete.rewards.errors import GradingError
from melete.rewards.pool import Pool

ONE_IN = 100
SECONDS = 0.5  # of one item
MEMORY = 2**29
HOSTILE = ("hangs", "hangs in C", "dies", "is killed", "raises", "eats memory", "shouts", "says no JSON", "closes all")


def judge(log: str, number: int, manner: str) -> Any:
    """The verdict on an item, in a worker; it is written down that this item was judged."""
    journal = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.write(journal, f"{number}\n".encode())
    os.close(journal)
    if manner:
        return _misbehave(manner)
    return verdict(number)


def verdict(number: int) -> float:
    """What a good item earns."""
    return (number * 7919 % 1000) / 1000


def _misbehave(manner: str) -> Any:
    if manner == "hangs":
        while True:
            pass
    if manner == "hangs in C":
        return 9**9**9
    if manner == "dies":
        os._exit(0)
    if manner == "is killed":
        os.kill(os.getpid(), 9)
    if manner == "raises":
        raise RecursionError("over and over")
    if manner == "eats memory":
        return len(bytearray(8 * MEMORY))
    if manner == "shouts":
        return "x" * (2**25)
    if manner == "says no JSON":
        return {1, 2}
    os.closerange(0, 1000)
    return 1.0


def run(num_items: int, seed: int, size: int) -> list[str]:
    """What went wrong, one line for each."""
    draw = random.Random(seed)
    manners = [draw.choice(HOSTILE) if draw.randrange(ONE_IN) == 0 else "" for _ in range(num_items)]
    results: dict[int, Any] = {}
    twice: list[int] = []
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as folder, Pool(size, memory=MEMORY, max_items=5000) as pool:
        log = Path(folder) / "judged"
        log.touch()

        def one(number: int) -> None:
            try:
                found = pool.call("benchmarks.grader_load:judge", [str(log), number, manners[number]], SECONDS)
            except GradingError as error:
                found = error
            with lock:
                if number in results:
                    twice.append(number)
                results[number] = found

        with ThreadPoolExecutor(4 * size) as threads:
            list(threads.map(one, range(num_items)))
        judged = Counter(int(line) for line in log.read_text().split())
    wrong = [f"item {number} has two verdicts" for number in twice]
    for number, manner in enumerate(manners):
        found = results.get(number, "lost")
        if judged[number] != 1:
            wrong.append(f"item {number} ({manner or 'good'}) was judged {judged[number]} times")
        if manner and not isinstance(found, GradingError):
            wrong.append(f"item {number}, which {manner}, was given {str(found)[:50]!r}")
        if not manner and found != verdict(number):
            wrong.append(f"item {number} should have {verdict(number)} and has {found!r}")
    reasons = Counter((manners[number], str(found)[:60]) for number, found in results.items() if manners[number])
    for (manner, reason), count in sorted(reasons.items()):
        print(f"{count:6}  {manner:14} {reason}")
    return wrong


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    began = time.monotonic()
    wrong = run(given.items, given.seed, given.processes)
    print("\n".join(wrong[:20]))
    print(f"{given.items} items, {len(wrong)} wrong, {time.monotonic() - began:.0f} seconds")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
