"""Recipes and overrides: files changed in their text or in their tables, and options of every make."""

from __future__ import annotations

import json
import random
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.fuzz.law import outcome
from benchmarks.fuzz.mutate import ODD_TEXTS, changed_bytes, changed_tree, misspelt, odd_value
from melete.config import bundled_recipes, load_recipe, parse_recipe


@cache
def _tables() -> dict[str, dict[str, Any]]:
    tables = {name: tomllib.loads(path.read_text(encoding="utf-8")) for name, path in bundled_recipes().items()}
    parse_recipe(tables["smollm2-benchmarks"])  # its 164 programs are proven in the sandbox once, in seven seconds
    return tables


@cache
def _texts() -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in bundled_recipes().items()}


def recipes(draw: random.Random, directory: Path) -> str:
    """A recipe's file: its text changed, or its tables."""
    name = draw.choice(sorted(_tables()))
    if draw.random() < 0.5:
        file = directory / "recipe.toml"
        file.write_bytes(changed_bytes(draw, _texts()[name], draw.choice([1, 1, 2, 5, 30])))
    else:
        file = directory / "recipe.json"
        tree = changed_tree(draw, _tables()[name], draw.choice([1, 1, 2, 5, 20]))
        file.write_text(json.dumps(tree), encoding="utf-8")
    return outcome(lambda: load_recipe(str(file)), directory)


def overrides(draw: random.Random, directory: Path) -> str:
    """`--set` options beside a good recipe."""
    name = draw.choice(sorted(_tables()))
    tables = _tables()[name]
    options = [_override(draw, tables) for _ in range(draw.choice([1, 1, 2, 4]))]
    return outcome(lambda: parse_recipe(tables, options, place=name), directory)


def _override(draw: random.Random, tables: dict[str, Any]) -> str:
    stage = draw.choice(tables["stage"])
    path, value = [stage["name"]], stage
    while isinstance(value, dict) and value and (len(path) == 1 or draw.random() < 0.9):
        path.append(draw.choice(list(value)))
        value = value[path[-1]]
    if draw.random() < 0.2:
        path = [draw.choice(["seed", "name", "description", "stage", "threads"])]
    if draw.random() < 0.3:
        place = draw.randrange(len(path))
        path[place] = misspelt(draw, path[place])
    key = ".".join(path)
    odd = odd_value(draw)
    given = draw.choice([repr(value), str(odd), json.dumps(odd), draw.choice(ODD_TEXTS), misspelt(draw, str(value))])
    return draw.choice([f"{key}={given}"] * 12 + [key, f"={given}", f"{key}=={given}", ""])


KINDS = {"recipes": recipes, "overrides": overrides}
