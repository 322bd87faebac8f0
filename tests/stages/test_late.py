"""RL for all scenarios: other problems join in the last part of a stage, each with rewards of its own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from melete.config import parse_recipe
from melete.errors import RecipeError
from melete.schema import RLStage
from melete.stages.rl import stage_task, step_problems
from melete.tasks.mixture import Mixture


def stage(**late: Any) -> RLStage:
    tables = {
        "name": "r1",
        "kind": "rl",
        "num_steps": 8,
        "prompts_per_step": 8,
        "warmup_steps": 0,
        "task": {"name": "arithmetic_chain"},
        "late": {"task": {"name": "general", "kinds": "fact"}, **late},
    }
    found = parse_recipe({"name": "little", "stage": [tables]}).stages[0]
    assert isinstance(found, RLStage)
    return found


def test_late_problems_come_from_their_start_on_in_their_share() -> None:
    late = stage(start=0.75, share=0.25)
    task = stage_task(late)
    seen = [Counter(problem.task for problem in step_problems(late, task, 0, step, 0)) for step in range(8)]
    assert seen[:6] == [{"main": 8}] * 6
    assert seen[6:] == [{"main": 6, "late": 2}] * 2


def test_no_problem_comes_twice_in_a_stage() -> None:
    late = stage(start=0.0, share=0.5)
    task = stage_task(late)
    ids = [problem.problem_id for step in range(8) for problem in step_problems(late, task, 1, step, 0)]
    assert len(set(ids)) == len(ids) == 64


def test_each_problem_is_graded_by_its_own_task() -> None:
    late = stage(start=0.0)
    task = stage_task(late)
    assert isinstance(task, Mixture)
    problems = step_problems(late, task, 0, 0, 0)
    assert {problem.task for problem in problems} == {"main", "late"}
    assert all(task.grade(problem, problem.gold) == 1.0 for problem in problems)
    assert {problem.task: task.reading_of(problem) for problem in problems} == {"main": "tags", "late": "text"}


def test_a_late_part_without_problems_or_with_an_impossible_share_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"r1\.late\.share: must be less than 1"):
        stage(share=1.0)
    with pytest.raises(RecipeError, match=r"r1\.late\.task.*no kind 'facts'"):
        stage(task={"name": "general", "kinds": "facts"})
