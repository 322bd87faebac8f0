"""What CONTRIBUTING.md says of adding an algorithm is done here: from outside the package, on the bundled model."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from test_docs import ROOT, blocks

from melete.algorithms import resolve
from melete.algorithms.preference import resolve_preference
from melete.config import parse_recipe
from melete.pipeline import run_quietly

STEPS = {"lr": 1e-4, "num_steps": 2, "warmup_steps": 0, "max_new_tokens": 16, "model": "tiny"}
STEPS |= {"evaluation": {"at": [], "num_problems": 1, "num_samples": 1}}


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module that the page writes, where Python finds it and under its name."""
    code = next(code for _, _, code in blocks(ROOT / "CONTRIBUTING.md") if "mylosses.py" in code)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mylosses", raising=False)
    return "mylosses"


def metrics_of(stage: dict[str, Any], run_dir: Path) -> list[dict[str, Any]]:
    recipe = parse_recipe({"name": "outside", "description": "A loss of one's own.", "stage": [stage]})
    run_quietly(recipe, run_dir)
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("attribute", ["unclipped", "unclipped_row"])
def test_a_policy_loss_and_a_row_from_outside_train(own_module: str, attribute: str, tmp_path: Path) -> None:
    path = f"{own_module}:{attribute}"
    assert resolve(path).loss.__name__ == "unclipped"
    stage = STEPS | {"name": "rl", "kind": "rl", "algorithm": path, "algorithm_settings": {"kl_coef": 0.01}}
    stage |= {"task": {"name": "arithmetic_chain"}, "prompts_per_step": 4, "group_size": 4}
    logged = metrics_of(stage, tmp_path / "run")
    assert [row["step"] for row in logged if "grad_norm" in row] == [0, 1]


@pytest.mark.parametrize("attribute", ["gap", "gap_row"])
def test_a_preference_loss_and_a_row_from_outside_train(own_module: str, attribute: str, tmp_path: Path) -> None:
    path = f"{own_module}:{attribute}"
    assert not resolve_preference(path).needs_reference
    stage = STEPS | {"name": "policy", "kind": "preference", "algorithm": path, "task": {"name": "verse"}}
    logged = metrics_of(stage | {"pairs_per_step": 4}, tmp_path / "run")
    assert [row["step"] for row in logged if "grad_norm" in row] == [0, 1]


def test_the_page_shows_the_four_hunks_in_files_that_exist_and_have_their_place() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    places = re.findall(r"^ # ([\w/.]+\.py)(?:, in (\w+))?$", diff, re.MULTILINE)
    assert len(places) == 4
    for file, table in places:
        assert f"{table}: Mapping" in (ROOT / file).read_text() if table else (ROOT / file).exists()
