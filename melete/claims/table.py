"""The ten claims, as rows: what is said, when it holds, and the comparisons that decide.

Criteria are fixed here, before any run: a claim that does not hold at this size is reported as not holding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from melete.claims.compare import At, Measure, between, learned_score, tokens, verifier_score, voting
from melete.claims.facts import (
    BACKTRACKS,
    BASE,
    FORMAT,
    GENERAL,
    LANGUAGE,
    LENGTH,
    PASS,
    REASONING,
    REFLECTION,
    REPAIR,
    SCORE,
    THINKING,
    VERIFICATIONS,
)
from melete.claims.verdicts import (
    Finding,
    Outcome,
    Test,
    above,
    all_hold,
    below,
    changed,
    far_above,
    not_above,
    not_below,
    noted,
)

CONTROL, NO_LANGUAGE, LONG = "control", "no_language", "long_preferences"
SLIGHTLY = 0.05
"""A fall of pass@1 that is called slight."""
BY_CHANCE = 0.1
"""A rise of pass@1 that a control must be able to exclude."""
STEADY = 0.2
"""A rate whose interval stays within this share of what it was has not changed."""
MORE_TOKENS = 0.1
"""Tokens that distillation may have beyond those of RL, as a share of them."""
BASE_AT, ZERO, CONTROL_AT = At(BASE), At("zero"), At("zero", CONTROL)


class Condition(NamedTuple):
    """A comparison and the test it must pass."""

    key: str
    measure: Measure
    test: Test


@dataclass(frozen=True, slots=True)
class Claim:
    """One of the ten. `decide` combines what was found, `remark` adds a sentence about it."""

    name: str
    title: str
    criterion: str
    conditions: tuple[Condition, ...]
    decide: Callable[[Sequence[Finding]], Outcome] = all_hold
    remark: Callable[[Mapping[str, Finding]], str] = lambda found: ""
    looks: int = 1
    """Quantities of which one is enough; intervals widen with them."""


def any_changes(findings: Sequence[Finding]) -> Outcome:
    """One rate that differs both from the base and from the control is enough; all steady against the base is none."""
    rates: dict[str, list[Finding]] = {}
    for finding in findings:
        if not finding.is_noted:
            rates.setdefault(finding.key.split(" ")[0], []).append(finding)
    if any(all(finding.outcome.verdict == "holds" for finding in pair) for pair in rates.values()):
        return Outcome("holds")
    against_base = [pair[0] for pair in rates.values()]
    if all(_is_steady(finding) for finding in against_base):
        return Outcome("does not hold", f"no rate moves by more than {STEADY:.0%} of what it was")
    if any(finding.pooled is None for pair in rates.values() for finding in pair):
        return Outcome("not measured")
    return Outcome("not sure", "no rate differs by more than chance from both the base and the control")


def _is_steady(finding: Finding) -> bool:
    if finding.pooled is None:
        return False
    allowed = STEADY * finding.before
    return -allowed <= finding.pooled.low and finding.pooled.high <= allowed


def at_equal_tokens(findings: Sequence[Finding]) -> Outcome:
    """All hold, and the better student was not given more to learn from."""
    found = all_hold(findings)
    for finding in findings:
        if found.verdict == "holds" and finding.is_noted:
            if finding.pooled is None:
                return Outcome("not measured")
            if finding.after > (1 + MORE_TOKENS) * finding.before:
                return Outcome("not sure", "distillation had more tokens than RL")
    return found


def _reflection_remark(found: Mapping[str, Finding]) -> str:
    ways: dict[str, list[str]] = {"up": [], "down": []}
    for key, finding in found.items():
        if key.endswith(" base") and finding.pooled is not None and finding.outcome.verdict == "holds":
            ways["up" if finding.pooled.mean > 0 else "down"].append(finding.comparisons[0].name)
    told = [f"{' and '.join(names)}: {way} against the base" for way, names in ways.items() if names]
    accuracy = found["pass@1"].pooled
    if ways["down"] and accuracy is not None and accuracy.low > 0:
        told.append("reflection falls while accuracy rises")
    return "; ".join(told)


def _dip_remark(found: Mapping[str, Finding]) -> str:
    accuracy = found["pass@1"].pooled
    return "accuracy dips, as it did for DeepSeek-R1" if accuracy is not None and accuracy.high < 0 else ""


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "zero_learns",
        "RL alone develops reasoning",
        "pass@1 of R1-Zero is above the base's by more than 3 standard errors, with every seed and between seeds",
        (Condition("pass@1", between(PASS, BASE_AT, ZERO), far_above),),
    ),
    Claim(
        "thinking_lengthens",
        "Thinking lengthens by itself",
        "R1-Zero thinks more often and writes longer answers than the base and than the control with random rewards, "
        "and the control does not do so by more than chance",
        (
            Condition("thinking base", between(THINKING, BASE_AT, ZERO), above),
            Condition("length base", between(LENGTH, BASE_AT, ZERO), above),
            Condition("thinking control", between(THINKING, CONTROL_AT, ZERO), above),
            Condition("length control", between(LENGTH, CONTROL_AT, ZERO), above),
            Condition("thinking drift", between(THINKING, BASE_AT, CONTROL_AT), not_above()),
            Condition("length drift", between(LENGTH, BASE_AT, CONTROL_AT), not_above()),
        ),
    ),
    Claim(
        "reflection_changes",
        "Reflection changes",
        "words of reflection, checks or abandoned paths differ in R1-Zero from the base and from the control, up or "
        "down; three rates are looked at, so each interval is wider (Bonferroni)",
        (
            *(
                Condition(f"{key} {name}", between(number, at, ZERO), changed)
                for key, number in (("words", REFLECTION), ("checks", VERIFICATIONS), ("backtracks", BACKTRACKS))
                for name, at in (("base", BASE_AT), ("control", CONTROL_AT))
            ),
            Condition("repair", between(REPAIR, BASE_AT, ZERO), noted),
            Condition("pass@1", between(PASS, BASE_AT, ZERO), noted),
        ),
        decide=any_changes,
        remark=_reflection_remark,
        looks=3,
    ),
    Claim(
        "voting_lifts_zero",
        "Majority voting lifts R1-Zero",
        "maj@k of R1-Zero is above its pass@1 at the largest k, and the interval of the difference excludes 0",
        (
            Condition("zero", voting("zero"), above),
            Condition("base", voting(BASE), noted),
        ),
    ),
    Claim(
        "cold_start_mends",
        "Cold start mends format and language",
        "answers of Dev1 are more often in the format, and more of their words in the language of the question, than "
        "those of R1-Zero; accuracy may dip",
        (
            Condition("format", between(FORMAT, ZERO, At("dev1"), REASONING), above),
            Condition("language", between(LANGUAGE, ZERO, At("dev1"), REASONING), above),
            Condition("pass@1", between(PASS, ZERO, At("dev1"), REASONING), noted),
        ),
        remark=_dip_remark,
    ),
    Claim(
        "language_costs_little",
        "The language reward costs little",
        "with the language reward more words of Dev2 are in the language of the question than without, and pass@1 is "
        f"lower by {SLIGHTLY:g} at most",
        (
            Condition("language", between(LANGUAGE, At("dev2", NO_LANGUAGE), At("dev2"), REASONING), above),
            Condition("pass@1", between(PASS, At("dev2", NO_LANGUAGE), At("dev2"), REASONING), not_below(SLIGHTLY)),
        ),
    ),
    Claim(
        "sft_restores",
        "The 3:1 SFT restores general skill",
        "the general score of Dev3 is above Dev2's, and its pass@1 on reasoning is not lower by more than chance",
        (
            Condition("general", between(SCORE, At("dev2"), At("dev3"), GENERAL), above),
            Condition("pass@1", between(PASS, At("dev2"), At("dev3"), REASONING), not_below()),
        ),
    ),
    Claim(
        "preferences_hacked",
        "Preference rewards run too long get hacked",
        "in the stage r1 with general prompts from the start and 4 times the steps, the reward models' score goes on "
        "rising beyond the usual length, while the score by rule falls",
        (
            Condition("learned", learned_score("r1", LONG), above),
            Condition("verifier", verifier_score("r1", LONG), below),
            Condition("general", between(SCORE, At("r1"), At("r1", LONG), GENERAL), noted),
            Condition("pass@1", between(PASS, At("r1"), At("r1", LONG), REASONING), noted),
        ),
    ),
    Claim(
        "distillation_beats_rl",
        "Distillation beats RL on the small student",
        "pass@1 of both students is higher after SFT on R1's samples than after RL, at equal tokens (the SFT reads "
        f"{MORE_TOKENS:.0%} more at most)",
        (
            Condition("qwen", between(PASS, At("rl_qwen"), At("distilled_qwen")), above),
            Condition("tokens of qwen", tokens("rl_qwen", "distilled_qwen"), noted),
            Condition("llama", between(PASS, At("rl_llama"), At("distilled_llama")), above),
            Condition("tokens of llama", tokens("rl_llama", "distilled_llama"), noted),
        ),
        decide=at_equal_tokens,
    ),
    Claim(
        "random_teaches_nothing",
        "Random reward teaches nothing",
        "pass@1 of the base after the stage zero with random rewards is not above the base's by more than chance, and "
        f"the interval excludes a rise of {BY_CHANCE:g}",
        (Condition("pass@1", between(PASS, BASE_AT, CONTROL_AT), not_above(BY_CHANCE)),),
    ),
)
