"""Reading a recipe: find it, apply `--set` overrides, check everything, and say all that is wrong at once.

    load_recipe("r1-zero-tiny", ["rl.lr=1e-4", "seed=3"])

Loading this module loads no torch; `load_recipe` looks algorithms up in their table, which does.
"""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from melete.errors import RecipeError
from melete.recipe_checks import lookup_problems, problems_of, without_wrong_keys
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

    Raises `RecipeError` that lists every problem with its key and the nearest valid one.
    """
    path = find_recipe(name_or_path)
    return parse_recipe(read_tables(path), overrides, place=str(path))


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


def parse_recipe(tables: dict[str, Any], overrides: Sequence[str] = (), *, place: str = "") -> Recipe:
    """The checked recipe of plain tables, as TOML gives them."""
    tables = copy.deepcopy(tables)
    sources: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    for override in overrides:
        key, _, text = override.partition("=")
        key = key.strip()
        sources[key] = f"--set {override}"
        reason = apply_override(tables, key, parse_value(text)) if "=" in override else "has no value: write key=value"
        if reason:
            problems.append((key, reason))
    recipe, found = checked(tables)
    problems += found
    if problems or recipe is None:
        raise _refusal(tables, problems, sources, place)
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
            return recipe, [*problems, *lookup_problems(recipe)]
    return None, problems


def _above(key: str, below: Sequence[str]) -> bool:
    return any(other.startswith(f"{key}.") and other != f"{key}." for other in below)


def _refusal(
    tables: dict[str, Any], problems: list[tuple[str, str]], sources: dict[str, str], place: str
) -> RecipeError:
    lines, from_overrides = [], 0
    first_reasons = {key: reason for key, reason in reversed(problems)}
    for key in dict.fromkeys(key for key, _ in problems):
        source = next(
            (text for set_key, text in sources.items() if f"{key}.".replace("[", ".").startswith(f"{set_key}.")), ""
        )
        from_overrides += bool(source)
        lines.append(f"  {key or '(empty key)'}: {first_reasons[key]}" + (f" ({source})" if source else ""))
    name = tables.get("name") or Path(place).stem or "given"
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    remedy = (
        "correct the --set option"
        if from_overrides == len(lines)
        else "correct the keys named above; nothing was started"
    )
    return RecipeError(f"recipe {name} cannot be used: {count}\n" + "\n".join(lines), place=place, remedy=remedy)


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


def _listed(tables: dict[str, Any]) -> list[dict[str, Any]]:
    stages = tables.get("stage")
    return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
