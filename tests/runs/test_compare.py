"""Two runs side by side: recipes, numbers with intervals, and whether a difference is chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs.made_runs import TASK, evaluation, finished, stage, write_run
from tiny_models import tokenizer
from typer.testing import CliRunner

from melete.cli_runs import runs
from melete.errors import DataError, RunError
from melete.evaluation.again import paired_differences, per_problem
from melete.models.load import save_model
from melete.models.tiny import CHAT_TEMPLATE
from melete.runs.compare import Compared, Comparison, Difference, compare_runs, unpaired
from melete.runs.listing import read_run
from melete.tasks import make_task


def compared(a: Path, b: Path, **more: Any) -> Comparison:
    return compare_runs(read_run(a), read_run(b), **more)


def rows(found: Comparison) -> dict[str, Compared]:
    return {row.measure: row for row in found.rows}


def test_recipes_are_told_apart_by_the_names_of_their_stages(tmp_path: Path):
    one = write_run(tmp_path / "a", stage(), stage("old"), entries={"rl": {"evaluations": [evaluation(1, 0.5)]}})
    settings = (stage("new"), stage(lr=0.002))
    other = write_run(tmp_path / "b", *settings, entries={"rl": {"evaluations": [evaluation(1, 0.5)]}}, seed=4)
    found = compared(one, other)
    assert found.recipe == ("seed is 4 and was 0", "rl.lr is 0.002 and was 0.001")
    assert found.only_in == ("old is in a only", "new is in b only")


def test_the_last_evaluations_stand_side_by_side_with_the_largest_vote(tmp_path: Path):
    found = rows(compared(finished(tmp_path / "a", 0.4, 0.6), finished(tmp_path / "b", 0.4, 0.9)))
    assert list(found) == ["pass@1", "maj@4", "share_thinking", "length_mean"]  # the score is pass@1 here
    assert found["pass@1"].a == (0.6, pytest.approx(0.55), pytest.approx(0.65))
    assert found["length_mean"].difference is None and found["length_mean"].says == ""


def test_independent_intervals_add_up_as_squares(tmp_path: Path):
    found = rows(compared(finished(tmp_path / "a", 0.4, 0.6), finished(tmp_path / "b", 0.4, 0.9)))["pass@1"]
    assert found.difference == pytest.approx((0.3, 0.3 - 0.05 * 2**0.5, 0.3 + 0.05 * 2**0.5, 0))
    assert found.says == "more than chance (not paired)"
    near = rows(compared(finished(tmp_path / "c", 0.4, 0.6), finished(tmp_path / "d", 0.4, 0.65)))["pass@1"]
    assert near.says == "within chance (not paired)"


def test_an_uneven_interval_counts_on_the_side_that_faces_the_other():
    found = unpaired((0.5, 0.5, 0.6), (0.9, 0.7, 0.9))
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.4 - (0.2**2 + 0.1**2) ** 0.5), pytest.approx(0.4))
    assert unpaired((0.5, None, None), (0.9, 0.7, 0.9)) is None


def test_a_paired_difference_is_preferred(tmp_path: Path):
    exact = {"pass@1": Difference(0.05, 0.01, 0.09, 30)}
    found = rows(
        compared(finished(tmp_path / "a", 0.4, 0.6), finished(tmp_path / "b", 0.4, 0.65), paired=lambda *_: exact)
    )
    assert found["pass@1"].says == "more than chance (paired, 30 problems)"
    assert found["maj@4"].says == "within chance (not paired)"


def test_a_pairing_that_fails_is_said_and_stops_nothing(tmp_path: Path):
    def fails(*_: object) -> dict[str, Difference]:
        raise DataError("the task is gone")

    found = compared(finished(tmp_path / "a", 0.4, 0.6), finished(tmp_path / "b", 0.4, 0.9), paired=fails)
    assert found.notes == ("rl: problems are not paired: the task is gone",)
    assert rows(found)["pass@1"].difference is not None


def test_exams_are_compared_model_by_model_and_task_by_task(tmp_path: Path):
    paths = []
    for name, mean in (("a", 0.4), ("b", 0.8)):
        checkpoints = [{"model": "r1", "tasks": {"sums": evaluation(0, mean)}}]
        settings = {"name": "exam", "kind": "evaluate"}
        paths.append(write_run(tmp_path / name, settings, entries={"exam": {"checkpoints": checkpoints}}))
    assert {row.where for row in compared(*paths).rows} == {"r1 on sums"}


def test_single_stages_of_different_names_may_be_compared(tmp_path: Path):
    other = write_run(tmp_path / "b", stage("ppo"), entries={"ppo": {"evaluations": [evaluation(1, 0.5)]}})
    assert {row.where for row in compared(finished(tmp_path / "a", 0.4, 0.6), other).rows} == {"rl / ppo"}


def test_an_unfinished_run_is_compared_by_what_it_has(tmp_path: Path):
    logged = ({"stage": "rl", "kind": "evaluation", **evaluation(0, 0.4)},)
    found = compared(finished(tmp_path / "a", 0.4, 0.6), write_run(tmp_path / "b", stage(), rows=logged))
    assert rows(found)["pass@1"].b[0] == 0.4


def test_runs_that_share_nothing_are_refused_with_what_they_have(tmp_path: Path):
    other = write_run(tmp_path / "b", stage("x"), entries={"x": {"num_rows": 3}})
    with pytest.raises(RunError, match="a and b share nothing to compare: rl here, no evaluation there"):
        compared(finished(tmp_path / "a", 0.4, 0.6), other)


# --- problems that both tried -------------------------------------------------------------------------------------


def test_what_makes_a_problem_hard_cancels_in_pairs():
    before = {f"p{n}": {"pass@1": n / 20} for n in range(20)}
    after = {name: {"pass@1": found["pass@1"] + 0.1} for name, found in before.items()}
    mean, low, high, num = paired_differences(before, after)["pass@1"]
    assert (mean, low, high, num) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1), 20)


def test_only_problems_that_both_tried_count():
    found = paired_differences({"p": {"x": 1.0}, "q": {"x": 0.0}}, {"q": {"x": 0.5}, "r": {"x": 9.0}})
    assert found == {"x": (0.5, 0.5, 0.5, 1)}
    assert paired_differences({"p": {"x": 1.0}}, {"r": {"x": 9.0}}) == {}


def words() -> Any:
    found = tokenizer()
    found.chat_template = CHAT_TEMPLATE
    return found


def sampled(file: Path, right: int, num_problems: int = 12, num_samples: int = 4) -> Path:
    """Answers to held-out problems, of which the first `right` of each are right."""
    task, encode = make_task("arithmetic_chain", {key: TASK[key] for key in TASK if key != "name"}), words().encode
    found: dict[str, Any] = {}
    for index in range(40):
        problem = task.problem("held_out", index)
        texts = [f"<answer>{problem.gold if n < right else 'x'}</answer>" for n in range(num_samples)]
        end = words().eos_token_id
        samples = [
            {"tokens": [*encode(text, add_special_tokens=False), end], "finish_reason": "stop", "policy_version": 0}
            for text in texts
        ]
        found.setdefault(problem.problem_id, {"problem_id": problem.problem_id, "samples": samples})
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = list(found.values())[:num_problems]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return file


def sums() -> Any:
    return make_task("arithmetic_chain", {key: TASK[key] for key in TASK if key != "name"})


def test_what_was_sampled_is_judged_again_problem_by_problem(tmp_path: Path):
    found = per_problem(sampled(tmp_path / "step.jsonl", right=3), sums(), words())
    assert len(found) == 12
    one = next(iter(found.values()))
    assert (one["pass@1"], one["score"], one["maj@4"]) == (0.75, 0.75, 1.0)
    assert (one["share_thinking"], one["format_share"], one["truncated_share"]) == (0.0, 1.0, 0.0)
    assert one["length_mean"] == 4.0  # two tags, what is between them, and the end


def test_problems_of_another_task_are_refused(tmp_path: Path):
    file = tmp_path / "step.jsonl"
    file.write_text(json.dumps({"problem_id": "chess/1", "samples": []}) + "\n")
    with pytest.raises(DataError, match="gives no problem chess/1"):
        per_problem(file, sums(), words())


# --- the terminal -------------------------------------------------------------------------------------------------

HOSTILE = "[red]no style[/red] \x1b[2J"


def melete(*arguments: str) -> str:
    done = CliRunner().invoke(runs, [*arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that tried the same problems, and one with a text that means harm."""
    from tiny_models import llama

    folder = tmp_path_factory.mktemp("runs")
    for name, right in (("a", 1), ("b", 3)):
        path = finished(folder / name, 0.2, right / 4)
        sampled(path / "evaluations" / "rl" / "step-000010.jsonl", right)
        save_model(llama(), words(), path / "models" / "rl")
    entry = {"health": [{"severity": "serious", "says": HOSTILE}], "evaluations": [evaluation(0, 0.5)]}
    write_run(folder / "hostile", stage(), entries={"rl": entry}, learnt=HOSTILE, started="2026-01-01 00:00:00")
    return folder


