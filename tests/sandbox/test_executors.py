"""What every executor promises, on those that this machine has; and the choice among them."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import melete.sandbox as sandbox
from melete.errors import RecipeError
from melete.sandbox import EXECUTORS, INSTALL, Limits, SandboxError, best_executor, seccomp, unavailable
from melete.sandbox.process import STDERR_TAIL, PipeExecutor
from melete.sandbox.protocol import MIB
from melete.sandbox.wasm import Wasm, cache_directory

QUICK = Limits(wall_s=0.5, cpu_s=5.0)


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> PipeExecutor:
    if unavailable(request.param):
        pytest.skip(f"{INSTALL[request.param]} ({unavailable(request.param)})")
    return EXECUTORS[request.param]


def test_a_program_reads_and_prints(executor: PipeExecutor):
    done = executor.run("print(input()[::-1]); print('é€😀')", stdin="drawer\n")
    assert (done.stdout, done.stderr, done.ended, done.exit_code) == ("reward\né€😀\n", "", "exited", 0)
    assert 0 < done.wall_s < 5


def test_much_input_and_much_output_do_not_block_each_other(executor: PipeExecutor):
    text = "x" * 500_000
    done = executor.run("import sys\nfor line in sys.stdin: print(line, end='')", stdin=text)
    assert done.stdout == text


def test_unread_input_is_no_failure(executor: PipeExecutor):
    assert executor.run("print(1)", stdin="x" * 10**6).stdout == "1\n"


def test_the_exit_code_and_the_tail_of_the_errors_are_told(executor: PipeExecutor):
    done = executor.run("import sys\nsys.stderr.write('a' * 10000 + 'the end')\nsys.exit(3)")
    assert (done.ended, done.exit_code) == ("exited", 3)
    assert done.stderr.endswith("the end") and len(done.stderr) == STDERR_TAIL


def test_time_on_the_clock_is_bounded(executor: PipeExecutor):
    for program in ("while True: pass", "import time; time.sleep(60)"):
        started = time.monotonic()
        assert executor.run(program, limits=QUICK).ended == "timeout"
        assert time.monotonic() - started < 30


def test_time_of_the_processor_is_bounded(executor: PipeExecutor):
    done = executor.run("while True: pass", limits=Limits(wall_s=20.0, cpu_s=1.0))
    assert done.ended in ("timeout", "killed") and done.wall_s < 15


def test_memory_is_bounded(executor: PipeExecutor):
    done = executor.run("x = bytearray(200 * 2**20)", limits=Limits(memory_bytes=128 * MIB))
    assert done.ended == "memory"
    assert executor.run("x = bytearray(200 * 2**20)", limits=Limits(memory_bytes=512 * MIB)).ended == "exited"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_flood_is_cut_while_it_is_read(executor: PipeExecutor, stream: str):
    program = f"import sys\nwhile True: sys.{stream}.write('x' * 10**5)"
    done = executor.run(program, limits=Limits(output_bytes=1000))
    assert done.ended == "output"
    assert len(done.stdout) <= 1000 and len(done.stderr) <= STDERR_TAIL


def test_the_standard_library_is_there_and_installed_packages_are_not(executor: PipeExecutor):
    program = (
        "import math, json, re, heapq, itertools, collections, functools, datetime, decimal\n"
        "try:\n    import pytest\nexcept ImportError:\n    print('alone')"
    )
    assert executor.run(program).stdout == "alone\n"


def test_hashes_are_the_same_each_time(executor: PipeExecutor):
    assert len({executor.run("print(hash('a'), list({'a', 'b', 'c'}))").stdout for _ in range(3)}) == 1


def test_one_conversation_has_many_frames(executor: PipeExecutor):
    program = (
        "import os\nwhile True:\n    size = b''\n    while not size.endswith(b'\\n'): size += os.read(0, 1)\n"
        "    body = os.read(0, int(size)); os.write(1, b'%d\\n' % len(body) + body.upper())"
    )
    with executor.start(program) as running:
        for word in (b"one", b"two", b"three"):
            running.send(word)
            assert running.receive(100) == word.upper()
        running.send(b"x" * 101)
        assert running.receive(100) is None
    assert running.close() is running.close()


def test_the_clock_stands_still_while_nobody_waits(executor: PipeExecutor):
    with executor.start("import os\nos.read(0, 2)\nos.write(1, b'1\\nx')", limits=QUICK) as running:
        time.sleep(0.8)
        running.send(b"")
        assert running.receive(10) == b"x"


def test_several_threads_run_programs_at_the_same_time(executor: PipeExecutor):
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda number: executor.run(f"print({number} ** 2)").stdout, range(18)))
    assert done == [f"{number**2}\n" for number in range(18)]


def test_no_descriptor_and_no_process_is_left(executor: PipeExecutor):
    def state() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    executor.run("pass")
    before = state()
    for program in ("pass", "while True: pass", "print('x' * 10**7)", "import os; os._exit(1)"):
        executor.run(program, limits=QUICK)
    now = state()  # what earlier tests left may end meanwhile
    assert now[0] <= before[0] and now[1] <= before[1]


def test_a_program_dies_with_the_process_that_runs_it(executor: PipeExecutor, tmp_path: Path):
    """Even when that one is killed without a word; the memory limit marks the program's command line."""
    mark = 128 * MIB + 4096 * (7 + os.getpid() % 1000)
    code = (
        "from melete.sandbox import EXECUTORS, Limits\n"
        f"running = EXECUTORS[{executor.name!r}].start('print(1, flush=True)\\nimport time; time.sleep(600)',"
        f" limits=Limits(wall_s=600, memory_bytes={mark}))\n"
        "print('started', flush=True)\nimport time; time.sleep(600)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(sandbox.__file__).parents[2]
    )
    assert owner.stdout is not None and owner.stdout.readline() == b"started\n"
    family = _descendants(owner.pid)
    assert family
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 5
    while any(map(_alive, family)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in family if _alive(pid)] == []


