"""The flat loops run, learn, and stay flat."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

LOOPS = Path(__file__).parents[1] / "examples" / "flat_loops"
CHOSEN_AND_REJECTED = re.compile(r"chosen +(-?[\d.]+)  rejected +(-?[\d.]+)")
every_loop = pytest.mark.parametrize("name", sorted(path.stem for path in LOOPS.glob("*.py")))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"flat_{name}", LOOPS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_in_the_grpo_loop_the_reward_rises() -> None:
    curve = load("grpo").train(25)
    assert curve[0] < 0.2
    assert sum(curve[-5:]) / 5 > 0.8


def test_in_the_sft_loop_the_loss_falls() -> None:
    curve = load("sft").train(40)
    assert curve[-1] < curve[0] / 3


def test_in_the_dpo_loop_the_loss_falls_and_the_gap_grows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    curve = load("dpo").train(12, num_prompts=64)
    assert curve[0] == pytest.approx(math.log(2), abs=1e-3), "policy and reference are still one"
    assert sum(curve[-3:]) / 3 < 0.65
    gaps = [
        float(chosen) - float(rejected) for chosen, rejected in CHOSEN_AND_REJECTED.findall(capsys.readouterr().out)
    ]
    assert gaps[-1] > gaps[0] + 1


def test_the_ppo_loop_runs_and_prints_reward_and_explained_variance(capsys: pytest.CaptureFixture[str]) -> None:
    curve = load("ppo").train(2, prompts_per_step=32)
    assert all(0 <= reward <= 1 for reward in curve)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert all("reward" in line and "explained variance" in line for line in printed)
    assert "kl 0.000" in printed[0], "policy and reference are still one"


@pytest.mark.slow
def test_in_the_ppo_loop_the_reward_rises() -> None:
    curve = load("ppo").train(13)
    assert sum(curve[-3:]) / 3 > sum(curve[:3]) / 3 + 0.2


def test_the_same_seed_gives_the_same_curve() -> None:
    assert load("grpo").train(3, seed=7) == load("grpo").train(3, seed=7)


@every_loop
def test_a_flat_loop_is_short_and_of_melete_imports_only_functional(name: str) -> None:
    text = (LOOPS / f"{name}.py").read_text()
    assert len(text.splitlines()) < 200
    imported: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert all(module.startswith("melete.functional") for module in imported if module.startswith("melete"))
    libraries = {module.partition(".")[0] for module in imported} - set(sys.stdlib_module_names)
    assert libraries <= {"melete", "torch", "transformers"}


@every_loop
def test_the_examples_of_the_loops_are_true(name: str) -> None:
    found = doctest.testmod(load(name))
    assert found.attempted > 0
    assert found.failed == 0
