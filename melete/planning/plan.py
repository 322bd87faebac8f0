"""The plan of a recipe: for each stage its time, memory and disk, against what the machine has."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from melete.errors import RunError
from melete.planning.estimate import Disk, Facts, Memory, disk_of, memory_of, seconds_of
from melete.planning.graph import Graph, NotEstimated
from melete.planning.kinds import work_of
from melete.planning.knowledge import Knowledge
from melete.planning.machine import Machine
from melete.planning.work import Work
from melete.runs.atomic import json_text, write_atomically

PLAN_FILE = "plan.json"
_CONTINUES = re.compile(r"continue\w* at step (\d+)")


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage; what could not be estimated is None, and `why_not` says why."""

    name: str
    kind: str
    says: str
    state: str = ""
    seconds: float | None = None
    memory: Memory | None = None
    disk: Disk | None = None
    why_not: str = ""
    work: Work | None = None

    @property
    def is_done(self) -> bool:
        return self.state.startswith(("done", "left out"))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do. `measured_seconds` is what the measuring took, 0 where everything was known."""

    recipe: str
    seed: int
    description: str
    run_dir: Path
    machine: Machine
    stages: tuple[StagePlan, ...]
    measured_seconds: float = 0.0
    measured_folder: Path | None = None

    @property
    def left(self) -> list[StagePlan]:
        """The stages that there is something to do for."""
        return [stage for stage in self.stages if not stage.is_done]

    @property
    def seconds(self) -> float:
        """Time of all stages whose time is estimated."""
        return sum(stage.seconds or 0.0 for stage in self.left)

    @property
    def not_estimated(self) -> list[StagePlan]:
        return [stage for stage in self.left if stage.seconds is None]

    @property
    def disk_bytes(self) -> float:
        """What will have been written at the fullest moment."""
        found = [stage.disk for stage in self.left if stage.disk]
        return sum(disk.kept for disk in found) + max((disk.passing for disk in found), default=0.0)

    @property
    def largest(self) -> StagePlan | None:
        """The stage that takes the most memory."""
        known = [stage for stage in self.left if stage.memory]
        return max(known, key=lambda stage: stage.memory.total if stage.memory else 0.0, default=None)

    def text(self) -> str:
        """One line per stage, then totals against what the machine has."""
        lines = [f"{self.recipe} (seed {self.seed}): {self.description}".rstrip(": ")]
        lines += _table([_cells(number, stage) for number, stage in enumerate(self.stages, 1)])
        lines += [f"  {stage.name} could not be estimated: {stage.why_not}" for stage in self.stages if stage.why_not]
        lines += self._totals()
        return "\n".join(lines)

    def _totals(self) -> Iterable[str]:
        if not self.left:
            yield "nothing is left to do"
            return
        unknown = len(self.not_estimated)
        more = f", and {unknown} stage{'s' * (unknown > 1)} not estimated" if unknown else ""
        yield f"in all: {about(self.seconds)}{more}"
        if self.machine.is_busy:
            cores = f"{self.machine.num_cores} core" + "s" * (self.machine.num_cores > 1)
            yield f"  others keep this machine busy (load {self.machine.load:.1f} on {cores}): it may take longer"
        if (largest := self.largest) and largest.memory:
            yield f"memory: {size(largest.memory.total)} at most (in {largest.name}); {_free(self.machine.free_memory)}"
        yield f"disk:   {size(self.disk_bytes)} in all; {_free(self.machine.free_disk)}"
        if self.measured_seconds:
            where = f", kept in {self.measured_folder}" if self.measured_folder else ""
            yield f"(from {self.measured_seconds:.1f} s of measuring on this machine{where})"

    def refuse_if_too_large(self, max_minutes: float | None = None) -> None:
        """Raises `RunError`, with numbers, when the run does not fit into memory, disk or the time that is given."""
        for stage in self.left:
            if stage.memory and self.machine.free_memory is not None:
                _refuse_memory(stage, stage.memory, self.machine.free_memory)
        free = self.machine.free_disk
        if free is not None and self.disk_bytes > free:
            raise _disk_error(self, free)
        if max_minutes is not None and self.seconds > 60 * max_minutes:
            slowest = max(self.left, key=lambda stage: stage.seconds or 0.0)
            raise RunError(
                f"the run would take {about(self.seconds)}, more than the {max_minutes:g} min that are allowed",
                place=f"stage {slowest.name} takes the most, {about(slowest.seconds or 0.0)}",
                remedy="allow more time, take fewer steps or problems, or a smaller model",
            )


def make_plan(
    recipe: Any,
    run_dir: Path,
    states: Mapping[str, str] | None = None,
    *,
    machine: Machine | None = None,
    measured_folder: Path | None = None,
    may_measure: bool = True,
) -> Plan:
    """The plan of a recipe that has been checked; `states` says, by stage, what the run would do about it.

    What is not known of the models on disk is measured, which takes a few seconds, and kept in `measured_folder` (by
    default in the user's cache). It never fails: what cannot be estimated says why.
    """
    machine = machine or Machine.here(run_dir)
    knowledge = Knowledge(machine, may_measure=may_measure)
    if measured_folder is not None:
        knowledge.folder = measured_folder
    return Plan(
        recipe=recipe.name,
        seed=recipe.seed,
        description=recipe.description,
        run_dir=run_dir,
        machine=machine,
        stages=tuple(stage_plans(recipe.stages, states or {}, knowledge)),
        measured_seconds=knowledge.seconds,
        measured_folder=knowledge.folder,
    )


def stage_plans(stages: Sequence[Any], states: Mapping[str, str], knowledge: Knowledge) -> list[StagePlan]:
    """One plan for each stage, in order."""
    graph = Graph(stages)
    plans = [StagePlan(stage.name, stage.kind, stage.plan(), states.get(stage.name, "")) for stage in stages]
    pending = {plan.name: plan for plan in plans if not plan.is_done}
    works: dict[str, Work] = {}
    why_not: dict[str, str] = {}
    for name in pending:
        try:
            works[name] = work_of(graph.stages[name], graph)
        except Exception as error:  # an estimate never stops a run
            why_not[name] = str(error)
    facts = knowledge.facts(graph, works)
    done = []
    for plan in plans:
        if plan.name in works:
            plan = _estimated(replace(plan, work=works[plan.name]), facts, graph.stages[plan.name])
        elif plan.kind == "replicate" and plan.name in pending:
            plan = _replicated(plan, graph.stages[plan.name], knowledge)
        elif plan.name in pending:
            plan = replace(plan, why_not=why_not[plan.name])
        done.append(plan)
    return done


def _estimated(plan: StagePlan, facts: Facts, stage: Any) -> StagePlan:
    """Time, memory and disk, each as far as it can be told."""
    work = plan.work
    assert work is not None
    try:
        plan = replace(plan, memory=memory_of(work, facts), disk=disk_of(work, facts))
        left = _share_left(plan.state, getattr(stage, "num_steps", 0))
        return replace(plan, seconds=left * seconds_of(work, facts))
    except NotEstimated as error:
        return replace(plan, why_not=str(error))
    except Exception as error:  # an estimate never stops a run
        return replace(plan, why_not=f"{type(error).__name__}: {error}")


def _share_left(state: str, num_steps: int) -> float:
    """What a stage that continues has still to do.

    >>> _share_left("would continue at step 30", 40), _share_left("would be made", 40)
    (0.25, 1.0)
    """
    found = _CONTINUES.search(state)
    return max(1 - int(found[1]) / num_steps, 0.0) if found and num_steps else 1.0


def _replicated(plan: StagePlan, stage: Any, knowledge: Knowledge) -> StagePlan:
    from melete.planning.replicate import replicated

    try:
        plans_of = functools.partial(stage_plans, states={}, knowledge=knowledge)
        seconds, memory, disk = replicated(stage, plans_of, knowledge.machine.num_cores)
        return replace(plan, seconds=seconds, memory=memory, disk=disk)
    except Exception as error:  # an estimate never stops a run
        return replace(plan, why_not=str(error))


def _refuse_memory(stage: StagePlan, memory: Memory, free: int) -> None:
    if memory.total <= free:
        return
    raise RunError(
        f"stage {stage.name} would need about {size(memory.total)} of memory, and {size(free)} can be used",
        place=f"{size(memory.process * memory.num_processes)} for the program, "
        f"{size(memory.models * memory.num_processes)} for models and their optimizers, "
        f"{size(memory.work * memory.num_processes)} for what is sampled or learnt from at once",
        remedy=_memory_remedy(stage, memory),
    )


def _memory_remedy(stage: StagePlan, memory: Memory) -> str:
    if memory.num_processes > 1:
        return f"set {stage.name}.num_workers below {memory.num_processes}"
    if memory.models > memory.work:
        return "take a smaller model, hold fewer models beside it (reference, critic, teacher), or a larger machine"
    if stage.work and any(reading.learns for reading in stage.work.readings):
        return (
            f"lower {stage.name}.max_tokens_per_microbatch (now {stage.work.max_tokens}), "
            "max_new_tokens, prompts_per_step or group_size"
        )
    return "lower max_new_tokens, or the number of problems or samples"


def _disk_error(plan: Plan, free: int) -> RunError:
    kept = sorted((stage for stage in plan.left if stage.disk), key=lambda s: -(s.disk.total if s.disk else 0.0))
    most = ", ".join(f"{stage.name} {size(stage.disk.total)}" for stage in kept[:3] if stage.disk)
    return RunError(
        f"the run would write about {size(plan.disk_bytes)}, and {size(free)} are free",
        place=f"{plan.run_dir}; the most: {most}",
        remedy="free some space, or choose a disk with more (--runs-dir); a stage keeps its last two checkpoints, "
        "each three times as large as its model",
    )


def _cells(number: int, stage: StagePlan) -> list[str]:
    if stage.is_done:
        return [f"{number}. {stage.name}", stage.state, "", "", stage.says]
    says = stage.says if stage.state in ("", "would be made") else f"{stage.says} ({stage.state})"
    return [
        f"{number}. {stage.name}",
        "?" if stage.seconds is None else about(stage.seconds),
        "?" if stage.memory is None else size(stage.memory.total),
        "?" if stage.disk is None else size(stage.disk.total),
        says,
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head = ["", "time", "memory", "disk", ""]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head) - 1)]
    lines = []
    for row in [head, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append(f"  {'  '.join([*cells, row[-1]])}".rstrip())
    return lines


def about(seconds: float) -> str:
    """Seconds as roughly as they are known.

    >>> about(0.4), about(43.2), about(64), about(700), about(7800)
    ('1 s', '43 s', '64 s', '12 min', '2.2 h')
    """
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(num_bytes: float) -> str:
    """Bytes for people.

    >>> size(2e6), size(0), size(3 * 2**30)
    ('2 MiB', '0 MiB', '3.0 GiB')
    """
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def _free(num_bytes: int | None) -> str:
    return "how much is free cannot be told" if num_bytes is None else f"{size(num_bytes)} can be used"


def save_plan(plan: Plan, run_dir: Path) -> Path:
    """Writes `plan.json`, so that estimates can be held against what came; those of finished stages stay."""
    before = load_estimates(run_dir)
    fresh = [stage for stage in plan.left if not (_CONTINUES.search(stage.state) and stage.name in before)]
    rows = {
        stage.name: {
            "seconds": stage.seconds,
            "memory_bytes": stage.memory.total if stage.memory else None,
            "disk_bytes": stage.disk.total if stage.disk else None,
            "why_not": stage.why_not,
        }
        for stage in fresh  # of a stage that continues, the first estimate was of all of it
    }
    stages = {name: row for stage in plan.stages if (row := rows.get(name := stage.name) or before.get(name))}
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    free = {"memory_bytes": plan.machine.free_memory, "disk_bytes": plan.machine.free_disk}
    run_dir.mkdir(parents=True, exist_ok=True)
    content = json_text({"made": made, "free": free, "stages": stages}, indent=2) + "\n"
    write_atomically(run_dir / PLAN_FILE, content)
    return run_dir / PLAN_FILE


def load_estimates(run_dir: Path) -> dict[str, dict[str, Any]]:
    """What `save_plan` wrote for each stage; nothing where there is no plan or it cannot be read."""
    try:
        return dict(json.loads((run_dir / PLAN_FILE).read_text(encoding="utf-8"))["stages"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
