"""How many threads the mathematics uses; has to be decided before torch is loaded.

Threads that spin while another process wants the core are ten times slower than one thread, so those that wait for long
sleep; and waking them costs more than a small model's products do, so a small model has one thread. The number is fixed
by machine and model, never by the load, because the order of a sum depends on it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from melete.errors import RecipeError
from melete.machine import processor
from melete.machine.allocator import settle

MAX_DEFAULT_THREADS = 4
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
SPINS = "1000"  # turns, some 20 us, before a waiting thread sleeps: a large model writes in 0.75 of the time (LOG.md)
SMALL_MODEL = 20_000_000  # parameters; the bundled base of 1 M takes 1.6 times as long with two threads (LOG.md)
WIDE_KERNELS = "SkylakeX"  # of OpenBLAS, for 512 bits; on a processor that it does not know it takes those for 256
OURS = "MELETE_SET_THREADS"  # tells child processes that OMP_NUM_THREADS is no choice of the user's


def num_threads(environment: Mapping[str, str], num_cores: int) -> int:
    """MELETE_THREADS, else OMP_NUM_THREADS, else every core up to four.

    >>> num_threads({}, 2), num_threads({}, 64), num_threads({"MELETE_THREADS": "12"}, 64)
    (2, 4, 12)
    """
    for variable in ("MELETE_THREADS", "OMP_NUM_THREADS"):
        text = environment.get(variable, "").strip()
        if text:
            if not text.isdecimal() or int(text) < 1:
                raise RecipeError(
                    f"{variable} is {text!r}, not a number of threads",
                    place=f"environment variable {variable}",
                    remedy=f"set it to a whole number, for example {variable}=2, or unset it",
                )
            return int(text)
    return max(1, min(num_cores, MAX_DEFAULT_THREADS))


def usable_cores() -> int:
    """Cores that this process may run on, which is fewer than the machine has under `taskset` or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_threads(environment: MutableMapping[str, str] = os.environ) -> int:
    """Sets the variables that torch's libraries read when they are loaded; returns the number of threads.

    Of this process it also sets how the memory is kept that these threads leave behind.
    """
    count = num_threads(environment, usable_cores())
    if environment.get("OMP_NUM_THREADS", "").strip() not in ("", environment.get(OURS)):
        environment["MELETE_THREADS"] = str(count)  # a user's choice, which the lines below would hide
    environment[OURS] = str(count)
    if environment.setdefault("OMP_WAIT_POLICY", "PASSIVE").upper() == "PASSIVE":
        environment.setdefault("GOMP_SPINCOUNT", SPINS)
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's library multiplies beside torch's threads
    if processor.has_wide_instructions() and processor.vendor() != processor.INTEL:
        environment.setdefault("OPENBLAS_CORETYPE", WIDE_KERNELS)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[variable] = str(count)
    if environment is os.environ:
        settle(count)
    return count


def threads_for(num_parameters: int, available: int, environment: Mapping[str, str] = os.environ) -> int:
    """Threads for a model of that size: MELETE_THREADS, else one for a small model and `available` for others.

    >>> threads_for(10**6, 4, {}), threads_for(10**9, 4, {}), threads_for(10**6, 4, {"MELETE_THREADS": "2"})
    (1, 4, 2)
    """
    if environment.get("MELETE_THREADS", "").strip():
        return num_threads(environment, available)
    return 1 if num_parameters < SMALL_MODEL else available


def num_lanes(intra_op: int, device: str, environment: Mapping[str, str] = os.environ) -> int:
    """How many parts of a model's work are done side by side: where each product has one thread, as many as there are
    cores, for products of a small model are too short to be shared.

    >>> num_lanes(2, "cpu", {}), num_lanes(1, "cuda", {}), num_lanes(1, "cpu", {"OMP_NUM_THREADS": "3"})
    (1, 1, 3)
    """
    return num_threads(environment, usable_cores()) if intra_op == 1 and device == "cpu" else 1


def in_lanes(
    function: Callable[[_Item], _Result], items: Iterable[_Item], num: int, *, ahead: int = 0
) -> Iterator[_Result]:
    """What `function` makes of each item, in their order, `num` of them at once, each in a thread of its own.

    So many items as `ahead` says are asked for before a thread is free. The first error ends it, once what is under
    way has ended.
    """
    if num <= 1:
        yield from map(function, items)
        return
    waiting = deque[Future[_Result]]()
    pool = ThreadPoolExecutor(num, "lane")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == num + ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
