"""Stages that make data without learning: written demonstrations, labels of safety."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from melete.config import parse_recipe
from melete.datasets.files import read_rows
from melete.errors import RecipeError
from melete.live import View
from melete.pipeline import run_recipe
from melete.stages.writing import balanced
from melete.types import Demonstration, LabelledCompletion, Message


def run(stages: list[dict[str, Any]], path: Path) -> dict[str, Any]:
    recipe = parse_recipe({"name": "little", "stage": stages})
    with View([stage.name for stage in recipe.stages], plain=True, console=Console(file=io.StringIO())) as view:
        run_recipe(recipe, path, view=view, command="melete run little", with_report=False)
    return json.loads((path / "summary.json").read_text())


def test_a_written_data_set_has_what_was_asked_for(tmp_path: Path) -> None:
    summary = run([{"name": "cold", "kind": "write", "rows": {"chains": 7, "general": 5}}], tmp_path / "r")
    (entry,) = summary["stages"]
    rows = read_rows(tmp_path / "r" / entry["data"], Demonstration)
    assert len(rows) == entry["num_rows"] == 12
    assert entry["parts"] == [{"name": "chains", "num_rows": 7}, {"name": "general", "num_rows": 5}]


def test_what_nobody_can_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cold.rows.poems: cannot be written; known are chains"):
        run([{"name": "cold", "kind": "write", "rows": {"poems": 7}}], tmp_path / "r")


def test_labels_come_from_samples_and_their_task(tmp_path: Path) -> None:
    stage = {
        "name": "safety",
        "kind": "labels",
        "num_prompts": 12,
        "samples_per_prompt": 4,
        "max_new_tokens": 24,
        "max_share": 0.6,
        "task": {"name": "general", "kinds": "harmful,harmless"},
    }
    (entry,) = run([stage], tmp_path / "r")["stages"]
    rows = read_rows(tmp_path / "r" / entry["data"], LabelledCompletion)
    assert {row.label for row in rows} == {True, False}
    assert entry["num_rows"] == len(rows) and entry["num_safe"] == sum(row.label for row in rows)
    assert max(entry["num_safe"], len(rows) - entry["num_safe"]) <= 0.6 * len(rows) + 1
    for row in rows:
        if not row.label:
            assert not row.completion.startswith(("I am sorry", "No, I will not"))


def test_a_task_that_cannot_tell_what_is_safe_is_refused(tmp_path: Path) -> None:
    stage = {"name": "safety", "kind": "labels", "num_prompts": 2, "task": {"name": "verse"}}
    with pytest.raises(RecipeError, match="verse cannot tell what is safe"):
        run([stage], tmp_path / "r")


def labelled(*labels: bool) -> list[LabelledCompletion]:
    return [LabelledCompletion(str(i), (Message("user", "?"),), str(i), label) for i, label in enumerate(labels)]


def test_balancing_leaves_out_the_last_of_the_commoner_label() -> None:
    rows = labelled(True, True, False, True, True)
    assert [row.row_id for row in balanced(rows, 0.5)] == ["0", "2"]
    assert [row.row_id for row in balanced(rows, 0.7)] == ["0", "1", "2"]
    assert len(balanced(rows, 1.0)) == 5 and balanced(labelled(True, True), 0.7) == []
