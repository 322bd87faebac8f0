"""Reading a recipe: find it, apply `--set` overrides, check everything, and say all that is wrong at once.

    load_recipe("r1-zero-tiny", ["rl.lr=1e-4", "seed=3"])

Neither this module nor checking a recipe loads torch, unless the recipe names code of your own that does.
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from melete.errors import RecipeError
from melete.recipe_checks import problems_of, unwritable_texts, without_wrong_keys
from melete.recipe_graph import graph_problems
from melete.recipe_lines import key_lines, nearest_line
from melete.recipe_names import name_problems
from melete.schema import (
    STAGE_KINDS,
    EvaluationSettings,
    PretrainStage,
    Recipe,
    RLStage,
    Stage,
    TaskSettings,
)
from melete.suggest import did_you_mean

MAY_BE_SECRET = (".key_variable", ".base_url")  # where people put a key by mistake: not repeated in messages
MAX_PASSES = 5  # settings inside settings are nested less deep than this

__all__ = [
    "STAGE_KINDS",
    "EvaluationSettings",
    "PretrainStage",
    "RLStage",
    "Recipe",
    "Stage",
    "TaskSettings",
    "bundled_recipes",
    "load_recipe",
    "parse_recipe",
]


def bundled_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that comes with the package."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.toml"))}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The checked recipe of a bundled name or of a .toml (or resolved .json) file, after `key=value` overrides.

    Raises `RecipeError` that lists every problem with its key, its line and the nearest valid key.
    """
    path = find_recipe(name_or_path)
    return parse_recipe(read_tables(path), overrides, place=str(path), lines=_lines(path))


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe: something that looks like a path is one, anything else is a bundled name."""
    path = Path(name_or_path)
    if path.suffix in (".toml", ".json") or len(path.parts) > 1 or path.is_file():
        if path.is_file():
            return path
        bundled = f"check the path; bundled recipes are named without one: {', '.join(bundled_recipes())}"
        remedy = f"{path} is a directory: name the file in it" if path.is_dir() else bundled
        raise RecipeError("there is no such recipe file", place=name_or_path, remedy=remedy)
    known = bundled_recipes()
    if name_or_path not in known:
        raise RecipeError(
            f"unknown recipe {name_or_path!r}; {did_you_mean(name_or_path, known)}",
            remedy="list the recipes with: melete recipes; or give the path of a .toml file",
        )
    return known[name_or_path]


def read_tables(path: Path) -> dict[str, Any]:
    """The file's content, as plain tables."""
    try:
        text = path.read_bytes().decode("utf-8")
        tables = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise RecipeError(f"the recipe cannot be read: {error.strerror}", place=str(path)) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"the recipe is not UTF-8 text: {error.reason} at byte {error.start}",
            place=str(path),
            remedy="save it as UTF-8",
        ) from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise RecipeError(f"the recipe cannot be parsed: {error}", place=str(path)) from error
    if not isinstance(tables, dict):
        raise RecipeError("the recipe must be a table of settings", place=str(path))
    return tables


def _lines(path: Path) -> dict[str, int]:
    try:
        return key_lines(path.read_text(encoding="utf-8")) if path.suffix != ".json" else {}
    except RecursionError:  # lists in lists without end; the message does without lines
        return {}


def parse_recipe(
    tables: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    place: str = "",
    lines: Mapping[str, int] | None = None,
) -> Recipe:
    """The checked recipe of plain tables, as TOML gives them; `lines` tells where in `place` each key stands."""
    tables = copy.deepcopy(tables)
    sources: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    for override in overrides:
        key, _, text = override.partition("=")
        key = key.strip()
        sources[key] = f"--set {key}=..." if key.endswith(MAY_BE_SECRET) else f"--set {override}"
        reason = apply_override(tables, key, parse_value(text)) if "=" in override else "has no value: write key=value"
        if reason:
            problems.append((key, reason))
    unwritable = list(unwritable_texts(tables))
    recipe, found = (None, unwritable) if unwritable else checked(tables)
    problems += found
    if problems or recipe is None:
        raise _refusal(tables, problems, sources, place, lines or {})
    return recipe


