"""What the doctor says about a machine: made-up ones, and this one."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from melete.cli import app
from melete.doctor import Line, machine
from melete.doctor.extras import USED_BY, look_at_libraries, requirements
from melete.doctor.lines import GIB
from melete.doctor.machine import (
    accelerator,
    cpu_quota,
    physical_cores,
    place_line,
    sandbox_line,
    threads_line,
)
from melete.planning.machine import Machine

ROOT = Path(__file__).parents[2]


def a_machine(cores: int = 4, load: float = 0.0) -> Machine:
    return Machine(8 * GIB, 8 * GIB, cores, load)


def test_this_machine_is_looked_at_without_torch_and_with_every_extra(tmp_path: Path) -> None:
    code = (
        "import sys; from melete.cli import main; sys.argv = ['melete', 'doctor', '--json']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "import os, glob\n"
        "assert not {'torch', 'transformers'} & set(sys.modules) or glob.glob('/dev/nvidia[0-9]*')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = json.loads(done.stdout)["lines"]
    topics = {line["topic"] for line in lines}
    wanted = {
        "python",
        "melete",
        "torch",
        "transformers",
        "cores",
        "memory",
        "runs",
        "cache",
        "GPU",
        "threads",
        "sandbox",
    }
    assert wanted <= topics
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {line["extra"] for line in lines if line["topic"] == "extra"}
    assert extras == set(project["optional-dependencies"]) == set(USED_BY)
    assert list(tmp_path.iterdir()) == []  # it makes nothing


def test_what_is_broken_makes_the_status_1_and_what_is_not_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [Line("runs", "well"), Line("extra", "missing", "note", "pip install it")]
    monkeypatch.setattr("melete.doctor.look_at_machine", lambda runs_dir: iter(lines))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0 and "nothing is broken" in done.output
    assert done.output.splitlines()[1:3] == ["note     extra         missing", f"{'':<23}mend: pip install it"]
    lines.append(Line("python", "too old\x1b[2J", "problem", "a newer one"))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1 and "1 thing is broken" in done.output and "\x1b" not in done.output
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 1 and json.loads(done.output)["ok"] is False


def test_a_library_that_is_missing_or_does_not_fit_is_told_with_the_line_that_installs_it() -> None:
    version = metadata.version("pytest")
    needed = {
        "": [Requirement("pytest"), Requirement("no-such-library")],
        "math": [Requirement("pytest<1"), Requirement("no-such-library")],
        "data": [Requirement("pytest>=1")],
    }
    missing, math, data = look_at_libraries(needed)
    assert (missing.level, missing.says, missing.mend) == (
        "problem",
        "no-such-library is missing",
        "pip install melete",
    )
    assert math.level == "note" and math.mend == "pip install 'melete[math]'"
    assert f"pytest {version} is there, <1 is needed" in math.says and "no-such-library is missing" in math.says
    assert data.level == "ok" and f"pytest {version}" in data.says


def test_an_installed_package_says_the_same_as_its_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=2", "fastapi; extra == 'serve'", "peft; extra == 'lora'", "pytest; extra == 'test'"]
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    monkeypatch.setattr(metadata, "metadata", lambda name: _Extras())
    found = requirements(tmp_path / "pyproject.toml")
    assert {extra: [one.name for one in ones] for extra, ones in found.items()} == {
        "": ["torch"], "serve": ["fastapi"], "lora": ["peft"],
    }  # fmt: skip


class _Extras:
    def get_all(self, name: str) -> list[str]:
        return ["serve", "lora"]


@pytest.mark.parametrize(
    ("environment", "cores", "load", "level", "mend"),
    [
        ({}, 4, 0.0, "ok", ""),
        ({"OMP_NUM_THREADS": "2"}, 2, 0.0, "ok", ""),
        ({"MELETE_THREADS": "many"}, 4, 0.0, "problem", "MELETE_THREADS=2"),
        ({"OMP_NUM_THREADS": "8"}, 4, 0.0, "note", "OMP_NUM_THREADS=4"),
        ({"OMP_WAIT_POLICY": "active"}, 4, 0.0, "note", "OMP_WAIT_POLICY=PASSIVE"),
        ({}, 4, 3.9, "note", "OMP_NUM_THREADS=1"),
        ({"OMP_NUM_THREADS": "1"}, 4, 3.9, "note", "unset OMP_NUM_THREADS"),
        ({}, 1, 5.0, "ok", ""),
    ],
)
def test_threads_that_make_no_sense_are_told(
    environment: dict[str, str], cores: int, load: float, level: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    line = threads_line(environment, a_machine(cores, load))
    assert line.level == level and mend in line.mend


def test_a_container_with_little_time_of_the_processor_gets_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.5)
    line = threads_line({}, a_machine(64))
    assert line.level == "note" and line.mend == "OMP_NUM_THREADS=1" and "1.5 cores" in line.says


def test_cores_and_limits_are_read_from_the_system(tmp_path: Path) -> None:
    assert physical_cores(tmp_path) is None and cpu_quota(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    threads = [(package, core) for package in (0, 1) for core in (0, 1) for _ in range(2)]
    entries = "".join(f"processor\t: 0\nphysical id\t: {p}\ncore id\t\t: {c}\n\n" for p, c in threads)
    (tmp_path / "proc/cpuinfo").write_text(entries)
    assert physical_cores(tmp_path) == 4
    group = tmp_path / "sys/fs/cgroup/one"
    group.mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/one\n")
    (group / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path) is None
    (group / "cpu.max").write_text("250000 100000\n")
    assert cpu_quota(tmp_path) == 2.5


def test_a_place_that_cannot_be_written_is_a_problem_where_nothing_works_without(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert place_line("runs", tmp_path / "not" / "yet", mend="").level == "ok"
    assert not (tmp_path / "not").exists()
    line = place_line("runs", file / "runs", mend="name another", broken=True)
    assert line.level == "problem" and line.mend == "name another" and str(file) in line.says
    assert place_line("cache", file / "cache", mend="set MELETE_CACHE").level == "note"


def test_a_disk_with_little_space_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, level in ((50 * GIB, "ok"), (GIB, "note"), (GIB // 10, "problem")):
        monkeypatch.setattr(machine, "free_disk", lambda place, free=free: free)
        assert place_line("runs", tmp_path, mend="", broken=True).level == level


def test_a_gpu_that_torch_does_not_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert "none" in accelerator(tmp_path).says or sys.platform == "darwin"
    (tmp_path / "nvidia0").write_text("")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    line = accelerator(tmp_path)
    assert line.level == "note" and "does not use it" in line.says and line.mend


@pytest.mark.parametrize(
    ("broken", "executor", "level", "mend"),
    [
        ((), "bubblewrap", "ok", ""),
        (("bubblewrap",), "wasm", "ok", ""),
        (("bubblewrap", "wasm"), "child", "note", "apt-get install bubblewrap or pip install 'melete[wasm]'"),
        (("bubblewrap", "wasm", "child"), None, "note", "apt-get install bubblewrap"),
    ],
)
def test_the_executor_is_named_and_why_no_stronger_one(
    broken: tuple[str, ...], executor: str | None, level: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "unavailable", lambda name: f"no {name} here" if name in broken else "")
    line = sandbox_line()
    assert line.facts["executor"] == executor and line.level == level and mend in line.mend
    assert all(f"no {name} here" in line.says for name in broken)
