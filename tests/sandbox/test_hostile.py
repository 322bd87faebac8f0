"""Hostile programs, on every executor of this machine: each earns nothing, harms nothing and leaves nothing behind.

They stand in hostile/*.txt, one after another: `# == name (how it is judged): what it tries`.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from melete.rewards.code import CallTests, CheckTests, StreamTests, Tests, Verdict, grade_program
from melete.sandbox import EXECUTORS, INSTALL, Execution, Limits, boot, unavailable
from melete.sandbox.process import PipeExecutor, popen
from melete.sandbox.protocol import MIB, Launched

HEADER = re.compile(r"^# == (\w+)(?: \((stream|check)\))?: .+$", re.MULTILINE)
WALL_S = 0.5
MARK = "only the source of these tests says this"
SECRETS = (MARK, "that every sandboxed interpreter begins with", "root:x:", "root:*:", "PATH=")
EXPECTED = {(2, 3): 6174, (4, 1): 1729, (5, 5): 4913}
TESTS: dict[str, Tests] = {
    "calls": CallTests("solve", tuple(EXPECTED.items())),
    "stream": StreamTests((("2 3\n", "6174\n"), ("4 1\n", "1729\n"))),
    "check": CheckTests(
        "",
        "solve",
        "def check(candidate):\n"
        "    assert all(map(lambda x: candidate(*x) > 1000, [(2, 3), (4, 1)]))\n"
        "    assert candidate(2, 3) == 6174, 'the answer is 6174'\n"
        "    assert abs(candidate(4, 1) - 1729) < 1e-6\n"
        "    for x in [5]:\n"
        "        assert candidate(x, x) == 4913\n",
    ),
}


def programs() -> dict[str, tuple[str, str]]:
    """Name -> (how it is judged, source)."""
    found: dict[str, tuple[str, str]] = {}
    for file in sorted((Path(__file__).parent / "hostile").glob("*.txt")):
        pieces = HEADER.split(file.read_text(encoding="utf-8"))
        assert pieces[0] == "", f"{file.name} begins with something else"
        for name, kind, source in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
            assert name not in found, f"{name} is there twice"
            found[name] = (kind or "calls", source)
    return found


PROGRAMS = programs()


@dataclass
class Host:
    """What must not be touched: a file, a process, sockets, the environment."""

    directory: Path
    secret: str = field(default_factory=lambda: secrets.token_hex(12))

    def __post_init__(self) -> None:
        self.file = self.directory / "canary"
        self.file.write_text(self.secret)
        self.stat = self.file.stat()
        self.process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        self.abstract = f"melete-{self.secret}"
        self.sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = self.sockets[0].getsockname()[1]
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("127.0.0.1", self.port))
        self.datagrams.setblocking(False)
        for address in (str(self.directory / "socket"), "\0" + self.abstract):
            self.sockets.append(socket.socket(socket.AF_UNIX))
            self.sockets[-1].bind(address)
            self.sockets[-1].listen()
        for each in self.sockets:
            each.setblocking(False)
        os.environ["MELETE_CANARY"] = self.secret

    def fill_in(self, source: str) -> str:
        values = {
            "CANARY_FILE": self.file,
            "CANARY_PID": self.process.pid,
            "PARENT_PID": os.getpid(),
            "PORT": self.port,
            "UNIX_SOCKET": self.directory / "socket",
            "ABSTRACT": self.abstract,
            "NEW_FILE": self.directory / "new",
            "HARNESS": boot.__file__,
            "TESTS": __file__,
            "NUL": "\0",
        }
        return re.sub(r"@([A-Z_]+)@", lambda match: str(values[match[1]]), source)

    def harm(self) -> list[str]:
        """What is no longer as it was."""
        now, found = self.file.stat(), []
        if self.file.read_text() != self.secret or (now.st_mode, now.st_mtime_ns) != (
            self.stat.st_mode,
            self.stat.st_mtime_ns,
        ):
            found.append("the canary file was changed")
        if {path.name for path in self.directory.iterdir()} != {"canary", "socket"}:
            found.append("a file was made")
        if self.process.poll() is not None or _state(self.process.pid) not in "SR":
            found.append("the canary process was killed or stopped")
        for each in self.sockets:
            try:
                each.accept()
                found.append(f"{each.getsockname()} was connected to")
            except BlockingIOError:
                pass
        try:
            self.datagrams.recv(1)
            found.append("a datagram came")
        except BlockingIOError:
            pass
        places = ("/tmp", "/dev/shm", "/", "/var/tmp", os.path.dirname(os.__file__), "/dev/mqueue")
        found += [f"{place} was written to" for place in places if list(Path(place).glob("melete-hostile*"))]
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for each in (*self.sockets, self.datagrams):
            each.close()
        os.environ.pop("MELETE_CANARY", None)


class Recorder:
    """An executor that keeps what its programs wrote."""

    def __init__(self, name: str) -> None:
        self.inner, self.name, self.strength = EXECUTORS[name], name, EXECUTORS[name].strength
        self.executions: list[Execution] = []
        self.running = []

    def run(self, program: str, *, stdin: str = "", limits: Limits) -> Execution:
        self.executions.append(self.inner.run(program, stdin=stdin, limits=limits))
        return self.executions[-1]

    def start(self, program: str, *, limits: Limits):
        self.running.append(self.inner.start(program, limits=limits))
        return self.running[-1]

    def text(self) -> str:
        ended = [*self.executions, *(running.close() for running in self.running)]
        return "".join(execution.stdout + execution.stderr for execution in ended)


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    text: str
    seconds: float
    left: list[int]


def outcome(host: Host, executor: str, name: str, memory_bytes: int) -> Outcome:
    kind, source = PROGRAMS[name]
    recorder = Recorder(executor)
    limits = Limits(wall_s=WALL_S, cpu_s=2.0, memory_bytes=memory_bytes, output_bytes=MIB)
    started = time.monotonic()
    verdict = grade_program(host.fill_in(source), TESTS[kind], executor=recorder, limits=limits)
    seconds = time.monotonic() - started
    return Outcome(verdict, recorder.text(), seconds, _left(memory_bytes))


def _left(memory_bytes: int) -> list[int]:
    """Processes whose command line names this limit, which no other program of this session has."""
    mark = f"'RLIMIT_AS', {memory_bytes})".encode()
    for _ in range(20):
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "cmdline").read_bytes() and _state(int(process.name)) != "Z":
                    found.append(int(process.name))
            except OSError:
                continue
        if not found:
            return []
        time.sleep(0.05)
    return found


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("host"))
    yield host
    host.close()


@pytest.fixture(scope="module")
def outcomes(host: Host, request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[Outcome]]]:
    """Those that were asked for, four at a time: most of them wait for their time limit."""
    chosen = [item.callspec.params for item in request.session.items if "outcomes" in getattr(item, "fixturenames", [])]
    wanted = [(params["executor"], params["name"]) for params in chosen if not unavailable(params["executor"])]
    with ThreadPoolExecutor(4) as pool:
        yield {
            pair: pool.submit(outcome, host, *pair, memory_bytes=128 * MIB + 4096 * index)
            for index, pair in enumerate(wanted)
        }


def needs(executor: str) -> None:
    if unavailable(executor):
        pytest.skip(f"{INSTALL[executor]} ({unavailable(executor)})")


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_earns_nothing_harms_nothing_and_leaves_nothing_behind(
    executor: str, name: str, host: Host, outcomes: dict[tuple[str, str], Future[Outcome]]
):
    needs(executor)
    found = outcomes[executor, name].result()
    assert found.verdict.score("all") == 0.0
    for told in (host.secret, *SECRETS):
        assert told not in found.text + found.verdict.reason
    assert found.left == []
    assert found.seconds < 10 * WALL_S + 5
    assert host.harm() == []


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_honest_program_earns_the_reward(executor: str):
    needs(executor)
    honest = f"TABLE = {EXPECTED!r}\ndef solve(a, b):\n    print('a word')\n    return TABLE[a, b]\n"
    for kind in ("calls", "check"):
        assert grade_program(honest, TESTS[kind], executor=EXECUTORS[executor]).score("all") == 1.0
    asked = honest + "if __name__ == '__main__':\n    print(TABLE[tuple(map(int, input().split()))])\n"
    assert (
        grade_program(asked.replace("'a word'", ""), TESTS["stream"], executor=EXECUTORS[executor]).score("all") == 1.0
    )


class Unprotected(PipeExecutor):
    """The same interpreter without any protection."""

    name = "unprotected"

    def launch(self, limits: Limits) -> Launched:
        text = boot.boot_text(boot.rlimit_text(limits).replace("('RLIMIT_FSIZE', 0), ", ""))
        return popen([boot.interpreter(), *boot.FLAGS, "-c", text], environment=dict(os.environ))


# what these tests must notice when there is no sandbox
NOTICED = {
    "reads_the_canary": "told",
    "reads_the_harness": "told",
    "reads_the_environment_in_python": "told",
    "reads_the_testers_environment": "told",
    "reads_passwd": "told",
    "appends_to_the_canary": "the canary file was changed",
    "changes_the_canarys_mode": "the canary file was changed",
    "makes_a_file": "a file was made",
    "makes_a_symlink": "a file was made",
    "runs_a_shell": "a file was made",
    "tcp_connect": "was connected to",
    "socket_by_syscall": "was connected to",
    "unix_connect": "was connected to",
    "abstract_connect": "was connected to",
    "udp_send": "a datagram came",
    "kills_the_canary": "the canary process was killed",
    "kills_by_syscall": "the canary process was killed",
    "kills_by_pidfd": "the canary process was killed",
    "double_fork": "left",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
@pytest.mark.parametrize("name", NOTICED)
def test_without_a_sandbox_the_same_program_would_do_harm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """So the programs are real, and the checks above see what they do."""
    monkeypatch.setitem(EXECUTORS, "unprotected", Unprotected())
    monkeypatch.setenv("MELETE_CANARY", "set by the host below")
    mark = 256 * MIB + 4096 * list(NOTICED).index(name)
    host = Host(tmp_path)
    try:
        found = outcome(host, "unprotected", name, mark)
        for pid in found.left:
            os.kill(pid, 9)
        noticed = " ".join(host.harm()) + " left" * bool(found.left)
        if any(told in found.text for told in (host.secret, *SECRETS)):
            noticed += " told"
        assert NOTICED[name] in noticed
    finally:
        host.close()


def test_there_are_at_least_eighty_hostile_programs():
    assert len(PROGRAMS) >= 80
