"""An audit of a reward: what it pays for that it should not, and what it does not pay for that it should.

Every attempt is a whole completion and goes through the whole reward: format, extraction, grading and weights. It is
graded in a forked process of its own, so that a grader that hangs or dies is a line of the report. A completion passes
when it earns more than `pass_share` of what lies between nonsense in the right form and the gold answer of its problem.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, Protocol

from melete.rewards.audit_probes import PROBES, Case, Kind, Must, Probe, Style, kind_of, probes_for
from melete.rewards.audit_process import Attempt, Outcome, Workers
from melete.rewards.grade import RewardPart
from melete.rewards.rules import AnyReward, accuracy, format_tags
from melete.types import Problem

What = Literal["false positive", "false negative", "crash", "hang"]
_GOLD, _NONSENSE = PROBES[0].name, PROBES[1].name
_HEAVY = 2  # problems on which large texts are tried
_SHOWN = 120


class Audited(Protocol):
    """The part of a task that an audit needs."""

    @property
    def name(self) -> str: ...

    def problem(self, split: Literal["train", "held_out"], index: int, /) -> Problem: ...

    def grade(self, problem: Problem, answer: str, /) -> float: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe found: how often, out of how many attempts, with the first example."""

    what: What
    probe: str
    count: int
    num_tried: int
    example: Attempt
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class ProbeCount:
    """How the attempts of a probe ended."""

    probe: str
    must: Must
    num_tried: int
    num_passed: int
    num_refused: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All that was found. `stopped` says why an audit ended early; what was then not tried is not counted."""

    task: str
    kind: Kind
    style: Style
    num_problems: int
    num_attempts: int
    findings: tuple[Finding, ...]
    counts: tuple[ProbeCount, ...]
    slowest: tuple[float, Attempt] | None
    stopped: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing was found and everything was tried."""
        return not self.findings and not self.stopped

    def count(self, what: str) -> int:
        """How many attempts are a "false positive", "false negative", "crash" or "hang"."""
        return sum(finding.count for finding in self.findings if finding.what == what)


def audit(
    task: Audited,
    rewards: Mapping[str, AnyReward | RewardPart] | None = None,
    *,
    num_problems: int = 20,
    seed: int = 0,
    split: Literal["train", "held_out"] = "train",
    kind: Kind | None = None,
    style: Style | None = None,
    thought_opened: bool = False,
    pass_share: float = 0.5,
    time_limit: float = 2.0,
    warm_up: float = 30.0,
    max_hangs: int = 5,
) -> AuditReport:
    """Tries every probe on the first `num_problems` problems of a split.

    Without `rewards`, accuracy and (for tagged answers) format are audited. Parts count with their weights and gates (1
    and none for a bare function) and without normalisation, as one completion has no group. `kind` is guessed from
    each gold answer, `style` from the task. `time_limit` is in seconds per attempt, `warm_up` for the first one of a
    process, which may load libraries. After `max_hangs` attempts that hung or ended the process the audit stops.
    """
    plain = bool(getattr(task, "plain_answers", False))
    style = style or ("plain" if plain else "tags")
    if rewards is None:
        rewards = {
            "accuracy": accuracy(
                task.grade, thought_opened=thought_opened, reading="text" if style == "plain" else "tags"
            )
        }
        rewards |= {"format": format_tags(thought_opened=thought_opened)} if style == "tags" else {}
    parts = {name: part if isinstance(part, RewardPart) else RewardPart(part) for name, part in rewards.items()}
    problems = [task.problem(split, index) for index in range(num_problems)]
    kinds: list[Kind] = [kind or kind_of(problem.gold.strip(), plain=style == "plain") for problem in problems]
    attempts = [
        attempt
        for index, problem in enumerate(problems)
        for attempt in _attempts(
            Case(
                problem,
                _others(problem, problems, seed),
                kinds[index],
                style,
                thought_opened,
                index < _HEAVY,
                Random(f"{seed}/{index}"),
            )
        )
    ]
    outcomes, stopped = Workers(attempts, parts, time_limit, warm_up, max_hangs).run()
    usual: Kind = Counter(kinds).most_common(1)[0][0] if kinds else "text"
    return _report(task.name, usual, style, num_problems, attempts, outcomes, pass_share, stopped)


def _attempts(case: Case) -> Iterator[Attempt]:
    for probe in probes_for(case.kind):
        for text in dict.fromkeys(probe.completions(case)):
            yield Attempt(probe.name, probe.must, case.problem, text)


def _others(problem: Problem, problems: Sequence[Problem], seed: int) -> tuple[str, ...]:
    """Gold answers of other problems, without those of the same answer or of what may be the same question."""
    asked = _numbers_in(problem)
    found = {
        other.gold.strip(): None
        for other in problems
        if other.gold.strip() != problem.gold.strip() and not (asked and _numbers_in(other) == asked)
    }
    golds = list(found)
    Random(f"{seed}/{problem.problem_id}").shuffle(golds)
    return tuple(golds)


