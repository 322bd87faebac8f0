"""Isolated execution of untrusted Python: the strongest executor that this machine has, proven by running a program."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from pathlib import Path

from melete.errors import RecipeError
from melete.sandbox import bubblewrap, wasm
from melete.sandbox.boot import ENVIRONMENT
from melete.sandbox.bubblewrap import Bubblewrap
from melete.sandbox.child import Child
from melete.sandbox.process import PipeExecutor
from melete.sandbox.protocol import Execution, Executor, Limits, SandboxError
from melete.sandbox.wasm import Wasm
from melete.suggest import did_you_mean

__all__ = ["EXECUTORS", "Execution", "Executor", "Limits", "SandboxError", "best_executor", "unavailable"]

EXECUTORS: dict[str, PipeExecutor] = {
    executor.name: executor for executor in (Bubblewrap(), Wasm(), Child())
}  # strongest first; the native one before the slower one

INSTALL = {
    "bubblewrap": bubblewrap.INSTALL,
    "wasm": wasm.INSTALL,
    "child": "use Linux 5.13 or newer with Landlock, on x86_64 or aarch64",
}

# each line that comes out is a promise that does not hold
_PROBE = """
import os
if input() != {word!r}:
    print("its input was not the one given")
try:
    open({file!r}).read()
    print("it reads files of the host")
except OSError:
    pass
try:
    open({new_file!r}, "w")
    print("it writes files of the host")
except OSError:
    pass
try:
    import socket
    socket.create_connection(("127.0.0.1", {port}), 1)
    print("it has a network")
except (OSError, AttributeError):
    pass
if set(os.environ) - {environment!r}:
    print("it sees the environment")
try:
    if os.fork() == 0:
        os._exit(0)
    print("it starts processes")
except (OSError, AttributeError):
    pass
print("done")
"""
_PROBE_LIMITS = Limits(wall_s=10.0, cpu_s=10.0)

_lock = threading.Lock()
_reasons: dict[str, str] = {}


def best_executor(at_least: str | None = None) -> Executor:
    """The strongest executor that works here, and at least as strong as the one named.

    Raises `RecipeError` with the line that installs it, when there is none.
    """
    if at_least is not None and at_least not in EXECUTORS:
        raise RecipeError(f"no executor is called {at_least}", remedy=did_you_mean(at_least, EXECUTORS) or _names())
    needed = 0 if at_least is None else EXECUTORS[at_least].strength
    for name, executor in sorted(EXECUTORS.items(), key=lambda item: -item[1].strength):
        if executor.strength >= needed and not unavailable(name):
            return executor
    wanted = [name for name, executor in EXECUTORS.items() if executor.strength >= needed]
    reasons = "; ".join(f"{name}: {unavailable(name)}" for name in wanted)
    strength = f"as strong as {at_least} " if at_least else ""
    raise RecipeError(
        f"no sandbox {strength}works here, so code of a model is not run ({reasons})",
        remedy=" or ".join(dict.fromkeys(INSTALL[name] for name in wanted)),
    )


def unavailable(name: str) -> str:
    """Why an executor cannot be used here, empty when it can: a program is run in it, once in each process."""
    with _lock:
        if name not in _reasons:
            _reasons[name] = _probe(EXECUTORS[name])
        return _reasons[name]


def _probe(executor: Executor) -> str:
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as server:
        file = Path(directory, "canary")
        file.write_text("not for programs")
        program = _PROBE.format(
            word="a word",
            file=str(file),
            new_file=os.path.join(directory, "new"),
            port=server.getsockname()[1],
            environment={*ENVIRONMENT, "PWD", "LC_CTYPE"},
        )
        try:
            execution = executor.run(program, stdin="a word\n", limits=_PROBE_LIMITS)
        except SandboxError as error:
            return str(error)
    if execution.stdout == "done\n" and execution.ended == "exited":
        return ""
    return execution.stdout.removesuffix("done\n").strip() or f"its probe {execution.ended}: {execution.stderr.strip()}"


def _names() -> str:
    return "choose one of " + ", ".join(EXECUTORS)
