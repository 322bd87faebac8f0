"""What a task is: seeded problems, a grader, and a way to tell training from held-out problems.

A problem is a pure function of (task settings, seed, split, index), so a run can be resumed or repeated at any index.
Which split a problem belongs to is decided by a hash of what is asked, never by where it was drawn: no training
problem, and no text of the pre-training corpus, can repeat a held-out one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

from melete.errors import DataError, RecipeError
from melete.text.final_answer import Reading
from melete.text.steps import split_steps
from melete.types import Problem

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
HELD_OUT_SHARE = 0.1
_MAX_TRIES = 2000  # ten are usual; with this many, chance alone fails once in 10^91 problems
_Drawn = TypeVar("_Drawn")


class Task(Protocol):
    """Problems with a grader."""

    @property
    def name(self) -> str: ...

    def problem(self, split: Split, index: int) -> Problem:
        """The `index`-th problem of a split."""
        ...

    def grade(self, problem: Problem, answer: str) -> float:
        """1.0 for a right answer, 0.0 for a wrong one; `answer` is untrusted text."""
        ...


def is_plain(task: Task) -> bool:
    """Whether answers are plain text, without `<answer>` tags; a task says so by `plain_answers = True`."""
    return bool(getattr(task, "plain_answers", False))


def reading_for(task: Task) -> Callable[[Problem], Reading]:
    """How the answer to a problem is read; in a mixture that depends on the problem.

    A task says so by `plain_answers = True` (text without tags) or `free_answers = True` (any of the usual ways).
    """
    free = "free" if getattr(task, "free_answers", False) else "tags"
    return getattr(task, "reading_of", None) or (lambda _problem: "text" if is_plain(task) else free)


def plain_for(task: Task) -> Callable[[Problem], bool]:
    """Whether the answer to a problem is plain text, without tags."""
    return lambda problem: reading_for(task)(problem) == "text"


def waits(task: Task) -> bool:
    """Whether grading waits for something outside this process; a task says so by `waits = True`."""
    return bool(getattr(task, "waits", False))


def step_labels_of(task: Task, problem: Problem, text: str) -> list[bool]:
    """The task's judgement of each step of a completion, in the order of `split_steps`.

    Raises `RecipeError` for a task that judges answers only.
    """
    label_steps = getattr(task, "label_steps", None)
    if label_steps is None:
        raise RecipeError(
            f"task {task.name} judges answers, not single steps",
            remedy="use a task with label_steps, such as arithmetic_chain, or a process reward model",
        )
    return list(label_steps(problem, split_steps(text)))


def split_of(canonical: str) -> Split:
    """The split that a problem with this canonical text belongs to, the same on every machine."""
    digest = hashlib.blake2b(canonical.encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") / 2**64 < HELD_OUT_SHARE else "train"


def draw_from_split(split: Split, draw: Callable[[], _Drawn], canonical: Callable[[_Drawn], str]) -> _Drawn:
    """The first drawn problem that belongs to `split`.

    Raises `RecipeError` when none does: a difficulty with a handful of problems may leave a split empty.
    """
    for _ in range(_MAX_TRIES):
        drawn = draw()
        if split_of(canonical(drawn)) == split:
            return drawn
    raise RecipeError(
        f"these settings leave no problem for the {split} split",
        remedy="allow larger numbers or more of them, so that there are more different problems",
    )


def check_gold(task: Task, problem: Problem) -> Problem:
    """The problem itself, after proving that its gold answer scores 1.

    Raises `DataError` when it does not: such a row would teach the opposite of what it says.
    """
    score = task.grade(problem, problem.gold)
    if score != 1.0:
        raise DataError(
            f"the gold answer {problem.gold!r} of {problem.problem_id} scores {score}, not 1",
            place=problem.problem_id,
            remedy="correct the gold answer or the grader",
        )
    return problem
