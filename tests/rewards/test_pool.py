"""The pool of worker processes: hard limits, deaths, threads, forks and a clean end, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from melete.rewards.errors import GradingError
from melete.rewards.pool import Pool

JOBS = """
import ctypes, os, signal, subprocess, sys, time

READY = []

def setup(): READY.append(1)
def ready(): return len(READY)
def fail_to_start(): raise RuntimeError("no such library")
def add(a, b): return a + b
def echo(value): return value
def sleep(seconds, value=None): time.sleep(seconds); return value
def spin():
    while True: pass
def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True: pass
def fail(): raise ZeroDivisionError("by nothing")
def leave(): sys.exit(0)
def leave_at_once(): os._exit(0)
def segfault(): ctypes.string_at(0)
def suicide(): os.kill(os.getpid(), signal.SIGKILL)
def hog(): return len(bytearray(8 * 2**30))
def pid(): return os.getpid()
def modules(): return sorted(sys.modules)
def descriptors():
    found = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sorted(os.readlink(path) for path in found if os.path.lexists(path))
def shout(): print("{}" * 1000, flush=True); os.write(1, b"noise"); os.write(2, b"noise"); return "quiet"
def not_json(): return {1, 2}
def start_a_child_and_hang():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(os.environ["POOL_TEST_FILE"], "w").write(str(child.pid)); time.sleep(600)
"""


@pytest.fixture(scope="module", autouse=True)
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "pool_jobs.py").write_text(JOBS)
    os.environ["POOL_TEST_FILE"] = str(folder / "child")
    sys.path.insert(0, str(folder))  # workers look where the parent looks
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def is_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
            status = Path(f"/proc/{pid}/stat")
            if status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True  # an orphan that this container's init has not collected
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def children() -> set[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def test_a_call_returns_what_the_function_returns(pool: Pool):
    assert pool.call("pool_jobs:add", [2, 3], 10) == 5
    assert pool.call("operator:mul", [6, 7], 10) == 42


@pytest.mark.parametrize("value", [None, "", "é\ud800\x00\n", [1, [2.5, {"a": None}]], "x" * 3_000_000, 10**400])
def test_json_values_travel_unchanged(pool: Pool, value: object):
    assert pool.call("pool_jobs:echo", [value], 20) == value


def test_setup_runs_once_per_worker_and_outside_the_limit():
    with Pool(1, setup="pool_jobs:setup") as pool:
        assert [pool.call("pool_jobs:ready", [], 10) for _ in range(3)] == [1, 1, 1]


def test_a_setup_that_fails_is_the_items_failure_and_its_reason():
    with Pool(1, setup="pool_jobs:fail_to_start") as pool:
        for _ in range(2):
            with pytest.raises(GradingError, match="no such library"):
                pool.call("pool_jobs:ready", [], 10)


def test_an_exception_is_a_grading_error_and_the_worker_stays(pool: Pool):
    with Pool(1) as pool:
        before = pool.call("pool_jobs:pid", [], 10)
        with pytest.raises(GradingError, match="ZeroDivisionError: by nothing"):
            pool.call("pool_jobs:fail", [], 10)
        for path in ("pool_jobs:missing", "no_such_module:f"):
            with pytest.raises(GradingError, match=r"missing|no_such_module"):
                pool.call(path, [], 10)
        with pytest.raises(GradingError, match="not JSON"):
            pool.call("pool_jobs:not_json", [], 10)
        assert pool.call("pool_jobs:pid", [], 10) == before


@pytest.mark.parametrize("job", ["spin", "stubborn"])
def test_the_limit_is_hard(pool: Pool, job: str):
    start = time.monotonic()
    with pytest.raises(GradingError, match=r"did not end within 0\.3 s"):
        pool.call(f"pool_jobs:{job}", [], 0.3)
    assert time.monotonic() - start < 10  # starting a worker may come first
    assert pool.call("pool_jobs:add", [1, 1], 10) == 2


@pytest.mark.parametrize("job", ["leave", "leave_at_once", "segfault", "suicide", "hog"])
def test_a_worker_that_dies_fails_its_item_and_is_replaced(pool: Pool, job: str):
    with pytest.raises(GradingError, match="died"):
        pool.call(f"pool_jobs:{job}", [], 10)
    assert pool.call("pool_jobs:add", [1, 1], 10) == 2


def test_what_a_worker_prints_disturbs_nothing(pool: Pool, capfd: pytest.CaptureFixture[str]):
    assert pool.call("pool_jobs:shout", [], 10) == "quiet"
    assert capfd.readouterr() == ("", "")


def test_a_worker_killed_from_outside_while_it_works_loses_only_its_item():
    with Pool(1) as pool, ThreadPoolExecutor(1) as threads:
        pid = pool.call("pool_jobs:pid", [], 10)
        waiting = threads.submit(pool.call, "pool_jobs:sleep", [60], 100)
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(GradingError, match="SIGKILL"):
            waiting.result(20)
        assert pool.call("pool_jobs:add", [1, 1], 10) == 2


def test_a_worker_killed_while_idle_loses_nothing():
    with Pool(1) as pool:
        for i in range(3):
            pid = pool.call("pool_jobs:pid", [], 10)
            os.kill(pid, signal.SIGKILL)
            assert is_gone(pid)
            assert pool.call("pool_jobs:add", [i, 1], 10) == i + 1


def test_many_threads_get_each_their_own_result_while_workers_are_killed():
    """Nothing is lost, counted twice or handed to another, whoever dies meanwhile."""
    ended = threading.Event()
    with Pool(2) as pool:

        def kill_now_and_then() -> None:
            while not ended.wait(0.4):
                with pool._lock:
                    pids = [worker.process.pid for worker in pool._all]
                if pids:
                    os.kill(pids[0], signal.SIGKILL)

        def ask(i: int) -> int | None:
            try:
                return pool.call("pool_jobs:sleep", [0.01, i], 20)
            except GradingError:
                return None

        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(ask, range(200)))
        ended.set()
        killer.join()
    assert len(results) == 200
    assert all(result in (i, None) for i, result in enumerate(results))
    assert sum(result is not None for result in results) > 100


def test_one_slow_item_delays_no_other():
    with Pool(2) as pool, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda i: pool.call("pool_jobs:sleep", [0.2, i], 20), range(2)))  # both have started
        slow = threads.submit(pool.call, "pool_jobs:spin", [], 2)
        assert list(threads.map(lambda i: pool.call("pool_jobs:add", [i, 1], 10), range(50))) == list(range(1, 51))
        assert not slow.done()
        with pytest.raises(GradingError, match="did not end"):
            slow.result(20)


def test_no_more_processes_than_the_size():
    with Pool(2) as pool, ThreadPoolExecutor(8) as threads:
        pids = set(threads.map(lambda _: pool.call("pool_jobs:pid", [], 10), range(40)))
        assert 1 <= len(pids) <= 2


def test_a_worker_is_replaced_after_its_share_of_items():
    with Pool(1, max_items=2) as pool:
        pids = [pool.call("pool_jobs:pid", [], 10) for _ in range(6)]
    assert pids[0] == pids[1] and pids[2] == pids[3] and len(set(pids)) == 3


def test_workers_load_no_torch_and_inherit_no_descriptors(pool: Pool, tmp_path: Path):
    with (tmp_path / "secret").open("w") as secret, Pool(1) as pool:
        os.set_inheritable(secret.fileno(), True)
        assert not {"torch", "transformers", "numpy", "pytest"} & set(pool.call("pool_jobs:modules", [], 10))
        held = pool.call("pool_jobs:descriptors", [], 10)
    assert not [path for path in held if path.startswith(str(tmp_path))]
    assert sum(path.startswith("socket:") for path in held) == 1


def test_what_a_killed_worker_started_ends_with_it(pool: Pool):
    with pytest.raises(GradingError):
        pool.call("pool_jobs:start_a_child_and_hang", [], 1.5)
    assert is_gone(int(Path(os.environ["POOL_TEST_FILE"]).read_text()))


def test_closing_leaves_no_process_wakes_who_waits_and_refuses_more():
    before = children()
    pool = Pool(2)
    with ThreadPoolExecutor(1) as threads:
        pool.call("pool_jobs:add", [1, 1], 10)
        waiting = threads.submit(pool.call, "pool_jobs:spin", [], 100)
        time.sleep(0.3)
        pool.close()
        with pytest.raises(GradingError):
            waiting.result(20)
    assert children() <= before
    with pytest.raises(GradingError, match="closed"):
        pool.call("pool_jobs:add", [1, 1], 10)
    pool.close()


def test_a_forked_child_uses_workers_of_its_own_and_the_parents_go_on():
    with Pool(1) as pool:
        mine = pool.call("pool_jobs:pid", [], 10)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                theirs = pool.call("pool_jobs:pid", [], 20)
                os.write(writing, str(theirs).encode())
                pool.close()
            finally:
                os._exit(0)
        os.close(writing)
        assert os.waitpid(child, 0)[1] == 0
        with os.fdopen(reading) as pipe:
            theirs = int(pipe.read())
        assert theirs != mine
        assert is_gone(theirs)
        assert pool.call("pool_jobs:pid", [], 10) == mine


PROGRAM = """
import os, sys, threading, time
sys.path.insert(0, {folder!r})
from melete.rewards.pool import Pool
pool = Pool(2)
print(pool.call("pool_jobs:pid", [], 20), flush=True)
if {hang}:
    threading.Thread(target=lambda: pool.call("pool_jobs:spin", [], 1.5), daemon=True).start()
    time.sleep(0.5)
    with pool._lock:
        print(*(worker.process.pid for worker in pool._all), flush=True)
{end}
"""


@pytest.mark.parametrize("hang", [False, True])
@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "os.kill(os.getpid(), 9)"])
def test_the_end_of_the_program_ends_its_workers(jobs: Path, end: str, hang: bool):
    """Also when the program is killed and its worker is busy: the worker's own alarm ends it a little later."""
    program = PROGRAM.format(folder=str(jobs), hang=hang, end=end)
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == (-9 if "kill" in end else 0), done.stderr
    assert time.monotonic() - start < 30
    if hang and "kill" in end:
        time.sleep(max(0.0, 2.5 + 2 - (time.monotonic() - start)))
    for pid in done.stdout.split():
        assert is_gone(int(pid))


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": 1, "memory": 0}, {"size": 1, "max_items": 0}])
def test_settings_that_make_no_pool_are_refused(settings: dict[str, int]):
    with pytest.raises(ValueError, match="at least 1"):
        Pool(**settings)
