"""Settings of a task as a recipe gives them, checked against the dataclass that holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from melete.errors import RecipeError
from melete.suggest import did_you_mean

_Settings = TypeVar("_Settings")


def read_settings(kind: type[_Settings], settings: Mapping[str, Any], task: str) -> _Settings:
    """The settings of `task` as a `kind`, each of the type of its default (a whole number may stand for a float).

    Raises `RecipeError` for an unknown setting, naming the nearest, and for a value of another type.
    """
    known = {field.name: _default(field) for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    for key, value in settings.items():
        if key not in known:
            raise RecipeError(f"task {task} has no setting {key!r}", remedy=did_you_mean(key, known))
        if not _fits(value, known[key]):
            wanted = _kind_name(known[key])
            raise RecipeError(f"task {task}: {key} must be {wanted}, not {value!r}", remedy=f"give {key} as {wanted}")
    return kind(**settings)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, Mapping):
        return isinstance(value, Mapping)
    if isinstance(default, tuple):
        return isinstance(value, Sequence) and not isinstance(value, str)
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def _kind_name(default: Any) -> str:
    return (
        "a table"
        if isinstance(default, Mapping)
        else "a list"
        if isinstance(default, tuple)
        else type(default).__name__
    )
