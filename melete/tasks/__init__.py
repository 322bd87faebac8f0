"""The table of tasks, by the name a recipe uses.

arithmetic.py, countdown.py, verse.py   problems out of nothing
general.py, exchanges.py                what an assistant is asked besides problems, and good and bad answers
rows.py, shapes.py                      problems out of files, and of the shapes of known benchmarks
reasoning_gym.py                        every data set of reasoning-gym
mixture.py                              several tasks, interleaved by weight
curation.py                             which problems to keep: difficulty, duplicates, contamination
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from melete.errors import RecipeError
from melete.tasks.arithmetic import ArithmeticChain
from melete.tasks.base import SPLITS, Task
from melete.tasks.countdown import Countdown
from melete.tasks.general import General
from melete.tasks.verse import Verse

TASKS: dict[str, type[ArithmeticChain] | type[Countdown] | type[General] | type[Verse]] = {
    "arithmetic_chain": ArithmeticChain,
    "countdown": Countdown,
    "general": General,
    "verse": Verse,
}
NOT_SETTINGS = ("name", "plain_answers")
SHAPED = ("gsm8k", "math", "humaneval", "mbpp", "multiple_choice")
FROM_DATA = {
    "rows": "problems out of a file of your own, with column mapping and a grader by name",
    "gsm8k": "word problems whose solution ends in #### and a number",
    "math": "problems whose solution holds a boxed answer",
    "humaneval": "functions to complete, judged by hidden tests in a sandbox",
    "mbpp": "short programs, judged by assertions in a sandbox",
    "multiple_choice": "questions with lettered options, shuffled by the seed",
    "mixture": "several tasks, interleaved by weight",
}
GYM_PREFIX = "reasoning_gym/"


def is_known(name: str) -> bool:
    """Whether a task has this name; which data sets reasoning-gym has is only known when it is asked."""
    return name in TASKS or name in FROM_DATA or name.startswith(GYM_PREFIX)


def known_names() -> list[str]:
    """Every name of the table, and the form of the others."""
    return [*TASKS, *FROM_DATA, f"{GYM_PREFIX}<data set>"]


def make_task(name: str, settings: Mapping[str, Any]) -> Task:
    """The task of this name with these settings.

    Raises `RecipeError` for an unknown name or setting, naming the nearest one, and for values that cannot be; and
    `DataError` for rows that cannot be read.
    """
    if name in TASKS:
        return _drawn(name, settings)
    if name.startswith(GYM_PREFIX):
        from melete.tasks.reasoning_gym import make_reasoning_gym

        return make_reasoning_gym(name, settings)
    if name == "mixture":
        from melete.tasks.mixture import make_mixture

        seed = settings.get("seed", 0)  # of every part that has none of its own
        own = {key: value for key, value in settings.items() if key != "seed"}
        return make_mixture(own, lambda part, given: make_task(part, {"seed": seed, **given}))
    if name == "rows":
        from melete.tasks.rows import make_rows

        return make_rows(settings)
    if name in SHAPED:
        from melete.tasks.shapes import make_shape

        return make_shape(name, settings)
    raise RecipeError(f"no task is called {name!r}", remedy=_nearest(name, known_names()))


def _drawn(name: str, settings: Mapping[str, Any]) -> Task:
    kind = TASKS[name]
    known = {f.name: f for f in fields(kind) if f.name not in NOT_SETTINGS}
    for key, value in settings.items():
        if key not in known:
            raise RecipeError(f"task {name} has no setting {key!r}", remedy=_nearest(key, list(known)))
        if type(value) is not type(known[key].default):
            wanted = type(known[key].default).__name__
            raise RecipeError(f"task {name}: {key} must be {wanted}, not {value!r}", remedy=f"give {key} as {wanted}")
    task = kind(**settings)
    for split in SPLITS:
        task.problem(split, 0)  # refuses a difficulty that leaves a split without problems
    return task


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]}? " if close else "") + f"known are {', '.join(known)}"
