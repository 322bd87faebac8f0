"""Runs the cases of every kind in processes, and says what came of them.

    python -m benchmarks.fuzz --cases 105000 --seed 0
    python -m benchmarks.fuzz --kind data --seed 0 --only 1234

Ends with status 1 when a case broke the law, and says how to repeat it.
"""

from __future__ import annotations

import argparse
import os
import sys

from benchmarks.fuzz.run import SHARES, run_all, run_case


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=105_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(SHARES), default="")
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.only is not None:
        print(run_case(given.kind, given.seed, given.only))
        return
    sys.exit(1 if run_all(given.cases, given.seed, given.kind, given.processes) else 0)


if __name__ == "__main__":
    main()
