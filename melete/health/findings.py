"""From rows of metrics to findings: one for each rule and stage, with its first and last step and its worst number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from melete.health.history import History
from melete.health.rules import RULES
from melete.health.signs import SEVERITIES, Severity, Sign
from melete.schema.health import HealthSettings


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, in words that need no knowledge of the metric, and what to try.

    `value` is the worst that was seen, `limit` the one that it is beyond; `says` and `cause` are of that step.
    """

    rule: str
    severity: Severity
    stage: str
    first_step: int
    last_step: int
    value: float
    limit: float
    says: str
    cause: str
    remedy: str

    def as_dict(self) -> dict[str, Any]:
        """As `summary.json` holds it; the remedy is called `try`."""
        names = ("rule", "severity", "stage", "first_step", "last_step", "value", "limit", "says", "cause")
        return {name: getattr(self, name) for name in names} | {"try": self.remedy}

    def line(self) -> str:
        """For the terminal."""
        return f"{self.stage}: {self.severity}: {self.says} {self.cause} Try {self.remedy}."


class Watch:
    """Looks on while a stage runs. `settings` are those of the stage as plain values, as in `recipe.json`.

    >>> watch = Watch({"name": "rl", "group_size": 8})
    >>> rows = [{"step": step, "dead_groups": 0.75, "all_correct_groups": 0.0} for step in range(5)]
    >>> [[finding.rule for finding in watch.feed(row)] for row in rows]
    [[], [], [], [], ['dead_groups']]
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.stage = str(settings.get("name", ""))
        self.history = History(settings, _limits(settings))
        self.found: dict[str, Finding] = {}

    def feed(self, row: Mapping[str, Any]) -> list[Finding]:
        """Takes one row of `metrics.jsonl`; returns what is new, or worse than it was."""
        self.history.add(row)
        if not self.history.rows or row.get("kind", "evaluation") != "evaluation":
            return []
        news = []
        for name, rule in RULES.items():
            sign = None if name in self.history.limits.off else rule(self.history)
            if sign is not None:
                before = self.found.get(name)
                self.found[name] = after = self._finding(name, sign, before)
                if before is None or rank(after.severity) > rank(before.severity):
                    news.append(after)
        return news

    def findings(self) -> list[Finding]:
        """Everything found so far, the most serious first, then the earliest."""
        return in_order(self.found.values())

    def _finding(self, rule: str, sign: Sign, before: Finding | None) -> Finding:
        step = self.history.step
        if before is not None and not _worse(sign, before):
            return replace(before, last_step=step)
        first = before.first_step if before else step
        return Finding(
            rule, sign.severity, self.stage, first, step, sign.value, sign.limit, sign.says, sign.cause, sign.remedy
        )


def findings(
    rows: Iterable[Mapping[str, Any]], stage_settings: Mapping[str, Any], evaluations: Iterable[Mapping[str, Any]] = ()
) -> list[Finding]:
    """What is wrong with a whole stage; `rows` may hold its evaluations, or they come apart."""
    watch = Watch(stage_settings)
    waiting = sorted(({"kind": "evaluation", **row} for row in evaluations), key=_step)
    for row in rows:
        while waiting and "kind" not in row and _step(waiting[0]) <= _step(row):
            watch.feed(waiting.pop(0))  # an evaluation is made before the step of its number
        watch.feed(row)
    for row in waiting:
        watch.feed(row)
    return watch.findings()


def health_of_run(metrics: Iterable[Mapping[str, Any]], recipe: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with each stage of reinforcement learning, from the files `metrics.jsonl` and `recipe.json`."""
    rows = list(metrics)
    return in_order(
        finding
        for stage in recipe.get("stage", ())
        if stage.get("kind") == "rl"
        for finding in findings([row for row in rows if row.get("stage") == stage.get("name")], stage)
    )


def in_order(found: Iterable[Finding]) -> list[Finding]:
    """The most serious first, then the earliest."""
    return sorted(found, key=lambda finding: (-rank(finding.severity), finding.first_step, finding.rule))


def rank(severity: Severity) -> int:
    """0 for a note, 2 for what is serious."""
    return SEVERITIES.index(severity)


def _limits(settings: Mapping[str, Any]) -> HealthSettings:
    given = settings.get("health") or {}
    if isinstance(given, HealthSettings):
        return given
    # a run of another version may have limits that this one does not know
    known = HealthSettings.model_fields.keys() & given.keys()
    return HealthSettings.model_validate({name: given[name] for name in known})


def _worse(sign: Sign, before: Finding) -> bool:
    if sign.severity != before.severity:
        return rank(sign.severity) > rank(before.severity)
    falls = before.value < before.limit
    return sign.value < before.value if falls else sign.value > before.value


def _step(row: Mapping[str, Any]) -> int:
    return int(row.get("step", 0))
