"""Mixtures: shares met at every index, each problem graded by its own task, also one inside another."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.errors import RecipeError
from melete.rewards.rules import accuracy
from melete.tasks import make_task
from melete.tasks.arithmetic import ArithmeticChain
from melete.tasks.base import SPLITS, is_plain, step_labels_of
from melete.tasks.countdown import Countdown
from melete.tasks.mixture import Mixture, Part, make_mixture, schedule_of
from melete.tasks.verse import Verse
from melete.types import Completion, Problem, Rollout

WEIGHTS = st.lists(st.sampled_from([1, 2, 3, 5, 8, 0.5, 0.25, 10]), min_size=1, max_size=7).map(tuple)
TWO = Mixture((Part(ArithmeticChain(), 2), Part(Countdown(), 1)))
MIXED = Mixture((Part(ArithmeticChain()), Part(Verse())))


def rollout(problem: Problem, text: str) -> Rollout:
    return Rollout(problem, 0, (), Completion((), (), "stop", 0), text)


def test_a_schedule_by_hand() -> None:
    assert schedule_of((2, 1)) == (0, 1, 0)
    assert schedule_of((1, 1, 1)) == (0, 1, 2)
    assert schedule_of((3,)) == (0,)
    assert schedule_of((0.7, 0.3)) == schedule_of((7, 3)) and len(schedule_of((7, 3))) == 10


@given(WEIGHTS)
@settings(max_examples=100)
def test_every_prefix_is_within_one_of_every_share_and_a_cycle_is_exact(weights: tuple[float, ...]) -> None:
    turns = schedule_of(weights)
    counts = Counter[int]()
    for number, part in enumerate(turns, 1):
        counts[part] += 1
        for other, weight in enumerate(weights):
            assert abs(counts[other] - number * weight / sum(weights)) < 1
    assert all(abs(counts[part] / len(turns) - weight / sum(weights)) < 1e-12 for part, weight in enumerate(weights))


def test_each_part_gives_its_own_problems_one_after_another() -> None:
    for split in SPLITS:
        drawn = [TWO.problem(split, index) for index in range(30)]
        for name, task in (("arithmetic_chain", ArithmeticChain()), ("countdown", Countdown())):
            mine = [problem for problem in drawn if problem.task == name]
            whole = [task.problem(split, index) for index in range(len(mine))]
            assert [(p.messages, p.gold, p.meta) for p in mine] == [(p.messages, p.gold, p.meta) for p in whole]
        assert Counter(problem.task for problem in drawn) == {"arithmetic_chain": 20, "countdown": 10}
        assert len({problem.problem_id for problem in drawn}) == 30
        assert TWO.problem(split, 17) == drawn[17]  # whatever was drawn before


def test_grading_is_sent_to_the_problems_own_task() -> None:
    for index in range(12):
        problem = TWO.problem("train", index)
        assert TWO.grade(problem, problem.gold) == 1.0
        assert TWO.grade(problem, "no") == 0.0
    with pytest.raises(RecipeError, match="did you mean countdown"):
        TWO.grade(dataclasses.replace(TWO.problem("train", 1), task="countdwn"), "1")


def test_labels_tell_two_of_the_same_task_apart_and_are_asked_for() -> None:
    easy, hard = ArithmeticChain(2, 3), ArithmeticChain(7, 8)
    with pytest.raises(RecipeError, match="give each a label"):
        Mixture((Part(easy), Part(hard)))
    with pytest.raises(RecipeError, match="give each a label"):
        Mixture((Part(easy, label="a"), Part(hard, label="a/b")))
    mixture = Mixture((Part(easy, label="easy"), Part(hard, label="hard")))
    drawn = [mixture.problem("train", index) for index in range(10)]
    assert [problem.task for problem in drawn] == ["easy", "hard"] * 5
    assert len({problem.problem_id for problem in drawn}) == 10
    assert all(mixture.grade(problem, problem.gold) == 1.0 for problem in drawn)


def test_a_mixture_in_a_mixture_keeps_the_names_of_both() -> None:
    outer = Mixture((Part(TWO, label="numbers"), Part(Verse())), name="all")
    drawn = [outer.problem("held_out", index) for index in range(12)]
    assert {problem.task for problem in drawn} == {"numbers/arithmetic_chain", "numbers/countdown", "verse"}
    assert Counter(problem.task == "verse" for problem in drawn) == {True: 6, False: 6}
    assert all(outer.grade(problem, problem.gold) == 1.0 for problem in drawn)
    deeper = Mixture((Part(outer), Part(Countdown(seed=3))))
    problem = next(p for p in (deeper.problem("train", i) for i in range(9)) if p.task == "all/numbers/countdown")
    assert deeper.grade(problem, problem.gold) == 1.0


def test_steps_are_labelled_by_the_task_that_can() -> None:
    chain, countdown = TWO.problem("train", 0), TWO.problem("train", 1)
    text = f"<answer>{chain.gold}</answer>"
    assert step_labels_of(TWO, chain, text) == step_labels_of(ArithmeticChain(), chain, text)
    with pytest.raises(RecipeError, match="judges answers, not single steps"):
        step_labels_of(TWO, countdown, text)


def test_tagged_and_plain_answers_mix() -> None:
    assert is_plain(MIXED) and not is_plain(TWO) and is_plain(Mixture((Part(Verse()),)))
    reward = accuracy(MIXED.grade, reading="text" if is_plain(MIXED) else "tags")
    chain, verse = MIXED.problem("train", 0), MIXED.problem("train", 1)
    assert reward(rollout(chain, f"<think>so</think><answer>{chain.gold}</answer>")) == 1.0
    assert reward(rollout(chain, f"<think><answer>{chain.gold}</answer></think><answer>no</answer>")) == 0.0
    assert reward(rollout(chain, f"<answer>{chain.gold}</answer><answer>{chain.gold}</answer>")) == 0.0
    assert reward(rollout(chain, f"<answer>{chain.gold}")) == 0.0
    assert reward(rollout(chain, f"It is {chain.gold}, I think, or so")) == 0.0
    assert reward(rollout(verse, f"<think>so</think>{verse.gold}")) == 1.0
    assert all(MIXED.grade(problem, problem.gold) == 1.0 for problem in (chain, verse))


def test_a_recipes_table_becomes_a_mixture() -> None:
    entries = [
        {"task": "arithmetic_chain", "weight": 3, "settings": {"max_number": 9, "max_total": 30}},
        {"task": "countdown", "label": "search"},
    ]
    mixture = make_mixture({"tasks": entries}, make_task)
    assert [problem.task for problem in (mixture.problem("train", i) for i in range(4))].count("search") == 1
    assert mixture.parts[0].task == ArithmeticChain(max_number=9, max_total=30)


@pytest.mark.parametrize(
    ("given_settings", "hint"),
    [
        ({}, "list of tasks"),
        ({"tasks": []}, "list of tasks"),
        ({"tasks": "countdown"}, "list of tasks"),
        ({"tasks": ["countdown"]}, "names its task"),
        ({"tasks": [{"task": "countdwn"}]}, "did you mean countdown"),
        ({"tasks": [{"task": "countdown", "wieght": 1}]}, "did you mean weight"),
        ({"tasks": [{"task": "countdown", "weight": "1"}]}, "must be a number"),
        ({"tasks": [{"task": "countdown", "weight": True}]}, "must be a number"),
        ({"tasks": [{"task": "countdown", "weight": 0}]}, "positive"),
        ({"tasks": [{"task": "countdown", "weight": float("nan")}]}, "positive"),
        ({"tasks": [{"task": "countdown", "label": 3}]}, "must be text"),
        ({"tasks": [{"task": "countdown", "settings": {"num_number": 3}}]}, "did you mean num_numbers"),
        ({"tasks": [{"task": "countdown", "weight": 0.333333}, {"task": "verse", "weight": 0.7777777}]}, "round them"),
        ({"task": []}, "no setting 'task'"),
    ],
)
def test_what_cannot_be_is_refused(given_settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_mixture(given_settings, make_task)
    assert hint in str(caught.value)
