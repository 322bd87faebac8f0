"""Whole runs on tiny models: every file, nothing twice, and a cut that leaves no trace."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from melete.config import load_recipe
from melete.corpus.mix import sample_texts
from melete.errors import ModelError, RecipeError, RunError
from melete.live import View
from melete.models.load import load_model, save_model
from melete.models.tiny import tiny_model, train_tokenizer
from melete.pipeline import run_recipe
from melete.report import build_report
from melete.schema import Recipe
from melete.stages import Interrupted

REWARDS_DIR = Path(__file__).parent / "loops"
NUM_STEPS = 6
RECIPE = """
name = "little"
description = "A few steps on a random model."
seed = 3

[[stage]]
name = "rl"
kind = "rl"
model = {model}
lr = 5e-3
num_steps = 6
prompts_per_step = 2
group_size = 4
max_new_tokens = 8
warmup_steps = 1
checkpoint_every_steps = 2
algorithm_settings = {{ kl_coef = 0.01 }}
reference_refresh_steps = 3

[stage.task]
name = "arithmetic_chain"

[stage.rewards]
"tiny_rewards:even_tokens_unless_stopped" = 1.0
accuracy = 1.0
format = 0.1

[stage.evaluation]
num_problems = 3
num_samples = 2
quick_every_steps = 2
quick_num_problems = 2
"""
PRETRAIN = """
name = "from-nothing"

[[stage]]
name = "base"
kind = "pretrain"
num_tokens = 30_000
tokens_per_batch = 2048
hidden_size = 32
num_layers = 2
lr = 5e-3

[[stage]]
name = "rl"
kind = "rl"
model = "base"
num_steps = 1
prompts_per_step = 1
group_size = 2
max_new_tokens = 6
warmup_steps = 0
evaluation = { at = [0.0, 1.0], num_problems = 2, num_samples = 1 }
task = { name = "countdown" }
rewards = { random = 1.0 }
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(sample_texts(0, 100), 600)
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model") / "tiny"
    save_model(tiny_model(tokenizer, hidden_size=32, num_layers=2), tokenizer, directory)
    return directory


@pytest.fixture(scope="module", autouse=True)
def _rewards_can_be_imported() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REWARDS_DIR))
        yield


@pytest.fixture(scope="module")
def recipe_file(model_dir: Path) -> Path:
    file = model_dir.parent / "little.toml"
    file.write_text(RECIPE.format(model=json.dumps(str(model_dir))))
    return file


def run(recipe: Recipe, run_dir: Path) -> str:
    """Runs a recipe in this process; returns what the terminal showed."""
    shown = io.StringIO()
    with View([stage.name for stage in recipe.stages], True, console=Console(file=shown, width=200)) as view:
        assert run_recipe(recipe, run_dir, view=view, command=f"melete run {recipe.name}") == run_dir
    return shown.getvalue()


