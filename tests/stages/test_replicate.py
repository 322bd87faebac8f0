"""A recipe with several seeds and arms: what an arm shares, what is left out, and a cut that leaves no trace."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from melete.claims import MAIN
from melete.config import load_recipe
from melete.corpus.mix import sample_texts
from melete.errors import RecipeError
from melete.live import View
from melete.models.load import save_model
from melete.models.tiny import tiny_model, train_tokenizer
from melete.pipeline import run_quietly
from melete.runs.directory import RunDirectory
from melete.schema.evaluation import EvaluateStage
from melete.schema.replicate import ReplicateStage
from melete.stages.context import Interrupted, StageContext
from melete.stages.replicate import cut_exam, planned_runs, run_replicate, share, shared_stages

RL = """
[[stage]]
name = "{name}"
kind = "rl"
model = {model}
num_steps = 2
prompts_per_step = 2
group_size = 2
max_new_tokens = 6
warmup_steps = 0
task = {{ name = "arithmetic_chain" }}
rewards = {{ random = 1.0 }}
evaluation = {{ at = [1.0], num_problems = 2, num_samples = 2 }}
support = {{ num_problems = 0 }}
"""
ARMS = {"control": {"overrides": ["zero.rewards={ format = 1.0 }"], "until": "zero"}}
FASTER = {"faster": {"overrides": ["dev1.lr=1e-3"]}}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, the second from the first, on a random model."""
    tokenizer = train_tokenizer(sample_texts(0, 100), 600)
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model")
    save_model(tiny_model(tokenizer, hidden_size=32, num_layers=2), tokenizer, directory / "tiny")
    first = RL.format(name="zero", model=json.dumps(str(directory / "tiny")))
    (directory / "little.toml").write_text('name = "little"\n' + first + RL.format(name="dev1", model='"zero"'))
    return directory / "little.toml"


def stage(recipe_file: Path, **settings: Any) -> ReplicateStage:
    shown = {"name": "claims", "kind": "replicate", "recipe": str(recipe_file), "seeds": [0, 1], "num_workers": 1}
    return ReplicateStage.model_validate(shown | settings, strict=False)


def context(run: RunDirectory, should_stop: Callable[[], bool] = lambda: False) -> StageContext:
    view = View(["claims"], True, console=Console(file=io.StringIO()))
    return StageContext(run, 0, view, should_stop, Path, Path, run_quietly)


def replicate(made: ReplicateStage, place: Path, should_stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    with RunDirectory.create_or_open(place, {"name": "repeated"}) as run:
        return run_replicate(made, context(run, should_stop))


def logged(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.glob("seeds/*/*/metrics.jsonl"))}


def test_each_seed_has_a_main_run_and_its_arms(recipe_file: Path) -> None:
    planned = planned_runs(stage(recipe_file, arms=ARMS | FASTER))
    assert [run.place for run in planned] == [
        f"seeds/{seed}/{arm}" for seed in (0, 1) for arm in (MAIN, "control", "faster")
    ]
    assert [run.recipe.seed for run in planned] == [0, 0, 0, 1, 1, 1]
    assert [run.recipe.name for run in planned] == ["little"] * 6


def test_an_arm_runs_until_its_stage_and_shares_what_its_overrides_do_not_change(recipe_file: Path) -> None:
    _, control, faster = planned_runs(stage(recipe_file, arms=ARMS | FASTER, seeds=[0]))
    assert [other.name for other in control.recipe.stages] == ["zero"] and control.shared == set()
    assert [other.name for other in faster.recipe.stages] == ["zero", "dev1"] and faster.shared == {"zero"}


def test_overrides_of_the_stage_reach_every_run(recipe_file: Path) -> None:
    planned = planned_runs(stage(recipe_file, arms=FASTER, overrides=["dev1.num_steps=5"]))
    assert {run.recipe.stages[1].num_steps for run in planned} == {5}  # type: ignore[union-attr]


def test_a_stage_that_reads_a_changed_one_is_not_shared(recipe_file: Path) -> None:
    one, other = load_recipe(str(recipe_file)), load_recipe(str(recipe_file), ["zero.lr=1e-3"])
    assert shared_stages(one, other) == set()
    assert shared_stages(one, one) == {"zero", "dev1"}


