"""The stages as functions: three lines of Python, with the errors and the results of a recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import melete
from melete import api
from melete.api import import_name
from melete.errors import DataError, RecipeError, RunError
from melete.one_stage import COMMANDS

ROWS = [{"prompt": f"What is {n}+1?", "completion": str(n + 1)} for n in range(3)]
TRAINING: Any = {"warmup_steps": 0, "quiet": True}


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_importing_melete_loads_nothing():
    code = "import sys, melete; print(*({'torch', 'pydantic', 'typer', 'melete.api'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_every_command_is_a_function_and_is_listed():
    for command in COMMANDS.values():
        assert getattr(melete, command.function) is getattr(api, command.function)
    assert set(melete.__all__) <= set(dir(melete))
    with pytest.raises(AttributeError, match="no attribute 'sfd'"):
        _ = melete.sfd  # pyright: ignore[reportAttributeAccessIssue]


def test_sft_of_rows_leaves_a_model_that_can_be_loaded_examined_and_trained_on():
    first = melete.sft(data=ROWS, num_epochs=1, **TRAINING)
    assert first.model == Path("runs/sft/models/sft")
    assert [row["step"] for row in first.metrics] == [0] and first.entry["num_rows"] == 3
    model, tokenizer = first.load()
    assert model.num_parameters() > 0 and tokenizer.chat_template
    assert first.report.is_file() and first.data is None
    exam = melete.evaluate(
        [first, "tiny"], task="arithmetic_chain", num_problems=2, num_samples=1, max_new_tokens=4, quiet=True
    )
    assert [(found["model"], found["task"]) for found in exam.evaluations] == [
        ("runs/sft/models/sft", "arithmetic_chain"),
        ("tiny", "arithmetic_chain"),
    ]
    second = melete.sft(model=first, data=ROWS, num_epochs=1, name="second", **TRAINING)
    assert second.entry["kind"] == "sft" and second.run_dir == Path("runs/second")
    command = json.loads((second.run_dir / "summary.json").read_text(encoding="utf-8"))["command"]
    assert command.startswith("melete.sft(model='runs/sft/models/sft', data='runs/second/given/data-")


def test_the_same_call_is_done_already_and_other_rows_are_another_run():
    once = melete.generate(prompts=["What is 1+1?"], max_new_tokens=4, quiet=True)
    before = (once.run_dir / "stages" / "generate.json").stat().st_mtime_ns
    melete.generate(prompts=["What is 1+1?"], max_new_tokens=4, quiet=True)
    assert (once.run_dir / "stages" / "generate.json").stat().st_mtime_ns == before
    other = melete.generate(prompts=["What is 1+2?"], max_new_tokens=4, quiet=True)
    assert [row["messages"][0]["content"] for row in other.rows()] == ["What is 1+2?"]
    with pytest.raises(RunError, match="makes no model"):
        other.load()


def test_a_misspelt_keyword_is_refused_with_the_nearest_and_leaves_nothing():
    with pytest.raises(RecipeError) as error:
        melete.sft(data=ROWS, lerning_rate=1, evaluation={"num_problem": 3})  # pyright: ignore
    assert "lerning_rate: unknown key; did you mean lr?" in str(error.value)
    assert "evaluation.num_problem: unknown key; did you mean evaluation.num_problems?" in str(error.value)
    assert list(Path.cwd().iterdir()) in ([], [Path.cwd() / "runs"]) and not Path("runs/sft").exists()


def test_rows_that_are_no_rows_are_refused():
    with pytest.raises(DataError, match="row 1 is no row of data"):
        melete.sft(data=[ROWS[0], {"prompt": object()}])
    with pytest.raises(RecipeError, match="data must be a path or a list of rows"):
        melete.sft(data=3)  # pyright: ignore


def test_a_reward_may_be_a_function_of_a_module(tmp_path: Path):
    (tmp_path / "own_rewards.py").write_text("def short(rollout):\n    return float(len(rollout.text) < 40)\n")
    from own_rewards import short  # pyright: ignore

    done = melete.rl(
        task="arithmetic_chain",
        rewards={short: 1.0},
        num_steps=1,
        prompts_per_step=2,
        group_size=2,
        max_new_tokens=4,
        evaluation={"at": []},
        support={"num_problems": 0},
        **TRAINING,
    )
    assert done.metrics[0]["reward"] == 1.0
    recipe = json.loads((done.run_dir / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["stage"][0]["rewards"] == {"own_rewards:short": 1.0}


def _inside() -> Callable[..., float]:
    def inner(_rollout: object) -> float:
        return 1.0

    return inner


def _of_the_script() -> Callable[..., float]:
    function = _inside()
    function.__module__, function.__qualname__ = "__main__", "mine"
    return function


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda _rollout: 1.0, "a lambda has no name"),
        (_inside(), "a function inside another"),
        (_of_the_script(), "belongs to the script or notebook itself"),
        (Path.exists, "or a method, cannot be imported"),
    ],
)
def test_a_function_that_no_path_leads_to_is_refused_with_the_reason(function: Any, reason: str):
    with pytest.raises(RecipeError, match=reason):
        import_name(function)


def test_a_function_that_was_replaced_is_not_taken_for_the_new_one(monkeypatch: pytest.MonkeyPatch):
    old = json.dumps
    monkeypatch.setattr(json, "dumps", lambda *_args: "")
    with pytest.raises(RecipeError, match="is something else than this function"):
        import_name(old)


def test_a_recipe_is_run_from_its_tables():
    stage = {"name": "said", "kind": "generate", "prompts": ["What is 1+1?"], "max_new_tokens": 4}
    done = melete.run({"name": "mine", "stage": [stage]}, ["said.samples_per_prompt=2"], quiet=True)
    assert done.run_dir == Path("runs/mine") and len(done.stages["said"].rows()) == 2
    assert done.learnt == "2 rows written" and done.report.is_file()
    with pytest.raises(RecipeError, match="did you mean r1-tiny"):
        melete.run("r1-tny")


def test_no_time_is_refused_before_work():
    with pytest.raises(RunError, match="more than the 0 min that are allowed"):
        melete.sft(data=ROWS, max_minutes=0.0, **TRAINING)
    assert not Path("runs/sft/models").exists()
