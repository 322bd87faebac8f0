"""The plan of a recipe: what it says, what it refuses, and what it makes of a measurement that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planning.plans import RL, SUMS, recipe_of

from melete.errors import RunError
from melete.models.places import resolve_model
from melete.planning import Machine, Plan, load_estimates, make_plan, save_plan
from melete.planning.estimate import Lengths, Speed
from melete.planning.graph import Text
from melete.planning.kept import Kept, directory, read, write
from melete.planning.machine import fingerprint
from melete.planning.replicate import changed_stages, needed
from melete.planning.sizes import content_key
from melete.schema import TaskSettings

SPEED = Speed(load=1.0, step=0.01, token=0.0, read=0.0, learn=0.0, activation_bytes=1000, process_bytes=2.0**20)
LARGE = Machine(free_memory=2**40, free_disk=2**40, num_cores=2)
EASY = Lengths(prompt=10, completions=(50, 50), cap=100)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A folder in which the bundled base is known: nothing is measured."""
    folder = tmp_path / "measured"
    keep(folder, {"arithmetic_chain": EASY, "countdown": EASY})
    return folder


def keep(folder: Path, lengths: dict[str, Lengths]) -> None:
    texts = {Text.of_task(TaskSettings(name=name)).key: found for name, found in lengths.items()}
    write(folder, key(), Kept(10**6, SPEED, texts, dict.fromkeys(texts, 100)))


def key() -> str:
    return f"{content_key(resolve_model('tiny'))}-{fingerprint()}"


def plan_of(measured: Path, *stages: dict[str, Any], machine: Machine = LARGE, **more: Any) -> Plan:
    return make_plan(recipe_of(*stages), Path("runs/plan"), machine=machine, measured_folder=measured, **more)


SFT = {"name": "sft", "kind": "sft", "data": "none.jsonl"}


def test_a_plan_gives_each_stage_time_memory_and_disk(measured: Path):
    plan = plan_of(measured, RL)
    (stage,) = plan.stages
    assert stage.seconds == pytest.approx(1 + 10 * 50 * 0.01, rel=0.05)  # and a checkpoint
    assert stage.memory and stage.disk
    assert plan.measured_seconds == 0
    assert "6 s" in plan.text() and "grpo from tiny" in plan.text()


def test_totals_are_held_against_what_the_machine_has(measured: Path):
    text = plan_of(measured, RL, machine=Machine(3 * 2**30, 5 * 2**30)).text()
    assert "3.0 GiB can be used" in text and "5.0 GiB can be used" in text
    assert "how much is free cannot be told" in plan_of(measured, RL, machine=Machine(None, None)).text()


def test_stages_that_are_done_or_left_out_take_nothing(measured: Path):
    second = RL | {"name": "again", "task": {"name": "countdown"}}
    whole = plan_of(measured, RL, second)
    rest = plan_of(measured, RL, second, states={"rl": "done", "again": "would be made"})
    assert rest.seconds == pytest.approx(whole.seconds / 2, rel=0.01)
    assert [stage.name for stage in rest.left] == ["again"]
    none = plan_of(measured, RL, second, states={"rl": "done", "again": "left out"})
    assert none.seconds == 0 and "nothing is left to do" in none.text()


def test_a_stage_that_continues_has_the_rest_to_do(measured: Path):
    whole, rest = plan_of(measured, RL), plan_of(measured, RL, states={"rl": "would continue at step 8"})
    assert rest.seconds == pytest.approx(whole.seconds * 0.2)
    assert "(would continue at step 8)" in rest.text()


def test_a_run_that_does_not_fit_into_memory_is_refused_with_numbers_and_what_helps(measured: Path):
    plan = plan_of(measured, RL | {"max_tokens_per_microbatch": 10**6}, machine=Machine(30 * 2**20, None))
    with pytest.raises(RunError) as refused:
        plan.refuse_if_too_large()
    text = str(refused.value)
    assert "stage rl would need about" in text and "30 MiB can be used" in text
    assert "lower max_new_tokens" in text or "max_tokens_per_microbatch (now 1000000)" in text
    plan_of(measured, RL).refuse_if_too_large()


def test_more_processes_than_fit_are_refused_with_how_many_there_are(measured: Path):
    many = RL | {"kind": "compare", "algorithms": ["grpo"], "seeds": list(range(64)), "num_workers": 64}
    with pytest.raises(RunError, match=r"rl.num_workers below 64"):
        plan_of(measured, many, machine=Machine(2**28, None)).refuse_if_too_large()


def test_a_run_that_does_not_fit_on_the_disk_is_refused_with_the_largest_stages(measured: Path):
    plan = plan_of(measured, RL, machine=Machine(None, 2**20))
    with pytest.raises(RunError, match=r"would write about .* MiB, and 1 MiB are free") as refused:
        plan.refuse_if_too_large()
    assert "the most: rl" in str(refused.value)


def test_a_run_that_would_take_longer_than_allowed_is_refused(measured: Path):
    plan = plan_of(measured, RL)
    with pytest.raises(RunError, match=r"would take 6 s, more than the 0.05 min") as refused:
        plan.refuse_if_too_large(max_minutes=0.05)
    assert "stage rl takes the most" in str(refused.value)
    plan.refuse_if_too_large(max_minutes=1)


def test_what_is_not_known_of_a_machine_refuses_nothing(measured: Path):
    plan_of(measured, RL, machine=Machine(None, None)).refuse_if_too_large()


def test_what_cannot_be_estimated_says_why_and_stops_nothing(measured: Path):
    plan = plan_of(measured, RL, SFT)
    (stage,) = plan.not_estimated
    assert "none.jsonl cannot be read" in stage.why_not
    assert "sft could not be estimated: none.jsonl cannot be read" in plan.text()
    assert "and 1 stage not estimated" in plan.text()
    plan.refuse_if_too_large(max_minutes=1)


