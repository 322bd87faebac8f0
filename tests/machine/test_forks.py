"""Work in a copy of the process: it is done or it is known not to be, and no copy is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from melete.machine import forks
from melete.machine.forks import Fork, Tell, Work, can_fork

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only")


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(name="fork")
def made() -> Iterator[Callable[[Work], Fork]]:
    """Makes copies that are ended with the test."""
    forks: list[Fork] = []

    def make(work: Work) -> Fork:
        forks.append(Fork(work))
        return forks[-1]

    yield make
    for fork in forks:
        fork.close()


Make = Callable[[Work], Fork]


def done(fork: Fork, job: Any = None, hear: Callable[[Any], object] = lambda _value: None) -> bool:
    fork.start(job, hear)
    return fork.join()


def test_what_is_told_is_heard_in_order_while_both_go_on(fork: Make) -> None:
    heard: list[Any] = []

    def work(job: int, tell: Tell) -> None:
        for number in range(job):
            tell([number, number / 3, "a"])

    assert done(fork(work), 1000, heard.append)
    assert heard == [[number, number / 3, "a"] for number in range(1000)]


def test_a_copy_does_one_job_after_another_and_keeps_what_it_has(fork: Make) -> None:
    mine, heard = [1], list[Any]()

    def work(job: list[int], tell: Tell) -> None:
        mine.extend(job)
        tell(mine)

    copy = fork(work)
    assert done(copy, [2], heard.append) and done(copy, [3, 4], heard.append)
    assert mine == [1] and heard == [[1, 2], [1, 2, 3, 4]]


def fails(_job: object, _tell: Tell) -> None:
    raise RuntimeError("no")


def dies(_job: object, _tell: Tell) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("work", [fails, dies])
def test_work_that_was_not_done_is_known(fork: Make, work: Work, capfd: pytest.CaptureFixture[str]) -> None:
    copy = fork(work)
    assert not done(copy) and not is_there(copy._pid)
    with pytest.raises((OSError, ValueError)):
        copy.start(None, lambda _value: None)
    assert capfd.readouterr() == ("", "")


def _taken(lock: threading.Lock) -> None:
    with lock:
        pass


def test_a_copy_that_waits_for_a_lock_is_ended(fork: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 0.2)
    lock = threading.Lock()
    with lock:
        copy = fork(lambda _job, _tell: _taken(lock))
        assert not done(copy)
    assert not is_there(copy._pid)


def test_a_copy_that_works_on_without_a_word_is_not(fork: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 0.6)

    def work(_job: object, tell: Tell) -> None:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            pass
        tell("at last")

    heard: list[Any] = []
    assert done(fork(work), hear=heard.append) and heard == ["at last"]


def test_a_copy_that_has_nothing_to_do_is_left_in_peace(fork: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 0.2)
    copy = fork(lambda _job, _tell: None)
    assert done(copy)
    time.sleep(0.5)
    assert done(copy) and is_there(copy._pid)


def test_what_the_listener_raises_is_raised_where_the_work_is_waited_for(fork: Make) -> None:
    def hear(value: Any) -> None:
        raise KeyError(value)

    with pytest.raises(KeyError, match="x"):
        done(fork(lambda _job, tell: tell("x")), hear=hear)


def test_ctrl_c_is_the_parents(fork: Make) -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: called.append(number))
    try:

        def work(_job: object, tell: Tell) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            tell(called)

        heard: list[Any] = []
        assert done(fork(work), hear=heard.append) and heard == [[]]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_copy_is_ended_at_once(fork: Make) -> None:
    copy = fork(lambda _job, _tell: time.sleep(60))
    copy.start(None, lambda _value: None)
    begun = time.monotonic()
    copy.close()
    assert not copy.join() and not is_there(copy._pid) and time.monotonic() - begun < 5


def test_a_copy_does_not_end_its_siblings(fork: Make) -> None:
    first = fork(lambda _job, tell: tell("there"))
    assert done(fork(lambda _job, _tell: first.close()))
    heard: list[Any] = []
    assert done(first, hear=heard.append) and heard == ["there"]


def test_a_copy_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import time, sys; from melete.machine.forks import Fork\n"
        "copy = Fork(lambda job, tell: None); print(copy._pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_there(pid)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 5
    while is_there(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_there(pid)


def test_only_the_main_thread_makes_copies() -> None:
    found: list[bool] = []
    other = threading.Thread(target=lambda: found.append(can_fork()))
    other.start()
    other.join()
    assert found == [False] and can_fork()
