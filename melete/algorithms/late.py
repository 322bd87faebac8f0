"""Functions of `functional/` that a table can name before torch is loaded.

What a row needs follows from the parameters of its functions. These are read from the source, so that a recipe can be
checked, and a run be planned, without torch; the function itself is imported when it is first called.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FUNCTIONAL = Path(__file__).parents[1] / "functional"


@dataclass(frozen=True, slots=True)
class LateFunction:
    """The function `name` of `melete.functional.<module>`; equal ones are the same function."""

    module: str
    name: str

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return actual(self)(*positional, **named)

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def __signature__(self) -> inspect.Signature:
        return _signatures(self.module)[self.name]


@dataclass(frozen=True, slots=True)
class LateModule:
    """A module of `functional/` whose attributes are its functions."""

    module: str

    def __getattr__(self, name: str) -> LateFunction:
        if name not in _signatures(self.module):
            raise AttributeError(f"melete.functional.{self.module} has no function {name}")
        return LateFunction(self.module, name)


def actual(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, imported if need be.

    >>> actual(LateModule("kl").k3).__module__
    'melete.functional.kl'
    """
    return _imported(function.module, function.name) if isinstance(function, LateFunction) else function


@cache
def _imported(module: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"melete.functional.{module}"), name)


@cache
def _signatures(module: str) -> dict[str, inspect.Signature]:
    """Name -> parameters of every function in the source of a module."""
    tree = ast.parse((FUNCTIONAL / f"{module}.py").read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return {node.name: inspect.Signature(list(_parameters(node.args))) for node in functions}


def _parameters(found: ast.arguments) -> Iterator[inspect.Parameter]:
    positional = [*found.posonlyargs, *found.args]
    defaults = [None] * (len(positional) - len(found.defaults)) + found.defaults
    for argument, default in zip(positional, defaults, strict=True):
        yield _parameter(argument, inspect.Parameter.POSITIONAL_OR_KEYWORD, default)
    for argument, default in zip(found.kwonlyargs, found.kw_defaults, strict=True):
        yield _parameter(argument, inspect.Parameter.KEYWORD_ONLY, default)


def _parameter(argument: ast.arg, kind: Any, default: ast.expr | None) -> inspect.Parameter:
    """A default is kept as it stands in the source: only whether there is one decides anything."""
    shown = inspect.Parameter.empty if default is None else ast.unparse(default)
    return inspect.Parameter(argument.arg, kind, default=shown)