def melete(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own; `communicate()` tells what it printed."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(REWARDS_DIR)])
    return subprocess.Popen(
        [sys.executable, "-m", "melete.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, "MELETE_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(run_dir: Path, log: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / f"{log}.jsonl").read_text().splitlines()]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file with its bytes, without the lock, which holds the number of the last process."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def deterministic(directory: Path) -> dict[str, bytes]:
    """The files that are a function of seed and recipe: none that holds seconds."""
    timed = (
        "timings.jsonl",
        "summary.json",
        "report.html",
        "report.md",
        "state.json",
        "manifest.json",
        "stages/rl.json",
    )
    return {name: content for name, content in contents(directory).items() if not name.endswith(timed)}


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("runs") / "little"
    run(load_recipe(str(recipe_file)), run_dir)
    return run_dir


def test_a_run_leaves_every_file_that_it_promises(finished: Path, model_dir: Path) -> None:
    files = contents(finished)
    for name in ("recipe.json", "metrics.jsonl", "timings.jsonl", "rollouts.jsonl", "summary.json"):
        assert files[name].strip(), name
    assert b"<html" in files["report.html"] and files["report.md"].startswith(b"#")
    assert not [name for name in files if ".partial-" in name]
    trained = load_model(finished / "models" / "rl").state_dict()
    base = load_model(model_dir).state_dict()
    assert trained.keys() == base.keys()
    assert any(not torch.equal(trained[name], base[name]) for name in base)
    AutoTokenizer.from_pretrained(finished / "models" / "rl", local_files_only=True)


def test_the_saved_recipe_is_the_resolved_one_and_reads_back_as_itself(finished: Path, recipe_file: Path) -> None:
    saved = json.loads((finished / "recipe.json").read_text())
    assert saved == load_recipe(str(recipe_file)).as_dict()
    assert saved["stage"][0]["temperature"] == 1.0, "defaults are written out"
    assert load_recipe(str(finished / "recipe.json")) == load_recipe(str(recipe_file))


def test_metrics_have_a_row_for_each_step_and_evaluation_in_order(finished: Path) -> None:
    metrics = rows(finished)
    assert [row["step"] for row in metrics if "kind" not in row] == list(range(NUM_STEPS))
    full = [(row["step"], row["label"]) for row in metrics if row.get("kind") == "evaluation"]
    assert full == [(0, "base"), (NUM_STEPS // 2, "midway"), (NUM_STEPS, "final")]
    assert [row["step"] for row in metrics if row.get("kind") == "quick_evaluation"] == [2, 4]
    assert all("seconds" not in key for row in metrics for key in row)
    assert [row["step"] for row in rows(finished, "timings")] == list(range(NUM_STEPS))


def test_saved_rollouts_show_what_was_asked_written_and_rewarded(finished: Path) -> None:
    rollouts = rows(finished, "rollouts")
    assert {row["step"] for row in rollouts} == set(range(NUM_STEPS))
    for row in rollouts:
        parts = row["reward_parts"]
        assert set(parts) == {"tiny_rewards:even_tokens_unless_stopped", "accuracy", "format"}
        weighted = parts["tiny_rewards:even_tokens_unless_stopped"] + parts["accuracy"] + 0.1 * parts["format"]
        assert row["reward"] == pytest.approx(weighted)
        assert row["prompt"] and row["gold"] and row["num_tokens"] <= 8


def test_the_summary_names_seeds_versions_and_results_with_intervals(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["seed"] == 3 and summary["command"] == "melete run little"
    assert {"melete", "torch", "transformers", "python"} <= summary["versions"].keys()
    (stage,) = summary["stages"]
    assert [evaluation["label"] for evaluation in stage["evaluations"]] == ["base", "midway", "final"]
    for evaluation in stage["evaluations"]:
        assert set(evaluation["pass"]) >= {"1", "2"} and "1" in evaluation["majority"]
        for mean, low, high in evaluation["pass"].values():
            assert 0 <= low <= mean <= high <= 1
    assert summary["learnt"].startswith("held-out pass@1 ")


def test_the_report_is_a_function_of_the_files_of_the_run(finished: Path) -> None:
    before = contents(finished)
    build_report(finished)
    assert contents(finished) == before


def test_a_second_call_says_already_done_and_changes_no_file(finished: Path, recipe_file: Path) -> None:
    before = contents(finished)
    assert "rl: already done" in run(load_recipe(str(recipe_file)), finished)
    assert contents(finished) == before


def test_another_recipe_is_refused_and_changes_no_file(finished: Path, recipe_file: Path) -> None:
    before = contents(finished)
    with pytest.raises(RunError, match="its name is 'little', not 'other'"):
        run(load_recipe(str(recipe_file), ["name=other"]), finished)
    assert contents(finished) == before


def test_overrides_reach_the_run(recipe_file: Path, tmp_path: Path) -> None:
    changes = [
        "seed=4",
        "rl.num_steps=2",
        "rl.evaluation.at=[1.0]",
        "rl.evaluation.quick_every_steps=0",
        "rl.task.min_terms=6",
    ]
    run(load_recipe(str(recipe_file), changes), tmp_path / "changed")
    saved = json.loads((tmp_path / "changed" / "recipe.json").read_text())
    assert saved["seed"] == 4 and saved["stage"][0]["num_steps"] == 2
    assert [(row["step"], row.get("label")) for row in rows(tmp_path / "changed")] == [
        (0, None),
        (1, None),
        (2, "final"),
    ]
    assert all(
        row["prompt"].count("+") + row["prompt"].count("-") == 5 for row in rows(tmp_path / "changed", "rollouts")
    )


def test_a_misspelt_override_names_the_nearest_key_and_stops_before_any_work(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"did you mean rl\.group_size"):
        load_recipe(str(recipe_file), ["rl.gruop_size=4"])


def test_the_same_seed_gives_the_same_files_and_another_seed_others(
    finished: Path, recipe_file: Path, tmp_path: Path
) -> None:
    run(load_recipe(str(recipe_file)), tmp_path / "again")
    assert deterministic(tmp_path / "again") == deterministic(finished)
    run(load_recipe(str(recipe_file), ["seed=4"]), tmp_path / "other")
    assert (tmp_path / "other" / "metrics.jsonl").read_bytes() != (finished / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("step", range(NUM_STEPS))
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    step: int, finished: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I37: metrics, rollouts, weights and optimizer state are the same, bit for bit."""
    recipe, run_dir = load_recipe(str(recipe_file)), tmp_path / "cut"
    monkeypatch.setenv("MELETE_TEST_INTERRUPT_AT", str(step))
    with pytest.raises(Interrupted):
        run(recipe, run_dir)
    assert not (run_dir / "summary.json").exists()
    done = [row["step"] for row in rows(run_dir) if "kind" not in row]
    assert done == list(range(step + 1)), "the step that was under way was finished and saved"
    assert f"rl: continues at step {step + 1} of {NUM_STEPS}" in run(recipe, run_dir)
    assert without_checkpoints(run_dir) == without_checkpoints(finished)
    same_last_checkpoint(run_dir, finished)


def test_a_second_interrupt_stops_at_once_and_the_run_goes_on_from_the_last_checkpoint(
    finished: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I37."""
    recipe, run_dir = load_recipe(str(recipe_file)), tmp_path / "cut"
    monkeypatch.setenv("MELETE_TEST_INTERRUPT_TWICE_AT", "3")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, run_dir)
    assert "rl: continues at step 2 of" in run(recipe, run_dir)
    assert without_checkpoints(run_dir) == without_checkpoints(finished)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(finished: Path, recipe_file: Path, tmp_path: Path) -> None:
    """I37: kill -9 in the middle of a step, before the first checkpoint and after the second."""
    continued_at = {0: None, 5: 4}
    killed = {
        step: melete("run", recipe_file, "--runs-dir", tmp_path, "--name", f"cut-{step}", MELETE_TEST_KILL_AT=str(step))
        for step in continued_at
    }
    for step, start in continued_at.items():
        _, errors = killed[step].communicate(timeout=200)
        assert killed[step].returncode == -signal.SIGKILL, errors
        told = run(load_recipe(str(recipe_file)), tmp_path / f"cut-{step}")
        assert f"rl: continues at step {start} of" in told if start else "continues" not in told
        assert without_checkpoints(tmp_path / f"cut-{step}") == without_checkpoints(finished)
        same_last_checkpoint(tmp_path / f"cut-{step}", finished)


def without_checkpoints(run_dir: Path) -> dict[str, bytes]:
    """Which checkpoints are left depends on where a run was cut; all else must not."""
    return {name: data for name, data in deterministic(run_dir).items() if not name.startswith("checkpoints/")}


def same_last_checkpoint(one: Path, other: Path) -> None:
    last = Path("checkpoints", "rl", f"step-{NUM_STEPS:06d}", "tensors.pt")
    states = [torch.load(run_dir / last, weights_only=True) for run_dir in (one, other)]
    assert equal(states[0], states[1])


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def no_weights(directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def test_what_cannot_be_used_is_one_message_with_status_two_and_nothing_is_touched(
    recipe_file: Path, tmp_path: Path
) -> None:
    model, runs_dir, in_the_way = no_weights(tmp_path / "empty"), tmp_path / "runs", tmp_path / "file"
    in_the_way.write_text("mine")
    before = contents(tmp_path)
    refused = {
        ("no weights", "save_pretrained", str(model)): melete(
            "run", recipe_file, "--runs-dir", runs_dir, "--set", f"rl.model={model}"
        ),
        ("cannot write", "a file is in the way", str(in_the_way)): melete("run", recipe_file, "--runs-dir", in_the_way),
    }
    for hints, process in refused.items():
        told, message = process.communicate(timeout=200)
        assert process.returncode == 2, message
        assert message.startswith("error: ") and message.count("error: ") == 1
        assert "Traceback" not in message + told
        assert all(hint in message for hint in hints), message
    assert contents(tmp_path) == before and not runs_dir.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_directory_without_permission_is_a_refusal(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(RunError, match="permission denied"):
        run(load_recipe(str(recipe_file)), tmp_path / "locked" / "run")


def test_a_missing_model_is_found_before_the_run_directory_is_made(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(recipe_file), [f"rl.model={no_weights(tmp_path / 'empty')}"])
    with pytest.raises(ModelError, match="no weights"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_base_is_made_from_nothing_and_a_later_stage_trains_it(tmp_path: Path) -> None:
    (tmp_path / "from-nothing.toml").write_text(PRETRAIN)
    recipe, run_dir = load_recipe(str(tmp_path / "from-nothing.toml")), tmp_path / "run"
    told = run(recipe, run_dir)
    assert told.index("base: started") < told.index("rl: started")
    losses = [row["loss"] for row in rows(run_dir) if row["stage"] == "base"]
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 1
    assert all("tokens_per_second" not in row for row in rows(run_dir))
    model = AutoModelForCausalLM.from_pretrained(run_dir / "models" / "base", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "models" / "base", local_files_only=True)
    assert model.config.model_type == "deepseek_v3" and model.config.hidden_size == 32
    assert len(tokenizer) == model.config.vocab_size == 768
    trained = load_file(run_dir / "models" / "rl" / "model.safetensors")
    base = load_file(run_dir / "models" / "base" / "model.safetensors")
    assert trained.keys() == base.keys()
    before = contents(run_dir)
    assert "base: already done" in run(recipe, run_dir)
    assert contents(run_dir) == before
