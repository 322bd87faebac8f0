"""`mixture`: several tasks in fixed proportions.

Which task an index belongs to is fixed by the weights alone, so a run can be resumed at any index. After any number of
indices, each task has had its share to within one problem, and after every full cycle exactly (Tijdeman, The chairman
assignment problem, Discrete Mathematics 32, 1980).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

from melete.errors import RecipeError
from melete.suggest import did_you_mean
from melete.tasks.base import Split, Task, is_plain, reading_for, step_labels_of, waits
from melete.text.answers import parse_completion
from melete.text.final_answer import Reading
from melete.types import Problem

MAX_CYCLE = 10_000
_PART_KEYS = ("task", "weight", "label", "settings")
_TAGS = ("<answer>", "</answer>", "<think>", "</think>")


@dataclass(frozen=True, slots=True)
class Part:
    """A task with its weight. `label` is what its problems are called, by default the task's own name."""

    task: Task
    weight: float = 1.0
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.task.name


@dataclass(frozen=True, slots=True)
class Mixture:
    """The parts' problems, interleaved. A problem carries its part's name, and its part grades it.

    In a mixture within a mixture the names are joined by a slash. Where plain and tagged answers are mixed, the mixture
    is plain, and takes the answer of a tagged part out of its `<answer>` itself; a text without any tag is then graded
    as it is. Raises `RecipeError` for names that are not different and weights that cannot be.
    """

    parts: tuple[Part, ...]
    name: str = "mixture"
    schedule: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not names:
            raise RecipeError("a mixture needs at least one task", remedy="tasks = [{ task = ..., weight = 1 }]")
        for name in names:
            if names.count(name) > 1 or any(other.startswith(f"{name}/") for other in names):
                raise RecipeError(f"two parts of a mixture are called {name!r}", remedy="give each a label of its own")
        object.__setattr__(self, "schedule", schedule_of(tuple(part.weight for part in self.parts)))

    @property
    def plain_answers(self) -> bool:
        """Whether any part has answers without tags."""
        return any(is_plain(part.task) for part in self.parts)

    @property
    def waits(self) -> bool:
        """Whether grading a part waits for something outside this process."""
        return any(waits(part.task) for part in self.parts)

    def problem(self, split: Split, index: int) -> Problem:
        """The `index`-th problem: the next of the part whose turn it is."""
        number, inner = self._turn(index)
        return self.problem_of(number, split, inner)

    def problem_of(self, number: int, split: Split, index: int) -> Problem:
        """The `index`-th problem of one part, as the mixture's own."""
        part = self.parts[number]
        problem = part.task.problem(split, index)
        return dataclasses.replace(
            problem,
            problem_id=f"{self.name}/{part.name}/{problem.problem_id}",
            task=f"{part.name}/{problem.task}" if _is_nested(part.task) else part.name,
        )

    def reading_of(self, problem: Problem) -> Reading:
        """How the part that the problem belongs to reads answers."""
        part, inner = self._own(problem)
        return reading_for(part.task)(inner)

    def grade(self, problem: Problem, answer: str) -> float:
        """The grade of the problem's own part; raises what that raises, and `RecipeError` for another's problem."""
        part, inner = self._own(problem)
        if self.plain_answers and not is_plain(part.task) and any(tag in answer for tag in _TAGS):
            tagged = parse_completion(answer).answer
            return 0.0 if tagged is None else part.task.grade(inner, tagged)
        return part.task.grade(inner, answer)

    def label_steps(self, problem: Problem, steps: Sequence[str]) -> list[bool]:
        """The labels of the problem's own part. Raises `RecipeError` where that judges answers only."""
        part, inner = self._own(problem)
        label_steps = getattr(part.task, "label_steps", None)
        return list(label_steps(inner, steps)) if label_steps else step_labels_of(part.task, inner, "".join(steps))

    def _turn(self, index: int) -> tuple[int, int]:
        """The number of the part of an index, and how many problems it has had before."""
        cycle, position = divmod(index, len(self.schedule))
        mine = self.schedule[position]
        before = self.schedule[:position].count(mine)
        return mine, cycle * self.schedule.count(mine) + before

    def _own(self, problem: Problem) -> tuple[Part, Problem]:
        for part in self.parts:
            if problem.task == part.name and not _is_nested(part.task):
                return part, dataclasses.replace(problem, task=part.task.name)
            if _is_nested(part.task) and problem.task.startswith(f"{part.name}/"):
                return part, dataclasses.replace(problem, task=problem.task.removeprefix(f"{part.name}/"))
        names = [part.name for part in self.parts]
        raise RecipeError(
            f"no part of {self.name} is called {problem.task!r}", remedy=did_you_mean(problem.task, names)
        )


