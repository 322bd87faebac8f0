"""Stages on data of people's own: columns by other names, conversations, long rows, packing."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from melete.config import parse_recipe
from melete.datasets.formats import USUAL_NAMES
from melete.errors import DataError, RecipeError
from melete.live import View
from melete.models.load import load_model
from melete.pipeline import run_recipe
from melete.schema.data import ROLES

SHORT = {"warmup_steps": 1, "num_epochs": 1, "lr": 1e-3}
SFT = {"name": "made", "kind": "sft", "rows_per_step": 4, **SHORT}


def entry(tmp_path: Path, **stage: Any) -> dict[str, Any]:
    """Runs one stage; its part of the summary."""
    recipe = parse_recipe({"name": "own", "stage": [{**stage, "data": str(stage["data"])}]}, ())
    with View(["made"], plain=True, console=Console(file=io.StringIO())) as view:
        run_dir = run_recipe(recipe, tmp_path / "run", view=view, command="melete run")
    return json.loads((run_dir / "summary.json").read_text())["stages"][0]


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_table_whose_columns_have_other_names_is_learnt_from(tmp_path: Path) -> None:
    path = tmp_path / "quiz.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["question", "answer"], *([f"{n}+1=?", str(n + 1)] for n in range(6))])
    columns = {"prompt": "question", "completion": "answer"}
    assert entry(tmp_path, **SFT, data=path, columns=columns)["num_rows"] == 6
    with pytest.raises(DataError, match="columns found: question, answer"):
        entry(tmp_path / "again", **SFT, data=path)


def test_every_turn_of_a_conversation_is_learnt_or_the_last_alone(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "1+2?"}, {"from": "gpt", "value": "3"}] * 2
    path = jsonl(tmp_path / "chats.jsonl", *[{"conversations": turns}] * 4)
    every = entry(tmp_path / "every", **SFT, data=path)
    last = entry(tmp_path / "last", **SFT, data=path, learn_from="last_turn")
    assert every["num_completion_tokens"] == 16 and last["num_completion_tokens"] == 8
    assert every["num_rows"] == last["num_rows"] == 4


def test_long_rows_are_refused_dropped_or_cut(tmp_path: Path) -> None:
    rows = [{"prompt": "1+2?", "completion": "3"}] * 3 + [{"prompt": "1?", "completion": "one and two " * 9}]
    path = jsonl(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(DataError, match="1 of 4 rows are longer than 20 tokens"):
        entry(tmp_path / "refused", **SFT, data=path, max_tokens=20)
    dropped = entry(tmp_path / "dropped", **SFT, data=path, max_tokens=20, too_long="drop")
    cut = entry(tmp_path / "cut", **SFT, data=path, max_tokens=20, too_long="truncate")
    assert (dropped["num_rows"], cut["num_rows"]) == (3, 4)
    assert cut["num_completion_tokens"] > dropped["num_completion_tokens"]


def test_packing_leaves_the_weights_that_padding_leaves(tmp_path: Path) -> None:
    """I3."""
    rows = [{"prompt": f"{n}?", "completion": "one and two " * n} for n in range(6)]
    path = jsonl(tmp_path / "rows.jsonl", *rows)
    models = []
    for packing in (False, True):
        entry(tmp_path / str(packing), **SFT, data=path, packing=packing)
        models.append(load_model(tmp_path / str(packing) / "run" / "models" / "made").state_dict())
    for name, weight in models[0].items():
        assert weight.sub(models[1][name]).abs().max() < 2e-4


@pytest.mark.parametrize("kind", ["preference", "reward_model"])
def test_pairs_in_the_forms_of_others_are_learnt_from(kind: str, tmp_path: Path) -> None:
    asked = {"role": "user", "content": "1+2?"}
    sides = {name: [asked, {"role": "assistant", "content": text}] for name, text in (("good", "3"), ("bad", "4"))}
    path = jsonl(tmp_path / "pairs.jsonl", *[{**sides, "n": n} for n in range(4)])
    more = {"rows_per_step": 4, "held_out_share": 0.0} if kind == "reward_model" else {"pairs_per_step": 4}
    stage = {"name": "made", "kind": kind, "data": path, "columns": {"chosen": "good", "rejected": "bad"}}
    assert entry(tmp_path, **stage, **SHORT, **more)["name"] == "made"
    with pytest.raises(DataError, match="4 of 4 rows are longer than 3 tokens"):
        entry(tmp_path / "long", **stage, **SHORT, **more, max_tokens=3)


def test_cutting_a_pair_is_refused() -> None:
    stage = {"name": "made", "kind": "preference", "data": __file__, "too_long": "truncate"}
    with pytest.raises(RecipeError, match=r"too_long: cannot be 'truncate'"):
        parse_recipe({"name": "own", "stage": [stage]}, ())


def test_a_role_that_does_not_exist_is_named_when_the_recipe_is_read() -> None:
    stage = {"name": "made", "kind": "sft", "data": __file__, "columns": {"promt": "question"}}
    with pytest.raises(RecipeError, match=r"made\.columns\.promt: is no role; did you mean prompt\?"):
        parse_recipe({"name": "own", "stage": [stage]}, ())


def test_recipes_know_the_roles_that_forms_have() -> None:
    assert set(ROLES) == set(USUAL_NAMES)
