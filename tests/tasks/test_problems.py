"""Problems of the bundled tasks: right, repeatable, as hard as stated, and split for good."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.errors import DataError, RecipeError
from melete.tasks import TASKS, make_task
from melete.tasks.arithmetic import ArithmeticChain
from melete.tasks.base import SPLITS, check_gold, split_of
from melete.tasks.countdown import Countdown, evaluate_expression, puzzle_text
from melete.types import Problem

NAMES = st.sampled_from(sorted(TASKS))
SPLIT = st.sampled_from(SPLITS)
INDEX = st.integers(0, 10**9)
SEED = st.integers(0, 2**63 - 1)
LANGUAGE = st.sampled_from(("en", "es"))


@st.composite
def chain_tasks(draw: st.DrawFn) -> ArithmeticChain:
    shortest = draw(st.integers(4, 6))
    longest = draw(st.integers(shortest, 8))
    largest = draw(st.integers(max(longest, 6), 30))
    total = draw(st.integers(2 * largest, 3 * largest))
    return ArithmeticChain(shortest, longest, largest, total, draw(LANGUAGE), draw(SEED))


@st.composite
def countdown_tasks(draw: st.DrawFn) -> Countdown:
    count = draw(st.integers(3, 5))
    largest = draw(st.integers(9, 20))
    return Countdown(count, largest, draw(st.integers(largest, 60)), draw(LANGUAGE), draw(SEED))


@given(NAMES, SEED, LANGUAGE, SPLIT, INDEX)
def test_the_gold_answer_of_every_problem_scores_one(
    name: str, seed: int, language: str, split: Any, index: int
) -> None:
    task = make_task(name, {"seed": seed} | ({} if name in ("verse", "general") else {"language": language}))
    problem = task.problem(split, index)
    assert task.grade(problem, problem.gold) == 1.0
    assert problem.task == task.name == name
    assert [message.role for message in problem.messages] == ["user"]


@given(NAMES, SEED, SPLIT, INDEX)
def test_a_problem_is_a_function_of_settings_seed_split_and_index(name: str, seed: int, split: Any, index: int) -> None:
    task, again = make_task(name, {"seed": seed}), make_task(name, {"seed": seed})
    again.problem("train", index + 1)  # drawing others first changes nothing
    assert task.problem(split, index) == again.problem(split, index)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_indices_seeds_and_splits_have_ids_of_their_own(name: str) -> None:
    drawn = [make_task(name, {"seed": seed}).problem(s, i) for seed in (0, 1) for s in SPLITS for i in range(50)]
    assert len({problem.problem_id for problem in drawn}) == len(drawn)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_another_seed_draws_other_problems(name: str) -> None:
    asked = [{make_task(name, {"seed": seed}).problem("train", i).messages for i in range(30)} for seed in (0, 1)]
    assert len(asked[0] & asked[1]) < 15


def test_problems_are_the_same_in_another_process_with_another_hash_seed() -> None:
    program = (
        "import json; from melete.tasks import TASKS, make_task\n"
        "print(json.dumps([[p.problem_id, p.messages[0].content, p.gold, p.meta] for n in sorted(TASKS)"
        " for s in ('train', 'held_out') for i in range(40) for p in [make_task(n, {'seed': 7}).problem(s, i)]]))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    here = [
        [p.problem_id, p.messages[0].content, p.gold, p.meta]
        for n in sorted(TASKS)
        for s in SPLITS
        for i in range(40)
        for p in [make_task(n, {"seed": 7}).problem(s, i)]
    ]
    assert told[0] == told[1]
    assert json.loads(told[0]) == json.loads(json.dumps(here))


@given(chain_tasks(), SPLIT, INDEX)
def test_a_chain_is_as_hard_as_stated(task: ArithmeticChain, split: Any, index: int) -> None:
    problem = task.problem(split, index)
    expression = str(problem.meta["expression"])
    terms = [int(term) for term in re.findall(r"[+-]?\d+", expression)]
    totals = [sum(terms[: count + 1]) for count in range(len(terms))]
    assert task.min_terms <= len(terms) <= task.max_terms
    assert problem.meta["num_terms"] == len(terms)
    assert len({abs(term) for term in terms}) == len(terms)
    assert all(1 <= abs(term) <= task.max_number for term in terms)
    assert all(0 <= total <= task.max_total for total in totals)
    assert problem.gold == str(totals[-1])
    assert expression in problem.messages[0].content
    assert split_of(expression) == split


@given(countdown_tasks(), SPLIT, INDEX)
def test_a_countdown_puzzle_is_as_hard_as_stated(task: Countdown, split: Any, index: int) -> None:
    problem = task.problem(split, index)
    numbers, target = list(problem.meta["numbers"]), int(problem.meta["target"])
    assert len(set(numbers)) == len(numbers) == task.num_numbers
    assert all(1 <= number <= task.max_number for number in numbers)
    assert 1 <= target <= task.max_target
    assert evaluate_expression(problem.gold) == (target, sorted(numbers))
    asked = [int(number) for number in re.findall(r"\d+", problem.messages[0].content)]
    assert sorted(asked) == sorted([*numbers, target])
    assert split_of(puzzle_text(numbers, target)) == split


def canonical(problem: Problem) -> str:
    """What is asked, however it is put."""
    if "numbers" in problem.meta:
        return puzzle_text(problem.meta["numbers"], problem.meta["target"])
    return str(problem.meta.get("expression") or problem.messages[-1].content)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_no_training_problem_repeats_a_held_out_one(name: str) -> None:
    def asked(split: Any) -> set[str]:
        problems = (make_task(name, {"seed": seed}).problem(split, i) for seed in range(4) for i in range(500))
        return {canonical(problem) for problem in problems}

    assert not asked("train") & asked("held_out")


def test_a_tenth_of_all_problems_is_held_out() -> None:
    held_out = sum(split_of(f"{i}+{i * i}-7") == "held_out" for i in range(20_000))
    assert 0.09 < held_out / 20_000 < 0.11


def test_the_same_puzzle_in_another_order_is_in_the_same_split() -> None:
    assert puzzle_text([3, 5, 2], 16) == puzzle_text([2, 3, 5], 16)


def test_a_wrong_gold_answer_is_refused() -> None:
    task = make_task("arithmetic_chain", {})
    with pytest.raises(DataError, match="scores 0"):
        check_gold(task, Problem("x", "arithmetic_chain", task.problem("train", 0).messages, "1.5"))


@pytest.mark.parametrize(
    ("name", "given_settings", "hint"),
    [
        ("arithmetic_chian", {}, "did you mean arithmetic_chain"),
        ("poetry", {}, "known are"),
        ("arithmetic_chain", {"max_term": 6}, "did you mean max_terms"),
        ("countdown", {"num_number": 3}, "did you mean num_numbers"),
        ("countdown", {"name": "other"}, "no setting"),
        ("arithmetic_chain", {"max_terms": "6"}, "must be int"),
        ("arithmetic_chain", {"max_terms": 6.0}, "must be int"),
        ("arithmetic_chain", {"max_terms": True}, "must be int"),
        ("countdown", {"language": 3}, "must be str"),
        ("arithmetic_chain", {"min_terms": 7, "max_terms": 6}, "min"),
        ("arithmetic_chain", {"min_terms": 1}, "2 <= min"),
        ("arithmetic_chain", {"max_terms": 20}, "do not fit"),
        ("arithmetic_chain", {"max_total": 29}, "at least twice"),
        ("arithmetic_chain", {"language": "fr"}, "'en' or 'es'"),
        ("countdown", {"num_numbers": 1}, "from 2 to 6"),
        ("countdown", {"num_numbers": 7}, "from 2 to 6"),
        ("countdown", {"num_numbers": 3, "max_number": 2}, "do not fit"),
        ("countdown", {"max_target": 5}, "at least max_number"),
        ("countdown", {"language": "fr"}, "'en' or 'es'"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_nearest_that_can(
    name: str, given_settings: dict[str, Any], hint: str
) -> None:
    with pytest.raises(RecipeError) as refusal:
        make_task(name, given_settings)
    assert hint in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "too_few"),
    [
        ("arithmetic_chain", {"min_terms": 2, "max_terms": 2, "max_number": 2, "max_total": 4}),
        ("countdown", {"num_numbers": 2, "max_number": 2, "max_target": 2}),
    ],
)
def test_a_difficulty_that_leaves_a_split_empty_is_refused_and_does_not_hang(
    name: str, too_few: dict[str, int]
) -> None:
    with pytest.raises(RecipeError, match="leave no problem for the held_out split"):
        make_task(name, too_few)


@settings(max_examples=50)
@given(st.integers(2, 6), st.integers(0, 100), SEED)
def test_every_allowed_range_can_be_drawn_from(terms: int, spare: int, seed: int) -> None:
    largest = 15 + spare
    task = ArithmeticChain(terms, terms, largest, 2 * largest, "en", seed)
    assert task.problem("held_out", 0).meta["num_terms"] == terms
