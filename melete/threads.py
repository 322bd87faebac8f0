"""How many threads the mathematics uses; has to be decided before torch is loaded.

Small matrices gain little from many threads, and threads that spin while another process wants the core are ten times
slower than one thread. So: few threads, and waiting ones sleep. The number is fixed by the machine and never by its
load, because the order of a sum depends on it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from melete.errors import RecipeError

MAX_DEFAULT_THREADS = 4


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
    """Sets the variables that torch's libraries read when they are loaded; returns the number of threads."""
    count = num_threads(environment, usable_cores())
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[variable] = str(count)
    return count
