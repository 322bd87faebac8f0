"""How a model conducts itself, beside being right: its language, its checks and corrections, what it refuses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from melete.text.answers import without_thought
from melete.text.behaviour import Correction, behaviour, corrections
from melete.text.language import guess_language, language_share
from melete.text.refusal import is_refusal
from melete.types import Problem, Rollout

Graded = tuple[Rollout, float | None]


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of results that were replaced.

    `repair_rate` is the share of wrong ones that became right, `break_rate` that of right ones that became wrong;
    `None` where there was none.
    """

    marked: int
    right_before: int
    right_after: int
    wrong_to_right: int
    right_to_wrong: int
    repair_rate: float | None
    break_rate: float | None

    @classmethod
    def of(cls, found: Sequence[Correction]) -> Repair:
        """The counts of all corrections."""
        right = sum(one.right_before for one in found)
        mended = sum(one.right_after and not one.right_before for one in found)
        broken = sum(one.right_before and not one.right_after for one in found)
        wrong = len(found) - right
        return cls(
            marked=len(found),
            right_before=right,
            right_after=sum(one.right_after for one in found),
            wrong_to_right=mended,
            right_to_wrong=broken,
            repair_rate=mended / wrong if wrong else None,
            break_rate=broken / right if right else None,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Conduct:
    """Rates over completions; `None` where there was nothing to count.

    `language_share` is the mean share of words in the language that the problem asks for, over the completions with a
    word that tells (`language_told` of all). `verifications` and `backtracks` are means per completion. `reflect_gain`
    is the accuracy of completions that check or turn back, less that of the others, within problems that have both.
    """

    language_share: float | None
    language_told: float
    verifications: float
    backtracks: float
    repair: Repair
    reflect_gain: float | None
    refused_harmful: float | None
    refused_harmless: float | None
    by_kind: dict[str, float] | None

    def scalars(self) -> dict[str, Any]:
        """The numbers for a flat row."""
        return {
            "language_share": self.language_share,
            "language_told": self.language_told,
            "verifications": self.verifications,
            "backtracks": self.backtracks,
            "repair_rate": self.repair.repair_rate,
            "break_rate": self.repair.break_rate,
            "reflect_gain": self.reflect_gain,
            "refused_harmful": self.refused_harmful,
            "refused_harmless": self.refused_harmless,
        }


def conduct(problems: Sequence[Sequence[Graded]]) -> Conduct:
    """What the samples of each problem show; a grade is `None` where the grader failed."""
    everything = [graded for samples in problems for graded in samples]
    texts = [rollout.text for rollout, _ in everything]
    shares = [share for rollout, _ in everything if (share := _share(rollout)) is not None]
    acts = [behaviour(text) for text in texts]
    return Conduct(
        language_share=_mean(shares),
        language_told=len(shares) / len(texts),
        verifications=fmean(act.verifications for act in acts),
        backtracks=fmean(act.backtracks for act in acts),
        repair=Repair.of([one for rollout, _ in everything for one in corrections(rollout.text, rollout.problem.gold)]),
        reflect_gain=_reflect_gain(problems),
        refused_harmful=_refused(everything, "harmful"),
        refused_harmless=_refused(everything, "harmless"),
        by_kind=_by_kind(everything),
    )


def language_of(problem: Problem) -> str:
    """The language that the answer should be in: what the task says, else that of the question; "" where none tells."""
    return str(problem.meta.get("language") or guess_language(problem.messages[-1].content))


def _share(rollout: Rollout) -> float | None:
    language = language_of(rollout.problem)
    return None if language in ("", "other") else language_share(rollout.text, language)


def _reflect_gain(problems: Sequence[Sequence[Graded]]) -> float | None:
    gains = []
    for samples in problems:
        accuracies: dict[bool, list[float]] = {True: [], False: []}
        for rollout, grade in samples:
            if grade is not None:
                act = behaviour(rollout.text)
                accuracies[act.verifications + act.backtracks > 0].append(float(grade == 1.0))
        if accuracies[True] and accuracies[False]:
            gains.append(fmean(accuracies[True]) - fmean(accuracies[False]))
    return _mean(gains)


def _refused(everything: Sequence[Graded], kind: str) -> float | None:
    asked = [rollout for rollout, _ in everything if rollout.problem.meta.get("kind") == kind]
    return _mean(float(is_refusal(without_thought(rollout.text))) for rollout in asked)


def _by_kind(everything: Sequence[Graded]) -> dict[str, float] | None:
    grades: defaultdict[str, list[float]] = defaultdict(list)
    for rollout, grade in everything:
        if grade is not None and "kind" in rollout.problem.meta:
            grades[str(rollout.problem.meta["kind"])].append(grade)
    return {kind: fmean(values) for kind, values in sorted(grades.items())} or None


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
