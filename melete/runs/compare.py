"""Two runs side by side: what their recipes differ in, what they measured, and whether the difference is chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from melete.errors import RunError
from melete.runs.directory import differences
from melete.runs.listing import Evaluated, RunFacts

MEASURES = (
    "score",
    "pass@1",
    "share_thinking",
    "format_share",
    "language_share",
    "length_mean",
    "truncated_share",
    "reflection_per_1k",
)


class Difference(NamedTuple):
    """B minus A with its 95 % interval; `num_problems` is how many problems both tried, 0 where they are not paired."""

    mean: float
    low: float
    high: float
    num_problems: int = 0

    @property
    def is_more_than_chance(self) -> bool:
        return self.low > 0 or self.high < 0


# the differences, by measure, of two evaluations that tried the same problems; none where they did not
Paired = Callable[[Evaluated, Evaluated], Mapping[str, Difference]]


@dataclass(frozen=True, slots=True)
class Compared:
    """One measure of both runs; without `difference` there is no interval to go by."""

    where: str
    measure: str
    a: tuple[float, float | None, float | None]
    b: tuple[float, float | None, float | None]
    difference: Difference | None

    @property
    def says(self) -> str:
        """Whether the difference is more than chance, and how that is known."""
        if self.difference is None:
            return ""
        num = self.difference.num_problems
        how = f"paired, {num} problems" if num else "not paired"
        return f"{'more than chance' if self.difference.is_more_than_chance else 'within chance'} ({how})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`recipe` says what B's recipe changes; `only_in` names stages that one of the runs has alone."""

    a: str
    b: str
    recipe: tuple[str, ...]
    only_in: tuple[str, ...]
    rows: tuple[Compared, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Everything, for scripts."""
        rows = []
        for row in self.rows:
            found = asdict(row) | {"says": row.says}
            if row.difference is not None:
                found["difference"] = row.difference._asdict() | {
                    "is_more_than_chance": row.difference.is_more_than_chance
                }
            rows.append(found)
        return asdict(self) | {"rows": rows}


def compare_runs(a: RunFacts, b: RunFacts, paired: Paired = lambda _one, _other: {}) -> Comparison:
    """Their last evaluations, stage by stage; `paired` gives differences over the problems that both tried.

    Raises `RunError` for two runs that have no evaluation in common.
    """
    before, after = _last(a), _last(b)
    shared = [(place, place) for place in before if place in after]
    if not shared:
        shared = _only_ones(before, after)
    if not shared:
        raise RunError(
            f"{a.name} and {b.name} share nothing to compare: {_what(before)} here, {_what(after)} there",
            place=f"{a.path}, {b.path}",
            remedy="compare runs of the same recipe, or recipes with a stage of the same name",
        )
    rows, notes = list[Compared](), list[str]()
    for one, other in shared:
        try:
            exact = paired(before[one], after[other])
        except Exception as error:  # what was sampled cannot be judged again: the summaries are still there
            exact = {}
            notes.append(f"{_name(one)}: problems are not paired: {error}")
        rows += _compared(_name(one, other), before[one].numbers, after[other].numbers, exact)
    stages_a, stages_b = _stages(a), _stages(b)
    only_in = [f"{name} is in {a.name} only" for name in stages_a if name not in stages_b]
    only_in += [f"{name} is in {b.name} only" for name in stages_b if name not in stages_a]
    return Comparison(a.name, b.name, tuple(_changes(a, b)), tuple(only_in), tuple(rows), tuple(notes))


Place = tuple[str, str, str]


def _last(run: RunFacts) -> dict[Place, Evaluated]:
    """The last evaluation of each stage and, in an exam, of each model on each task."""
    return {(one.stage, one.model, one.task): one for stage in run.stages for one in stage.evaluated}


def _only_ones(before: Mapping[Place, Evaluated], after: Mapping[Place, Evaluated]) -> list[tuple[Place, Place]]:
    """Stages of different names may be compared where each run has evaluated just one."""
    return [(next(iter(before)), next(iter(after)))] if len(before) == len(after) == 1 else []


def _what(found: Mapping[Place, Evaluated]) -> str:
    return ", ".join(dict.fromkeys(_name(place) for place in found)) or "no evaluation"


def _name(place: Place, other: Place | None = None) -> str:
    stage, model, task = place
    name = f"{model} on {task}" if model else stage
    return name if other is None or other == place else f"{name} / {_name(other)}"


def _stages(run: RunFacts) -> dict[str, Mapping[str, Any]]:
    return {stage["name"]: stage for stage in run.recipe["stage"]}


def _changes(a: RunFacts, b: RunFacts) -> Iterator[str]:
    """What B's recipe changes; a stage is called by its name, whatever its place."""
    one, other = _stages(a), _stages(b)
    yield from differences({"seed": a.seed}, {"seed": b.seed})
    for name in one:
        if name in other:
            yield from differences(one[name], other[name], name)


def _compared(
    where: str, a: Mapping[str, Any], b: Mapping[str, Any], paired: Mapping[str, Difference]
) -> Iterator[Compared]:
    for measure in _measures(a, b):
        one, other = _with_interval(a, measure), _with_interval(b, measure)
        yield Compared(where, measure, one, other, paired.get(measure) or unpaired(one, other))


def _measures(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What both have; the score only where it is not the share of right answers."""
    votes = [key for key in a if key.startswith("maj@") and "/" not in key and key in b]
    most = max(votes, key=lambda key: int(key.removeprefix("maj@")), default=None)
    wanted = [*MEASURES[:2], *([most] if most and most != "maj@1" else []), *MEASURES[2:]]
    found = [name for name in wanted if a.get(name) is not None and b.get(name) is not None]
    is_same = all(numbers.get("score") == numbers.get("pass@1") for numbers in (a, b))
    return [name for name in found if name != "score" or not is_same]


def _with_interval(numbers: Mapping[str, Any], key: str) -> tuple[float, float | None, float | None]:
    return float(numbers[key]), numbers.get(f"{key}/low"), numbers.get(f"{key}/high")


def unpaired(
    a: tuple[float, float | None, float | None], b: tuple[float, float | None, float | None]
) -> Difference | None:
    """The difference of two independent numbers: their half-widths add up as squares.

    >>> unpaired((0.5, 0.47, 0.53), (0.6, 0.56, 0.64))    # 0.1 plus or minus the root of 0.03^2 + 0.04^2
    Difference(mean=0.1, low=0.05, high=0.15, num_problems=0)
    """
    if None in (*a, *b):
        return None
    (value_a, low_a, high_a), (value_b, low_b, high_b) = a, b
    assert low_a is not None and high_a is not None and low_b is not None and high_b is not None
    mean = value_b - value_a
    # an interval need not be even: towards each other the low end of one meets the high end of the other
    down = math.hypot(value_b - low_b, high_a - value_a)
    up = math.hypot(high_b - value_b, value_a - low_a)
    return Difference(round(mean, 12), round(mean - down, 12), round(mean + up, 12))
