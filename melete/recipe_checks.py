"""What is wrong with a recipe, in plain words: key, reason, and the nearest thing that exists."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from melete.errors import MeleteError, RecipeError
from melete.imports import import_path
from melete.schema import (
    BUNDLED_MODELS,
    STAGE_KINDS,
    CompareStage,
    EvaluationSettings,
    PreferenceStage,
    Problem,
    Recipe,
    RLStage,
    Stage,
    TaskSettings,
)
from melete.suggest import did_you_mean, nearest

UNION_BRANCHES = ("bool", "int", "float", "str")  # pydantic names them like keys
ALGORITHM_KEYS = ("kl_coef", "kl_estimator", "clip_low", "clip_high", "aggregation")  # often looked for in the stage
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
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


def lookup_problems(recipe: Recipe) -> Iterator[Problem]:
    """Names in the recipe that nothing answers to: stages, models, data, tasks, rewards, algorithms."""
    earlier: list[Stage] = []
    reserved = set(Recipe.model_fields) | {"stage"}
    for index, stage in enumerate(recipe.stages):
        if stage.name in {other.name for other in earlier} or stage.name in reserved:
            is_earlier = stage.name not in reserved
            taken = "an earlier stage has this name" if is_earlier else "is a key of the recipe itself"
            yield f"stage[{index}].name", f"{taken} ({stage.name}); choose another"
        later = [other.name for other in recipe.stages[index + 1 :]]
        yield from ((f"{stage.name}.{key}", why) for key, why in _stage_problems(stage, earlier, later))
        earlier.append(stage)


def _stage_problems(stage: Stage, earlier: Sequence[Stage], later: list[str]) -> Iterator[Problem]:
    yield from _source_problems(stage, earlier, later)
    for key, task in stage.task_tables().items():
        yield from _task_problems(stage, key, task)
    if isinstance(stage, CompareStage):
        yield from _comparison_problems(stage)
    elif isinstance(stage, RLStage):
        yield from _algorithm_problems(stage, stage.algorithm, stage.algorithm_settings)
    if isinstance(stage, RLStage):
        yield from _reward_problems(stage)
    if isinstance(stage, PreferenceStage):
        yield from _preference_problems(stage)


MODEL_KEYS = ("model", "teacher", "reference", "reward_model", "step_rewards")


def _source_problems(stage: Stage, earlier: Sequence[Stage], later: list[str]) -> Iterator[Problem]:
    """Models and data sets that no earlier stage makes and that are nowhere on disk."""
    makes_data = [other.name for other in earlier if other.makes == "data"]
    makes_models = [other.name for other in earlier if other.makes in ("model", "reward model")]
    for name in stage.reads():
        key = _key_of(stage, name)
        if name in later or name == stage.name:
            yield key, f"{name} is made by {'this' if name == stage.name else 'a later'} stage; read an earlier one"
        elif name in makes_data:
            yield key, f"{name} makes data, not a model"
        elif name not in (known := [*BUNDLED_MODELS, *makes_models]) and not Path(name).is_dir():
            yield key, f"{name!r} is neither a directory nor a known model; {did_you_mean(name, known)}"
    for name in stage.reads_data():
        key = "replay" if name in getattr(stage, "replay", []) else "data"
        if name in later or name == stage.name:
            yield key, f"{name} is {'this' if name == stage.name else 'a later'} stage; read an earlier one"
        elif name not in makes_data and not Path(name).is_file():
            known = f"; {did_you_mean(name, makes_data)}" if makes_data else ""
            yield key, f"{name!r} is neither a file nor a stage that makes data{known}"


def _key_of(stage: Stage, name: str) -> str:
    """The setting that names this model."""
    for key in MODEL_KEYS:
        if getattr(stage, key, None) == name:
            return key
    for key in ("critic", "judge"):
        part = getattr(stage, key, None)
        if part is not None and part.model == name:
            return f"{key}.model"
    for table in ("reward_models", "reward_judges"):
        for part, found in getattr(stage, table, {}).items():
            if found.model == name and not getattr(found, "base_url", ""):
                return f"{table}.{part}.model"
    return "model"


def _task_problems(stage: Stage, place: str, task: TaskSettings) -> Iterator[Problem]:
    from melete.tasks import NOT_SETTINGS, TASKS, is_known, known_names, make_task

    if not is_known(task.name):
        yield f"{place}.name", f"unknown task {task.name!r}; {did_you_mean(task.name, known_names())}"
        return
    if task.name not in TASKS:  # its data say what can be
        try:
            make_task(task.name, task.own_settings())
        except ValueError as error:
            yield place, _told(error)
        return
    known = {
        field.name: field for field in dataclasses.fields(TASKS[task.name]) if field.name not in NOT_SETTINGS
    }
    wrong = False
    for key, value in task.own_settings().items():
        if key not in known:
            wrong = True
            near = did_you_mean(key, known, f"{stage.name}.{place}.")
            yield f"{place}.{key}", f"unknown key of task {task.name}; {near}"
        elif type(value) is not type(known[key].default):
            wrong = True
            yield f"{place}.{key}", f"must be {_TYPE_NAMES[type(known[key].default)]}, not {value!r}"
    if not wrong:
        try:
            make_task(task.name, task.own_settings())
        except ValueError as error:
            yield place, _told(error)


def _comparison_problems(stage: CompareStage) -> Iterator[Problem]:
    for number, algorithm in enumerate(stage.algorithms):
        given, training = stage.settings_for(algorithm)
        try:
            CompareStage.model_validate(stage.model_dump() | training)
        except ValidationError as error:
            for found in error.errors():
                yield ".".join(["settings_of", algorithm, *map(str, found["loc"])]), found["msg"]
        for key, why in _algorithm_problems(stage, algorithm, given):
            yield (f"algorithms[{number}]" if key == "algorithm" else key), f"{algorithm}: {why}"
    for name in stage.settings_of.keys() - set(stage.algorithms):
        yield f"settings_of.{name}", f"is none of the algorithms; {did_you_mean(name, stage.algorithms)}"


def _reward_problems(stage: RLStage) -> Iterator[Problem]:
    from melete.rewards import REWARDS, reward_settings

    for name in stage.rewards:
        part = stage.reward_parts.get(name)
        if name in stage.reward_models or name in stage.reward_judges:
            if part and (part.reward or part.settings):
                yield f"reward_parts.{name}", "is what a model says; it has a gate and a scale, and no settings"
            continue
        kind = part.reward if part and part.reward else name
        key = f"reward_parts.{name}.reward" if kind != name else f"rewards.{name}"
        if ":" in kind:
            yield from ((key, why) for why in _import_problems(kind))
        elif kind not in REWARDS:
            prefix = "" if kind != name else f"{stage.name}.rewards."
            yield key, f"unknown reward; {did_you_mean(kind, REWARDS, prefix)}"
        elif part:
            known = reward_settings(kind)
            for setting in part.settings.keys() - known.keys():
                why = f"unknown setting of {kind}; {did_you_mean(setting, known)}"
                yield f"reward_parts.{name}.settings.{setting}", why


def _algorithm_problems(stage: RLStage, name: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    from melete.algorithms import ALGORITHMS, Algorithm, resolve

    if ":" in name and (reasons := list(_import_problems(name, Algorithm))):
        yield "algorithm", reasons[0]
        return
    if ":" not in name and name not in ALGORITHMS:
        yield "algorithm", f"unknown algorithm {name!r}; {did_you_mean(name, ALGORITHMS)}"
        return
    if name == "sft":
        yield "algorithm", "sft copies completions whatever their reward, so a reward teaches nothing; use grpo"
        return
    known = _all_settings()
    for key in given:
        if key not in known:
            near = did_you_mean(key, ALGORITHMS[name].defaults if name in ALGORITHMS else known, _prefix(stage))
            yield f"algorithm_settings.{key}", f"unknown setting of {name}; {near}"
    if any(key not in known for key in given):
        return
    try:
        algorithm = resolve(name, max_new_tokens=stage.max_new_tokens, **given)
    except (TypeError, ValueError) as error:
        yield "algorithm_settings" if given else "algorithm", _told(error)
        return
    yield from _impossible(stage, algorithm)


def _prefix(stage: Stage) -> str:
    return f"{stage.name}.algorithm_settings."


def _all_settings() -> list[str]:
    from melete.algorithms import AlgorithmSettings

    return [field.name for field in dataclasses.fields(AlgorithmSettings) if field.name != "name"]


def _impossible(stage: RLStage, algorithm: Any) -> Iterator[Problem]:
    """What this algorithm needs and the stage does not give, or the other way round."""
    needs, name = algorithm.needs, algorithm.name
    is_compared = isinstance(stage, CompareStage)  # what one row has no use for, another may want
    given = {
        "critic": stage.critic is not None,
        "teacher": bool(stage.teacher),
        "step_rewards": bool(stage.step_rewards),
        "reference": stage.reference not in ("start", "none"),
    }
    for key, (stream, lacking, useless) in COMPANIONS.items():
        if stream in needs and not given[key] and lacking:
            yield key, f"{name} {lacking}"
        if stream not in needs and given[key] and not is_compared:
            yield key, f"{name} {useless}"
    if "ref_logprobs" in needs and stage.reference == "none":
        yield "reference", f"{name} needs a reference for its KL; name one, or set kl_coef = 0"
    if stage.reference_refresh_steps and algorithm.kl[1] is None:
        yield "reference_refresh_steps", "there is no reference to refresh: the KL has no weight (kl_coef is 0)"
    if algorithm.uses_groups and stage.group_size == 1:
        yield "group_size", NO_GROUP
    if stage.max_staleness and algorithm.settings.correction == "none" and "old_logprobs" not in needs:
        yield "max_staleness", f"{name} has no ratio, so it cannot learn from what older weights wrote"


# setting -> the stream it gives, why it is needed, and why it would be useless
COMPANIONS = {
    "critic": (
        "values",
        "needs a critic: add a table [stage.critic]; without one use grpo or rloo",
        "has no use for a critic: its advantages come from the group; leave it out",
    ),
    "teacher": (
        "teacher_logprobs",
        "needs a teacher: name the model to learn from",
        "learns from rewards and never asks a teacher; use on_policy_distillation",
    ),
    "step_rewards": (
        "step_rewards",
        'rewards single steps: set step_rewards to "task" or a reward model',
        "rewards whole completions; use grpo_process",
    ),
    "reference": ("ref_logprobs", "", "never looks at a reference: the KL has no weight (kl_coef is 0)"),
}
NO_GROUP = (
    "with one rollout per problem there is nothing to compare it with: every advantage is 0 and nothing is learnt; "
    "use at least 2"
)


def _preference_problems(stage: PreferenceStage) -> Iterator[Problem]:
    from melete.algorithms.preference import PREFERENCE_ALGORITHMS, PreferenceAlgorithm, resolve_preference

    name, given = stage.algorithm, stage.algorithm_settings
    if ":" in name and (reasons := list(_import_problems(name, PreferenceAlgorithm))):
        yield "algorithm", reasons[0]
        return
    if ":" not in name and name not in PREFERENCE_ALGORITHMS:
        yield "algorithm", f"unknown preference algorithm {name!r}; {did_you_mean(name, PREFERENCE_ALGORITHMS)}"
        return
    try:
        algorithm = resolve_preference(name, **given)
    except (TypeError, ValueError) as error:
        yield "algorithm_settings" if given else "algorithm", _told(error)
        return
    if algorithm.unpaired and stage.pairs_per_step == 1:
        yield "pairs_per_step", f"{name} reads its baseline off completions of other prompts; use at least 2"


def _import_problems(path: str, or_a: type | tuple[type, ...] = ()) -> Iterator[str]:
    try:
        import_path(path, place=path, or_a=or_a)
    except RecipeError as error:
        yield _told(error)


def _told(error: Exception) -> str:
    """The message on one line, without the place, which the key already is."""
    if isinstance(error, MeleteError):
        return "; ".join(part for part in (error.what, error.remedy) if part)
    return str(error)
