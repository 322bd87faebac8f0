"""The stages of a recipe as a graph: who reads what, and what is wrong with it.

A stage reads models and data sets by the name of the stage that makes them. It may read earlier stages only, so the
order in which stages are listed is the order in which they are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from melete.models.places import BUNDLED, missing_model
from melete.schema import Problem, Recipe, Stage
from melete.suggest import did_you_mean

MODEL_KEYS = ("model", "models", "teacher", "reference", "reward_model", "step_rewards", "tokenizer")
DATA_KEYS = ("data", "replay", "parts")
SCORING_KEYS = ("reward_model", "step_rewards")  # what they name gives a score and does not write
EITHER = ("critic.model", "tokenizer")


def inputs_of(stage: Stage, names: Iterable[str]) -> list[str]:
    """Which of the stages `names` this one reads, each once, in the order of its settings."""
    known = set(names)
    return [name for name in dict.fromkeys([*stage.reads(), *stage.reads_data()]) if name in known]


def readers_of(recipe: Recipe, name: str) -> list[str]:
    """The stages that read `name`, directly or through others, in the order of the recipe; without `name`."""
    found = {name}
    for stage in recipe.stages:  # a stage reads earlier ones only
        if found.intersection(inputs_of(stage, found)):
            found.add(stage.name)
    return [stage.name for stage in recipe.stages if stage.name in found and stage.name != name]


def sources_of(recipe: Recipe, name: str) -> list[str]:
    """The stages that `name` needs, directly or through others, in the order of the recipe; without `name`."""
    names = [stage.name for stage in recipe.stages]
    found = {name}
    for stage in reversed(recipe.stages):
        if stage.name in found:
            found.update(inputs_of(stage, names))
    return [other for other in names if other in found and other != name]


def graph_problems(recipe: Recipe) -> Iterator[Problem]:
    """Key and reason of each name that is taken twice, and of each reading of what is not made, or made later."""
    yield from _copy_problems(recipe)
    reserved = set(Recipe.model_fields) | {"stage"}
    seen: set[str] = set()
    for index, stage in enumerate(recipe.stages):
        if stage.name in reserved:
            yield f"stage[{index}].name", f"is a key of the recipe itself ({stage.name}); choose another"
        elif stage.name in seen:
            yield f"stage[{index}].name", f"an earlier stage has this name ({stage.name}); choose another"
        seen.add(stage.name)
        problems = (*_model_problems(recipe, index), *_data_problems(recipe, index))
        yield from ((f"{stage.name}.{key}", why) for key, why in problems)


def _model_problems(recipe: Recipe, index: int) -> Iterator[Problem]:
    """Models that no earlier stage makes and that are nowhere on disk."""
    stage, makes = recipe.stages[index], {other.name: other.makes for other in recipe.stages[:index]}
    known = tuple(name for name, kind in makes.items() if kind in ("model", "reward model"))
    for name in dict.fromkeys(stage.reads()):
        key = _key_of(stage, name, MODEL_KEYS)
        if name in _not_before(recipe, index):
            yield key, _too_early(recipe, stage, name)
        elif name in makes:
            if why := _wrong_model(stage, key, name, makes[name]):
                yield key, why
        elif why := missing_model(name, known):
            yield key, why


def _data_problems(recipe: Recipe, index: int) -> Iterator[Problem]:
    """Data sets that no earlier stage makes and that are nowhere on disk."""
    stage, makes = recipe.stages[index], {other.name: other.makes for other in recipe.stages[:index]}
    known = [name for name, kind in makes.items() if kind == "data"]
    for name in dict.fromkeys(stage.reads_data()):
        key = _key_of(stage, name, DATA_KEYS)
        if name in _not_before(recipe, index):
            yield key, _too_early(recipe, stage, name)
        elif name in makes:
            if makes[name] != "data":
                yield key, f"{name} makes {_called(makes[name])}, not data"
        elif not Path(name).exists():
            near = f"; {did_you_mean(name, known)}" if known else ""
            yield key, f"{name!r} is neither a file nor a stage that makes data{near}"


def _not_before(recipe: Recipe, index: int) -> set[str]:
    """The stage itself and those after it."""
    return {stage.name for stage in recipe.stages[index:]}


def _too_early(recipe: Recipe, stage: Stage, name: str) -> str:
    if name == stage.name:
        return f"{name} is made by this stage; read an earlier one"
    if way := _way_back(recipe, name, stage.name):
        return f"the stages read each other in a circle: {' -> '.join([stage.name, *way])}"
    return f"{name} is made by a later stage; read an earlier one"


def _way_back(recipe: Recipe, start: str, goal: str) -> list[str]:
    """The shortest way from one stage to another along what each reads; empty if there is none."""
    stages = {stage.name: stage for stage in recipe.stages}
    ways = [[start]]
    seen = {start}
    while ways:
        way = ways.pop(0)
        if way[-1] == goal:
            return way
        following = [name for name in inputs_of(stages[way[-1]], stages) if name not in seen]
        seen.update(following)
        ways += [[*way, name] for name in following]
    return []


def _wrong_model(stage: Stage, key: str, name: str, made: str) -> str:
    """Why what an earlier stage made cannot stand at this key, or nothing."""
    if made not in ("model", "reward model"):
        return f"{name} makes {_called(made)}, not a model"
    if key in EITHER or (key == "model" and stage.makes == "reward model"):
        return ""
    scores = key in SCORING_KEYS or key.startswith("reward_models.")
    if scores and made == "model":
        return f"{name} is a model that writes, not a reward model"
    if not scores and made == "reward model":
        return f"{name} is a reward model: it scores and cannot write"
    return ""


def _called(made: str) -> str:
    return made if made in ("data", "nothing") else f"a {made}"


def _key_of(stage: Stage, name: str, keys: Sequence[str]) -> str:
    """The setting that names this model or data set, such as `reward_models.helpful.model` or `models[2]`."""
    found = [key for key, last, value in _settings(stage.model_dump(), "", "") if value == name and last in keys]
    return found[0] if found else keys[0]


def _settings(value: Any, key: str, last: str) -> Iterator[tuple[str, str, Any]]:
    """Every value with its key and the last word of the key; what a mapping of names calls its entries is one too."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            below = f"{key}.{name}" if key else str(name)
            if last in DATA_KEYS:
                yield below, last, name
            yield from _settings(inner, below, str(name))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _settings(inner, f"{key}[{index}]", last)
    else:
        yield key, last, value


def _copy_problems(recipe: Recipe) -> Iterator[Problem]:
    """Directories outside the run that two stages write, or that one writes and another reads."""
    copies: dict[Path, str] = {}
    for stage in recipe.stages:
        if out := getattr(stage, "out", ""):
            other = copies.setdefault(Path(out).resolve(), stage.name)
            if other != stage.name:
                yield f"{stage.name}.out", f"{other} writes this directory too; choose another"
    names = {stage.name for stage in recipe.stages} | set(BUNDLED)
    for stage in recipe.stages:
        for name in dict.fromkeys(stage.reads()):
            maker = copies.get(Path(name).resolve()) if name not in names else None
            if maker:
                key = _key_of(stage, name, MODEL_KEYS)
                yield f"{stage.name}.{key}", f"{name} is a copy of what {maker} makes; read the stage: {maker}"
