"""The stage commands: the settings of a recipe as options, with the nearest name for a misspelt one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import settings, strategies
from typer.testing import CliRunner, Result

from melete.cli import app
from melete.cli_options import Given, help_text, option_name, read
from melete.cli_stages import exam_lines
from melete.config import parse_recipe
from melete.errors import RecipeError
from melete.one_stage import COMMANDS, Command, command_settings, recipe_tables
from melete.recipe_settings import Setting
from melete.schema import TaskSettings

PAIRS = [{"prompt": f"What is {n}+1?", "chosen": str(n + 1), "rejected": str(n)} for n in range(4)]
SHORT = ("--max-new-tokens", "8", "--warmup-steps", "0")


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "What is 1+1?", "completion": "2"}\n' * 2, encoding="utf-8")
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")


def melete(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def stage_of(*arguments: str) -> Any:
    """The stage of the recipe that a command line stands for."""
    return read(COMMANDS[arguments[0]], arguments[1:]).recipe().stages[0]


def refused(*arguments: str) -> str:
    result = melete(*arguments)
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ") and "Traceback" not in result.output
    assert not Path("runs").exists()
    return result.output


def test_options_are_the_settings_of_a_recipe():
    stage = stage_of("sft", "--data", "rows.jsonl", "--lr=1e-4", "--num-epochs", "3", "--task.name", "arithmetic_chain")
    (same,) = parse_recipe(
        {
            "name": "sft",
            "stage": [
                {
                    "name": "sft",
                    "kind": "sft",
                    "data": "rows.jsonl",
                    "lr": 1e-4,
                    "num_epochs": 3,
                    "task": {"name": "arithmetic_chain"},
                }
            ],
        }
    ).stages
    assert stage == same


def test_tables_lists_and_weights_have_their_forms():
    stage = stage_of(
        *("rl", "--task", "arithmetic_chain", "--task.min-terms", "3", "--rewards", "accuracy=1.0"),
        *("--rewards", "format=0.5", "--evaluation.at", "0,0.5", "--health.off", "kl,flat_reward"),
        *("--algorithm-settings.kl-coef", "0.01", "--no-support.refuse", "--algorithm", "ppo", "--critic"),
        *("--reward-parts", "format.gate=accuracy", "--approx-kl-limit", "none", "--set", "group_size=4"),
    )
    assert stage.task.own_settings() == {"seed": 0, "min_terms": 3}
    assert stage.rewards == {"accuracy": 1.0, "format": 0.5}
    assert (stage.evaluation.at, stage.health.off) == ([0.0, 0.5], ["kl", "flat_reward"])
    assert stage.algorithm_settings == {"kl_coef": 0.01} and stage.critic is not None
    assert not stage.support.refuse and stage.approx_kl_limit is None and stage.group_size == 4
    assert stage.reward_parts["format"].gate == "accuracy"


def test_a_reward_of_ones_own_keeps_the_dots_of_its_path():
    given = read(COMMANDS["rl"], ["--rewards", "my.module:f=0.5", "--reward-parts", "my.module:f.gate=accuracy"])
    assert given.settings == {
        "rewards": {"my.module:f": 0.5},
        "reward_parts": {"my.module:f": {"gate": "accuracy"}},
    }


def test_text_stays_text_even_when_it_looks_like_a_number():
    assert read(COMMANDS["sft"], ["--data", "2024"]).settings == {"data": "2024"}
    given = read(COMMANDS["generate"], ["tiny", "--prompt", "5", "--prompt", "[1]", "--stop", '["a", "b"]'])
    assert given.settings == {"prompts": ["5", "[1]"], "stop": ["a", "b"], "model": "tiny"}


def test_other_words_for_a_setting():
    assert stage_of("dpo", "--data", "pairs.jsonl", "--loss", "simpo").algorithm == "simpo"
    assert stage_of("generate", "tiny", "--prompt", "a", "--prompt", "b", "-n", "3").prompts == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (("sft", "--data", "rows.jsonl", "--learning-rate", "1"), ["--learning-rate: unknown option", "mean --lr?"]),
        (("sft", "--modle", "tiny"), ["did you mean --model?", "--data: is missing"]),
        (("sft", "--data", "rows.jsonl", "--at", "1"), ["did you mean --evaluation.at?"]),
        (("sft", "--data", "rows.jsonl", "--lr", "abc"), ["--lr abc: must be a number, not 'abc'"]),
        (("sft", "--data", "rows.jsonl", "--lr-schedule", "cos"), ["did you mean cosine?"]),
        (("sft", "--data", "rows.jsonl", "--lr"), ["--lr: needs a value: --lr X"]),
        (("sft", "--data", "rows.jsonl", "tiny"), ["'tiny': is no option"]),
        (("sft", "--data", "no.jsonl"), ["--data no.jsonl: 'no.jsonl' is neither a file"]),
        (("sft", "--data", "rows.jsonl", "--model", "tny"), ["did you mean tiny?"]),
        (("sft", "--data", "rows.jsonl", "--set", "lr"), ["--set lr: has no value"]),
        (("sft", "--data", "rows.jsonl", "--set", "ler=1"), ["--set ler=1: unknown key; did you mean --lr?"]),
        (("sft", "--data", "rows.jsonl", "--seed", "x"), ["--seed: must be a whole number"]),
        (("sft", "--data", "rows.jsonl", "--dry-run=no"), ["--dry-run: takes no value"]),
        (("sft", "--data", "rows.jsonl", "--max-minutes", "soon"), ["--max-minutes: must be a number of minutes"]),
        (("rl", "--task", "arithmetic_chian"), ["did you mean arithmetic_chain?"]),
        (("rl", "--task", "countdown", "--kl-coef", "1"), ["did you mean --algorithm-settings.kl-coef?"]),
        (("rl", "--task", "countdown", "--rewards", "accuracy"), ["accuracy: has no value: write --rewards KEY=VALUE"]),
        (("rl", "--task", "arithmetic_chain", "--task.min-term", "3"), ["did you mean --task.min-terms?"]),
        (("eval", "tiny", "--num-samples", "2"), ["--task: is missing: name a task, or a file of problems"]),
        (("eval", "tiny", "--task", "countdown", "--num-samples", "0"), ["--num-samples 0: must be at least 1"]),
        (("eval", "--task", "countdown"), ["MODEL: is missing"]),
        (("generate", "tiny"), ["--prompts: is missing: name prompts, data or a task"]),
        (("generate", "tiny", "student-qwen", "--prompt", "a"), ["'student-qwen': is one too many"]),
    ],
)
def test_a_mistake_is_told_in_the_words_of_the_command_line(arguments: tuple[str, ...], messages: list[str]):
    told = refused(*arguments)
    assert [message for message in messages if message not in told] == [], told


def test_everything_that_is_wrong_is_told_at_once():
    told = refused("sft", "--modle", "x", "--lr", "abc", "--num-epochs", "0")
    assert "4 problems" in told and all(name in told for name in ("--modle", "--lr", "--num-epochs", "--data"))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_help_has_every_setting_and_loads_no_torch(command: Command):
    text, whole = help_text(command), help_text(command, everything=True)
    for setting in command_settings(command):
        if setting.form == "table" and not setting.may_be_empty and setting.table is not TaskSettings:
            continue
        name = option_name(setting.key) if setting.key != command.positional else "MODEL"
        assert name in whole or f"--no-{name[2:]}" in whole, setting.key
    assert text.index("Common") < text.index("The run") and command.example in text
    assert all(len(line) <= 110 or line.startswith(("Usage", "Example", "Table")) for line in text.splitlines())


def test_help_answers_without_torch():
    code = (
        "import sys; sys.argv = ['melete', 'rl', '--help']; from melete.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--group-size N" in done.stdout


def _value(setting: Setting) -> str:
    """A value that the setting can have, as text: its default where it has one."""
    if setting.form == "choice":
        return setting.choices[-1]
    return {"text": "x", "whole": "3", "number": "0.5", "value": "1", "mapping": "a=1", "list": "1"}[setting.form]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_every_setting_can_be_given_as_an_option(command: Command):
    for setting in command_settings(command):
        if setting.form in ("table", "flag") or setting.key == command.positional:
            continue
        given = read(command, [option_name(setting.key), _value(setting)])
        assert given.problems == [] and given.settings, setting.key


_WORDS = [
    "--lr",
    "--set",
    "lr=1",
    "--task",
    "--task.x",
    "--task.seed",
    "--rewards",
    "a=1",
    "--",
    "-n",
    "--no-support.refuse",
    "=",
]


@settings(max_examples=40, deadline=None)
@drawn(strategies.lists(strategies.text(max_size=12) | strategies.sampled_from(_WORDS), max_size=6))
def test_no_command_line_raises_anything_but_a_recipe_error(words: list[str]):
    for name in ("rl", "eval", "generate"):
        with contextlib.suppress(RecipeError):
            read(COMMANDS[name], words).recipe()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing():
    result = melete("sft", "--data", "rows.jsonl", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "nothing was done" in result.output and not Path("runs").exists()


def test_metrics_of_a_single_stage_go_to_the_trackers_that_were_named():
    result = melete("sft", "--data", "rows.jsonl", "--dry-run", "--track", "tensorboard")
    assert result.exit_code == 0, result.output
    result = melete("sft", "--data", "rows.jsonl", "--dry-run", "--track", "tensorboard,mlflow")
    assert result.exit_code == 2 and "'mlflow' is no tracker" in result.output


def test_a_saved_recipe_is_the_same_run_and_holds_only_what_was_given():
    arguments = ("sft", "--data", "rows.jsonl", "--adapter", "--evaluation.at", "1", "--seed", "3", "--name", "mine")
    result = melete(*arguments, "--save-recipe", "my.toml")
    assert result.exit_code == 0, result.output
    assert "melete run my.toml --runs-dir runs --name mine" in result.output
    tables = tomllib.loads(Path("my.toml").read_text(encoding="utf-8"))
    given: Given = read(COMMANDS["sft"], arguments[1:])
    assert parse_recipe(tables) == given.recipe()
    assert tables["stage"][0].keys() == {"name", "kind", "data", "adapter", "evaluation"}
    assert "is there already" in refused("sft", "--data", "rows.jsonl", "--save-recipe", "my.toml")


def test_sft_leaves_a_model_and_says_where():
    result = melete("sft", "--data", "rows.jsonl", "--num-epochs", "1", *SHORT)
    assert result.exit_code == 0, result.output
    assert "model: runs/sft/models/sft" in result.output
    assert Path("runs/sft/models/sft/config.json").is_file()
    again = melete("sft", "--data", "rows.jsonl", "--num-epochs", "1", *SHORT)
    assert "already done" in again.output
    other = melete("sft", "--data", "rows.jsonl", "--num-epochs", "1", "--lr", "1e-5", *SHORT)
    assert "made again: lr is 1e-05 and was 0.0002" in other.output


def test_dpo_learns_from_pairs_without_a_task():
    result = melete("dpo", "--data", "pairs.jsonl", "--pairs-per-step", "4", *SHORT)
    assert result.exit_code == 0, result.output
    assert Path("runs/dpo/models/dpo/model.safetensors").is_file()
    assert "task: is missing" in refused_again("dpo", "--num-steps", "3")


def refused_again(*arguments: str) -> str:
    result = melete(*arguments)
    assert result.exit_code == 2
    return result.output


def test_eval_prints_a_table_with_intervals_and_json():
    arguments = ("eval", "tiny", "--task", "arithmetic_chain", "--num-problems", "3", "--temperature", "0")
    result = melete(*arguments, "--max-new-tokens", "8")
    assert result.exit_code == 0, result.output
    assert "pass@1 [95 %]" in result.output and "tiny" in result.output
    found = json.loads(melete(*arguments, "--max-new-tokens", "8", "--json").stdout)
    assert found["models"][0]["tasks"]["arithmetic_chain"]["num_samples"] == 1


def test_one_exam_has_several_tasks_and_what_is_said_below_task_holds_for_each():
    tables = recipe_tables(
        COMMANDS["eval"],
        read(COMMANDS["eval"], ["tiny", "--task", "countdown", "--task.seed", "3", "--task", "verse"]).settings,
        0,
    )
    assert tables["stage"][0]["tasks"] == {
        "countdown": {"task": {"name": "countdown", "seed": 3}},
        "verse": {"task": {"name": "verse", "seed": 3}},
    }


def test_a_file_of_problems_is_asked_whole():
    Path("mine.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n{"question": "2+3?", "answer": "5"}\n')
    stage = stage_of("eval", "tiny", "--data", "mine.jsonl", "--task.grader", "integer", "--num-samples", "1")
    from melete.tasks import make_task

    task = make_task("rows", stage.tasks["mine"].task.own_settings())
    assert {task.problem("held_out", index).gold for index in range(2)} == {"2", "5"}


def test_the_table_of_an_exam_lines_up():
    numbers = {"num_problems": 10, "num_samples": 4, "length_mean": 12.4, "pass@4": 0.7, "maj@4": 0.5}
    numbers |= {"score": 0.4, "pass@1": 0.4, "pass@1/low": 0.3, "pass@1/high": 0.5}
    checkpoints = [{"label": "a", "tasks": {"sums": numbers}}, {"label": "longer", "tasks": {"sums": numbers}}]
    head, *rows = exam_lines(checkpoints).splitlines()
    assert [row.index("0.400 [0.300, 0.500]") for row in rows] == [head.index("pass@1")] * 2


def test_generate_writes_a_file():
    result = melete(
        "generate", "tiny", "--prompt", "What is 2+3?", "-n", "2", "--max-new-tokens", "8", "--out", "s.jsonl"
    )
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in Path("s.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["row_id"] for row in rows] == ["generate/0/0", "generate/0/1"]
    assert all(row["messages"][0]["content"] == "What is 2+3?" and row["completion"] for row in rows)
