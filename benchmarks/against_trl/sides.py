"""The processes that are compared, one per side, and the rounds in which they take turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.against_trl.workloads import Spec
from melete.machine.threads import OURS, prepare_threads

ROOT = Path(__file__).parents[2]
MODULES = {"melete": "melete_step", "trl": "trl_step", "trl_batching": "trl_step", "floor": "floor"}


class SideError(Exception):
    """A process ended or said something else than a step."""


@dataclass
class Side:
    """One process: `ask` sends it a request and waits for the answer."""

    name: str
    process: subprocess.Popen[str]
    log: Path

    @classmethod
    def begin(cls, name: str, spec: Spec, directory: Path) -> Side:
        """Starts the process and waits until it has loaded its model; `ready` is what it says then."""
        log = directory / f"{name}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", f"benchmarks.against_trl.{MODULES[name]}", spec.as_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=environment(name, spec.threads),
            )
        with contextlib.suppress(OSError):  # where memory runs out, this process goes and no other
            Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")
        return cls(name, process, log)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises `SideError` with the end of the process's log where there is none."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """What the process says next. Raises `SideError`."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            said = [row for row in self.log.read_text().splitlines() if row.strip()]
            why = "killed, most likely for want of memory" if code == -9 else said[-1] if said else f"exit {code}"
            raise SideError(why)
        return json.loads(line)

    def end(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def environment(name: str, threads: int) -> dict[str, str]:
    """The same for every side, this many threads, no GPU and no network, but for how threads wait: each as is best for
    it on an idle machine. Melete says so itself; TRL is faster with torch's own way, which is to spin."""
    theirs = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", OURS, "MELETE_THREADS")
    found = {key: value for key, value in os.environ.items() if key not in theirs}
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        found[variable] = str(threads)
    if not name.startswith("trl"):
        prepare_threads(found)
        found.pop("MELETE_THREADS")  # the sides choose by the size of the model
    return found | {
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(ROOT),
    }


def rounds(specs: Mapping[str, Spec], num_pairs: int, directory: Path) -> Iterator[dict[str, Any]]:
    """Rows of steps: the sides in turn, `num_pairs` times after a first time that is not counted (`is_warm` False).

    The floor comes last in a round and is that of Melete's lengths in it. A side that fails is left out from then on,
    with a row that has `failed`; Melete's failure is an error. Raises `SideError`.
    """
    sides: dict[str, Side] = {}
    try:
        for name, spec in specs.items():
            sides[name] = Side.begin(name, spec, directory)
            row = _told(sides, name, None)
            yield {"side": name, "step": -1, **row}
        for number in range(num_pairs + 1):
            lengths: list[int] = []
            for name in list(sides):
                row = _told(sides, name, {"step": number, "lengths": lengths})
                lengths = row["lengths"] if name == "melete" else lengths
                yield {"side": name, "step": number, "is_warm": number > 0, **row}
    finally:
        for side in sides.values():
            side.end()


def _told(sides: dict[str, Side], name: str, request: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return sides[name].hear() if request is None else sides[name].ask(request)
    except SideError as error:
        if name == "melete":
            raise
        sides.pop(name).end()
        return {"failed": str(error)}
