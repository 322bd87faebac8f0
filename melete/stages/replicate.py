"""The stage that repeats another recipe with several seeds and arms, and judges the claims by all of these runs."""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from melete.claims import MAIN, RunFacts, claims_of_runs
from melete.config import load_recipe
from melete.errors import RecipeError
from melete.recipe_graph import inputs_of, sources_of
from melete.runs.artefacts import StageRecord, read_record
from melete.runs.atomic import json_text, new_directory, write_atomically
from melete.runs.directory import LOGS, METRICS, read_rows
from melete.schema import Recipe
from melete.schema.replicate import ReplicateStage
from melete.stages.context import StageContext
from melete.stages.sub_runs import SubRun, run_all
from melete.states import stage_states
from melete.suggest import did_you_mean

EXAM = "evaluate"
NUMBERS = (
    "format_share",
    "language_share",
    "share_thinking",
    "length_mean",
    "reflection_per_1k",
    "refused_harmful",
    "refused_harmless",
)


class Planned(NamedTuple):
    """A run of one seed and arm; `shared` stages are taken from the main run of the seed."""

    seed: int
    arm: str
    recipe: Recipe
    shared: frozenset[str]

    @property
    def place(self) -> str:
        """Where it lies, below the run."""
        return f"seeds/{self.seed}/{self.arm}"

    @property
    def name(self) -> str:
        return f"seed {self.seed}, {self.arm}"


def planned_runs(stage: ReplicateStage) -> list[Planned]:
    """Every run of the stage, the main one of each seed first.

    Raises `RecipeError` for a recipe that cannot be used, an arm that changes nothing, or one until an unknown stage.
    """
    planned = []
    for seed in stage.seeds:
        main = _recipe(stage, seed)
        planned.append(Planned(seed, MAIN, main, frozenset()))
        for name, arm in stage.arms.items():
            changed = _recipe(stage, seed, arm.overrides)
            kept = _until(changed, arm.until, place=f"{stage.name}.arms.{name}.until")
            shared = shared_stages(main, changed) & kept
            anew = [other for other in changed.stages if other.name in kept - shared and _kind(other) != EXAM]
            if not anew:
                what = "the overrides change nothing that this arm runs"
                raise RecipeError(
                    what, place=f"{stage.name}.arms.{name}", remedy="change a setting of a stage, or until"
                )
            recipe = cut_down(changed, kept, {other.name for other in anew})
            left = {other.name for other in recipe.stages}
            planned.append(Planned(seed, name, recipe, shared & left))
    return planned


def _recipe(stage: ReplicateStage, seed: int, overrides: Sequence[str] = ()) -> Recipe:
    recipe = load_recipe(stage.recipe, [*stage.overrides, *overrides, f"seed={seed}"])
    if any(_kind(other) == stage.kind for other in recipe.stages):
        what = f"{recipe.name} repeats a recipe itself"
        raise RecipeError(what, place=f"{stage.name}.recipe", remedy="name a recipe without a stage of this kind")
    return recipe


def _until(recipe: Recipe, last: str, place: str) -> frozenset[str]:
    """The stages that are run: `last`, what it needs, and the exams; all without it."""
    names = [stage.name for stage in recipe.stages]
    if not last:
        return frozenset(names)
    if last not in names:
        raise RecipeError(f"there is no stage {last!r}; {did_you_mean(last, names)}", place=place)
    exams = [stage.name for stage in recipe.stages if _kind(stage) == EXAM]
    return frozenset([last, *sources_of(recipe, last), *exams])


def shared_stages(one: Recipe, other: Recipe) -> frozenset[str]:
    """The stages that are the same in both recipes, and so is all that they read."""
    settings = {stage.name: stage.model_dump(mode="json") for stage in one.stages}
    names = [stage.name for stage in other.stages]
    shared: set[str] = set()
    for stage in other.stages:  # a stage reads earlier ones only
        is_same = settings.get(stage.name) == stage.model_dump(mode="json")
        if is_same and shared.issuperset(inputs_of(stage, names)):
            shared.add(stage.name)
    return frozenset(shared)


def cut_down(recipe: Recipe, kept: Collection[str], anew: Collection[str]) -> Recipe:
    """The recipe with the stages `kept` only; its exams try the models made `anew` only, the main run's all others."""
    tables = recipe.as_dict()
    stages = [cut_exam(stage, anew) if stage["kind"] == EXAM else stage for stage in tables["stage"]]
    tables["stage"] = [stage for stage in stages if stage["name"] in kept and stage.get("models") != []]
    return Recipe.model_validate(tables, strict=False)


def cut_exam(stage: Mapping[str, Any], anew: Collection[str]) -> dict[str, Any]:
    """The settings of an exam of fewer models."""
    models = [model for model in stage["models"] if model in anew]
    labels = {model: label for model, label in stage.get("labels", {}).items() if model in models}
    final = stage.get("final") if stage.get("final") in models else ""
    return {**stage, "models": models, "labels": labels, "final": final}


def _kind(stage: Any) -> str:
    return stage.kind


