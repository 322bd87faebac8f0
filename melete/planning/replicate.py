"""The estimate of a stage that runs another recipe with several seeds and arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from melete.config import load_recipe
from melete.planning.estimate import Disk, Memory
from melete.planning.graph import NotEstimated


def replicated(
    stage: Any, plans_of: Callable[[Sequence[Any]], Sequence[Any]], num_cores: int
) -> tuple[float, Memory, Disk]:
    """Time, memory and disk of all runs; an arm costs what its settings change, and all that reads from that.

    Raises `NotEstimated` where a stage of the recipe has no estimate.
    """
    overrides, num_seeds = list(stage.overrides), len(stage.seeds)
    at_once = max(min(stage.num_workers, num_cores), 1)
    main = load_recipe(stage.recipe, overrides).stages
    whole = _known(plans_of(main))
    # the arms begin when the main runs are done, and fill what workers there are
    seconds = sum(plan.seconds for plan in whole.values()) * math.ceil(num_seeds / at_once)
    disk = _disk(whole)
    for arm in stage.arms.values():
        stages = load_recipe(stage.recipe, [*overrides, *arm.overrides]).stages
        changed = changed_stages(main, stages, arm.until)
        plans = _known([plan for plan in plans_of(stages) if plan.name in changed])
        seconds += sum(plan.seconds for plan in plans.values()) * num_seeds / at_once
        disk += _disk(plans)
    largest = max((plan.memory for plan in whole.values()), key=lambda memory: memory.total)
    processes = max(min(stage.num_workers, num_seeds * max(len(stage.arms), 1)), 1) * largest.num_processes
    memory = Memory(largest.process, largest.models, largest.work, processes)
    return seconds, memory, Disk(disk * num_seeds, 0.0)


def changed_stages(main: Sequence[Any], arm: Sequence[Any], until: str = "") -> set[str]:
    """The stages of an arm that are not those of the main run, with everything that reads from them.

    With `until`, only those that this stage needs, and itself.
    """
    before = {stage.name: stage.model_dump(mode="json") for stage in main}
    changed = set[str]()
    for stage in arm:  # a stage reads earlier ones only
        reads = {*stage.reads(), *stage.reads_data()}
        if before.get(stage.name) != stage.model_dump(mode="json") or reads & changed:
            changed.add(stage.name)
    return changed & needed(arm, until) if until else changed


def needed(stages: Sequence[Any], name: str) -> set[str]:
    """The stage of this name and all that it reads from, directly or not."""
    found = {name}
    for stage in reversed(stages):
        if stage.name in found:
            found |= {*stage.reads(), *stage.reads_data()}
    return found


def _known(plans: Sequence[Any]) -> dict[str, Any]:
    for plan in plans:
        if plan.seconds is None or plan.memory is None or plan.disk is None:
            raise NotEstimated(f"its stage {plan.name}: {plan.why_not}")
    return {plan.name: plan for plan in plans}


def _disk(plans: Mapping[str, Any]) -> float:
    return sum(plan.disk.total for plan in plans.values())
