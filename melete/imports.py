"""Importing late: a user's own function by its path, and the libraries of an optional extra."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from melete.errors import RecipeError

PATH_FORM = "package.module:function"


def import_path(path: str, *, place: str, remedy: str = PATH_FORM, or_a: type | tuple[type, ...] = ()) -> Any:
    """What "package.module:name" names: something callable, or an object of the types `or_a`.

    Raises `RecipeError` at `place`, whatever importing the module raises.

    >>> import_path("math:sqrt", place="rewards")(9)
    3.0
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing runs the module, which may raise anything
        raise RecipeError(f"cannot import {path}: {error}", place=place, remedy=remedy) from error
    if not callable(found) and not isinstance(found, or_a):
        raise RecipeError(f"{path} is not a function", place=place, remedy=remedy)
    return found


def require(module: str, *, extra: str) -> ModuleType:
    """The module of an optional extra.

    Raises `RecipeError` with the line that installs it, when it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        what = f"{module} is not installed: {error}"
        raise RecipeError(what, remedy=f"pip install 'melete[{extra}]'") from error
