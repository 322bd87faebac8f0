"""A real measurement, of a small model: it finds what it should and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from planning.plans import RL, recipe_of
from tiny_models import llama, tokenizer

from melete.models.load import save_model
from melete.models.tiny import CHAT_TEMPLATE
from melete.planning import Machine, make_plan
from melete.planning.graph import Text
from melete.planning.measure import NewModel, measure
from melete.tasks.base import Split
from melete.tasks.rows import GRADERS, RowReport, RowTask
from melete.types import Message, Problem

SUMS = Text("task", "arithmetic_chain", '{"min_terms": 3, "max_terms": 3}')


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    words = tokenizer()
    words.chat_template = CHAT_TEMPLATE
    save_model(llama(), words, folder)
    return folder


def test_a_measurement_finds_speed_and_lengths(model: Path):
    found = measure(model, {SUMS: 20, Text("written", "chains"): 0})
    speed, lengths = found.speed, found.lengths
    assert found.failed == {}
    assert speed.step > 0 and speed.token >= 0 and speed.load > 0
    assert speed.learn > speed.read > 0
    # forward and backward keep at least a few hidden states of each layer
    assert speed.activation_bytes > 4 * 2 * 32
    assert max(lengths[SUMS.key].completions) <= lengths[SUMS.key].cap <= 20
    assert lengths[SUMS.key].row_seconds > 0
    assert lengths["written chains {}"].upto(None)[0] > 20


def test_a_measurement_leaves_random_numbers_threads_and_files_as_they_were(model: Path):
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    measure(model, {SUMS: 8})
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert {file.name: file.read_bytes() for file in model.iterdir()} == files


def test_a_speed_that_is_known_is_not_measured_again(model: Path):
    known = measure(model, {}).speed
    assert measure(model, {SUMS: 8}, speed=known).speed == known


def test_the_optimizer_is_no_part_of_what_a_token_costs(model: Path, monkeypatch: pytest.MonkeyPatch):
    """Its step costs the same for the few tokens of a measurement as for the thousands of a run."""

    def busy(*_args: object, **_named: object) -> None:
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass

    plain = measure(model, {}).speed.learn
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "adam", busy)
    assert measure(model, {}).speed.learn < 3 * plain + 0.1 / 2048  # with the half second it were 0.5 / 2048 and more


def test_a_task_that_cannot_be_made_leaves_the_others(model: Path, tmp_path: Path):
    unknown, missing = Text("task", "no-such-task"), Text("file", str(tmp_path / "none.jsonl"))
    found = measure(model, {SUMS: 8, unknown: 8, missing: 0})
    assert SUMS.key in found.lengths
    assert set(found.failed) == {unknown.key, missing.key}


def test_a_benchmark_is_measured_by_what_it_holds_out(model: Path, monkeypatch: pytest.MonkeyPatch):
    problem = Problem("benchmark/0", "benchmark", (Message("user", "2+3?"),), "5")
    rows: dict[Split, tuple[Problem, ...]] = {"train": (), "held_out": (problem,)}
    benchmark = RowTask("benchmark", rows, GRADERS["exact"], RowReport(1, 0, 1, ()))
    monkeypatch.setattr("melete.planning.measure.make_task", lambda _name, _settings: benchmark)
    text = Text("task", "benchmark")
    found = measure(model, {text: 8})
    assert not found.failed and found.lengths[text.key].prompt > 0


def test_rows_of_a_file_are_as_long_as_their_texts(model: Path, tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "what"}], "chosen": "one two", "rejected": "one"}\n')
    found = measure(model, {Text("file", str(file)): 0}).lengths[f"file {file} {{}}"]
    assert found.prompt > 0 and len(found.completions) == 1


def test_a_model_that_is_not_there_yet_is_measured_by_its_shape():
    found = measure(NewModel("qwen3", 32, 2), {})
    assert 10**4 < found.num_parameters < 10**6
    assert found.speed.learn > 0


def test_a_plan_measures_once(model: Path, tmp_path: Path):
    recipe = recipe_of(RL | {"model": str(model), "max_new_tokens": 10})
    first, second = (
        make_plan(recipe, tmp_path, machine=Machine(None, None), measured_folder=tmp_path / "kept") for _ in range(2)
    )
    assert first.measured_seconds > 0 == second.measured_seconds
    assert first.seconds == second.seconds > 0


def test_a_plan_of_what_has_been_measured_loads_no_torch(model: Path, tmp_path: Path):
    """Only reinforcement learning asks the table of algorithms, which needs it."""
    stage = {"name": "pairs", "kind": "pairs", "model": str(model), "task": RL["task"], "max_new_tokens": 10}
    make_plan(recipe_of(stage), tmp_path, measured_folder=tmp_path / "kept")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from melete.planning import make_plan\nfrom melete.schema import Recipe\n"
        f"recipe = Recipe.model_validate({{'name': 'plan', 'stage': [{stage!r}]}})\n"
        f"plan = make_plan(recipe, Path({str(tmp_path)!r}), measured_folder=Path({str(tmp_path / 'kept')!r}))\n"
        "assert plan.seconds > 0, plan.text()\nprint(*({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
