import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from melete.errors import RunError
from melete.runs.directory import RunDirectory, read_rows

RECIPE = {"name": "r1", "stage": [{"name": "rl", "lr": 1e-4}]}
HOLDER = """
import sys, time
from melete.runs.directory import RunDirectory
run = RunDirectory.create_or_open(sys.argv[1], {"name": "r1"})
print("holding", flush=True)
time.sleep(60)
"""


def _rows(path: Path) -> list[dict[str, object]]:
    return list(read_rows(path / "metrics.jsonl"))


def _log_many(run: RunDirectory) -> None:
    for step in range(1000):
        run.log_metrics({"stage": "rl", "step": step, "text": "x" * 300})


def test_a_run_is_made_and_opened_again_by_the_same_recipe(tmp_path: Path) -> None:
    for step in range(2):
        with RunDirectory.create_or_open(tmp_path / "deep" / "run", RECIPE) as run:
            run.log_metrics({"stage": "rl", "step": step, "reward": 0.5})
    assert [row["step"] for row in _rows(tmp_path / "deep" / "run")] == [0, 1]
    assert json.loads((tmp_path / "deep" / "run" / "recipe.json").read_text()) == RECIPE


def test_another_recipe_is_refused_with_the_key_that_differs_and_nothing_changes(tmp_path: Path) -> None:
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run:
        run.log_metrics({"step": 0})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file() and p.name != ".lock"}
    with pytest.raises(RunError, match=r"stage\[0\].lr is 0.0002 and was 0.0001"):
        RunDirectory.create_or_open(tmp_path, {"name": "r1", "stage": [{"name": "rl", "lr": 2e-4}]})
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file() and p.name != ".lock"}
    RunDirectory.create_or_open(tmp_path, RECIPE).close()


def test_a_second_process_is_refused_until_the_first_is_gone_even_by_kill_9(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "holding\n"
        with pytest.raises(RunError, match=f"another process \\(number {holder.pid}\\)"):
            RunDirectory.create_or_open(tmp_path, {"name": "r1"})
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    RunDirectory.create_or_open(tmp_path, {"name": "r1"}).close()


def test_a_second_opening_in_one_process_is_refused_too(tmp_path: Path) -> None:
    with RunDirectory.create_or_open(tmp_path, RECIPE), pytest.raises(RunError, match="another process"):
        RunDirectory.create_or_open(tmp_path, RECIPE)


def test_a_place_below_a_file_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="another place") as refusal:
            RunDirectory.create_or_open(place, RECIPE)
        assert refusal.value.place == str(place)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unwritable_directory_is_refused_with_a_remedy(tmp_path: Path) -> None:
    place = Path("/proc/melete-run") if os.geteuid() == 0 else tmp_path / "closed" / "run"
    if os.geteuid() != 0:  # root may write anywhere but where the kernel says no
        (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(RunError, match="cannot write") as refusal:
        RunDirectory.create_or_open(place, RECIPE)
    assert "place for the run" in refusal.value.remedy


def test_a_full_disk_leaves_only_whole_rows(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(RunError, match="full"):
                _log_many(run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        content = (tmp_path / "metrics.jsonl").read_text()
        assert content.endswith("\n") and len(content) <= 10_000
        assert [row["step"] for row in _rows(tmp_path)] == list(range(len(_rows(tmp_path))))


def test_half_a_row_of_a_killed_process_is_cut_off(tmp_path: Path) -> None:
    RunDirectory.create_or_open(tmp_path, RECIPE).close()
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "rew')
    assert _rows(tmp_path) == [{"step": 0}]
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run:
        run.log_metrics({"step": 1})
    assert _rows(tmp_path) == [{"step": 0}, {"step": 1}]


def test_rewinding_to_a_mark_gives_back_the_logs_byte_for_byte(tmp_path: Path) -> None:
    """I37: what was logged after the checkpoint is logged again, not twice."""
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run:
        run.log_metrics({"step": 0})
        run.log_rollouts([{"text": "ñ <think>"}])
        marks, before = run.marks(), (tmp_path / "metrics.jsonl").read_bytes()
        run.log_metrics({"step": 1})
        run.log_timings({"step": 1, "seconds": 0.1})
        run.rewind(json.loads(json.dumps(marks)))
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        assert (tmp_path / "timings.jsonl").read_bytes() == b""
        assert len(list(read_rows(tmp_path / "rollouts.jsonl"))) == 1


def test_rewinding_forward_is_refused(tmp_path: Path) -> None:
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run, pytest.raises(RunError, match="shorter"):
        run.rewind({"metrics.jsonl": 10})


def test_truncating_drops_a_stage_from_a_step_on_and_no_other(tmp_path: Path) -> None:
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run:
        for stage in ("sft", "rl"):
            for step in range(3):
                run.log_metrics({"stage": stage, "step": step})
        run.truncate_metrics("rl", 1)
        assert [(row["stage"], row["step"]) for row in run.metrics()] == [("sft", 0), ("sft", 1), ("sft", 2), ("rl", 0)]


def test_rows_are_the_same_bytes_for_any_order_of_keys(tmp_path: Path) -> None:
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run:
        run.log_metrics({"b": 1, "a": float("nan")})
        run.log_metrics({"a": float("nan"), "b": 1})
    first, second = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert first == second == b'{"a": null, "b": 1}'


def test_a_row_that_is_not_json_is_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0}\nnonsense\n')
    with pytest.raises(RunError, match="line 2"):
        list(read_rows(file))