def _descendants(pid: int) -> list[int]:
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_interpreter_that_does_not_start_is_the_sandboxs_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("melete.sandbox.child.boot_text", lambda before: "import os; os.write(2, b'no such thing')")
    with pytest.raises(SandboxError, match="no such thing"):
        EXECUTORS["child"].run("pass")


@pytest.mark.parametrize("limits", [{"wall_s": 0}, {"cpu_s": -1}, {"memory_bytes": 10}, {"output_bytes": 0}])
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float]):
    with pytest.raises(ValueError, match="must be"):
        Limits(**limits)  # type: ignore[arg-type]


def test_the_best_executor_is_the_strongest_that_runs_a_program(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "_reasons", {"bubblewrap": "", "wasm": "", "child": ""})
    assert best_executor().name == "bubblewrap"
    monkeypatch.setattr(sandbox, "_reasons", {"bubblewrap": "missing", "wasm": "", "child": ""})
    assert best_executor().name == best_executor("bubblewrap").name == "wasm"
    monkeypatch.setattr(sandbox, "_reasons", {"bubblewrap": "missing", "wasm": "missing", "child": ""})
    assert best_executor().name == best_executor("child").name == "child"


def test_a_weaker_executor_is_refused_with_the_line_that_installs_a_stronger(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "_reasons", {"bubblewrap": "missing", "wasm": "missing", "child": ""})
    with pytest.raises(RecipeError, match="apt-get install bubblewrap or pip install 'melete\\[wasm\\]'"):
        best_executor("wasm")
    with pytest.raises(RecipeError, match="wasm"):
        best_executor("wams")


def test_an_executor_that_breaks_a_promise_is_not_available(monkeypatch: pytest.MonkeyPatch):
    """The probe is a program that tries: here it runs in no sandbox at all."""

    class Open(PipeExecutor):
        name = "open"

        def launch(self, limits: Limits):
            from melete.sandbox.boot import boot_text, interpreter
            from melete.sandbox.process import popen

            return popen([interpreter(), "-c", boot_text()], environment=dict(os.environ))

    monkeypatch.setattr(sandbox, "_reasons", {})
    monkeypatch.setitem(sandbox.EXECUTORS, "open", Open())
    reason = unavailable("open")
    for promise in ("reads files", "writes files", "has a network", "starts processes", "sees the environment"):
        assert promise in reason


def test_bubblewrap_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        EXECUTORS["bubblewrap"].run("pass")


def test_wasm_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    with pytest.raises(SandboxError, match="melete\\[wasm\\]"):
        Wasm().run("pass")


def test_compiled_code_is_kept_where_nobody_else_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = cache_directory()
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o770)
    with pytest.raises(SandboxError, match="open to others"):
        cache_directory()
    directory.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    directory.symlink_to(elsewhere)
    with pytest.raises(SandboxError, match="a link"):
        cache_directory()


def test_a_damaged_cache_is_not_loaded_but_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The host is given a module of a few bytes, so that compiling takes no time."""
    if unavailable("wasm"):
        pytest.skip(INSTALL["wasm"])
    import wasmtime

    from melete.sandbox.wasm_host import engine_and_module

    wasm, compiled = tmp_path / "tiny.wasm", tmp_path / "tiny.cwasm"
    wasm.write_bytes(wasmtime.wat2wasm('(module (func (export "f") (result i32) i32.const 7))'))
    engine_and_module(str(wasm), str(compiled))
    right = compiled.read_bytes()
    for damaged in (right[:-1], b"", b"x" * len(right), right[:100] + b"\xff" + right[101:]):
        compiled.write_bytes(damaged)
        engine_and_module(str(wasm), str(compiled))
        assert compiled.read_bytes() == right
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.cwasm", "tiny.cwasm.sha256", "tiny.wasm"]


def test_a_wasm_host_that_was_killed_is_replaced():
    if unavailable("wasm"):
        pytest.skip(INSTALL["wasm"])
    wasm = Wasm()
    wasm.run("pass")
    assert wasm._host is not None
    os.kill(wasm._host._process.pid, signal.SIGKILL)
    wasm._host._process.wait()
    assert wasm.run("print(1)").stdout == "1\n"
    wasm.close()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_a_program_that_the_kernel_takes(machine: str, monkeypatch: pytest.MonkeyPatch):
    """Jumps stay inside, and the last word is a refusal. The kernel's limit is 4096 instructions."""
    import struct

    monkeypatch.setattr("platform.machine", lambda: machine)
    code = list(struct.iter_unpack("HBBI", seccomp.filter_bytes(execve=False)))
    assert len(code) < 4096
    jumps = [(index, max(jump, other)) for index, (what, jump, other, _) in enumerate(code) if what & 7 == 5]
    assert all(index + 1 + far < len(code) for index, far in jumps)
    assert code[-1] == (0x06, 0, 0, 0x00050001)
    assert len(seccomp.filter_bytes(execve=True)) > len(seccomp.filter_bytes(execve=False))
