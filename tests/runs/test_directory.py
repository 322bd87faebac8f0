import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from melete.errors import RunError
from melete.runs.directory import RunDirectory, differences, read_rows

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


def test_a_recipe_of_another_name_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run:
        run.log_metrics({"step": 0})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file() and p.name != ".lock"}
    with pytest.raises(RunError, match="its name is 'r1', not 'r2'"):
        RunDirectory.create_or_open(tmp_path, {"name": "r2", "stage": RECIPE["stage"]})
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file() and p.name != ".lock"}
    RunDirectory.create_or_open(tmp_path, RECIPE).close()


def test_other_settings_are_kept_when_the_run_takes_them_up_and_not_before(tmp_path: Path) -> None:
    changed = {"name": "r1", "stage": [{"name": "rl", "lr": 2e-4}]}
    RunDirectory.create_or_open(tmp_path, RECIPE).close()
    with RunDirectory.create_or_open(tmp_path, changed) as run:
        assert json.loads((tmp_path / "recipe.json").read_text()) == RECIPE
        run.update_recipe(changed)
        assert json.loads((tmp_path / "recipe.json").read_text()) == changed
        when = (tmp_path / "recipe.json").stat().st_mtime_ns
        run.update_recipe(changed)
        assert (tmp_path / "recipe.json").stat().st_mtime_ns == when


def test_what_changed_between_recipes_is_told_key_by_key() -> None:
    changed = {"name": "r1", "stage": [{"name": "rl", "lr": 2e-4}]}
    assert list(differences(RECIPE, changed)) == ["stage[0].lr is 0.0002 and was 0.0001"]


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
        run.log_metrics({"stage": "rl", "step": 0})
        run.log_rollouts([{"stage": "rl", "text": "ñ <think>\u2028"}])
        marks, before = run.marks("rl"), (tmp_path / "metrics.jsonl").read_bytes()
        run.log_metrics({"stage": "rl", "step": 1})
        run.log_timings({"stage": "rl", "step": 1, "seconds": 0.1})
        run.rewind("rl", json.loads(json.dumps(marks)))
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        assert (tmp_path / "timings.jsonl").read_bytes() == b""
        assert len(list(read_rows(tmp_path / "rollouts.jsonl"))) == 1
        assert run.marks("rl") == marks


def test_rows_of_other_stages_may_move_between_a_mark_and_its_rewinding(tmp_path: Path) -> None:
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run:
        for stage, step in (("sft", 0), ("rl", 0), ("rl", 1)):
            run.log_metrics({"stage": stage, "step": step})
        marks = run.marks("rl")
        run.log_metrics({"stage": "rl", "step": 2})
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run:
        run.forget("sft")
        run.log_metrics({"stage": "sft", "step": 7})
        run.rewind("rl", marks)
        assert [(row["stage"], row["step"]) for row in run.metrics()] == [("rl", 0), ("rl", 1), ("sft", 7)]
        run.sort_logs(["sft", "rl"])
        assert [(row["stage"], row["step"]) for row in run.metrics()] == [("sft", 7), ("rl", 0), ("rl", 1)]


def test_rewinding_forward_is_refused(tmp_path: Path) -> None:
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run:
        run.log_metrics({"stage": "rl", "step": 0})
        with pytest.raises(RunError, match=r"fewer rows of rl \(1\) than the checkpoint says \(10\)"):
            run.rewind("rl", {"metrics.jsonl": 10})


def test_what_a_killed_process_left_half_written_is_gone_when_the_run_is_opened(tmp_path: Path) -> None:
    RunDirectory.create_or_open(tmp_path, RECIPE).close()
    for place in ("models", "data", "stages"):
        (tmp_path / place / ".partial-x").mkdir(parents=True)
        (tmp_path / place / "whole").write_text("kept")
    RunDirectory.create_or_open(tmp_path, RECIPE).close()
    assert not list(tmp_path.glob("*/.partial-*")) and len(list(tmp_path.glob("*/whole"))) == 3


def test_forgetting_a_stage_leaves_what_it_made_and_what_others_have(tmp_path: Path) -> None:
    with RunDirectory.create_or_open(tmp_path, RECIPE) as run:
        for stage in ("sft", "rl"):
            for place in ("checkpoints", "evaluations", "models"):
                (tmp_path / place / stage).mkdir(parents=True)
                (tmp_path / place / stage / "file").write_text(stage)
            run.log_metrics({"stage": stage, "step": 0})
        run.forget("sft")
        left = {str(file.relative_to(tmp_path)) for file in tmp_path.glob("*/*/file")}
        assert left == {"models/sft/file", "checkpoints/rl/file", "evaluations/rl/file", "models/rl/file"}
        assert [row["stage"] for row in run.metrics()] == ["rl"]


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