def test_an_exam_that_is_cut_down_tries_only_what_an_arm_made_anew() -> None:
    whole = {"name": "exam", "kind": "evaluate", "models": ["tiny", "zero", "r1"], "final": "r1"}
    whole |= {"labels": {"tiny": "base", "zero": "R1-Zero"}, "tasks": {"sums": {"task": {"name": "countdown"}}}}
    cut = cut_exam(EvaluateStage.model_validate(whole).model_dump(mode="json"), {"zero", "dev1"})
    exam = EvaluateStage.model_validate(cut, strict=False)
    assert (exam.models, exam.labels, exam.final) == (["zero"], {"zero": "R1-Zero"}, "")
    assert exam.tasks == EvaluateStage.model_validate(whole).tasks


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"same": {"overrides": ["zero.num_steps=2"]}}, "the overrides change nothing that this arm runs"),
        ({"late": {"overrides": ["dev1.lr=1e-3"], "until": "zero"}}, "change nothing that this arm runs"),
        ({"typo": {"overrides": ["dev1.lr=1e-3"], "until": "dev2"}}, "there is no stage 'dev2'; did you mean dev1?"),
        ({"typo": {"overrides": ["dve1.lr=1e-3"]}}, "did you mean dev1?"),
    ],
)
def test_an_arm_that_makes_no_sense_is_refused_before_any_work(
    recipe_file: Path, arms: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"nothing|did you mean") as caught:
        replicate(stage(recipe_file, arms=arms), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run" / "seeds").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": [1, 2, 1]}, "seeds: 1 comes more than once"),
        ({"seeds": []}, "at least 1 item"),
        ({"arms": {"main": {"overrides": ["zero.lr=1e-3"]}}}, "arms.main: is what the recipe itself is called"),
        ({"arms": {"a/b": {"overrides": ["zero.lr=1e-3"]}}}, "should match pattern"),
        ({"arms": {"other": {"overrides": []}}}, "at least 1 item"),
        ({"overrides": ["seed=3"]}, "overrides: sets the seed"),
        ({"arms": {"other": {"overrides": [" seed = 3"]}}}, "arms.other.overrides: sets the seed"),
    ],
)
def test_impossible_settings_are_refused_with_their_key(
    recipe_file: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        stage(recipe_file, **settings)


def test_the_file_of_the_recipe_is_one_that_decides_what_is_made(recipe_file: Path) -> None:
    assert stage(recipe_file).reads_files() == {str(recipe_file): recipe_file}
    bundled = stage(Path("r1-zero-tiny")).reads_files()["r1-zero-tiny"]
    assert bundled.is_file() and bundled.name == "r1-zero-tiny.toml"


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    place = tmp_path_factory.mktemp("runs") / "repeated"
    return place, replicate(stage(recipe_file, arms=ARMS | FASTER), place)


def test_every_run_is_a_run_directory_of_its_own(finished: tuple[Path, dict[str, Any]]) -> None:
    place, entry = finished
    assert [(run["seed"], run["arm"], run["dir"]) for run in entry["runs"]] == [
        (seed, arm, f"seeds/{seed}/{arm}") for seed in (0, 1) for arm in (MAIN, "control", "faster")
    ]
    for run in entry["runs"]:
        summary = json.loads((place / run["dir"] / "summary.json").read_text())
        assert summary["seed"] == run["seed"]
        assert load_recipe(str(place / f"{run['dir']}.json")).seed == run["seed"], "anybody can run it by itself"
    assert len(entry["claims"]) == 10 and entry["seeds"] == [0, 1] and entry["arms"] == ["control", "faster"]
    json.dumps(entry, allow_nan=False)


def test_an_arm_has_the_shared_stages_of_the_main_run_and_no_log_of_others(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    place, entry = finished
    main, arm = place / "seeds/0/main", place / "seeds/0/faster"
    weights = [run / "models/zero/model.safetensors" for run in (main, arm)]
    assert weights[0].samefile(weights[1]), "not made again, and no second time on the disk"
    assert not (main / "metrics.jsonl").samefile(arm / "metrics.jsonl"), "logs are appended to"
    assert (main / "models/dev1/model.safetensors").read_bytes() != (arm / "models/dev1/model.safetensors").read_bytes()
    rows = [(arm / "metrics.jsonl").read_text().splitlines(), (main / "metrics.jsonl").read_text().splitlines()]
    of_zero = [[row for row in log if json.loads(row)["stage"] == "zero"] for log in rows]
    assert of_zero[0] == of_zero[1] != []
    control = place / "seeds/0/control"
    assert [path.name for path in (control / "models").iterdir()] == ["zero"]
    assert not weights[0].samefile(control / "models/zero/model.safetensors")
    by_arm = {run["arm"]: run for run in entry["runs"][:3]}
    assert by_arm["faster"]["shared"] == ["zero"] and by_arm["control"]["shared"] == []
    assert 0 < by_arm["faster"]["seconds"] < by_arm["main"]["seconds"] + 5


def test_a_finished_stage_makes_nothing_again(finished: tuple[Path, dict[str, Any]], recipe_file: Path) -> None:
    place, entry = finished
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*.safetensors")}
    again = replicate(stage(recipe_file, arms=ARMS | FASTER), place)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*.safetensors")} == before
    assert (again["claims"], again["runs"]) == (entry["claims"], entry["runs"])


def test_an_interrupted_stage_goes_on_and_gives_the_same(
    finished: tuple[Path, dict[str, Any]], recipe_file: Path, tmp_path: Path
) -> None:
    made = stage(recipe_file, arms=ARMS | FASTER)
    place = tmp_path / "repeated"

    def two_are_done() -> bool:
        return len(list(place.glob("seeds/*/*/summary.json"))) >= 2

    with pytest.raises(Interrupted):
        replicate(made, place, two_are_done)
    assert len(list(place.glob("seeds/*/*/summary.json"))) < 6
    entry = replicate(made, place)
    assert logged(place) == logged(finished[0])
    assert entry["claims"] == finished[1]["claims"]


def test_an_arm_of_another_state_of_the_main_run_is_thrown_away(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    main, arm = finished[0] / "seeds/0/main", tmp_path / "arm"
    share(main, arm, ["zero"])
    (arm / "own").write_text("work")
    share(main, arm, ["zero"])
    assert (arm / "own").exists(), "nothing has changed"
    record = json.loads((arm / "stages/zero.json").read_text())
    (arm / "stages/zero.json").write_text(json.dumps(record | {"made_from": {"seed": 5}}))
    share(main, arm, ["zero"])
    assert not (arm / "own").exists()
    assert (arm / "stages/zero.json").read_bytes() == (main / "stages/zero.json").read_bytes()
