"""Names in a recipe that nothing answers to: tasks and their settings, rewards, algorithms; and the nearest ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from melete.errors import MeleteError, RecipeError
from melete.imports import import_path
from melete.schema import CompareStage, PreferenceStage, Problem, Recipe, RLStage, Stage, TaskSettings
from melete.suggest import did_you_mean

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}


def name_problems(recipe: Recipe) -> Iterator[Problem]:
    """Key and reason of each name that stands for nothing, and of settings that its owner refuses."""
    for stage in recipe.stages:
        yield from ((f"{stage.name}.{key}", why) for key, why in _stage_problems(stage))


def _stage_problems(stage: Stage) -> Iterator[Problem]:
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
    yield from _judge_problems(stage)


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
    known = {field.name: field for field in dataclasses.fields(TASKS[task.name]) if field.name not in NOT_SETTINGS}
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


def _judge_problems(stage: Stage) -> Iterator[Problem]:
    """Addresses and names of keys are looked at before anything of the recipe is written: one may hold a secret."""
    judges = {f"reward_judges.{name}": part for name, part in getattr(stage, "reward_judges", {}).items()}
    judges |= {"judge": part} if (part := getattr(stage, "judge", None)) else {}
    for place, judge in judges.items():
        if judge.base_url or judge.key_variable:
            from melete.rewards.endpoint import endpoint_problems

            for key, why in endpoint_problems(judge.base_url, judge.key_variable):
                if key != "base_url" or judge.base_url:  # a judge on this machine has none
                    yield f"{place}.{key}", why


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
