"""Judges the claims by what one or several runs left."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from melete.claims.facts import MAIN, ROLES, RunFacts, SeedFacts
from melete.claims.table import CLAIMS, Claim
from melete.claims.verdicts import Finding, Outcome, noted

WITH_ARMS = "melete run r1-tiny-claims"
WITHOUT_ARMS = "melete run r1-tiny"


def claims_of_run(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What one run says about each claim, from its summary.json; nothing for a run that has no checkpoint of R1's.

    A run that repeated another one has judged the claims already, with all its seeds and arms.
    """
    judged = [claim for entry in summary.get("stages", ()) for claim in entry.get("claims") or ()]
    if judged:
        return judged
    facts = RunFacts.of(summary)
    return claims_of_runs([facts]) if any(role in facts.checkpoints for role in ROLES) else []


def claims_of_runs(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    """What the runs of several seeds and arms say together about each claim."""
    seeds: dict[int, dict[str, RunFacts]] = {}
    for run in runs:
        seeds.setdefault(run.seed, {})[run.arm] = run
    return [judged(claim, dict(sorted(seeds.items()))) for claim in CLAIMS]


def judged(claim: Claim, seeds: Mapping[int, SeedFacts]) -> dict[str, Any]:
    """One claim: verdict, the sentence with its numbers, and the numbers."""
    findings = [
        Finding.of(
            condition.key,
            {seed: condition.measure(runs) for seed, runs in seeds.items() if MAIN in runs},
            condition.test,
            looks=1 if condition.test is noted else claim.looks,
        )
        for condition in claim.conditions
    ]
    outcome = claim.decide(findings)
    used = sorted({seed for finding in findings for seed in finding.seeds})
    return {
        "claim": claim.name,
        "title": claim.title,
        "criterion": claim.criterion,
        "verdict": outcome.verdict,
        "says": " ".join(_sentences(claim, findings, outcome, used)),
        "numbers": {finding.key: finding.as_numbers() for finding in findings},
        "seeds": used,
    }


def _sentences(claim: Claim, findings: Sequence[Finding], outcome: Outcome, seeds: Sequence[int]) -> Iterator[str]:
    measured = [finding for finding in findings if finding.pooled is not None]
    if measured:
        named = ", ".join(map(str, seeds))
        told = "; ".join(_grouped(measured))
        yield f"{'Seeds' if len(seeds) > 1 else 'Seed'} {named}: {told}."
        if remark := claim.remark({finding.key: finding for finding in findings}):
            yield f"{remark[:1].upper()}{remark[1:]}."
    if outcome.verdict == "not measured":
        yield _lacking(findings)
    elif outcome.why:
        yield f"{outcome.verdict.capitalize()}: {outcome.why}."


def _lacking(findings: Sequence[Finding]) -> str:
    missing = [(finding.is_noted, finding.missing) for finding in findings if finding.missing]
    judged_ones = [one for is_noted, one in missing if not is_noted] or [one for _, one in missing]
    reasons = "; ".join(dict.fromkeys(one.what for one in judged_ones))
    if not any(one.may_be_measured for one in judged_ones):
        return f"Not measured: {reasons}."
    command = WITH_ARMS if any(one.arm for one in judged_ones) else WITHOUT_ARMS
    return f"Not measured: {reasons}; run: {command}."


def _grouped(findings: Sequence[Finding]) -> Iterator[str]:
    """Clauses, those of the same two places together."""
    for (before, after), group in itertools.groupby(findings, lambda finding: finding.comparisons[0].places):
        places = before if before == after else f"{before} -> {after}"
        yield f"{places}: {', '.join(finding.clause() for finding in group)}"