def run_replicate(stage: ReplicateStage, context: StageContext) -> dict[str, Any]:
    """Makes what is left to make of the runs, `num_workers` at a time; returns the entry, with a verdict on each claim.

    Each is a run directory of its own in `seeds/SEED/ARM`, so one that was cut off continues where it was.
    """
    started = time.perf_counter()
    planned = planned_runs(stage)
    context.view.stage_started(stage.name, len(planned))
    _run_all(stage, planned, context)
    made = [_Made.read(context.run.path, run) for run in planned]
    seconds = [run.seconds for run in made]
    return {
        "name": stage.name,
        "kind": stage.kind,
        # a stage that was cut off counts what was made before
        "seconds": max(time.perf_counter() - started, sum(seconds) / stage.num_workers),
        "evaluations": [],
        "recipe": stage.recipe,
        "seeds": list(stage.seeds),
        "arms": list(stage.arms),
        "claims": claims_of_runs([run.facts for run in made]),
        "runs": [run.entry() for run in made],
    }


def _run_all(stage: ReplicateStage, planned: Sequence[Planned], context: StageContext) -> None:
    """Runs what is not done; a process for what is done would need seconds to find that out."""
    root, waiting = context.run.path, dict[str, SubRun]()
    num_done = 0

    def on_end(name: str) -> None:
        nonlocal num_done
        num_done += 1
        context.view.message(f"{stage.name}: {name}: done, {num_done} of {len(planned)}")
        context.view.step(stage.name, num_done - 1, {}, None)

    for run in planned:
        directory, main = root / run.place, Planned(run.seed, MAIN, run.recipe, frozenset())
        directory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(directory.with_name(f"{run.arm}.json"), json_text(run.recipe.as_dict(), indent=2) + "\n")
        sharing = functools.partial(share, root / main.place, directory, run.shared) if run.arm != MAIN else None
        after = main.name if main.name in waiting else ""
        if not after and sharing:
            sharing()
        if after or not _is_done(run.recipe, directory):
            waiting[run.name] = SubRun(run.name, run.recipe, directory, after, sharing)
        else:
            on_end(run.name)
    run_all(list(waiting.values()), stage.num_workers, context, lambda run: on_end(run.name))


def _is_done(recipe: Recipe, directory: Path) -> bool:
    file = directory / "summary.json"
    if not file.exists() or "unfinished" in json.loads(file.read_text(encoding="utf-8")):
        return False
    return all(state.state == "done" for state in stage_states(recipe, directory))


def share(main: Path, arm: Path, stages: Collection[str]) -> None:
    """Gives an arm what these stages made in the main run, unless it has it; another state of it is thrown away.

    Models are hard links where the file system can: they are only ever replaced, never changed. All else is copied.
    """
    if arm.exists():
        if all(_made(arm, stage) == _made(main, stage) for stage in stages):
            return
        shutil.rmtree(arm)
    with new_directory(arm) as unfinished:
        for stage in stages:
            record = read_record(main, stage)
            for file in record.wrote if record else ():
                (_link if file.startswith("models/") else _copy)(main / file, unfinished / file)
            kept = [path for path in (main / "evaluations" / stage).rglob("*") if path.is_file()]
            for path in (main / "stages" / f"{stage}.json", *kept):
                _copy(path, unfinished / path.relative_to(main))
        for log in LOGS:
            rows = [row for row in read_rows(main / log) if row.get("stage") in stages]
            (unfinished / log).write_text("".join(json_text(row) + "\n" for row in rows), encoding="utf-8")


def _made(run_dir: Path, stage: str) -> tuple[Any, Any] | None:
    record: StageRecord | None = read_record(run_dir, stage)
    return record and (record.made_from, record.wrote)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        _copy(source, target)


class _Made(NamedTuple):
    """A finished run and what the claims need of it."""

    planned: Planned
    facts: RunFacts
    seconds: float

    @classmethod
    def read(cls, root: Path, planned: Planned) -> _Made:
        directory = root / planned.place
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        facts = RunFacts.of(summary, list(read_rows(directory / METRICS)), arm=planned.arm)
        seconds = sum(entry["seconds"] for name, entry in facts.stages.items() if name not in planned.shared)
        return cls(planned, facts, seconds)

    def entry(self) -> dict[str, Any]:
        """Its row in the stage's entry."""
        return {
            "seed": self.planned.seed,
            "arm": self.planned.arm,
            "dir": self.planned.place,
            "seconds": self.seconds,
            "shared": sorted(self.planned.shared),
            "checkpoints": list(self._checkpoints()),
        }

    def _checkpoints(self) -> Iterator[dict[str, Any]]:
        for model, found in self.facts.checkpoints.items():
            tasks = {task: _compact(summary) for task, summary in found["tasks"].items()}
            yield {"model": model, "label": found.get("label", model), "tasks": tasks}


def _compact(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an evaluation that a table of several runs has room for; intervals as [mean, low, high]."""
    most = max(summary["majority"], key=int)
    return {
        "pass@1": summary["pass"]["1"],
        "maj": summary["majority"][most],
        "maj_k": int(most),
        "score": [summary["score"], summary["score/low"], summary["score/high"]],
        **{key: summary.get(key) for key in NUMBERS},
    }
