"""What the doctor says about a run: each fault is made, and has to be told with the command that mends it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from runs.made_runs import stage, write_run
from typer.testing import CliRunner

from melete.cli import app
from melete.config import load_recipe, parse_recipe
from melete.corpus.mix import sample_texts
from melete.doctor import Line, look_at_run
from melete.doctor.run import command_for
from melete.errors import RunError
from melete.live import View
from melete.models.load import save_model
from melete.models.tiny import tiny_model, train_tokenizer
from melete.pipeline import run_recipe
from melete.runs.directory import RunDirectory
from melete.stages import Interrupted


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(sample_texts(0, 50), 600)
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model") / "base"
    save_model(tiny_model(tokenizer, hidden_size=16, num_layers=2), tokenizer, directory)
    return directory


def tables(base: Path) -> dict[str, Any]:
    student = {"name": "student", "kind": "sft", "model": str(base), "data": "notes", "lr": 1e-3, "warmup_steps": 0}
    student |= {"rows_per_step": 2, "num_epochs": 1, "checkpoint_every_steps": 1}
    return {"name": "two", "stage": [{"name": "notes", "kind": "write", "rows": {"chains": 10}}, student]}


class _Stop(io.StringIO):
    """Sends a Ctrl-C when the third step of the student is shown."""

    def write(self, text: str) -> int:
        if re.search(r"student.*\b3\b", text):
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def run(base: Path, run_dir: Path, shown: io.StringIO) -> Path:
    with View(["notes", "student"], True, console=Console(file=shown, width=200)) as view:
        return run_recipe(parse_recipe(tables(base)), run_dir, view=view, command="melete run two", with_report=False)


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(base, tmp_path_factory.mktemp("runs") / "two", io.StringIO())


@pytest.fixture(scope="module")
def stopped(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "two"
    with pytest.raises(Interrupted):
        run(base, run_dir, _Stop())
    return run_dir


def found(run_dir: Path) -> dict[str, Line]:
    """The lines by topic; one that is not well hides one that is."""
    return {line.topic: line for line in sorted(look_at_run(run_dir), key=lambda line: line.level)[::-1]} | {
        line.topic: line for line in look_at_run(run_dir) if line.level == "problem"
    }


def copy(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "two"))


def test_a_finished_run_is_well(finished: Path) -> None:
    lines = list(look_at_run(finished))
    assert [line for line in lines if line.level != "ok"] == []
    assert "as they were written" in found(finished)["files"].says
    done = CliRunner().invoke(app, ["doctor", "--run", str(finished)])
    assert done.exit_code == 0 and "2 of 2 stages done" in done.output and "nothing is broken" in done.output


def test_nothing_in_the_run_is_changed(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    list(look_at_run(finished))
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_stopped_run_names_the_command_that_continues_and_it_does(stopped: Path, tmp_path: Path) -> None:
    """The recipe was no file, and the run lies elsewhere than it was made."""
    run_dir = copy(stopped, tmp_path)
    lines = found(run_dir)
    assert lines["run"].level == "note" and "1 of 2 stages done" in lines["run"].says
    assert f"process {os.getpid()} ended before" in lines["ended"].says
    line = lines["unfinished"]
    step = max(int(path.name[5:]) for path in (run_dir / "checkpoints" / "student").iterdir())
    assert line.says == f"student (continues at step {step})" and line.level == "note"
    arguments = line.facts["command"].split()
    assert arguments[0] == "melete" and line.mend == f"continue: {line.facts['command']}"
    done = CliRunner().invoke(app, arguments[1:])
    assert done.exit_code == 0, done.output
    assert f"continues at step {step}" in done.output and "notes: already done" in done.output
    assert found(run_dir)["run"].says.endswith("finished, 2 of 2 stages done")


def test_a_bundled_recipe_is_continued_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("r1-zero-tiny")
    made = Path("runs/r1-zero-tiny")
    assert command_for(made, recipe.as_dict(), recipe) == "melete run r1-zero-tiny"
    assert command_for(made.absolute(), recipe.as_dict(), recipe, "rl") == "melete run r1-zero-tiny --from rl"
    assert command_for(Path("runs/b"), recipe.as_dict(), recipe) == "melete run r1-zero-tiny --runs-dir runs --name b"
    other = load_recipe("r1-zero-tiny", ["seed=7"])
    assert command_for(made, other.as_dict(), other) == "melete run runs/r1-zero-tiny/recipe.json"


def test_a_model_that_was_changed_is_told_with_its_file(finished: Path, tmp_path: Path) -> None:
    run_dir = copy(finished, tmp_path)
    weights = run_dir / "models" / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    line = found(run_dir)["artefact"]
    assert line.level == "problem" and "models/student/model.safetensors has changed" in line.says
    assert line.mend.endswith("--from student")
    done = CliRunner().invoke(app, ["doctor", "--run", str(run_dir), "--json"])
    assert done.exit_code == 1 and json.loads(done.output)["ok"] is False


def test_a_damaged_checkpoint_is_told_with_the_step_that_it_goes_on_from(stopped: Path, tmp_path: Path) -> None:
    run_dir = copy(stopped, tmp_path)
    newest, older = sorted((run_dir / "checkpoints" / "student").iterdir(), reverse=True)
    with (newest / "tensors.pt").open("r+b") as file:
        file.write(b"\xff")
    line = found(run_dir)["checkpoint"]
    assert line.level == "problem" and "tensors.pt is not what was written" in line.says
    assert f"goes on from step {int(older.name[5:])}" in line.mend
    shutil.rmtree(older)
    assert "begins the stage again" in found(run_dir)["checkpoint"].mend
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    line = found(run_dir)["checkpoint"]
    assert "format 99" in line.says and "the version that wrote it" in line.mend


def test_rows_that_a_checkpoint_counts_and_a_log_lacks_are_told(stopped: Path, tmp_path: Path) -> None:
    run_dir = copy(stopped, tmp_path)
    (run_dir / "metrics.jsonl").write_text("")
    line = found(run_dir)["log"]
    assert line.level == "problem" and "metrics.jsonl has 0 rows of student" in line.says
    assert line.mend.endswith("--from student")


@pytest.mark.parametrize(
    ("name", "content", "topic", "level", "says"),
    [
        ("metrics.jsonl", "{]\n", "log", "problem", "line 1 is not JSON"),
        ("metrics.jsonl", '{"stage": "stu', "log", "note", "was cut off"),
        ("timings.jsonl", "\udcff\n", "log", "problem", "UTF-8"),
        ("stages/notes.json", "{", "stage", "problem", "the record of a stage cannot be read"),
        ("summary.json", "{", "file", "problem", "cannot be read"),
        ("recipe.json", "[]", "run", "problem", "cannot be read"),
        (".partial-x", "", "leftovers", "note", "a write was cut off"),
    ],
)
def test_a_damaged_file_is_named(
    name: str, content: str, topic: str, level: str, says: str, finished: Path, tmp_path: Path
) -> None:
    run_dir = copy(finished, tmp_path)
    (run_dir / name).write_bytes(content.encode(errors="surrogateescape"))
    line = found(run_dir)[topic]
    assert (line.level, says in line.says) == (level, True), line
    assert line.mend


def test_settings_of_another_version_are_told(finished: Path, tmp_path: Path) -> None:
    run_dir = copy(finished, tmp_path)
    recipe = json.loads((run_dir / "recipe.json").read_text())
    recipe["stage"][1]["no_such_setting"] = 1
    (run_dir / "recipe.json").write_text(json.dumps(recipe))
    line = found(run_dir)["recipe"]
    assert line.level == "note" and "no_such_setting" in line.says and "the version that began it" in line.mend


def test_other_code_and_other_libraries_are_told(finished: Path, tmp_path: Path) -> None:
    run_dir = copy(finished, tmp_path)
    record = json.loads((run_dir / "stages" / "student.json").read_text())
    record["made_from"]["code"] = "0.0.1+0"
    (run_dir / "stages" / "student.json").write_text(json.dumps(record))
    summary = json.loads((run_dir / "summary.json").read_text())
    summary["versions"]["torch"] = "1.0"
    (run_dir / "summary.json").write_text(json.dumps(summary))
    lines = found(run_dir)
    assert lines["out of date"].says == "student: the code has changed" and lines["out of date"].level == "note"
    assert "made with torch 1.0 (here 2" in lines["versions"].says


def test_findings_of_health_are_told_with_cause_and_remedy(tmp_path: Path) -> None:
    rows = [{"stage": "rl", "step": step, "dead_groups": 0.99, "all_correct_groups": 0.0} for step in range(30)]
    run_dir = write_run(tmp_path / "sick", stage(health={}, group_size=8), rows=tuple(rows))
    line = found(run_dir)["health"]
    assert line.level == "problem" and "they teach nothing" in line.says and "easier problems" in line.mend


def test_a_disk_that_is_too_small_for_what_is_left_is_a_problem(stopped: Path, tmp_path: Path) -> None:
    run_dir = copy(stopped, tmp_path)
    estimates = {"student": {"disk_bytes": 2**60}, "notes": {"disk_bytes": 2**61}}
    (run_dir / "plan.json").write_text(json.dumps({"stages": estimates}))
    line = found(run_dir)["disk"]
    assert line.level == "problem" and line.facts["needed_bytes"] == 2**60


def test_data_that_is_not_where_the_command_is_given_is_told(base: Path, tmp_path: Path) -> None:
    settings = tables(base)
    settings["stage"][1]["data"] = "mine.jsonl"
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "recipe.json").write_text(json.dumps({"seed": 0, **settings}))
    line = found(tmp_path / "r")["recipe"]
    assert line.level == "note" and "mine.jsonl" in line.says and "directory where the run was begun" in line.mend


def test_a_run_that_works_is_left_alone(stopped: Path, tmp_path: Path) -> None:
    run_dir = copy(stopped, tmp_path)
    recipe = json.loads((run_dir / "recipe.json").read_text())
    with RunDirectory.create_or_open(run_dir, recipe):
        lines = found(run_dir)
        assert f"process {os.getpid()} is working in it" in lines["lock"].says
        assert lines["run"].says.startswith("two: running") and "unfinished" not in lines
        assert all(line.level == "ok" for line in look_at_run(run_dir))


def test_a_lock_that_only_a_child_still_holds_is_stale(finished: Path, tmp_path: Path) -> None:
    run_dir = copy(finished, tmp_path)
    code = (
        "import fcntl, os, subprocess, sys\n"
        "lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); lock.write(str(os.getpid())); lock.flush()\n"
        "child = subprocess.Popen(['sleep', '60'], pass_fds=[lock.fileno()], stdout=-3, stderr=-3)\n"
        "print(child.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run_dir / ".lock")], capture_output=True, text=True, check=True, timeout=60
    )
    child = int(done.stdout)
    try:
        line = found(run_dir)["lock"]
        assert line.level == "problem" and "stale" in line.says and line.mend == f"kill {child}"
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no recipe\.json"):
        list(look_at_run(tmp_path))
    done = CliRunner().invoke(app, ["doctor", "--run", str(tmp_path)])
    assert done.exit_code == 2 and "no recipe.json" in done.output
