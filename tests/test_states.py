"""What is made again, what is skipped, and why: content decides, and nothing is lost or mixed up on the way."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from melete.config import parse_recipe
from melete.corpus.mix import sample_texts
from melete.errors import RecipeError, RunError
from melete.live import View
from melete.models.load import save_model
from melete.models.tiny import tiny_model, train_tokenizer
from melete.pipeline import run_recipe
from melete.runs.artefacts import ONLY_TELLS, PACKAGE, changes, code_hash, code_version, content, digest
from melete.schema import Recipe
from melete.schema.evaluation import EvaluateStage
from melete.schema.replicate import ReplicateStage
from melete.stages import Interrupted
from melete.states import StageState, made_from, stage_states

STAGES = ["notes", "more", "mixed", "student", "grown"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(sample_texts(0, 50), 600)
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model") / "base"
    save_model(tiny_model(tokenizer, hidden_size=16, num_layers=2), tokenizer, directory)
    return directory


def tables(base: Path, **changes: Any) -> dict[str, Any]:
    """Two data sets, one of both, a model that learns from that, and one that goes on; `stage__key` changes a setting.

    notes ---> mixed ---> student ---> grown
    more  --/                          /
    notes ----------------------------/
    """
    sft = {"kind": "sft", "rows_per_step": 4, "num_epochs": 1, "warmup_steps": 0, "checkpoint_every_steps": 2}
    stages: dict[str, dict[str, Any]] = {
        "notes": {"kind": "write", "rows": {"chains": 12}},
        "more": {"kind": "write", "rows": {"general": 12}},
        "mixed": {"kind": "mix", "parts": {"notes": 1, "more": 1}},
        "student": {**sft, "model": str(base), "data": "mixed", "lr": 1e-3},
        "grown": {**sft, "model": "student", "data": "notes", "lr": 1e-3},
    }
    top = {key: value for key, value in changes.items() if "__" not in key}
    for key, value in changes.items():
        stage, _, setting = key.partition("__")
        if setting:
            stages[stage][setting] = value
    return {"name": "chain", **top, "stage": [{"name": name, **stage} for name, stage in stages.items()]}


def recipe(base: Path, **changes: Any) -> Recipe:
    return parse_recipe(tables(base, **changes))


class Terminal(io.StringIO):
    """Keeps what is shown, and sends a Ctrl-C when `stop_at` is."""

    def __init__(self, stop_at: str = "") -> None:
        super().__init__()
        self.stop_at = stop_at

    def write(self, text: str) -> int:
        if self.stop_at and self.stop_at in text:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def run(recipe: Recipe, run_dir: Path, stop_at: str = "", **options: str) -> list[str]:
    """Runs a recipe without a report; returns what was said about stages that were skipped or made again."""
    shown = Terminal(stop_at)
    with View([stage.name for stage in recipe.stages], True, console=Console(file=shown, width=200)) as view:
        run_recipe(recipe, run_dir, view=view, command="melete run chain", with_report=False, **options)
    return [line for line in shown.getvalue().splitlines() if "already done" in line or "again" in line]


def done(*names: str) -> list[str]:
    return [f"{name}: already done" for name in names]


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "chain"
    assert run(recipe(base), run_dir) == []
    return run_dir


@pytest.fixture
def made(finished: Path, tmp_path: Path) -> Path:
    """A finished run to change; it lies elsewhere than it was made."""
    return shutil.copytree(finished, tmp_path / "moved" / "chain")


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def rows(run_dir: Path) -> list[tuple[str, int]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(row["stage"], row["step"]) for row in map(json.loads, lines)]


def states(recipe: Recipe, run_dir: Path, **options: str) -> dict[str, str]:
    return {state.name: str(state) for state in stage_states(recipe, run_dir, **options)}


def changed_record(run_dir: Path, stage: str, change: Callable[[dict[str, Any]], Any]) -> None:
    file = run_dir / "stages" / f"{stage}.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def test_what_has_not_changed_is_skipped_and_no_file_is_touched_wherever_the_run_lies(base: Path, made: Path) -> None:
    before = contents(made)
    assert run(recipe(base), made) == done(*STAGES)
    assert contents(made) == before
    assert set(states(recipe(base), made).values()) == {"done"}


def test_a_changed_setting_makes_the_stage_again_and_what_reads_it_and_nothing_else(base: Path, made: Path) -> None:
    assert run(recipe(base, more__rows={"general": 13}), made) == [
        *done("notes"),
        "more: made again: rows.general is 13 and was 12",
        "mixed: made again: more, which it reads, has changed",
        "student: made again: mixed, which it reads, has changed",
        "grown: made again: student, which it reads, has changed",
    ]
    assert json.loads((made / "recipe.json").read_text()) == recipe(base, more__rows={"general": 13}).as_dict()
    assert run(recipe(base, more__rows={"general": 13}), made) == done(*STAGES)


def test_content_decides_so_what_reads_the_same_bytes_is_skipped(base: Path, made: Path) -> None:
    told = run(recipe(base, mixed__parts={"notes": 2, "more": 2}), made)
    assert told == [
        *done("notes", "more"),
        "mixed: made again: parts.more is 2.0 and was 1.0; parts.notes is 2.0 and was 1.0",
        *done("student", "grown"),
    ]


def test_another_seed_makes_everything_again(base: Path, made: Path) -> None:
    told = run(recipe(base, seed=5), made)
    assert [line.partition(";")[0] for line in told] == [
        f"{name}: made again: the run's seed is 5 and was 0" for name in STAGES
    ]
    assert json.loads((made / "summary.json").read_text())["seed"] == 5


def test_other_code_makes_a_stage_again(base: Path, made: Path) -> None:
    changed_record(made, "grown", lambda record: record["made_from"].update(code="0.0.1+0123"))
    assert states(recipe(base), made)["grown"] == "would be made again: the code has changed"
    assert run(recipe(base), made) == [*done(*STAGES[:-1]), "grown: made again: the code has changed"]


def test_a_stage_that_an_older_version_made_is_made_again(base: Path, made: Path) -> None:
    changed_record(made, "more", lambda record: record.pop("made_from"))
    told = run(recipe(base), made)
    assert told == [
        *done("notes"),
        "more: made again: there is no record of what it was made from",
        *done("mixed", "student", "grown"),
    ]


def test_a_model_outside_the_run_that_has_changed_makes_its_reader_again(
    base: Path, made: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(base, tmp_path / "copied")
    for place in (copied, base):  # another place with the same content has another name, and that is a setting
        told = states(recipe(base, student__model=str(place)), made)["student"]
        assert (told == "done") == (place == base), told
    run(recipe(base, student__model=str(copied)), made)
    (copied / "README.txt").write_text("new")
    told = run(recipe(base, student__model=str(copied)), made)
    assert told == [
        *done("notes", "more", "mixed"),
        f"student: made again: {copied}, which it reads, has changed",
        *done("grown"),
    ]


def test_data_outside_the_run_that_have_changed_make_their_reader_again(base: Path, made: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    shutil.copy(made / "data" / "notes.jsonl", data)
    changed = recipe(base, grown__data=str(data))
    run(changed, made)
    assert run(changed, made) == done(*STAGES)
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:8]))
    assert run(changed, made)[-1] == f"grown: made again: {data}, which it reads, has changed"


def test_a_reward_of_the_users_own_and_the_file_of_a_task_are_read_too(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, problems = tmp_path / "my_rewards_of_states.py", tmp_path / "problems.jsonl"
    code.write_text("def half(rollout):\n    return 0.5 * (len(rollout.completion.tokens) % 2)\n")
    problems.write_text("".join(json.dumps({"question": f"{i} + 1", "answer": str(i + 1)}) + "\n" for i in range(60)))
    monkeypatch.syspath_prepend(str(tmp_path))
    task = {"name": "rows", "path": str(problems)}
    stage = {"name": "rl", "kind": "rl", "model": str(base), "task": task, "num_steps": 1, "prompts_per_step": 1}
    stage |= {"group_size": 2, "max_new_tokens": 4, "warmup_steps": 0, "evaluation": {"at": []}}
    stage |= {"rewards": {"my_rewards_of_states:half": 1.0}, "support": {"refuse": False, "num_problems": 0}}
    mine = parse_recipe({"name": "mine", "stage": [stage]})
    run(mine, tmp_path / "run")
    assert run(mine, tmp_path / "run") == done("rl")
    code.write_text(code.read_text() + "# longer\n")
    assert states(mine, tmp_path / "run") == {
        "rl": "would be made again: my_rewards_of_states:half, which it reads, has changed"
    }
    run(mine, tmp_path / "run")
    problems.write_text(problems.read_text().replace("59 + 1", "1 + 59"))
    assert states(mine, tmp_path / "run") == {"rl": f"would be made again: {problems}, which it reads, has changed"}


def test_a_setting_that_names_no_file_is_no_input(base: Path, tmp_path: Path) -> None:
    task = {"name": "arithmetic_chain", "path": ""}
    table = {"name": "exam", "kind": "evaluate", "models": [str(base)], "tasks": {"sums": {"task": task}}}
    exam = EvaluateStage.model_validate(table)
    assert set(made_from(exam, recipe(base), tmp_path)["inputs"]) == {str(base)}


def test_files_that_a_stage_names_itself_are_read_too(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("name = 'other'")
    stage = ReplicateStage(name="repeated", kind="replicate", recipe=str(other))
    before = made_from(stage, recipe(base), tmp_path)
    other.write_text("name = 'changed'")
    assert changes(before, made_from(stage, recipe(base), tmp_path)) == [f"{other}, which it reads, has changed"]


def test_a_stage_made_again_starts_from_nothing_and_leaves_the_files_of_a_fresh_run(base: Path, made: Path) -> None:
    (made / "evaluations" / "student").mkdir(parents=True)
    (made / "evaluations" / "student" / "step-000000.jsonl").write_text("of before\n")
    changed = recipe(base, student__lr=2e-3)
    assert "student: made again: lr is 0.002 and was 0.001" in run(changed, made)
    assert not (made / "evaluations" / "student").exists()
    fresh = made.parent / "fresh"
    run(changed, fresh)
    of_time = ("timings.jsonl", "summary.json", "stages/", "checkpoints/")  # seconds, and the number of steps saved
    assert {name: data for name, data in contents(made).items() if not name.startswith(of_time)} == {
        name: data for name, data in contents(fresh).items() if not name.startswith(of_time)
    }
    assert [path.name for path in sorted((made / "checkpoints" / "student").iterdir())] == [
        path.name for path in sorted((fresh / "checkpoints" / "student").iterdir())
    ]


def test_rows_stay_in_the_order_of_the_recipe_when_an_earlier_stage_is_made_again(base: Path, made: Path) -> None:
    before = rows(made)
    run(recipe(base, student__checkpoint_every_steps=3), made)
    assert rows(made) == before


def test_the_summary_of_old_and_new_stages_adds_up(base: Path, made: Path) -> None:
    before = json.loads((made / "summary.json").read_text())
    changed_record(made, "notes", lambda record: record.update(seconds=1000.0, started="2001-01-01 00:00:00"))
    run(recipe(base, grown__lr=2e-3), made)
    after = json.loads((made / "summary.json").read_text())
    assert after["seconds"] == pytest.approx(sum(stage["seconds"] for stage in after["stages"]))
    assert after["seconds"] > 1000 and after["started"] == "2001-01-01 00:00:00"
    assert [stage["name"] for stage in after["stages"]] == STAGES
    assert after["stages"][1:4] == before["stages"][1:4], "what was not made again keeps its seconds"
    assert all(key not in stage for stage in after["stages"] for key in ("made_from", "wrote", "started"))


def test_no_file_of_a_run_names_the_place_where_it_lies(base: Path, finished: Path) -> None:
    for name, data in contents(finished).items():
        assert str(finished.parent).encode() not in data, name


# --- an artefact that is not what its stage wrote ---------------------------------------------------------------


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: flip(run / "models/student/model.safetensors"), "student.*models/student/model.safetensors has"),
        (lambda run: flip(run / "data/notes.jsonl"), "notes.*data/notes.jsonl has changed"),
        (lambda run: (run / "data/mixed.jsonl").unlink(), "mixed.*data/mixed.jsonl is missing"),
        (lambda run: shutil.rmtree(run / "models/grown"), r"grown.*models/grown/\S+ is missing \(and \d+ more\)"),
        (lambda run: (run / "models/student/adapter.json").write_text("{}"), "student.*adapter.json was not there"),
    ],
)
def test_what_was_changed_on_the_disk_is_refused_before_any_work(
    damage: Callable[[Path], Any], told: str, base: Path, made: Path
) -> None:
    damage(made)
    before = contents(made)
    for settings in ({}, {"grown__num_epochs": 1, "description": "new"}):
        with pytest.raises(RunError, match=told) as refusal:
            run(recipe(base, **settings), made)
        assert "--from" in refusal.value.remedy and contents(made) == before
    with pytest.raises(RunError, match=told):
        stage_states(recipe(base), made)


def test_from_the_damaged_stage_on_all_is_well_again(base: Path, made: Path) -> None:
    good = content(made / "models" / "student")
    flip(made / "models/student/model.safetensors")
    told = run(recipe(base), made, from_stage="student")
    assert told == [
        *done("notes", "more", "mixed"),
        "student: made again: --from student",
        "grown: made again: --from student",
    ]
    assert content(made / "models" / "student") == good
    assert run(recipe(base), made) == done(*STAGES)


def test_hidden_files_that_a_system_leaves_do_not_count(base: Path, made: Path) -> None:
    (made / "models" / "student" / ".DS_Store").write_text("x")
    assert run(recipe(base), made) == done(*STAGES)


# --- --from, --only, --dry-run ----------------------------------------------------------------------------------


def test_from_makes_a_stage_and_all_that_reads_it_again_whatever_the_records_say(base: Path, made: Path) -> None:
    assert run(recipe(base), made, from_stage="more") == [
        *done("notes"),
        *(f"{name}: made again: --from more" for name in ("more", "mixed", "student", "grown")),
    ]


def test_what_comes_before_from_is_made_first_when_it_is_not_up_to_date(base: Path, made: Path) -> None:
    told = run(recipe(base, notes__rows={"chains": 13}), made, from_stage="grown")
    assert told[0] == "notes: made again: rows.chains is 13 and was 12"
    assert told[-1] == "grown: made again: --from grown"


def test_an_interrupted_from_goes_on_without_from(base: Path, made: Path) -> None:
    with pytest.raises(Interrupted):
        run(recipe(base), made, stop_at="student 3/", from_stage="student")
    assert not (made / "summary.json").exists(), "it would speak of stages that are not there"
    assert states(recipe(base), made)["student"] == "would continue at step 3"
    assert states(recipe(base), made)["grown"] == "would be made"
    assert run(recipe(base), made) == done("notes", "more", "mixed")
    assert run(recipe(base), made) == done(*STAGES)


def test_only_touches_no_other_stage_and_tells_what_is_finished(base: Path, tmp_path: Path) -> None:
    for name in ("notes", "more", "mixed"):
        run(recipe(base), tmp_path / "run", only=name)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["notes", "more", "mixed"]
    assert summary["unfinished"] == ["student", "grown"]
    assert run(recipe(base), tmp_path / "run") == done("notes", "more", "mixed")
    assert "unfinished" not in json.loads((tmp_path / "run" / "summary.json").read_text())


def test_only_refuses_what_is_not_ready_with_the_commands_that_make_it(base: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="notes is not made; more is not made; mixed is not made") as refusal:
        run(recipe(base), tmp_path / "new", only="student")
    commands = [f"melete run chain --only {name}" for name in ("notes", "more", "mixed")]
    assert refusal.value.remedy == f"make it first: {' && '.join(commands)}"
    assert not (tmp_path / "new").exists()
    before = contents(made)
    with pytest.raises(RunError, match=r"student has to be made again \(lr is 0.002 and was 0.001\)"):
        run(recipe(base, student__lr=2e-3), made, only="grown")
    assert contents(made) == before


def test_only_skips_what_is_done_unless_from_forces_it(base: Path, made: Path) -> None:
    assert run(recipe(base), made, only="mixed") == done("mixed")
    assert run(recipe(base), made, only="mixed", from_stage="mixed") == ["mixed: made again: --from mixed"]
    assert run(recipe(base), made, only="mixed", from_stage="notes") == ["mixed: made again: --from notes"]
    assert run(recipe(base), made) == done(*STAGES), "the bytes are the same"


def test_a_dry_run_tells_of_each_stage_and_writes_nothing(base: Path, made: Path, tmp_path: Path) -> None:
    before = contents(made)
    assert states(recipe(base, mixed__num_rows=8), made) == {
        "notes": "done",
        "more": "done",
        "mixed": "would be made again: num_rows is 8 and was 0",
        "student": "would be made again: mixed, which it reads, is made again",
        "grown": "would be made again: student, which it reads, is made again",
    }
    assert states(recipe(base), made, from_stage="student")["grown"] == "would be made again: --from student"
    assert states(recipe(base), made, only="mixed") == {
        **dict.fromkeys(("notes", "more", "mixed"), "done"),
        **dict.fromkeys(("student", "grown"), "left out"),
    }
    assert set(states(recipe(base), tmp_path / "nothing").values()) == {"would be made"}
    assert contents(made) == before and not (tmp_path / "nothing").exists()
    (state,) = (state for state in stage_states(recipe(base), made) if state.name == "student")
    assert state == StageState("student", "done", seconds=state.seconds) and state.seconds


@pytest.mark.parametrize(("option", "value"), [("from_stage", "studnet"), ("only", "studnet")])
def test_an_unknown_stage_names_the_nearest(option: str, value: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"did you mean student\?"):
        run(recipe(base), tmp_path / "run", **{option: value})
    assert not (tmp_path / "run").exists()


# --- a stage that was cut off -----------------------------------------------------------------------------------


def test_a_stage_that_was_cut_off_continues_when_nothing_has_changed(
    base: Path, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        run(recipe(base), tmp_path / "chain", stop_at="student 3/")
    assert states(recipe(base), tmp_path / "chain")["student"] == "would continue at step 3"
    run(recipe(base), tmp_path / "chain")
    assert content(tmp_path / "chain" / "models") == content(finished / "models")
    assert rows(tmp_path / "chain") == rows(finished)
    assert not list((tmp_path / "chain" / "stages").glob("*.begun.json"))


def test_a_stage_that_was_cut_off_starts_again_when_what_it_was_begun_from_has_changed(
    base: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        run(recipe(base), tmp_path / "chain", stop_at="student 3/")
    changed = recipe(base, student__lr=2e-3)
    assert states(changed, tmp_path / "chain")["student"] == "would be made again: lr is 0.002 and was 0.001"
    dropped = "what it had saved at step 3 cannot be continued"
    assert run(changed, tmp_path / "chain")[-1] == f"student: made again: lr is 0.002 and was 0.001; {dropped}"
    assert [step for stage, step in rows(tmp_path / "chain") if stage == "student"] == list(range(6))


def test_a_stage_that_waits_to_continue_is_not_confused_by_another_that_is_made_again(
    base: Path, finished: Path, tmp_path: Path
) -> None:
    """The rows of the first move to the end of the logs, behind those that the second has already."""
    with pytest.raises(Interrupted):
        run(recipe(base), tmp_path / "chain", stop_at="grown 2/")
    told = run(recipe(base), tmp_path / "chain", only="student", from_stage="student")
    assert told == ["student: made again: --from student"]
    assert run(recipe(base), tmp_path / "chain") == done("notes", "more", "mixed", "student")
    assert rows(tmp_path / "chain") == rows(finished)
    assert content(tmp_path / "chain" / "models") == content(finished / "models")


def test_checkpoints_of_an_older_version_are_not_continued(base: Path, made: Path) -> None:
    (made / "stages" / "grown.json").unlink()
    assert states(recipe(base), made)["grown"] == "would be made"
    assert run(recipe(base), made) == done(*STAGES[:-1])
    assert [step for stage, step in rows(made) if stage == "grown"] == list(range(3))


def test_what_a_stage_made_stays_until_it_is_replaced(base: Path, made: Path) -> None:
    before = content(made / "models" / "student")
    with pytest.raises(Interrupted):
        run(recipe(base, student__lr=2e-3), made, stop_at="student 3/")
    assert content(made / "models" / "student") == before
    assert not (made / "stages" / "student.json").exists()


def test_a_stage_that_leaves_the_recipe_is_left_alone_and_comes_back_done(base: Path, made: Path) -> None:
    whole = tables(base)
    short = parse_recipe({**whole, "stage": whole["stage"][:-1]})
    assert run(short, made) == done(*STAGES[:-1])
    assert [stage["name"] for stage in json.loads((made / "summary.json").read_text())["stages"]] == STAGES[:-1]
    assert run(recipe(base), made) == done(*STAGES)


def test_a_record_that_cannot_be_read_is_refused_with_its_place(base: Path, made: Path) -> None:
    (made / "stages" / "more.json").write_text("{")
    with pytest.raises(RunError, match=r"more\.json"):
        run(recipe(base), made)


# --- fingerprints -----------------------------------------------------------------------------------------------


def test_the_content_of_a_directory_is_its_files_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = digest(content(tmp_path))
    (tmp_path / "a" / "x").touch()
    assert digest(content(tmp_path)) == first
    (tmp_path / "a" / "x").write_text("22")
    second = digest(content(tmp_path))
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert len({first, second, digest(content(tmp_path))}) == 3


def test_the_version_of_the_code_is_that_of_what_can_change_a_result(tmp_path: Path) -> None:
    for name in ("loops/rl.py", "report/build.py", "cli.py", "cli_runs.py", "rewards/audit_probes.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    first = code_hash(tmp_path)
    for name in ("report/build.py", "cli.py", "cli_runs.py", "rewards/audit_probes.py"):
        (tmp_path / name).write_text("x = 2")
    assert code_hash(tmp_path) == first
    (tmp_path / "loops/rl.py").write_text("x = 2")
    assert code_hash(tmp_path) != first
    assert code_version() == code_version() and code_version()[0].isdigit()


def test_every_file_that_is_left_out_of_the_version_is_there_or_is_planned() -> None:
    found = {pattern for pattern in ONLY_TELLS if any(PACKAGE.glob(pattern))}
    assert found >= {"report", "live.py", "cli*.py", "config.py", "recipe_*.py", "algorithms/explain.py"}
