"""How many mathematical answers are graded per second, and what one pathological answer costs the others.

python benchmarks/math_grader.py [--seconds 3]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from melete.rewards.errors import GradingError
from melete.rewards.mathematics import math_accuracy, math_equal, math_pool
from melete.types import Completion, Message, Problem, Rollout

THOUGHT = "<think>" + "Let me add the two numbers and check the sum again. " * 40 + "</think>"  # about 2,000 characters
SLOW = "x^{" * 20 + "2" + "}" * 20


def rollout(gold: str, answer: str) -> Rollout:
    problem = Problem("p", "maths", (Message("user", "?"),), gold)
    return Rollout(problem, 0, (1,), Completion((2,), (-1.0,), "stop", 0), rf"{THOUGHT} It is \boxed{{{answer}}}.")


KINDS: dict[str, Callable[[int], tuple[str, str]]] = {  # every item is another one, so that nothing is remembered
    "plain integers": lambda i: (str(i), f"{i:,}"),
    "boxed LaTeX fractions": lambda i: (rf"\frac{{{i}}}{{7}}", rf"\dfrac{{{3 * i}}}{{21}}"),
    "tuples and units": lambda i: (rf"({i}, {i + 1})", rf"\left({i}.0,\; {i + 1}\right)"),
    "symbolic, equal": lambda i: (f"x^2+{2 * i}x+{i * i}", f"(x+{i})^2"),
    "symbolic, different": lambda i: (f"x^2+{i}", f"x^2-{i + 1}"),
}


def per_second(pair: Callable[[int], tuple[str, str]], seconds: float) -> float:
    reward = math_accuracy()
    start = time.perf_counter()
    for done in count(1):
        reward(rollout(*pair(done + 1000)))
        if time.perf_counter() - start > seconds:
            return done / (time.perf_counter() - start)
    raise AssertionError


def delays(num_threads: int, with_slow: bool, limit: float) -> list[float]:
    """Seconds that each of 40 modest formulas took, asked from several threads, perhaps beside one pathological one."""
    base = 10_000 + 1_000 * with_slow

    def ask(i: int) -> float:
        start = time.perf_counter()
        assert math_equal(f"x+{base + i}", f"{base + i}+x", seconds=60)
        return time.perf_counter() - start

    with ThreadPoolExecutor(num_threads) as threads:
        slow = threads.submit(_is_refused, limit) if with_slow else None
        time.sleep(0.2)
        taken = sorted(threads.map(ask, range(40)))
        assert slow is None or slow.result()
    return taken


def _is_refused(limit: float) -> bool:
    try:
        math_equal("x", SLOW, seconds=limit)
    except GradingError:
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per kind of answer")
    parser.add_argument("--limit", type=float, default=3.0, help="seconds that the pathological answer may take")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    print(
        f"{math_pool().size} workers; each answer after a thought of {len(THOUGHT):,} characters, asked from one thread"
    )
    print(f"{'first formula (starts a worker)':34}{_seconds(lambda: math_equal('a+b', 'b+a')):10.2f} s")
    for name, pair in KINDS.items():
        print(f"{name:34}{per_second(pair, arguments.seconds):10,.0f} per second")
    threads = math_pool().size
    with ThreadPoolExecutor(threads) as executor:  # so that every worker has started
        list(executor.map(lambda i: math_equal(f"y^2-{i * i}", f"(y-{i})(y+{i})", seconds=60), range(4 * threads)))
    for with_slow in (False, True):
        taken = delays(threads, with_slow, arguments.limit)
        name = f"formulas beside one of {arguments.limit:g} s" if with_slow else f"formulas from {threads} threads"
        print(f"{name:34}{1000 * taken[len(taken) // 2]:10.1f} ms median{1000 * taken[-1]:10.1f} ms at most")


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