def checked(tables: dict[str, Any]) -> tuple[Recipe | None, list[tuple[str, str]]]:
    """The recipe and all that is wrong with it. What was refused is left out and the rest checked again."""
    problems: list[tuple[str, str]] = []
    for _ in range(MAX_PASSES):
        try:
            recipe = Recipe.model_validate(tables)
        except ValidationError as error:
            known = [f"{key}." for key, _ in problems]
            # a table that is empty only because its wrong keys were left out is not wrong itself
            problems += [found for found in problems_of(error, tables) if not _above(found[0], known)]
            smaller = without_wrong_keys(error, tables)
            if smaller == tables:
                break
            tables = smaller
        else:
            return recipe, [*problems, *graph_problems(recipe), *name_problems(recipe)]
    return None, problems


def _above(key: str, below: Sequence[str]) -> bool:
    return any(other.startswith(f"{key}.") and other != f"{key}." for other in below)


def _refusal(
    tables: dict[str, Any],
    problems: list[tuple[str, str]],
    sources: dict[str, str],
    place: str,
    lines: Mapping[str, int],
) -> RecipeError:
    first_reasons = {key: reason for key, reason in reversed(problems)}
    found_in = {key: _source(key, tables, sources, lines) for key in dict.fromkeys(key for key, _ in problems)}
    is_one_line = len(set(found_in.values())) == 1 and isinstance(next(iter(found_in.values())), int)
    told: list[str] = []
    for key, source in found_in.items():
        where = f"line {source}" if isinstance(source, int) else source
        suffix = f" ({where})" if where and not is_one_line else ""
        told.append(f"  {_cut(key) or '(empty key)'}: {_cut(first_reasons[key], 8)}{_cut(suffix)}")
    name = _cut(str(tables.get("name") or Path(place).stem or "given"))
    count = "1 problem" if len(told) == 1 else f"{len(told)} problems"
    only_overrides = all(isinstance(source, str) for source in found_in.values())
    remedy = "correct the --set option" if only_overrides else "correct the keys named above; nothing was started"
    place += f", line {next(iter(found_in.values()))}" if is_one_line else ""
    return RecipeError(f"recipe {name} cannot be used: {count}\n" + "\n".join(told), place=place, remedy=remedy)


def _cut(text: str, lines: int = 2) -> str:
    """The text as a message repeats it: of a value of thousands of letters, its beginning."""
    return text if len(text) <= lines * 100 else f"{text[: lines * 100]}..."


def _source(
    key: str, tables: Mapping[str, Any], sources: Mapping[str, str], lines: Mapping[str, int]
) -> int | str | None:
    """Where a key was given: the line of the recipe file, or the option."""
    for set_key, option in sources.items():
        if f"{key}.".replace("[", ".").startswith(f"{set_key}."):
            return option
    return nearest_line(lines, _full_key(key, tables))


def _full_key(key: str, tables: Mapping[str, Any]) -> str:
    """The key as the file has it: a stage by its number."""
    stage, _, below = key.partition(".")
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in _entries(tables)]
    return f"stage[{names.index(stage)}].{below}" if stage in names else key


def parse_value(text: str) -> Any:
    """The TOML value that `text` is, or else the text itself.

    >>> parse_value("1e-4"), parse_value("[0.0, 1.0]"), parse_value("dr_grpo"), parse_value(".5")
    (0.0001, [0.0, 1.0], 'dr_grpo', 0.5)
    """
    text = text.strip()
    try:
        tables = tomllib.loads(f"value = {text}")
        if tables.keys() == {"value"}:
            return tables["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        pass
    try:
        return float(text)
    except ValueError:
        return text


def apply_override(tables: dict[str, Any], key: str, value: Any) -> str | None:
    """Sets `stage.key[.subkey]` or a top-level key in place; returns what is wrong with the key, if anything is."""
    head, *rest = key.split(".")
    stages = {stage["name"]: stage for stage in _listed(tables) if isinstance(stage.get("name"), str)}
    top_level = [field for field in Recipe.model_fields if field != "stages"]
    if not rest:
        if head in stages:
            return "is a stage; name one of its keys, such as " + f"{head}.lr"
        if head not in top_level:
            return "unknown key; " + did_you_mean(head, [*top_level, *(f"{stage}.*" for stage in stages)])
        tables[head] = value
        return None
    if head not in stages:
        return f"there is no stage {head!r}; " + did_you_mean(head, stages)
    table = stages[head]
    for part in rest[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return f"{part} is a value, not a table with keys of its own"
    table[rest[-1]] = value
    return None


def _listed(tables: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [stage for stage in _entries(tables) if isinstance(stage, dict)]


def _entries(tables: Mapping[str, Any]) -> list[Any]:
    stages = tables.get("stage")
    return stages if isinstance(stages, list) else []