def _numbers_in(problem: Problem) -> list[str]:
    return sorted(re.findall(r"\d+", problem.messages[-1].content)) if problem.messages else []


def _report(
    task: str,
    kind: Kind,
    style: Style,
    num_problems: int,
    attempts: Sequence[Attempt],
    outcomes: Sequence[Outcome],
    pass_share: float,
    stopped: str,
) -> AuditReport:
    tried = [(a, o) for a, o in zip(attempts, outcomes, strict=True) if o.ended != "not tried"]
    passed = _passes(tried, pass_share)
    findings: list[Finding] = []
    counts: list[ProbeCount] = []
    for probe in PROBES:
        rows = [(a, o, p) for (a, o), p in zip(tried, passed, strict=True) if a.probe == probe.name]
        if not rows:
            continue
        num_passed, num_refused = sum(p for *_, p in rows), sum(o.ended == "refused" for _, o, _ in rows)
        counts.append(ProbeCount(probe.name, probe.must, len(rows), num_passed, num_refused))
        findings += _findings(probe, rows)
    slowest = max(((o.seconds, a) for a, o in tried), key=lambda pair: pair[0], default=None)
    return AuditReport(task, kind, style, num_problems, len(tried), tuple(findings), tuple(counts), slowest, stopped)


def _findings(probe: Probe, rows: Sequence[tuple[Attempt, Outcome, bool]]) -> Iterator[Finding]:
    kinds: dict[What, list[tuple[Attempt, Outcome, bool]]] = {
        "false positive": [row for row in rows if probe.must == "fail" and row[2]],
        "false negative": [
            row for row in rows if probe.must == "pass" and not row[2] and row[1].ended in ("graded", "refused")
        ],
        "crash": [row for row in rows if row[1].ended == "crashed"],
        "hang": [row for row in rows if row[1].ended == "hung"],
    }
    for what, found in kinds.items():
        if found:
            yield Finding(what, probe.name, len(found), len(rows), found[0][0], found[0][1])


def _passes(tried: Sequence[tuple[Attempt, Outcome]], pass_share: float) -> list[bool]:
    """Whether each attempt earns more than its share; where nonsense earns as much as gold, that much passes."""
    gold: dict[str, float] = {}
    nonsense: dict[str, float] = {}
    for attempt, outcome in tried:
        name = attempt.problem.problem_id
        if outcome.ended == "graded" and attempt.probe == _GOLD:
            gold[name] = outcome.total
        if outcome.ended == "graded" and attempt.probe == _NONSENSE:
            nonsense[name] = min(outcome.total, nonsense.get(name, outcome.total))

    def passes(attempt: Attempt, outcome: Outcome) -> bool:
        if outcome.ended != "graded":
            return False
        name = attempt.problem.problem_id
        low = nonsense.get(name, 0.0)
        high = gold.get(name)
        if high is None:
            return outcome.total > low
        return outcome.total > low + pass_share * (high - low) if high > low else outcome.total >= high > 0

    return [passes(attempt, outcome) for attempt, outcome in tried]


def render(report: AuditReport) -> str:
    """The report as plain text, with every character of a completion made visible."""
    lines = [
        f"audit of {report.task}: {report.num_attempts} attempts on {report.num_problems} problems "
        f"({report.kind} answers, {report.style})",
    ]
    if report.stopped:
        lines.append(f"NOT FINISHED: {report.stopped}")
    for finding in report.findings:
        lines.append(f"{finding.what}: {finding.probe}, {finding.count} of {finding.num_tried}")
        lines.append(f"    asked {_shown(_question(finding.example))}, gold {_shown(finding.example.problem.gold)}")
        earned = f"earns {finding.outcome.total:g}" if finding.outcome.ended == "graded" else finding.outcome.reason
        lines.append(f"    {_shown(finding.example.text)}: {_visible(earned)}")
    if not report.findings:
        lines.append("no false positive, no false negative, no crash, no hang")
    either = [c for c in report.counts if c.must == "either" and c.num_tried]
    lines += [f"either way: {c.probe}, {c.num_passed} of {c.num_tried} pass" for c in either]
    refused = [c for c in report.counts if c.num_refused]
    lines += [f"not judged: {c.probe}, {c.num_refused} of {c.num_tried}" for c in refused]
    if report.slowest:
        seconds, attempt = report.slowest
        lines.append(f"slowest: {seconds * 1000:.1f} ms, {attempt.probe}: {_shown(attempt.text)}")
    return "\n".join(lines)


def _question(attempt: Attempt) -> str:
    return attempt.problem.messages[-1].content if attempt.problem.messages else ""


def _shown(text: str) -> str:
    rest = f"... ({len(text)} characters)" if len(text) > _SHOWN else ""
    return ascii(text[:_SHOWN]) + rest


def _visible(text: str) -> str:
    return ascii(text[:_SHOWN])[1:-1]
