"""The command line: help at once, one message and status 2 for a mistake, nothing touched by it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import typer
from typer.testing import CliRunner, Result

from melete.cli import app, plain_errors
from melete.config import bundled_recipes
from melete.errors import ModelError, RecipeError
from melete.machine import processor
from melete.machine.threads import num_threads, prepare_threads, threads_for
from melete.tasks import make_task


@pytest.fixture(autouse=True)
def _own_directory_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with patch.dict(os.environ):
        yield


def melete(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    """The message of a refused command, after checking that it is one message and that nothing was written."""
    result = melete(*arguments)
    message = result.output
    assert result.exit_code == 2, message
    assert message.startswith("error: ")
    assert "Traceback" not in message
    assert list(Path.cwd().iterdir()) == []
    return message


def test_help_loads_neither_torch_nor_the_recipes():
    code = (
        "import sys; sys.argv = ['melete', '--help']; from melete.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'transformers', 'pydantic', 'melete.config'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {"run", "recipes", "algorithms", "explain", "report"} <= set(done.stdout.split())


def test_version_is_printed():
    assert re.fullmatch(r"melete \d+\.\d+\.\d+\n", melete("--version").output)


def test_the_list_of_recipes_has_a_line_for_each():
    lines = melete("recipes").output.splitlines()
    assert [line.split()[0] for line in lines] == list(bundled_recipes())
    assert all(len(line.split()) > 3 for line in lines)


def test_the_list_of_algorithms_has_every_family_and_what_each_row_needs():
    text = melete("algorithms").output
    assert [line for line in text.splitlines() if line and not line.startswith(" ")][:-2] == [
        "policy gradient",
        "preference",
        "reward model",
        "distillation",
        "KL estimator",
    ]
    (grpo,) = [line for line in text.splitlines() if line.split()[:1] == ["grpo"]]
    assert grpo.endswith("  old, ref")


@pytest.mark.parametrize("name", ["grpo", "dpo", "bradley_terry", "gkd", "k3"])
def test_an_explanation_tells_formula_code_and_source(name: str):
    result = melete("explain", name)
    assert result.exit_code == 0
    assert result.output.startswith(f"{name} (")
    assert re.search(r"melete/functional/\w+\.py:\d+", result.output)
    assert "\npaper\n" in result.output


def test_an_unknown_algorithm_is_refused_with_the_nearest():
    assert "did you mean grpo?" in refused("explain", "grop")


def test_a_dry_run_shows_the_plan_and_writes_nothing():
    result = melete("run", "r1-zero-tiny", "--dry-run", "--set", "rl.lr=1e-5", "--set", "seed=7")
    assert result.exit_code == 0
    assert "seed 7" in result.output
    assert "lr 1e-05" in result.output
    assert list(Path.cwd().iterdir()) == []


def test_a_dry_run_tells_what_each_stage_will_take_and_its_state():
    result = melete("run", "rlhf-tiny", "--dry-run", "--only", "preferences")
    assert result.exit_code == 0
    first, second, third = (line for line in result.output.splitlines() if re.match(r"  \d\. ", line))
    assert re.match(r"  1\. preferences +\d+ s +\d+ MiB +\d+ MiB +pairs of", first)
    assert "left out" in second and "left out" in third
    assert re.search(r"^memory: .* can be used$", result.output, re.MULTILINE)
    assert "nothing was done" in result.output


def test_a_stage_that_is_not_there_is_refused_with_the_nearest():
    assert "rlhf-tiny has no such stage; did you mean reader?" in refused("run", "rlhf-tiny", "--from", "raeder")
    assert "did you mean policy?" in refused("run", "rlhf-tiny", "--dry-run", "--only", "polciy")


def test_a_stage_whose_inputs_are_not_made_is_refused_with_the_commands_that_make_them():
    message = refused("run", "rlhf-tiny", "--only", "policy")
    assert "preferences is not made; reader is not made" in message
    assert list(Path.cwd().iterdir()) == []


def test_an_unknown_recipe_is_refused_with_the_nearest():
    assert "did you mean r1-zero-tiny?" in refused("run", "r1-zero-tny")


def test_a_misspelt_key_is_refused_with_the_nearest():
    message = refused("run", "r1-zero-tiny", "--set", "rl.lerning_rate=1e-4")
    assert "rl.lerning_rate: unknown key; did you mean rl.lr?" in message
    assert "mend:" in message


def test_a_bad_value_is_refused_with_the_key_and_the_reason():
    assert "rl.group_size: must be at least 1, not 0" in refused("run", "r1-zero-tiny", "--set", "rl.group_size=0")


def test_a_missing_recipe_file_is_refused_with_its_path():
    assert "no/such.toml" in refused("run", "no/such.toml")


def test_a_report_of_what_is_no_run_is_refused():
    assert "summary.json" in refused("report", "nothing-here")


def test_a_bad_number_of_threads_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MELETE_THREADS", "many")
    assert "MELETE_THREADS is 'many'" in refused("run", "r1-zero-tiny", "--dry-run")


def test_a_misspelt_option_is_a_usage_error():
    result = melete("run", "r1-zero-tiny", "--dryrun")
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_the_installed_command_answers_with_status_2():
    command = [sys.executable, "-m", "melete.cli", "run", "r1-zero-tny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown recipe 'r1-zero-tny'")


def test_debug_shows_where_an_error_came_from():
    result = melete("run", "r1-zero-tny", "--debug")
    assert isinstance(result.exception, RecipeError)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ModelError("no weights"), 2),
        (OSError(28, "No space left on device", "runs/x"), 2),
        (PermissionError(13, "Permission denied", "runs"), 2),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("a bug"), 1),
    ],
)
def test_each_kind_of_error_has_its_status(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(typer.Exit) as stop, plain_errors(debug=False, continue_with="melete run mine"):
        raise error
    told = capsys.readouterr().err
    assert stop.value.exit_code == status
    assert "Traceback" not in told
    assert ("melete run mine" in told) == isinstance(error, KeyboardInterrupt)
    if isinstance(error, OSError):
        assert str(error.strerror) in told and str(error.filename) in told


@pytest.mark.parametrize(
    ("environment", "cores", "expected"),
    [
        ({}, 1, 1),
        ({}, 2, 2),
        ({}, 64, 4),
        ({"OMP_NUM_THREADS": "6"}, 2, 6),
        ({"MELETE_THREADS": "3", "OMP_NUM_THREADS": "6"}, 2, 3),
        ({"MELETE_THREADS": ""}, 2, 2),
    ],
)
def test_threads_are_few_unless_asked_for(environment: dict[str, str], cores: int, expected: int):
    assert num_threads(environment, cores) == expected


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "²", "many"])
def test_a_number_of_threads_is_a_whole_number_above_zero(text: str):
    with pytest.raises(RecipeError, match="MELETE_THREADS"):
        num_threads({"MELETE_THREADS": text}, 2)


def test_waiting_threads_sleep_and_a_users_choice_stays():
    environment = {"OMP_WAIT_POLICY": "ACTIVE", "MELETE_THREADS": "1"}
    prepare_threads(environment)
    assert (environment["OMP_WAIT_POLICY"], environment["OMP_NUM_THREADS"]) == ("ACTIVE", "1")
    fresh: dict[str, str] = {"MELETE_THREADS": "1"}
    prepare_threads(fresh)
    assert (fresh["OMP_WAIT_POLICY"], fresh["GOMP_SPINCOUNT"]) == ("PASSIVE", "1000")
    assert "GOMP_SPINCOUNT" not in environment  # whoever wants threads to spin has them spin
    chosen = {"GOMP_SPINCOUNT": "7"}
    prepare_threads(chosen)
    assert chosen["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize(
    ("vendor", "is_wide", "expected"),
    [("AuthenticAMD", True, "SkylakeX"), ("AuthenticAMD", False, None), ("GenuineIntel", True, None)],
)
def test_numpys_library_gets_the_wide_kernels_of_a_processor_that_it_may_not_know(
    vendor: str, is_wide: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    flags = "fpu avx512f avx512bw avx512cd avx512dq avx512vl" if is_wide else "fpu avx2 avx512f"
    monkeypatch.setattr(processor, "_facts", lambda: {"vendor_id": vendor, "flags": flags})
    fresh: dict[str, str] = {}
    prepare_threads(fresh)
    assert (fresh.get("OPENBLAS_CORETYPE"), fresh["OPENBLAS_NUM_THREADS"]) == (expected, "1")
    chosen = {"OPENBLAS_CORETYPE": "Zen", "OPENBLAS_NUM_THREADS": "2"}
    prepare_threads(chosen)
    assert (chosen["OPENBLAS_CORETYPE"], chosen["OPENBLAS_NUM_THREADS"]) == ("Zen", "2")


def test_a_small_model_has_one_thread_unless_the_user_says_otherwise():
    machine: dict[str, str] = {}
    prepare_threads(machine)
    prepare_threads(machine)  # a child process inherits what was set here, which is no choice of the user's
    assert (threads_for(10**6, 4, machine), threads_for(10**9, 4, machine)) == (1, 4)
    chosen = {"OMP_NUM_THREADS": "3"}
    prepare_threads(chosen)
    assert threads_for(10**6, 3, chosen) == 3


def test_tasks_are_listed_with_their_settings():
    done = melete("tasks", "ls")
    assert done.exit_code == 0
    for name in ("arithmetic_chain", "countdown", "verse", "min_terms=5"):
        assert name in done.output


def test_problems_are_shown_with_their_answers():
    done = melete("tasks", "show", "arithmetic_chain", "-n", "2", "--set", "min_terms=3", "--set", "max_terms=3")
    assert done.exit_code == 0 and done.output.count("right answer: ") == 2


def test_a_person_may_answer_and_sees_the_grade():
    task = make_task("arithmetic_chain", {})
    golds = [task.problem("held_out", index).gold for index in range(3)]
    typed = f"{golds[0]}\n<think>hm</think>{int(golds[1]) + 1}\n\n"
    done = CliRunner().invoke(app, ["tasks", "play", "arithmetic_chain"], input=typed)
    assert done.exit_code == 0
    assert f"a right answer is {golds[1]}" in done.output and "1 of 2" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tasks", "show", "arithmetic_chian"], "did you mean arithmetic_chain?"),
        (["tasks", "show", "arithmetic_chain", "--set", "min_terms"], "write --set KEY=VALUE"),
        (["tasks", "show", "arithmetic_chain", "--set", "min_term=3"], "min_terms"),
        (["tasks", "show", "arithmetic_chain", "--split", "test"], "no split is called 'test'"),
        (["audit", "nothing"], "no task is called 'nothing'"),
    ],
)
def test_a_task_that_cannot_be_shown_is_told(arguments: list[str], message: str):
    done = melete(*arguments)
    assert done.exit_code == 2 and message in done.output


def test_an_audit_of_sums_finds_nothing():
    done = melete("audit", "arithmetic_chain", "-n", "2")
    assert done.exit_code == 0, done.output
