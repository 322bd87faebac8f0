"""The table of tasks, by the name a recipe uses."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from melete.errors import RecipeError
from melete.tasks.arithmetic import ArithmeticChain
from melete.tasks.base import SPLITS, Task
from melete.tasks.countdown import Countdown
from melete.tasks.verse import Verse

TASKS: dict[str, type[ArithmeticChain] | type[Countdown] | type[Verse]] = {
    "arithmetic_chain": ArithmeticChain,
    "countdown": Countdown,
    "verse": Verse,
}
NOT_SETTINGS = ("name", "plain_answers")


def make_task(name: str, settings: Mapping[str, Any]) -> Task:
    """The task of this name with these settings.

    Raises `RecipeError` for an unknown name or setting, naming the nearest one, and for values that cannot be.
    """
    if name not in TASKS:
        raise RecipeError(f"no task is called {name!r}", remedy=_nearest(name, list(TASKS)))
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
