"""The stage that runs several algorithms on the same task with the same budget, each with several seeds."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from melete.runs.atomic import json_text, write_atomically
from melete.schema import CompareStage, Recipe, RLStage
from melete.stages.context import StageContext
from melete.stages.sub_runs import SubRun, run_all

FIELDS_OF_ITS_OWN = ("kind", "algorithms", "settings_of", "seeds", "num_workers", "algorithm", "algorithm_settings")
SIDE = "rl"  # the one stage of each single run


def single_recipe(stage: CompareStage, algorithm: str, seed: int) -> Recipe:
    """The recipe of one algorithm with one seed; anybody can run it by itself."""
    from melete.algorithms import resolve

    shared = stage.model_dump(mode="json", exclude=set(FIELDS_OF_ITS_OWN))
    if algorithm != stage.algorithms[0]:  # the base is the same for all
        shared["evaluation"]["at"] = [1.0]
    own, training = stage.settings_for(algorithm)
    needs = resolve(algorithm, max_new_tokens=stage.max_new_tokens, **own).needs
    shared |= {
        "name": SIDE,
        "kind": "rl",
        "algorithm": algorithm,
        "algorithm_settings": own,
        **training,
        # what only some rows use, the others are spared
        "critic": shared["critic"] if "values" in needs else None,
        "step_rewards": shared["step_rewards"] if "step_rewards" in needs else "",
        "teacher": shared["teacher"] if "teacher_logprobs" in needs else "",
    }
    return Recipe.model_validate({"name": _name(algorithm, seed), "seed": seed, "stage": [shared]}, strict=False)


def run_compare(stage: CompareStage, context: StageContext) -> dict[str, Any]:
    """Runs what is left to run, `num_workers` processes at a time; writes `compare/<stage>/table.json`.

    Each single run is a run directory of its own, so one that was cut off continues where it was.
    """
    started = time.perf_counter()
    root = context.run.path / "compare" / stage.name
    jobs = [(algorithm, seed) for algorithm in stage.algorithms for seed in stage.seeds]
    context.view.stage_started(stage.name, len(jobs))
    _run_all(stage, root, jobs, context)
    rows = table(root, stage.algorithms, stage.seeds, stage)
    write_atomically(root / "table.json", json_text(rows, indent=2) + "\n")
    for number, row in enumerate(rows):
        context.run.log_metrics({"stage": stage.name, "step": number, "kind": "comparison", **row})
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": time.perf_counter() - started,
        "evaluations": [],
        "comparison": rows,
    }


def _run_all(stage: CompareStage, root: Path, jobs: Sequence[tuple[str, int]], context: StageContext) -> None:
    runs = {_name(*job): SubRun(_name(*job), single_recipe(stage, *job), root / _name(*job)) for job in jobs}
    job_of = {_name(*job): job for job in jobs}
    root.mkdir(parents=True, exist_ok=True)
    for name, run in runs.items():
        write_atomically(root / f"{name}.json", json_text(run.recipe.as_dict(), indent=2) + "\n")
    num_done = itertools.count(1)

    def on_end(run: SubRun) -> None:
        context.view.step(stage.name, next(num_done), _shown(root, *job_of[run.name]), None)

    run_all(list(runs.values()), stage.num_workers, context, on_end)


def _name(algorithm: str, seed: int) -> str:
    return f"{algorithm.replace(':', '-').replace('.', '-')}-{seed}"


def _evaluations(root: Path, algorithm: str, seed: int) -> list[dict[str, Any]]:
    summary = json.loads((root / _name(algorithm, seed) / "summary.json").read_text(encoding="utf-8"))
    return summary["stages"][0]["evaluations"]


def _shown(root: Path, algorithm: str, seed: int) -> dict[str, float]:
    return {f"{algorithm}/pass@1": float(_evaluations(root, algorithm, seed)[-1]["pass@1"])}


def table(root: Path, algorithms: Sequence[str], seeds: Sequence[int], stage: RLStage) -> list[dict[str, Any]]:
    """One row per algorithm: pass@1 before and after by seed, the mean gain and its standard error over seeds."""
    rows = []
    for algorithm in algorithms:
        found = [_evaluations(root, algorithm, seed) for seed in seeds]
        before = [_evaluations(root, algorithms[0], seed)[0]["pass@1"] for seed in seeds]
        after = [run[-1]["pass@1"] for run in found]
        gains = [last - first for first, last in zip(before, after, strict=True)]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        rows.append(
            {
                "algorithm": algorithm,
                "before": before,
                "after": after,
                "gain_mean": statistics.fmean(gains),
                "gain_se": error if math.isfinite(error) else None,
                "length_after": statistics.fmean(run[-1]["length_mean"] for run in found),
                "share_thinking_after": statistics.fmean(run[-1]["share_thinking"] for run in found),
                "num_steps": stage.num_steps,
            }
        )
    return rows
