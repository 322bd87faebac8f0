"""Tasks for people to look at and to try."""

from __future__ import annotations

import inspect
from dataclasses import fields

from melete.errors import RecipeError
from melete.rewards.rules import accuracy
from melete.suggest import did_you_mean
from melete.tasks import FROM_DATA, GYM_PREFIX, NOT_SETTINGS, TASKS
from melete.tasks.base import SPLITS, Split, Task
from melete.types import Completion, Problem, Rollout


def listing() -> str:
    """Every task with what it is and its settings."""
    lines = []
    for name, kind in TASKS.items():
        settings = ", ".join(f"{f.name}={f.default!r}" for f in fields(kind) if f.name not in NOT_SETTINGS)
        about = (inspect.getmodule(kind).__doc__ or "").split("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr]
        lines.append(f"{name}\n  {about.rpartition(': ')[2] or about}\n  settings: {settings}")
    lines += [f"{name}\n  {about}" for name, about in FROM_DATA.items()]
    lines.append(f"{GYM_PREFIX}<data set>\n  {_gym()}")
    return "\n".join(lines)


def _gym() -> str:
    from melete.tasks.reasoning_gym import dataset_names

    try:
        names = dataset_names()
    except RecipeError as error:
        return f"procedural problems of reasoning-gym; {error.remedy}"
    return f"procedural problems of reasoning-gym, {len(names)} data sets: {', '.join(names)}"


def split_named(name: str) -> Split:
    """Raises `RecipeError` for a name that is no split."""
    for split in SPLITS:
        if split == name:
            return split
    raise RecipeError(f"no split is called {name!r}", remedy=did_you_mean(name, SPLITS))


def shown(problem: Problem, *, with_gold: bool) -> str:
    """A problem as text: what is asked and, if wanted, the right answer. What could steer a terminal is left out."""
    lines = [f"{problem.problem_id}", *(f"  {message.role}: {message.content}" for message in problem.messages)]
    lines += [f"  right answer: {problem.gold}"] if with_gold else []
    return "\n".join(_printable(line) for text in lines for line in text.split("\n"))


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else " " for character in line)


def graded(task: Task, problem: Problem, answer: str) -> tuple[float | None, str]:
    """The grade of an answer that a person gave, with or without tags, and a line that tells it."""
    completion = Completion((0,), (0.0,), "stop", 0)
    try:
        score = accuracy(task.grade, reading="text")(Rollout(problem, 0, (), completion, answer))
    except Exception as error:  # as in training: a grader that fails gives no grade
        return None, f"  no grade: {error}"
    return score, f"  {score:g}" + ("" if score == 1.0 else f"; a right answer is {problem.gold}")
