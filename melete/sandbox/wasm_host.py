"""The process that holds the compiled interpreter and forks one process for each program. Run as a script.

It stands alone (no import of melete): arguments are wasmtime's directory, python.wasm, the compiled file's name, the
number of the control socket, the boot text and the environment. Each message on that socket is memory and fuel, with
four descriptors: the program's three streams, and a socket whose end means "kill it" and which is told the exit status.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

REQUEST = struct.Struct("=QQQ")  # bytes of memory, units of fuel, seconds of processor
STATUS = struct.Struct("=i")
READY = b"R"
FUEL_EXIT, TRAPPED = 87, 134


def engine_and_module(wasm: str, compiled: str) -> tuple[Any, Any]:
    """The interpreter as machine code: from the cache when its hash is right, else compiled and put there whole."""
    import wasmtime

    config = wasmtime.Config()
    config.consume_fuel = True
    engine = wasmtime.Engine(config)
    if _sha256(compiled) == _read(compiled + ".sha256"):
        with contextlib.suppress(wasmtime.WasmtimeError):
            return engine, wasmtime.Module.deserialize_file(engine, compiled)
    with open(wasm, "rb") as file:
        data = bytes(wasmtime.Module(engine, file.read()).serialize())
    _write_whole(compiled, data)
    _write_whole(compiled + ".sha256", hashlib.sha256(data).hexdigest().encode())
    return engine, wasmtime.Module.deserialize_file(engine, compiled)


def _sha256(path: str) -> bytes | None:
    data = _read(path)
    return None if data is None else hashlib.sha256(data).hexdigest().encode()


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b"" if path.endswith(".sha256") else None


def _write_whole(path: str, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def run_program(engine: Any, module: Any, memory: int, fuel: int, boot: str, environment: list[tuple[str, str]]) -> int:
    """Runs the interpreter on the standard streams to its end; returns what it exits with. It sees no directory."""
    import wasmtime

    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    store = wasmtime.Store(engine)
    store.set_fuel(fuel)
    store.set_limits(memory_size=memory, instances=1, memories=1)
    wasi = wasmtime.WasiConfig()
    wasi.argv = ["python", "-S", "-s", "-P", "-B", "-c", boot]
    wasi.env = environment
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    store.set_wasi(wasi)
    try:
        start: Any = linker.instantiate(store, module).exports(store)["_start"]
        start(store)
    except wasmtime.ExitTrap as end:
        return end.code
    except Exception as error:  # a trap: unreachable code, the stack's end, no more fuel
        if store.get_fuel() == 0:
            return FUEL_EXIT
        os.write(2, str(error)[-500:].encode(errors="replace"))
        return TRAPPED
    return 0


def guard(life: socket.socket, streams: list[int], run: Callable[[], int]) -> None:
    """One program: a process runs it, this one kills it when nobody wants it any more, and tells how it ended."""
    program = os.fork()
    if program == 0:
        code = TRAPPED
        try:
            life.close()
            for target, stream in enumerate(streams):
                os.dup2(stream, target)
                os.close(stream)  # the compiled file stays open: memory is mapped from it. A guest cannot name it
            code = run()
        finally:
            os._exit(code)
    for descriptor in (0, 1, 2, *streams):
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def kill_when_unwanted() -> None:
        with contextlib.suppress(OSError):
            life.recv(1)
        os.kill(program, signal.SIGKILL)

    threading.Thread(target=kill_when_unwanted, daemon=True).start()
    if hasattr(os, "waitid"):  # not reaped yet, so its number cannot become another's while it may be killed
        os.waitid(os.P_PID, program, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(OSError):
        _, status = os.waitpid(program, 0)
        life.sendall(STATUS.pack(os.waitstatus_to_exitcode(status)))


def serve(control: socket.socket, engine: Any, module: Any, boot: str, environment: list[tuple[str, str]]) -> None:
    """Forks until the other end of the control socket is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guards are reaped by the kernel
    control.sendall(READY)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 4)
        if len(message) < REQUEST.size:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            memory, fuel, cpu_s = REQUEST.unpack(message)

            def run(memory=memory, fuel=fuel, cpu_s=cpu_s) -> int:
                resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                return run_program(engine, module, memory, fuel, boot, environment)

            try:
                guard(socket.socket(fileno=descriptors[3]), descriptors[:3], run)
            finally:
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def main() -> None:
    library, wasm, compiled, descriptor, boot, *environment = sys.argv[1:]
    sys.path.append(library)
    engine, module = engine_and_module(wasm, compiled)
    pairs = list(zip(environment[::2], environment[1::2], strict=True))
    serve(socket.socket(fileno=int(descriptor)), engine, module, boot, pairs)


if __name__ == "__main__":
    main()
