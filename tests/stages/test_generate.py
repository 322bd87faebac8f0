"""The stage that samples and keeps everything: what is asked, what is kept, and going on after a cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from melete.config import parse_recipe
from melete.datasets.files import read_rows
from melete.datasets.prompts import read_prompts
from melete.errors import DataError, RecipeError
from melete.pipeline import run_quietly
from melete.planning.graph import Graph, NotEstimated
from melete.planning.kinds import work_of
from melete.stages import generate
from melete.stages.context import Interrupted
from melete.types import Demonstration, Message

CHAIN = {"name": "arithmetic_chain", "min_terms": 2, "max_terms": 3}


def recipe(**settings: Any) -> Any:
    stage = {"name": "said", "kind": "generate", "max_new_tokens": 6, **settings}
    return parse_recipe({"name": "mine", "stage": [stage]})


def written(path: Path, **settings: Any) -> list[dict[str, Any]]:
    run_quietly(recipe(**settings), path)
    return [json.loads(line) for line in (path / "data" / "said.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_sample_is_kept_with_its_grade_and_can_be_learnt_from(tmp_path: Path):
    rows = written(tmp_path / "run", task=CHAIN, num_prompts=3, samples_per_prompt=2)
    assert [row["row_id"].rpartition("/")[2] for row in rows] == ["0", "1"] * 3
    assert len({row["messages"][0]["content"] for row in rows}) == 3
    assert all(row["score"] in (0.0, 1.0) and row["gold"] and row["num_tokens"] <= 6 for row in rows)
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    demonstrations = read_rows(tmp_path / "run" / "data" / "said.jsonl", Demonstration)
    assert [row.completion for row in demonstrations] == [row["completion"] for row in rows]


def test_what_is_said_does_not_depend_on_the_batch(tmp_path: Path):
    together = written(tmp_path / "a", task=CHAIN, num_prompts=4, samples_per_prompt=2)
    alone = written(tmp_path / "b", task=CHAIN, num_prompts=4, samples_per_prompt=2, max_rows=1)
    assert [row["completion"] for row in together] == [row["completion"] for row in alone]


def test_a_stage_that_was_cut_off_goes_on_and_ends_in_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings: Any = {"task": CHAIN, "num_prompts": 4, "samples_per_prompt": 2, "max_rows": 2}
    whole = written(tmp_path / "whole", **settings)
    append, batches = generate._append, list[int]()

    def cut(path: Path, rows: Any) -> None:
        append(path, rows)
        batches.append(len(rows))
        if len(batches) == 2:
            with path.open("a", encoding="utf-8") as file:
                file.write('{"row_id": "half a r')
            raise Interrupted

    monkeypatch.setattr(generate, "_append", cut)
    with pytest.raises(Interrupted):
        written(tmp_path / "cut", **settings)
    assert not (tmp_path / "cut" / "data" / "said.jsonl").exists()
    assert written(tmp_path / "cut", **settings) == whole
    assert batches == [2, 2, 2, 2]
    assert not (tmp_path / "cut" / "checkpoints" / "said").exists()


def test_held_out_problems_are_those_of_evaluations(tmp_path: Path):
    rows = written(tmp_path / "run", task=CHAIN, num_prompts=2, split="held_out")
    assert all("/held_out/" in row["row_id"] for row in rows)


def test_a_system_turn_is_put_before_each_prompt(tmp_path: Path):
    (row,) = written(tmp_path / "run", prompts=["What is 1+1?"], system="Be short.")
    assert [turn["role"] for turn in row["messages"]] == ["system", "user"]
    assert "score" not in row


def test_prompts_of_a_file_are_asked_without_what_is_answered_there(tmp_path: Path):
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    lines = [{"prompt": "1+1?", "completion": "2"}, {"messages": turns}, {"question": "3+3?"}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [prompt[-1] for prompt in read_prompts(tmp_path / "asked.jsonl")] == [
        Message("user", text) for text in ("1+1?", "2+2?", "3+3?")
    ]
    rows = written(tmp_path / "run", data=str(tmp_path / "asked.jsonl"), num_prompts=2)
    assert [row["row_id"] for row in rows] == ["said/0/0", "said/1/0"]
    (tmp_path / "asked.txt").write_text("one\n\n two \n")
    assert [prompt[0].content for prompt in read_prompts(tmp_path / "asked.txt")] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"answer": "2"}\n', "no column for the prompt"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}\n', "the user says nothing"),
        ("a.txt", " \n", "there is no prompt"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "prompts: is missing: name prompts, data or a task"),
        ({"prompts": ["a"], "task": CHAIN}, "task: and prompts both say what is asked"),
        ({"prompts": ["a"], "split": "held_out"}, "split: belongs to a task"),
        ({"prompts": ["a"], "temperature": 0.0, "samples_per_prompt": 2}, "use 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        recipe(**settings)


def test_the_plan_counts_what_a_task_asks_and_says_what_it_does_not_know():
    stage = recipe(task=CHAIN, samples_per_prompt=3, max_rows=30).stages[0]
    (writing,) = work_of(stage, Graph([stage])).writings
    assert (writing.num_rows, writing.num_calls, writing.siblings) == (30, 10, 3)
    own = recipe(prompts=["a"]).stages[0]
    with pytest.raises(NotEstimated, match="prompts of your own"):
        work_of(own, Graph([own]))
