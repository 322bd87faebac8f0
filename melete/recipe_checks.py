"""What is wrong with the keys and values of a recipe, in plain words: key, reason, and the nearest key that exists."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from melete.schema import STAGE_KINDS, CompareStage, EvaluationSettings, Problem, Recipe, RLStage
from melete.suggest import did_you_mean, nearest

UNION_BRANCHES = ("bool", "int", "float", "str")  # pydantic names them like keys
ALGORITHM_KEYS = ("kl_coef", "kl_estimator", "clip_low", "clip_high", "aggregation")  # often looked for in the stage
_PLAIN = {
    "missing": "is missing",
    "string_type": "must be text in quotes",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "multiple_of": "must be a multiple of {multiple_of:g}",
    "string_pattern_mismatch": "must begin with a letter and hold only letters, digits, - and _",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}


def problems_of(error: ValidationError, tables: Mapping[str, Any]) -> Iterator[Problem]:
    """Key and reason of each of pydantic's errors; stages are called by their names."""
    for detail in error.errors(include_url=False):
        location = list(detail["loc"])
        prefix, model, path = _place(location, tables)
        key = ".".join([*prefix, *path])
        if detail["type"] == "value_error":  # our own: one `key: reason` per line
            for line in str(detail.get("ctx", {}).get("error", "")).splitlines():
                below, _, reason = line.partition(": ")
                yield ".".join([*prefix, *path, below]), reason
        elif detail["type"] == "extra_forbidden":
            yield key, f"unknown key; {_nearest_key(path, prefix, model)}"
        else:
            yield key + (".kind" if detail["type"].startswith("union_tag") else ""), _reason(detail)


def without_wrong_keys(error: ValidationError, tables: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without the keys that pydantic refused, so that what is left can be checked in the same go."""
    pruned = copy.deepcopy(dict(tables))
    for detail in error.errors(include_url=False):
        location: list[Any] = list(detail["loc"])
        if location[:1] == ["stage"]:
            del location[2:3]  # the kind, which is not a level of the tables
        if detail["type"] == "value_error":
            location += [line.partition(":")[0] for line in str(detail.get("ctx", {}).get("error", "")).splitlines()][
                :1
            ]
        table: Any = pruned
        for part in location[:-1]:
            table = table[part] if (isinstance(table, dict) and part in table) or isinstance(table, list) else {}
        if isinstance(table, dict):
            table.pop(location[-1] if location else "", None)
    return pruned


def _place(location: list[int | str], tables: Mapping[str, Any]) -> tuple[list[str], type[BaseModel], list[str]]:
    """(stage prefix, model of that part, path below it) of a location such as ("stage", 0, "rl", "lr")."""
    if location[:1] != ["stage"] or len(location) < 2:
        return [], Recipe, _words(location)
    index, kind = int(location[1]), str(location[2]) if len(location) > 2 else ""
    stages = tables.get("stage")
    stage = stages[index] if isinstance(stages, list) else {}
    name = stage.get("name") if isinstance(stage, dict) else None
    return [str(name) if name else f"stage[{index}]"], STAGE_KINDS.get(kind, BaseModel), _words(location[3:])


def _words(location: Iterable[int | str]) -> list[str]:
    words: list[str] = []
    for part in location:
        if isinstance(part, int) and words:
            words[-1] += f"[{part}]"
        elif not words or str(part) not in UNION_BRANCHES:  # a key may itself be called "float"
            words.append(str(part))
    return words


def _nearest_key(path: list[str], prefix: list[str], model: type[BaseModel]) -> str:
    """The key meant by the unknown `path`: a sibling first, then the same word elsewhere in the stage."""
    for part in path[:-1]:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    siblings = [field.alias or name for name, field in model.model_fields.items()]
    full = ".".join([*prefix, *path[:-1], ""])
    close = nearest(path[-1], siblings)
    if close:
        return f"did you mean {full}{close}?"
    if model in (RLStage, CompareStage):
        inner = dict.fromkeys(EvaluationSettings.model_fields, "evaluation") | dict.fromkeys(
            ALGORITHM_KEYS, "algorithm_settings"
        )
        if close := nearest(path[-1], inner):
            return f"did you mean {full}{inner[close]}.{close}?"
    return did_you_mean(path[-1], siblings, full)


def _reason(detail: Mapping[str, Any]) -> str:
    kind, context, given = detail["type"], detail.get("ctx", {}), detail.get("input")
    if detail["loc"][-1] in UNION_BRANCHES:
        return f"must be a number, text in quotes, true or false, not {given!r}"
    if kind == "union_tag_not_found":
        return f"kind is missing; known are {', '.join(STAGE_KINDS)}"
    if kind == "union_tag_invalid":
        return f"unknown kind {context['tag']!r}; {did_you_mean(str(context['tag']), STAGE_KINDS)}"
    if kind == "literal_error":
        choices = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        return f"cannot be {given!r}; {did_you_mean(str(given), choices)}"
    if kind == "missing":
        return _PLAIN[kind]
    plain = _PLAIN.get(kind, "").format(**context) or detail["msg"].lower()
    shown = repr(given)
    return f"{plain}, not {shown if len(shown) <= 60 else shown[:57] + '...'}"


def unwritable_texts(table: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Key and reason of each text that no file can hold as its name or content; keys are texts too."""
    if isinstance(table, str):
        if "\x00" in table:
            yield key, "has a character of number 0, which no text may have"
        elif any("\ud800" <= letter <= "\udfff" for letter in table):
            yield key, "has half of a character (a lone surrogate): it is no text"
    elif isinstance(table, Mapping):
        for name, value in table.items():
            yield from unwritable_texts(name, key)
            yield from unwritable_texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(table, list):
        for number, value in enumerate(table):
            yield from unwritable_texts(value, f"{key}[{number}]")
