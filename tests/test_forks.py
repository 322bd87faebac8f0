"""Work in a copy of the process: it is done or it is known not to be, and no copy is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melete import forks
from melete.forks import Fork, Tell, can_fork

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux only")


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_told_is_heard_in_order_while_both_go_on() -> None:
    heard: list[Any] = []

    def work(tell: Tell) -> None:
        for number in range(1000):
            tell([number, number / 3, "a"])

    copy = Fork(work, heard.append)
    assert copy.join()
    assert heard == [[number, number / 3, "a"] for number in range(1000)]


def test_a_copy_that_is_done_is_cleared_away_by_the_next() -> None:
    """Nobody waits while the system takes its memory apart."""
    first, second = (Fork(lambda tell: tell("x"), lambda _value: None) for _ in range(2))
    assert first.join() and second.join()
    os.waitid(os.P_PID, first._pid, os.WEXITED | os.WNOWAIT)  # until the system is through with it
    os.waitpid(second._pid, 0)  # somebody else sees this one off
    assert Fork(lambda _tell: None, lambda _value: None).join()
    assert first._status == second._status == 0 and first not in forks._leaving


def test_a_copy_changes_nothing_here() -> None:
    mine, heard = [1], list[Any]()

    def work(tell: Tell) -> None:
        mine.append(2)
        tell(mine)

    assert Fork(work, heard.append).join()
    assert mine == [1] and heard == [[1, 2]]


def fails(_tell: Tell) -> None:
    raise RuntimeError("no")


def dies(_tell: Tell) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("work", [fails, dies])
def test_work_that_was_not_done_is_known(work: Callable[[Tell], None], capfd: pytest.CaptureFixture[str]) -> None:
    assert not Fork(work, lambda _value: None).join()
    assert capfd.readouterr() == ("", "")


def _taken(lock: threading.Lock) -> None:
    with lock:
        pass


def test_a_copy_that_waits_for_a_lock_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 0.2)
    lock = threading.Lock()
    with lock:
        copy = Fork(lambda _tell: _taken(lock), lambda _value: None)
        assert not copy.join()
    assert not is_there(copy._pid)


def test_a_copy_that_works_on_without_a_word_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "PATIENCE", 0.6)

    def work(tell: Tell) -> None:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            pass
        tell("at last")

    heard: list[Any] = []
    assert Fork(work, heard.append).join() and heard == ["at last"]


def test_what_the_listener_raises_is_raised_where_the_work_is_waited_for() -> None:
    def hear(value: Any) -> None:
        raise KeyError(value)

    copy = Fork(lambda tell: tell("x"), hear)
    with pytest.raises(KeyError, match="x"):
        copy.join()


def test_ctrl_c_is_the_parents() -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: called.append(number))
    try:

        def work(tell: Tell) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            tell(called)

        heard: list[Any] = []
        assert Fork(work, heard.append).join() and heard == [[]]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_copy_is_killed_at_once() -> None:
    copy = Fork(lambda _tell: time.sleep(60), lambda _value: None)
    begun = time.monotonic()
    copy.kill()
    assert not copy.join() and time.monotonic() - begun < 5


def test_a_copy_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import time, sys; from melete.forks import Fork\n"
        "copy = Fork(lambda tell: time.sleep(60), lambda value: None); print(copy._pid, flush=True); time.sleep(60)"
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
