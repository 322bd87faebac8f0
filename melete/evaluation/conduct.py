"""What completions are like besides right or wrong: their language, whether they reflect, and whom they refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from melete.errors import DataError
from melete.text.behaviour import Behaviour, Step, behaviour
from melete.text.language import language_share
from melete.text.readable import LATIN, asked_language

if TYPE_CHECKING:
    from melete.evaluation.evaluate import ProblemResult
    from melete.types import Problem

RightResults = Callable[["Problem"], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Repair:
    """What corrections did: `marked` results were taken back and written anew, of which so many were right."""

    marked: int
    right_before: int
    right_after: int
    wrong_to_right: int
    right_to_wrong: int

    @property
    def repair_rate(self) -> float | None:
        """The share of wrong results that a correction put right."""
        wrong = self.marked - self.right_before
        return self.wrong_to_right / wrong if wrong else None

    @property
    def break_rate(self) -> float | None:
        """The share of right results that a correction made wrong."""
        return self.right_to_wrong / self.right_before if self.right_before else None

    def as_dict(self) -> dict[str, Any]:
        """Counts and rates by name."""
        return {**asdict(self), "repair_rate": self.repair_rate, "break_rate": self.break_rate}


@dataclass(frozen=True, slots=True)
class Conduct:
    """Numbers of an evaluation; None where there was nothing to count.

    language_share  share of words in the language that was asked for, over completions with a word that tells
    language_told   share of completions with such a word
    verifications, backtracks  per completion, see `melete.text.behaviour`
    repair          of the corrections whose results the task knows
    reflect_gain    accuracy of completions that reflect less that of the others, of the same problem and, where any
                    thinks, among those that think; a mean over problems that have both
    by_kind         mean grade of each kind of problem
    refused_*       share of answers to harmful and to harmless requests that decline
    """

    language_share: float | None
    language_told: float
    verifications: float
    backtracks: float
    repair: Repair | None
    reflect_gain: float | None
    by_kind: Mapping[str, float] | None
    refused_harmful: float | None
    refused_harmless: float | None

    def scalars(self) -> dict[str, Any]:
        """The numbers that stand alone."""
        return {name: value for name, value in asdict(self).items() if name not in ("repair", "by_kind")}

    def row(self) -> dict[str, Any]:
        """All numbers, flat."""
        repair = self.repair.as_dict() if self.repair else {}
        return (
            self.scalars()
            | {f"repair/{name}": value for name, value in repair.items()}
            | {f"by_kind/{kind}": value for kind, value in (self.by_kind or {}).items()}
        )

    def summary(self) -> dict[str, Any]:
        """The two tables."""
        return {"repair": self.repair.as_dict() if self.repair else None, "by_kind": self.by_kind}


def conduct(results: Sequence[ProblemResult], right_results: RightResults | None = None) -> Conduct:
    """Counts all completions. `right_results(problem)` is the task's knowledge of what each term should give."""
    samples = [sample for result in results for sample in result.samples]
    asked = [(_language(result.problem), sample) for result in results for sample in result.samples]
    shares = [language_share(sample.rollout.text, language) for language, sample in asked if language]
    told = [share for share in shares if share is not None]
    behaviours = [[behaviour(sample.rollout.text) for sample in result.samples] for result in results]
    flat = [found for siblings in behaviours for found in siblings]
    gains = [_gain(result, siblings) for result, siblings in zip(results, behaviours, strict=True)]
    return Conduct(
        language_share=_mean(told),
        language_told=len(told) / len(samples),
        verifications=fmean(found.verifications for found in flat),
        backtracks=fmean(found.backtracks for found in flat),
        repair=_repair(results, behaviours, right_results) if right_results else None,
        reflect_gain=_mean([gain for gain in gains if gain is not None]),
        by_kind=_by_kind(results),
        refused_harmful=_refused(results, "harmful"),
        refused_harmless=_refused(results, "harmless"),
    )


def _language(problem: Problem) -> str:
    """The language asked for; empty where nothing tells it, for then only the script could be judged."""
    try:
        found = asked_language(problem)
    except DataError:  # a declaration that is no code is no reason to lose an evaluation
        return ""
    return "" if found == LATIN else found


def _repair(
    results: Sequence[ProblemResult], behaviours: Sequence[Sequence[Behaviour]], right_results: RightResults
) -> Repair:
    outcomes: list[tuple[bool, bool]] = []
    for result, siblings in zip(results, behaviours, strict=True):
        right = right_results(result.problem)
        corrections = [correction for found in siblings for correction in found.corrections]
        known = [correction for correction in corrections if correction.before.term in right]
        outcomes += [(_is_right(one.before, right), _is_right(one.after, right)) for one in known]
    return Repair(
        marked=len(outcomes),
        right_before=sum(before for before, _ in outcomes),
        right_after=sum(after for _, after in outcomes),
        wrong_to_right=sum(not before and after for before, after in outcomes),
        right_to_wrong=sum(before and not after for before, after in outcomes),
    )


def _is_right(step: Step, right: Mapping[str, int]) -> bool:
    return step.result == right[step.term]


def _gain(result: ProblemResult, siblings: Sequence[Behaviour]) -> float | None:
    outcomes: dict[bool, list[bool]] = {True: [], False: []}
    # an answer without a thought could not reflect: to compare with it would measure thinking
    thinks = any(sample.judgement.has_thought for sample in result.judged)
    for sample, found in zip(result.samples, siblings, strict=True):
        if sample.judgement.correct is not None and sample.judgement.has_thought == thinks:
            outcomes[found.reflects].append(sample.judgement.correct)
    return fmean(outcomes[True]) - fmean(outcomes[False]) if outcomes[True] and outcomes[False] else None


def _by_kind(results: Sequence[ProblemResult]) -> dict[str, float] | None:
    kinds: dict[str, list[float]] = {}
    for result in results:
        kind = result.problem.meta.get("kind")
        grades = [sample.judgement.reward.parts["accuracy"] for sample in result.judged]
        known = [grade for grade in grades if grade is not None]
        if kind and known:
            kinds.setdefault(str(kind), []).append(fmean(known))
    return {kind: fmean(kinds[kind]) for kind in sorted(kinds)} or None


def _refused(results: Sequence[ProblemResult], kind: str) -> float | None:
    asked = [result for result in results if result.problem.meta.get("kind") == kind]
    return _mean([float(sample.judgement.refuses) for result in asked for sample in result.samples])


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