def _is_nested(task: Task) -> bool:
    return isinstance(task, Mixture)


@lru_cache(maxsize=64)
def schedule_of(weights: tuple[float, ...]) -> tuple[int, ...]:
    """One cycle of turns: which part has the i-th. In any prefix each count is within one of its share.

    Raises `RecipeError` for weights that are not positive, or that need a cycle longer than `MAX_CYCLE`.

    >>> schedule_of((2, 1)), schedule_of((0.5, 0.25, 0.25))
    ((0, 1, 0), (0, 1, 2, 0))
    """
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise RecipeError(f"weights must be positive numbers, not {list(weights)}", remedy="leave out what weighs 0")
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    length = math.lcm(*(share.denominator for share in shares))
    if length > MAX_CYCLE:
        what = f"weights {list(weights)} are met only after {length} problems"
        raise RecipeError(what, remedy=f"round them: a cycle has at most {MAX_CYCLE}")
    slack = Fraction(1, 2 * len(shares) - 2) if len(shares) > 1 else Fraction(0)
    counts, turns = [0] * len(shares), list[int]()
    for number in range(1, length + 1):
        behind = [share * number - count for share, count in zip(shares, counts, strict=True)]
        able = [part for part, owed in enumerate(behind) if owed >= slack]
        turns.append(min(able, key=lambda part: ((1 - slack - behind[part]) / shares[part], part)))
        counts[turns[-1]] += 1
    return tuple(turns)


def make_mixture(settings: Mapping[str, Any], make_task: Callable[[str, Mapping[str, Any]], Task]) -> Mixture:
    """The mixture that a recipe describes: `tasks` is a list of { task, weight, label, settings }.

    A part that is a mixture has its own `tasks` among its settings. Raises `RecipeError` as the parts do.
    """
    tasks = settings.get("tasks")
    for key in settings:
        if key != "tasks":
            raise RecipeError(f"task mixture has no setting {key!r}", remedy="its only setting is `tasks`")
    if not isinstance(tasks, Sequence) or isinstance(tasks, str) or not tasks:
        raise RecipeError("task mixture needs a list of tasks", remedy="tasks = [{ task = ..., weight = 1 }]")
    return Mixture(tuple(_part(entry, make_task) for entry in tasks))


def _part(entry: Any, make_task: Callable[[str, Mapping[str, Any]], Task]) -> Part:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("task"), str):
        raise RecipeError(f"a part of a mixture names its task, not {entry!r}", remedy="{ task = ..., weight = 1 }")
    for key in entry:
        if key not in _PART_KEYS:
            raise RecipeError(f"a part of a mixture has no {key!r}", remedy=did_you_mean(key, _PART_KEYS))
    weight, label, own = entry.get("weight", 1.0), entry.get("label", ""), entry.get("settings", {})
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise RecipeError(f"the weight of {entry['task']} must be a number, not {weight!r}")
    if not isinstance(label, str) or not isinstance(own, Mapping):
        raise RecipeError(f"label and settings of {entry['task']} must be text and a table")
    return Part(make_task(entry["task"], own), weight, label)
