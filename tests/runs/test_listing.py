"""Looking runs up: which there are, how far each came, and what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs.made_runs import evaluation, finished, stage, write_run

from melete.errors import RunError
from melete.runs.directory import RunDirectory
from melete.runs.listing import exam_table, find_run, is_locked, key_figures, list_runs, read_run, with_interval

STEPS = tuple({"stage": "rl", "step": step, "reward": 0.5} for step in range(4))


def test_a_finished_run_says_what_it_was_and_what_was_learnt(tmp_path: Path):
    run = read_run(finished(tmp_path / "one", 0.4, 0.9, seed=3))
    assert (run.name, run.recipe_name, run.seed, run.state) == ("one", "made-up", 3, "finished")
    assert (run.seconds, run.learnt, run.started) == (60.0, "pass@1 0.40 -> 0.90", "2026-01-05 09:30:00")


def test_a_run_that_was_cut_off_says_where(tmp_path: Path):
    entries = {"first": {"num_rows": 5}}
    made = stage("first", kind="write")
    run = read_run(write_run(tmp_path / "cut", made, stage(), stage("later"), entries=entries, rows=STEPS))
    assert run.says == "stopped at rl, step 4 of 10"
    assert [one.state for one in run.stages] == ["done", "begun", "waiting"]


def test_a_run_without_any_work_is_not_begun(tmp_path: Path):
    assert read_run(write_run(tmp_path / "new", stage())).says == "not begun"


def test_a_run_that_a_process_holds_is_running(tmp_path: Path):
    recipe = {"name": "made-up", "seed": 0, "stage": [stage()]}
    with RunDirectory.create_or_open(tmp_path / "held", recipe) as run:
        run.log_metrics({"stage": "rl", "step": 0, "reward": 0.0})
        assert read_run(run.path).says == "running in rl, step 1 of 10"
        assert read_run(run.path).says == "running in rl, step 1 of 10"  # looking takes no lock away
    assert not is_locked(tmp_path / "held")
    assert read_run(tmp_path / "held").state == "stopped"
    with RunDirectory.create_or_open(tmp_path / "held", recipe):
        pass


def test_the_time_of_a_stage_that_is_under_way_is_that_of_its_last_checkpoint(tmp_path: Path):
    path = write_run(tmp_path / "cut", stage(), rows=STEPS)
    for step, seconds in ((2, 20.0), (4, 41.0)):
        folder = path / "checkpoints" / "rl" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"seconds": seconds}))
    assert read_run(path).seconds == 41.0


def test_runs_are_listed_with_the_last_begun_at_the_end_and_nothing_else(tmp_path: Path):
    finished(tmp_path / "b", 0.1, 0.2)
    write_run(tmp_path / "a", stage(), started="2025-12-31 00:00:00")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("")
    assert [run.name for run in list_runs(tmp_path)] == ["a", "b"]
    with pytest.raises(RunError, match="no such directory"):
        list_runs(tmp_path / "none")


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}', '{"name": "x", "seed": 0, "stage": [{"kind": "rl"}]}'])
def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, text: str):
    finished(tmp_path / "whole", 0.1, 0.2)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "recipe.json").write_text(text)
    states = {run.name: run.state for run in list_runs(tmp_path)}
    assert states == {"whole": "finished", "broken": "unreadable"}
    with pytest.raises(RunError, match="cannot be read"):
        find_run("broken", tmp_path)


def test_a_run_is_found_by_name_or_by_place(tmp_path: Path):
    path = finished(tmp_path / "zero-1", 0.1, 0.2)
    assert find_run("zero-1", tmp_path).path == path
    assert find_run(str(path), Path("elsewhere")).path == path


def test_an_unknown_run_is_refused_with_the_nearest_and_a_directory_that_is_none_too(tmp_path: Path):
    finished(tmp_path / "zero-1", 0.1, 0.2)
    with pytest.raises(RunError, match=r"no run zero-2; did you mean zero-1\?"):
        find_run("zero-2", tmp_path)
    (tmp_path / "other").mkdir()
    for name in ("other", str(tmp_path / "other")):
        with pytest.raises(RunError, match=r"it has no recipe\.json"):
            find_run(name, tmp_path)


def test_evaluations_of_an_unfinished_stage_come_from_what_was_logged(tmp_path: Path):
    rows = ({"stage": "rl", "kind": "evaluation", **evaluation(0, 0.4)}, *STEPS)
    (found,) = read_run(write_run(tmp_path / "cut", stage(), rows=rows)).stages
    assert [(one.step, one.numbers["pass@1"]) for one in found.evaluated] == [(0, 0.4)]
    assert found.evaluated[0].file == tmp_path / "cut" / "evaluations" / "rl" / "step-000000.jsonl"
    assert found.step == 4  # an evaluation is no step


def test_key_figures_are_the_ends_of_the_evaluations_with_their_intervals(tmp_path: Path):
    (found,) = read_run(finished(tmp_path / "one", 0.4, 0.9)).stages
    assert key_figures(found)[:2] == ["pass@1 0.40 [0.35, 0.45] -> 0.90 [0.85, 0.95]", "length 24 -> 29 tokens"]


def test_key_figures_tell_of_data_of_reward_models_and_of_health(tmp_path: Path):
    entry = {
        "num_rows": 30,
        "num_sampled": 100,
        "share_kept": 0.3,
        "held_out": {"accuracy": 0.8125, "num_rows": 16},
        "health": [{"severity": "warning", "says": "Half of the groups are dead."}],
        "claims": [{"verdict": "holds", "title": "RL learns"}],
    }
    (found,) = read_run(write_run(tmp_path / "one", stage(), entries={"rl": entry})).stages
    assert key_figures(found) == [
        "30 rows, 30% of 100 samples kept",
        "held out: accuracy 0.81, num_rows 16",
        "holds: RL learns",
        "warning: Half of the groups are dead.",
    ]


def exam(path: Path) -> Path:
    graded = {"score": 0.5, "score/low": 0.4, "score/high": 0.6}
    checkpoints = [
        {"model": "tiny", "label": "base", "tasks": {"sums": evaluation(0, 0.4)}},
        {
            "model": "/m/Big 1",
            "label": "Big",
            "tasks": {"sums": evaluation(0, 0.8), "chat": evaluation(0, 0.1) | graded},
        },
    ]
    settings = {"name": "exam", "kind": "evaluate", "tasks": {"sums": {"task": {"name": "arithmetic_chain"}}}}
    return write_run(path, settings, entries={"exam": {"checkpoints": checkpoints}})


def test_the_table_of_an_exam_has_models_by_tasks(tmp_path: Path):
    (found,) = read_run(exam(tmp_path / "one")).stages
    assert exam_table(found) == (
        ["model", "sums", "chat"],
        [["base", "0.40 [0.35, 0.45]", "-"], ["Big", "0.80 [0.75, 0.85]", "0.50 [0.40, 0.60]"]],
    )


def test_what_was_written_in_an_exam_is_found_for_a_model_that_is_a_path(tmp_path: Path):
    path = exam(tmp_path / "one")
    folder = path / "evaluations" / "exam" / "1-Big-1"
    folder.mkdir(parents=True)
    (folder / "sums.jsonl").write_text("")
    places = {(one.model, one.task): one.file for one in read_run(path).stages[0].evaluated}
    assert places["/m/Big 1", "sums"] == folder / "sums.jsonl"
    assert places["tiny", "sums"] == path / "evaluations" / "exam" / "tiny" / "sums.jsonl"


def test_estimates_stand_beside_what_a_stage_took(tmp_path: Path):
    path = finished(tmp_path / "one", 0.4, 0.9)
    (path / "plan.json").write_text(json.dumps({"stages": {"rl": {"seconds": 45.0}}}))
    assert read_run(path).stages[0].estimated_seconds == 45.0


def test_everything_is_there_for_scripts(tmp_path: Path):
    found = json.loads(json.dumps(read_run(finished(tmp_path / "one", 0.4, 0.9)).as_dict()))
    assert found["state"] == "finished"
    assert [one["pass@1"] for one in found["stages"][0]["evaluations"]] == [0.4, 0.9]


def test_a_number_without_an_interval_stands_alone():
    assert with_interval({"pass@1": 0.5}, "pass@1") == "0.50"
    assert with_interval({}, "pass@1") == "-"
