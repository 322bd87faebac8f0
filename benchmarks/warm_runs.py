"""Forks `melete` commands from a process that has everything loaded: each starts in a moment instead of six seconds.

Reads one job a line on standard input and answers with two lines, `{"pid": ...}` and `{"status": ...}`. A job may carry
a fuse: the process kills its own group with signal 9 right before some touch of the run's files (a file opened to be
written, renamed, cut, removed; a directory made), counted from the beginning of a stage, whichever process began it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

TOUCHES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "shutil.rmtree"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Fuse:
    """An audit hook that counts touches of the files below `run_dir` by stage, and burns down at the one it is set to.

    Once the stage is finished it burns at the next touch, so that no fuse outlives its stage.
    """

    def __init__(self, run_dir: Path, stage: str = "", touches: int = 0) -> None:
        self.run_dir, self.stage, self.left = str(run_dir), stage, touches
        records = run_dir / "stages"
        self.is_lit = (records / f"{stage}.begun.json").exists()
        self.current, self.counts, self.began = "", Counter[str](), dict[str, float]()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if not (flags & _WRITES if isinstance(flags, int) else set(mode or "") & set("wax+")):
                return
        elif event in TOUCHES:
            path = arguments[1] if event == "os.rename" else arguments[0]
        else:
            return
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.run_dir):
            self._touched(event, os.fspath(path))

    def _touched(self, event: str, path: str) -> None:
        self.counts[self.current] += 1
        if self.is_lit:
            self.left -= 1
            if self.left <= 0:
                os.killpg(0, signal.SIGKILL)
        if event == "os.rename" and (name := os.path.basename(path)).endswith(".json") and "/stages/" in path:
            if name.endswith(".begun.json"):
                self.current = name.removesuffix(".begun.json")
                self.began[self.current] = time.monotonic()
                self.is_lit = self.is_lit or self.current == self.stage
            elif self.is_lit and name == f"{self.stage}.json":
                self.left = 1


def run(job: dict[str, Any]) -> None:
    """Does a job in this process, which ends with it."""
    os.setsid()
    with open(job["log"], "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    with open(os.devnull, encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), 0)
    fuse = Fuse(Path(job["run_dir"]), **job.get("fuse", {})) if "fuse" in job or "counts" in job else None
    if fuse:
        sys.addaudithook(fuse)
    sys.argv = ["melete", *job["arguments"]]
    status = 1
    try:
        from melete.cli import main

        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    if fuse and "counts" in job:
        found = {"touches": fuse.counts, "began": fuse.began, "ended": time.monotonic()}
        Path(job["counts"]).write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Serves until its input ends."""
    import melete.cli_perform
    import melete.config
    import melete.pipeline
    import melete.planning  # noqa: F401 - what a run needs, loaded once

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run(json.loads(line))
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