def test_a_measurement_that_fails_stops_nothing(tmp_path: Path, measured: Path):
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    (broken / "model.safetensors").write_bytes(b"")
    plan = plan_of(measured, RL | {"model": str(broken)})
    assert f"rl could not be estimated: {broken}: " in plan.text()
    plan.refuse_if_too_large(max_minutes=1)


def test_a_model_larger_than_the_machine_is_not_loaded_to_be_measured(tmp_path: Path):
    plan = plan_of(tmp_path / "empty", RL, machine=Machine(2**20, None))
    assert plan.measured_seconds == 0
    assert "too large for this machine" in plan.stages[0].why_not
    with pytest.raises(RunError, match="of memory"):  # its size alone tells
        plan.refuse_if_too_large()


def test_without_leave_nothing_is_measured(tmp_path: Path):
    plan = plan_of(tmp_path / "empty", RL, may_measure=False)
    assert "has not been measured" in plan.stages[0].why_not
    assert not (tmp_path / "empty").exists()


def test_estimates_are_kept_for_after_the_run(measured: Path, tmp_path: Path):
    plan = plan_of(measured, RL)
    save_plan(plan, tmp_path / "run")
    found = load_estimates(tmp_path / "run")
    assert found["rl"]["seconds"] == pytest.approx(plan.stages[0].seconds)
    assert str(tmp_path) not in (tmp_path / "run" / "plan.json").read_text()
    assert load_estimates(tmp_path) == {}


def test_estimates_of_finished_and_continued_stages_stay(measured: Path, tmp_path: Path):
    first = plan_of(measured, RL)
    save_plan(first, tmp_path)
    for state in ("done", "would continue at step 5"):
        save_plan(plan_of(measured, RL, states={"rl": state}), tmp_path)
        assert load_estimates(tmp_path)["rl"]["seconds"] == pytest.approx(first.stages[0].seconds)
    save_plan(plan_of(measured, RL | {"num_steps": 20}, states={"rl": "would be made again: num_steps"}), tmp_path)
    assert load_estimates(tmp_path)["rl"]["seconds"] > 1.5 * (first.stages[0].seconds or 0)


def test_what_is_kept_comes_back_and_a_damaged_file_counts_as_none(tmp_path: Path):
    kept = Kept(5, SPEED, {"task": EASY}, {"task": 100})
    write(tmp_path, "key", kept)
    assert read(tmp_path, "key") == kept
    (tmp_path / "key.json").write_text("{")
    assert read(tmp_path, "key") == Kept() == read(tmp_path, "none")
    (tmp_path / "key.json").write_text(json.dumps({"format": 0}))
    assert read(tmp_path, "key") == Kept()


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path):
    (tmp_path / "file").write_text("")
    write(tmp_path / "file" / "below", "key", Kept(5, SPEED))


def test_lengths_are_measured_again_only_for_a_limit_that_was_never_asked():
    cut = Kept(5, SPEED, {"task": Lengths(1, (100,), cap=100)}, {"task": 100})
    assert cut.is_enough("task", 80) and cut.is_enough("task", 100)
    assert not cut.is_enough("task", 200)
    assert not cut.is_enough("other", 10)
    slow = Kept(5, SPEED, {"task": Lengths(1, (10,), cap=10)}, {"task": 200})  # more could not be afforded
    assert slow.is_enough("task", 200)


def test_measurements_lie_in_the_users_cache():
    assert directory({"XDG_CACHE_HOME": "/cache"}) == Path("/cache/melete/measured")
    assert directory({}).parts[-3:] == (".cache", "melete", "measured")


def test_an_arm_does_again_what_it_changes_and_all_that_reads_from_it():
    main = recipe_of(RL, RL | {"name": "other"}, RL | {"name": "next", "model": "rl"}).stages
    arm = recipe_of(RL | {"lr": 0.5}, RL | {"name": "other"}, RL | {"name": "next", "model": "rl"}).stages
    assert changed_stages(main, arm) == {"rl", "next"}
    assert changed_stages(main, arm, until="rl") == {"rl"}
    assert needed(main, "next") == {"next", "rl", "tiny"}


def test_a_replication_is_its_seeds_and_what_the_arms_change(measured: Path, tmp_path: Path):
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'name = "small"\n[[stage]]\nname = "rl"\nkind = "rl"\nnum_steps = 10\nmax_new_tokens = 100\n'
        "algorithm_settings = { kl_coef = 0.0 }\nevaluation = { at = [] }\nsupport = { num_problems = 0 }\n"
        f'[stage.task]\nname = "{SUMS["name"]}"\n'
    )
    single = plan_of(measured, RL | {"prompts_per_step": 16, "max_tokens_per_microbatch": 8192}).seconds
    claims = {"name": "claims", "kind": "replicate", "recipe": str(recipe), "seeds": [0, 1], "num_workers": 2}
    found = plan_of(measured, claims)
    assert found.seconds == pytest.approx(single, rel=0.01)  # both seeds at the same time
    arms = {"slow": {"overrides": ["rl.num_steps=20"]}}
    assert plan_of(measured, claims | {"arms": arms}).seconds == pytest.approx(single * 2.83, rel=0.05)
    assert plan_of(measured, claims, machine=Machine(None, None, num_cores=1)).seconds == pytest.approx(2 * single)


def test_a_replication_of_a_recipe_that_is_not_there_says_so(measured: Path):
    plan = plan_of(measured, {"name": "claims", "kind": "replicate", "recipe": "no/such.toml"})
    assert "no/such.toml" in plan.stages[0].why_not
