"""Real commands and real children: asked to stop, killed, or one too many."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any, cast

import dying
import pytest
from typer.testing import CliRunner

from melete.cli import app
from melete.config import parse_recipe
from melete.errors import RunError
from melete.loops.pretrain import num_ended
from melete.runs.directory import RunDirectory
from melete.stages import StageContext
from melete.stages.sub_runs import SubRun, run_all

Differences = Callable[[Path, Path], list[str]]


@pytest.fixture(scope="module")
def warm(warm_class: Any) -> Iterator[Any]:
    server = warm_class(0)
    server.ready()
    yield server
    server.close()


@pytest.fixture(scope="module")
def longer(tables: dict[str, Any]) -> dict[str, Any]:
    """Long enough that a signal meets it at work."""
    found = copy.deepcopy(tables)
    found["stage"][-1]["num_steps"] = 30
    return found


@pytest.fixture(scope="module")
def longer_whole(longer: dict[str, Any], run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("longer") / "little"
    run(longer, run_dir)
    return run_dir


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_command_that_is_printed_continues_to_the_same_end(
    number: signal.Signals,
    warm: Any,
    longer: dict[str, Any],
    longer_whole: Path,
    differences: Differences,
    tmp_path: Path,
) -> None:
    """I37."""
    recipe, log, run_dir = tmp_path / "little.json", tmp_path / "log", tmp_path / "runs" / "little"
    recipe.write_text(json.dumps(longer))
    job = {"run_dir": str(run_dir), "log": str(log)}
    arguments = ["run", str(recipe), "--runs-dir", str(tmp_path / "runs")]
    pid = warm.start({**job, "arguments": arguments})
    wait_for(log, r"^rl 3/30")
    os.kill(pid, number)
    assert warm.status() == 130
    printed = log.read_text()
    found = re.search(r"interrupted\nthe same command continues from what is saved:\n  melete (.*)\n", printed)
    assert found and shlex.split(found[1]) == arguments and "Traceback" not in printed
    steps = [row["step"] for row in read(run_dir / "metrics.jsonl") if row["stage"] == "rl" and "kind" not in row]
    last = max(path.name for path in (run_dir / "checkpoints" / "rl").iterdir())
    assert 3 <= len(steps) < 30 and last == f"step-{len(steps):06d}", "the step under way was ended and saved"
    warm.start({**job, "arguments": shlex.split(found[1])})
    assert warm.status() == 0
    assert f"rl: continues at step {len(steps)} of 30" in log.read_text()
    assert differences(longer_whole, run_dir) == []


def test_a_second_command_on_the_same_run_is_one_message(
    longer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("little.json").write_text(json.dumps(longer))
    with RunDirectory.create_or_open("runs/little", parse_recipe(longer).as_dict()):
        result = CliRunner().invoke(app, ["run", "little.json"])
    assert result.exit_code == 2
    assert f"error: another process (number {os.getpid()}) is working in this run directory" in result.output
    assert not list(Path("runs/little/models").iterdir()) and not Path("runs/little/metrics.jsonl").exists()


def test_a_child_that_is_killed_names_its_run_and_what_helps(tmp_path: Path) -> None:
    run = SubRun("grpo-0", cast(Any, None), tmp_path / "grpo-0")
    context = cast(StageContext, type("Context", (), {"run_recipe": dying.die, "should_stop": lambda *_: False}))
    with pytest.raises(RunError, match="the process of grpo-0 ended") as refusal:
        run_all([run], 1, context, lambda _run: None)
    assert "see whether memory ran out" in refusal.value.remedy and "continues" in refusal.value.remedy


def test_a_worker_of_pretraining_that_is_killed_is_said_and_the_stage_can_be_made_again(
    run: Any, tmp_path: Path
) -> None:
    settings = {"num_tokens": 24_000, "tokens_per_batch": 2048, "hidden_size": 32, "num_layers": 2, "num_workers": 2}
    tables = {"name": "base", "stage": [{"name": "base", "kind": "pretrain", **settings}]}

    def kill(line: str) -> None:
        if re.match(r"base \d+/", line):
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)

    with pytest.raises(RunError, match="1 of 2 processes of the pre-training ended") as refusal:
        run(tables, tmp_path / "base", kill)
    assert "fewer num_workers need less" in refusal.value.remedy
    tables["stage"][0]["num_workers"] = 1
    assert "base: made again: num_workers is 1 and was 2" in run(tables, tmp_path / "base")


def test_a_worker_whose_files_are_closed_counts_as_ended_before_the_system_has_buried_it() -> None:
    worker = multiprocessing.get_context("spawn").Process(target=dying.close_then_end)
    worker.start()
    connection.wait([worker.sentinel])
    assert worker.is_alive() and num_ended([worker]) == 1


def wait_for(log: Path, pattern: str) -> None:
    end = time.monotonic() + 120
    while not (log.exists() and re.search(pattern, log.read_text(), re.MULTILINE)):
        assert time.monotonic() < end, log.read_text() if log.exists() else "nothing was printed"
        time.sleep(0.005)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
