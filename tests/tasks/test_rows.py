"""Problems out of files: read exactly, proven one by one, split by what is asked, judged without running anything."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.errors import DataError, RecipeError
from melete.rewards.errors import GradingError
from melete.tasks.base import SPLITS, split_of
from melete.tasks.curation import normal_text
from melete.tasks.rows import GRADERS, RowTask, make_rows
from melete.types import Message, Problem

SUMS = [{"id": f"s{a}-{b}", "question": f"What is {a}+{b}?", "answer": a + b} for a in range(20) for b in range(20)]
HOSTILE = (
    "__import__('os').system('touch {path}')",
    "{{{{7*7}}}}",
    "\\input{{{path}}}",
    "$(touch {path})",
    "'; import os; os.system('touch {path}') #",
    "{{0.__class__}}",
    "\x00\x1b[2J",
    "((((" * 5000,
    "9" * 19_999,
    "9**9**9**9",
    "a " * 9_000,
    "\\frac" * 4_000,
    "<answer>" * 2_000,
)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def task_of(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> RowTask:
    return make_rows({"path": write(tmp_path / "rows.jsonl", rows), **options})


def graded(grader: str, gold: str, answer: str, **meta: Any) -> float:
    return GRADERS[grader](Problem("p", "rows", (), gold, meta), answer)


def test_rows_become_problems_of_two_splits(tmp_path: Path) -> None:
    task = task_of(tmp_path, SUMS, grader="integer", near_duplicates=0)
    assert task.report.num_rows == 400 == task.report.num_train + task.report.num_held_out
    assert 20 < task.report.num_held_out < 70 and task.report.dropped == ()
    for split in SPLITS:
        problems = [task.problem(split, index) for index in range(len(task.rows[split]))]
        assert {split_of(normal_text(problem.messages[0].content)) for problem in problems} == {split}
        assert all(task.grade(problem, problem.gold) == 1.0 for problem in problems)
        assert len({problem.meta["row"] for problem in problems}) == len(problems)  # each once
    problem = task.problem("train", 0)
    assert problem.task == task.name == "rows" and problem.problem_id == "rows/train/0/0"
    assert problem.meta["place"].startswith(f"{tmp_path / 'rows.jsonl'}, line ")


def test_an_index_is_a_function_of_the_seed_and_runs_through_all_rows_again(tmp_path: Path) -> None:
    task, again = (task_of(tmp_path, SUMS, grader="integer") for _ in range(2))
    other = task_of(tmp_path, SUMS, grader="integer", seed=1)
    count = len(task.rows["train"])

    def run(one: RowTask, epoch: int) -> list[str]:
        return [one.problem("train", epoch * count + index).meta["row"] for index in range(count)]

    assert run(again, 1) == run(task, 1) and sorted(run(task, 0)) == sorted(run(task, 1))
    assert run(task, 0) != run(task, 1) and run(task, 0) != run(other, 0)
    assert task.problem("train", 3).problem_id != task.problem("train", 3 + count).problem_id


def test_rows_whose_gold_answer_is_none_are_listed_and_not_trained_on(tmp_path: Path) -> None:
    rows = [
        *SUMS[:50],
        {"id": "word", "question": "?", "answer": "seven"},
        {"id": "none", "question": "!", "answer": ""},
    ]
    task = task_of(tmp_path, rows, grader="integer")
    assert task.report.counts() == {"gold not proven": 2}
    assert [(row.item.meta["row"], row.kind) for row in task.report.dropped] == [
        ("word", "gold not proven"),
        ("none", "gold not proven"),
    ]
    assert "'seven' scores 0" in task.report.dropped[0].reason and "empty" in task.report.dropped[1].reason
    assert "dropped word (gold not proven)" in str(task.report) and str(task.report).startswith("52 rows")
    assert not {"word", "none"} & {row.meta["row"] for split in SPLITS for row in task.rows[split]}


def test_a_file_of_held_out_rows_is_never_trained_on_in_any_wording(tmp_path: Path) -> None:
    long = (
        "A farmer has seven red hens in the barn and sells two of them on the market in town; how many are left to him"
    )
    train = [
        {"question": "what is  3+5?", "answer": 8},
        {"question": "What is 3-5?", "answer": -2},
        {"question": long.replace("red", "old"), "answer": 5},
        {"question": f"Tell me this: {long.upper()}, and why? {' '.join('abcdefghij')}", "answer": 5},
        {"question": "Where?", "answer": 1},
    ]
    held_out = write(
        tmp_path / "held.jsonl", [{"question": "What is 3+5?", "answer": 8}, {"question": long, "answer": 5}]
    )
    task = task_of(tmp_path, train, held_out=held_out, grader="integer", near_duplicates=0.6)
    assert [row.meta["row"] for row in task.rows["train"]] == ["2", "4", "5"]
    assert task.report.counts() == {"exact duplicate of held-out": 1, "near duplicate of held-out": 1}
    task = task_of(tmp_path, train, held_out=held_out, grader="integer", near_duplicates=0.6, ngram=10)
    assert [row.meta["row"] for row in task.rows["train"]] == ["2", "5"]
    assert task.report.counts()["contaminated"] == 1
    assert task.report.num_held_out == 2
    task = task_of(tmp_path, train, held_out=held_out, grader="integer", near_duplicates=0)
    assert task.report.counts() == {"exact duplicate of held-out": 1}


def test_columns_are_mapped_and_turns_are_kept(tmp_path: Path) -> None:
    row = {"Problem": "1+1?", "Solution": "2", "Rules": "be brief", "nr": 7, "info": {"level": 3}}
    columns = {"question": "Problem", "answer": "Solution", "system": "Rules", "id": "nr", "meta": "info"}
    task = task_of(tmp_path, [row], columns=columns, held_out=write(tmp_path / "h.jsonl", [row | {"Problem": "2+0?"}]))
    problem = task.problem("train", 0)
    assert problem.messages == (Message("system", "be brief"), Message("user", "1+1?"))
    assert problem.gold == "2" and problem.meta["row"] == "7" and problem.meta["level"] == 3
    turns = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "+1?"},
    ]
    held_out = write(tmp_path / "h2.jsonl", [{"prompt": "0?", "gold": 0}])
    task = task_of(tmp_path, [{"messages": turns, "gold": 3}], system="be kind", held_out=held_out)
    assert [message.role for message in task.problem("train", 0).messages] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("row", "place", "reason"),
    [
        ({"qestion": "?", "answer": 1}, "", "did you mean qestion?"),
        ({"question": "?", "anser": 1}, "", "did you mean anser?"),
        ({"question": 3, "answer": 1}, ", column question", "must be text, not 3"),
        ({"question": "?", "answer": [1]}, ", column answer", "must be text, not [1]"),
        ({"question": "?", "answer": True}, ", column answer", "must be text, not True"),
        ({"messages": [{"role": "user"}], "answer": "1"}, ", column messages", "is no message"),
        ({"messages": [{"role": "assistant", "content": "2"}], "answer": "1"}, ", column messages", "the last turn"),
        ({"question": "?", "answer": 1, "meta": "x"}, ", column meta", "must be an object"),
        ({"question": "?", "answer": 1, "system": 3}, ", column system", "must be text"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(row: dict[str, Any], place: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        task_of(tmp_path, [SUMS[0], row])
    assert caught.value.place == f"{tmp_path / 'rows.jsonl'}, line 2{place}"
    assert reason in caught.value.what


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"grader": "maths"}, "did you mean math"),
        ({"grder": "math"}, "did you mean grader"),
        ({"grader": 3}, "must be str"),
        ({"columns": {"qestion": "x"}}, "did you mean question"),
        ({"columns": {"question": 3}}, "name of a column"),
        ({"columns": "x"}, "must be a table"),
        ({"near_duplicates": 2}, "0 to 1"),
        ({"ngram": -1}, "0 (off)"),
        ({"path": ""}, "needs a path"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], hint: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        task_of(tmp_path, SUMS, **options)
    assert hint in str(caught.value)


def test_a_split_without_rows_says_why(tmp_path: Path) -> None:
    task = task_of(tmp_path, SUMS[:3], held_out=str(tmp_path / "rows.jsonl"))
    assert task.problem("held_out", 0)
    with pytest.raises(RecipeError, match=r"no rows for the train split \(dropped: 3 exact duplicate of held-out\)"):
        task.problem("train", 0)


@pytest.mark.parametrize(
    ("grader", "gold", "right", "wrong"),
    [
        ("exact", "New York", ["new  york.", "ＮEW YORK\n"], ["York", "New York City", ""]),
        ("integer", "1234", ["1,234", " 1234. ", "$1234", "+1234"], ["1234.5", "1234 or 5", "", "12 34", "4"]),
        (
            "choice",
            "B",
            ["B", "(b)", "B.", "B) blue", "Blue", "[B]", "(B) blue."],
            ["A", "(A)", "B. red", "A B", "AB", ""],
        ),
    ],
)
def test_graders_by_name(grader: str, gold: str, right: list[str], wrong: list[str]) -> None:
    meta = {"options": ["red", "blue"]}
    assert [graded(grader, gold, answer, **meta) for answer in right] == [1.0] * len(right)
    assert [graded(grader, gold, answer, **meta) for answer in wrong] == [0.0] * len(wrong)


def test_a_letter_means_a_letter_even_where_it_is_the_text_of_another_option() -> None:
    options = ["x", "y", "a"]
    assert [graded("choice", "C", answer, options=options) for answer in ("C", "a", "A", "C. a")] == [
        1.0,
        0.0,
        0.0,
        1.0,
    ]
    assert [graded("choice", "A", answer, options=options) for answer in ("a", "x", "C", "A. a")] == [
        1.0,
        1.0,
        0.0,
        0.0,
    ]


def test_mathematics_and_programs_are_graded_by_their_rewards(tmp_path: Path) -> None:
    assert graded("math", "1/2", "0.5") == 1.0 and graded("math", "1/2", "0.51") == 0.0
    tests = {"kind": "asserts", "asserts": ["assert f(2) == 4"]}
    row = {"question": "Double it.", "answer": "def f(x): return 2 * x", "tests": tests}
    wrong = {"question": "Halve it.", "answer": "def f(x): return x", "tests": tests}
    none = {"question": "Do it.", "answer": "def f(x): return x"}
    held_out = write(tmp_path / "held.jsonl", [row])
    task = task_of(tmp_path, [row | {"question": "Twice it."}, wrong, none], grader="code", held_out=held_out)
    assert task.report.num_train == 1 and task.report.counts() == {"gold not proven": 2}
    assert "cannot be read" in task.report.dropped[1].reason
    problem = task.problem("train", 0)
    assert task.grade(problem, "Here:\n```python\ndef f(x):\n    return x + x\n```") == 1.0
    assert task.grade(problem, "def f(x): return 5") == 0.0
    with pytest.raises(GradingError):
        task.grade(Problem("p", "rows", (), ""), "def f(x): return 5")


@pytest.mark.parametrize("grader", ["exact", "integer", "choice"])
@given(st.text(max_size=60))
@settings(max_examples=40)
def test_any_text_gets_a_score(grader: str, text: str) -> None:
    assert graded(grader, "B" if grader == "choice" else "3", text, options=["x", "y"]) in (0.0, 1.0)


def test_hostile_text_in_any_field_neither_runs_nor_hangs(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    texts = [text.replace("{path}", str(touched)).replace("{{", "{").replace("}}", "}") for text in HOSTILE]
    rows = [{"id": text, "question": text, "answer": text, "system": text, "meta": {text: text}} for text in texts]
    begin = time.process_time()
    for grader in ("exact", "integer", "math"):
        task = task_of(tmp_path, rows, grader=grader)
        assert len(task.report.dropped) + task.report.num_train + task.report.num_held_out == len(rows)
        problem = Problem("p", "rows", (), "7", {})
        for text in texts:
            try:
                assert task.grade(problem, text) == 0.0
            except GradingError:
                assert grader == "math"
    assert not touched.exists()
    assert time.process_time() - begin < 20
    assert [graded("choice", "A", text, options=["x", "y"]) for text in texts] == [0.0] * len(texts)