def test_ls_lists_runs_on_a_line_each(place: Path):
    lines = melete("ls", "--runs-dir", str(place)).splitlines()
    assert [line.split()[0] for line in lines] == ["run", "hostile", "a", "b"]
    assert "finished" in lines[2] and "pass@1 0.20 -> 0.25" in lines[2]


def test_text_of_files_is_printed_as_it_is(place: Path):
    for command in (["ls"], ["show", "hostile"]):
        output = melete(*command, "--runs-dir", str(place))
        assert "[red]no style[/red]" in output
        assert "\x1b" not in output


def test_show_tells_stages_figures_and_the_place_of_the_report(place: Path):
    output = melete("show", "a", "--runs-dir", str(place))
    assert "1. rl" in output and "done" in output and "1 min 00 s" in output
    assert "0.20 [0.15, 0.25] -> 0.25 [0.20, 0.30]" in output
    assert "there is no report yet" in output


def test_compare_pairs_the_problems_that_both_tried(place: Path):
    output = melete("compare", "a", "b", "--runs-dir", str(place))
    assert "recipes: no difference" in output
    line = next(line for line in output.splitlines() if "pass@1" in line)
    assert "+0.500 [+0.500, +0.500]" in line
    assert "more than chance (paired, 12 problems)" in line


def test_problems_of_another_difficulty_are_not_paired(place: Path, tmp_path: Path):
    harder = finished(tmp_path / "harder", 0.2, 0.25, task=TASK | {"max_terms": 4})
    sampled(harder / "evaluations" / "rl" / "step-000010.jsonl", 1)
    output = melete("compare", str(place / "a"), str(harder))
    assert "rl.task.max_terms is 4 and was 3" in output
    assert "not paired" in output and "(paired" not in output


def test_scripts_get_json(place: Path):
    listed = json.loads(melete("ls", "--json", "--runs-dir", str(place)))
    assert [run["name"] for run in listed] == ["hostile", "a", "b"]
    shown = json.loads(melete("show", "a", "--json", "--runs-dir", str(place)))
    assert shown["stages"][0]["seconds"] == 60.0
    found = json.loads(melete("compare", "a", "b", "--json", "--runs-dir", str(place)))
    row = next(row for row in found["rows"] if row["measure"] == "pass@1")
    assert row["difference"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "num_problems": 12, "is_more_than_chance": True}


def test_mistakes_are_told_in_one_message_with_status_2(place: Path):
    done = CliRunner().invoke(runs, ["show", "hostle", "--runs-dir", str(place)])
    assert done.exit_code == 2
    assert "did you mean hostile?" in done.output
