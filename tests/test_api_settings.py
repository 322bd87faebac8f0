"""melete/api_settings.py is made from the schema; `python tests/test_api_settings.py` rewrites it."""

from __future__ import annotations

import json
import textwrap
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from melete.one_stage import COMMANDS, EXAM_TABLE, Command, command_settings
from melete.recipe_settings import HIDDEN, Setting, all_settings, settings_of
from melete.schema import STAGE_KINDS, ExamTask, Settings, TaskSettings, TrainingStage

PAGE = Path(__file__).parents[1] / "melete" / "api_settings.py"
HEAD = '''"""The keywords of `melete.sft` and the other functions, for editors and type checkers.

Made from the schema, which explains every setting; the page docs/settings.md has the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    from melete.results import Result

ModelLike: TypeAlias = "str | os.PathLike[str] | Result"
DataLike: TypeAlias = "str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Result"
TaskLike: TypeAlias = str | Mapping[str, Any]
Value: TypeAlias = bool | int | float | str


class RunKeywords(TypedDict, total=False):
    """What every function takes besides its settings."""

    name: str
    """Name of the run's directory; by default the function's."""
    runs_dir: str | os.PathLike[str]
    """Where runs are kept; by default "runs"."""
    seed: int
    """Every random choice follows from it."""
    max_minutes: float | None
    """Refuse before work if it is estimated to take longer."""
    quiet: bool
    """Show nothing while it works."""
'''
_SCALARS = {"text": "str", "whole": "int", "number": "float", "flag": "bool", "value": "Value"}
_SPECIAL = {
    **dict.fromkeys(("model", "teacher", "reward_model"), "ModelLike"),
    "data": "DataLike",
    "rewards": "Mapping[str | Callable[..., Any], float]",
}
_NAMES = {"sft": "SFT", "rm": "RM", "dpo": "DPO", "rl": "RL"}


def text() -> str:
    """The module."""
    tables = dict.fromkeys(table for command in COMMANDS.values() for table in _tables(command))
    blocks = [_typed_dict(_table_name(table), "TypedDict", table.__doc__, settings_of(table)) for table in tables]
    shared = [setting for setting in settings_of(TrainingStage) if setting.key not in HIDDEN]
    blocks.append(_typed_dict("TrainingKeywords", "RunKeywords", TrainingStage.__doc__, shared))
    blocks += [_function(command, {setting.key for setting in shared}) for command in COMMANDS.values()]
    return "\n\n".join([HEAD, *blocks])


def _tables(command: Command) -> Iterator[type[Settings]]:
    """Tables below the settings of a command, the inner ones first."""
    found = [setting.table for setting in command_settings(command) if setting.table]
    for table in reversed(found):
        inner = [setting.table for setting in all_settings(table) if setting.table]
        yield from (one for one in (*reversed(inner), table) if one is not TaskSettings)


def _table_name(table: type[BaseModel]) -> str:
    return f"{table.__name__.removesuffix('Settings')}Table"


def _function(command: Command, shared: set[str]) -> str:
    kind = STAGE_KINDS[command.kind]
    own = [setting for setting in command_settings(command) if not setting.above]
    if issubclass(kind, TrainingStage):
        own, base = [setting for setting in own if setting.key not in shared], "TrainingKeywords"
    else:
        base = "RunKeywords"
    own = [setting for setting in own if setting.key != command.positional]
    several = {"task": "TaskLike | Sequence[TaskLike]"} if command.kind == "evaluate" else {}
    name = _NAMES.get(command.name, command.function.capitalize())
    return _typed_dict(name, base, f"Keywords of `melete.{command.function}`: {command.about}", own, several)


def _typed_dict(name: str, base: str, about: str | None, settings: list[Setting], other: Mapping[str, str] = {}) -> str:
    doc = textwrap.fill(f'"""{" ".join((about or "").split())}"""', 116, break_on_hyphens=False)
    lines = [f"class {name}({base}, total=False):", textwrap.indent(doc, "    "), ""]
    lines += [f"    {setting.key}: {other.get(setting.key) or annotation(setting)}" for setting in settings]
    return "\n".join(lines) + "\n"


def annotation(setting: Setting) -> str:
    """The type of a keyword."""
    kind = _plain(setting, setting.key)
    return f"{kind} | None" if setting.optional and setting.default is None else kind


def _plain(setting: Setting, key: str) -> str:
    if setting.form == "table":
        table = typing.cast(type[Settings], setting.table)
        named = "TaskLike" if table is TaskSettings else _table_name(table)
        return f"{named} | bool" if setting.may_be_empty else named
    kinds = {
        "choice": f"Literal[{', '.join(map(json.dumps, setting.choices))}]",
        "list": f"Sequence[{_inner(setting)}]",
        "mapping": f"Mapping[str, {_inner(setting)}]",
    }
    return _SPECIAL.get(key) or kinds.get(setting.form) or _SCALARS[setting.form]


def _inner(setting: Setting) -> str:
    if setting.inner == "table":
        return _table_name(typing.cast(type[Settings], setting.table))
    if setting.inner == "choice":
        return "str"
    return _SCALARS.get(setting.inner or "value", "Any")


def test_the_keywords_are_those_of_the_schema():
    assert text() == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_every_setting_is_a_keyword(command: Command):
    import melete.api_settings as module

    name = _NAMES.get(command.name, command.function.capitalize())
    keywords = set(getattr(module, name).__annotations__)
    of_the_run = set(module.RunKeywords.__annotations__)
    settings = {setting.key for setting in command_settings(command) if not setting.above} - {command.positional}
    assert keywords - of_the_run == settings


def test_an_exam_says_for_all_tasks_what_a_recipe_says_for_each():
    known: Mapping[str, object] = {setting.key: setting for setting in command_settings(COMMANDS["eval"])}
    assert {*ExamTask.model_fields} <= known.keys() and EXAM_TABLE not in known


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
