"""Every setting of a stage with its meaning, read from the schema: for options, keyword arguments and the page."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from melete.schema import Settings

Form = Literal["text", "whole", "number", "flag", "choice", "value", "list", "mapping", "table"]
Limit = tuple[str, float]  # the name of pydantic's constraint, and its value
_NO_LIMIT = 2**53  # a larger one only keeps a number in its type
HIDDEN = ("kind", "name")  # what a stage is and is called; a command decides both


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting: its key in the stage, such as "evaluation.at", what it may hold, its default and its meaning.

    `inner` is the form of a list's entries or a mapping's values; `table` the settings class of a table, or of a
    mapping's values.
    """

    key: str
    form: Form
    meaning: str
    default: Any
    required: bool
    optional: bool
    choices: tuple[str, ...] = ()
    limits: str = ""
    inner: Form | None = None
    table: type[Settings] | None = None

    @property
    def above(self) -> str:
        """The table that the setting stands in; empty for the stage itself."""
        return self.key.rpartition(".")[0]

    @property
    def is_open(self) -> bool:
        """Whether keys below it may be chosen freely, such as weights of rewards or settings of a task."""
        return self.form == "mapping" or (self.table is not None and self.table.model_config.get("extra") == "allow")

    @property
    def may_be_empty(self) -> bool:
        """A table that is off unless it is given, and that can be given without saying more."""
        return self.form == "table" and self.optional and not any(one.required for one in settings_of(self.table))


def settings_of(model: type[BaseModel] | None, above: str = "") -> list[Setting]:
    """The settings of a stage or table, in the order of the schema, without those of the tables in it."""
    if model is None:
        return []
    fields = model.model_fields.items()
    is_stage = "kind" in model.model_fields
    return [
        _setting(f"{above}.{name}" if above else name, field)
        for name, field in fields
        if not (is_stage and name in HIDDEN)
    ]


def all_settings(model: type[BaseModel], above: str = "") -> Iterator[Setting]:
    """The same with the settings of every table in it, each table before what it holds."""
    for setting in settings_of(model, above):
        yield setting
        if setting.form == "table" and setting.table:
            yield from all_settings(setting.table, setting.key)


def _setting(key: str, field: FieldInfo) -> Setting:
    annotation, limits = _bare(field.annotation)
    limits = [*_limits(field.metadata), *limits]
    arguments = typing.get_args(annotation)
    optional = types.NoneType in arguments
    if optional:
        rest = [argument for argument in arguments if argument is not types.NoneType]
        annotation, more = _bare(rest[0]) if len(rest) == 1 else (annotation, [])
        limits += more
    form = _form(annotation)
    inner: Form | None = None
    table = annotation if form == "table" else None
    choices = typing.get_args(annotation) if form == "choice" else ()
    if form in ("list", "mapping"):
        entry, more = _bare(typing.get_args(annotation)[-1])
        inner, limits = _form(entry), [*limits, *more] if form == "list" else limits
        table = entry if inner == "table" else None
        choices = typing.get_args(entry) if inner == "choice" else ()
    default = None if field.default is PydanticUndefined else field.default
    meaning = " ".join((field.description or "").split())
    required = field.is_required()
    return Setting(key, form, meaning, default, required, optional, choices, _limits_text(limits), inner, table)


def _bare(annotation: Any) -> tuple[Any, list[Limit]]:
    """A type without its annotations, and the limits that these set."""
    limits: list[Limit] = []
    while typing.get_origin(annotation) is typing.Annotated:
        annotation, *extra = typing.get_args(annotation)
        limits += _limits(extra)
    return annotation, limits


def _limits(metadata: Iterable[Any]) -> list[Limit]:
    found = list[Limit]()
    for item in metadata:
        if isinstance(item, FieldInfo):
            found += _limits(item.metadata)
            continue
        for name in ("ge", "gt", "le", "lt", "multiple_of"):
            limit = getattr(item, name, None)
            if limit is not None and limit < _NO_LIMIT:
                found.append((name, limit))
    return found


def _limits_text(limits: Iterable[Limit]) -> str:
    """The narrowest limits in words: a share that must be above 0 is not said to be at least 0 too."""
    found = list(limits)
    lows = [(limit, "> " if name == "gt" else "≥ ") for name, limit in found if name in ("ge", "gt")]
    highs = [(-limit, "< " if name == "lt" else "≤ ") for name, limit in found if name in ("le", "lt")]
    told = [f"{sign}{limit:g}" for limit, sign in [max(lows, key=_narrow)]] if lows else []
    told += [f"{sign}{-limit:g}" for limit, sign in [max(highs, key=_narrow)]] if highs else []
    told += [f"a multiple of {limit:g}" for name, limit in found if name == "multiple_of"]
    return ", ".join(told)


def _narrow(limit: tuple[float, str]) -> tuple[float, bool]:
    return limit[0], limit[1] in ("> ", "< ")


_PLAIN: Mapping[Any, Form] = {str: "text", int: "whole", float: "number", bool: "flag"}


def _form(annotation: Any) -> Form:
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return "choice"
    if origin is list:
        return "list"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "table"
    return _PLAIN.get(annotation, "value")


_WORDS: Mapping[Form, str] = {
    "text": "text",
    "whole": "whole number",
    "number": "number",
    "flag": "true or false",
    "choice": "choice",
    "value": "value",
    "list": "list",
    "mapping": "table",
    "table": "table",
}


def described(setting: Setting) -> str:
    """What a setting may hold, in words.

    >>> from melete.schema import SFTStage
    >>> [described(one) for one in settings_of(SFTStage) if one.key in ("lr", "lr_schedule", "task")]
    ['number > 0', 'constant, linear, cosine', 'table']
    """
    inner = setting.inner or "value"
    if setting.form == "list":
        entries = ", ".join(setting.choices) if setting.choices else f"{_WORDS[inner]}s {setting.limits}".strip()
        return f"list of {entries}"
    if setting.form == "mapping":
        return "tables by name" if setting.table else f"{_WORDS[inner]}s by name"
    if setting.form == "choice":
        return ", ".join(setting.choices)
    return f"{_WORDS[setting.form]} {setting.limits}".strip()


def default_text(setting: Setting) -> str:
    """The default as a recipe writes it; empty when there is none.

    >>> from melete.schema import RLStage
    >>> [default_text(one) for one in settings_of(RLStage) if one.key in ("task", "rewards", "algorithm", "critic")]
    ['', '{ accuracy = 1.0 }', '"grpo"', '']
    """
    if setting.required or setting.default is None or setting.form == "table":
        return ""
    return toml_text(setting.default)


def toml_text(value: Any) -> str:
    """A value on one line, as TOML has it.

    >>> toml_text({"a": [0.5, True], "b": "x"})
    '{ a = [0.5, true], b = "x" }'
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{name} = {toml_text(one)}" for name, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_text, value))}]"
    return repr(value)
