"""Rejection sampling: samples of each problem, and which of them are worth imitating.

Everything that is sampled is accounted for: each sample is kept, or bears the reason why not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from melete.loops.rl_rollouts import SampleSettings, sample_rollouts
from melete.rewards.grade import RewardPart, grade_groups
from melete.sampling.keys import rollout_key
from melete.sampling.protocol import Sampler
from melete.tasks.curation import jaccard, normal_text, shingles, without_duplicates
from melete.text.answers import parse_completion
from melete.text.readable import FAULTS, ReadableLimits, asked_language, fault_of, tidied
from melete.types import Problem, Rollout

Prefer = Literal["shortest", "random", "diverse"]
CUT, CONTROL, FORMAT, NO_THOUGHT = "cut at the limit", "control tokens", "tags not in order", "no thought"
UNGRADED, NO_VERDICT, WRONG, BROKEN = "not graded", "no verdict", "wrong", "tidying broke it"
EXACT, NEAR, CAPPED, SURPLUS = "exact duplicate", "near duplicate", "enough of this prompt", "enough rows"
REASONS = (CUT, CONTROL, FORMAT, NO_THOUGHT, UNGRADED, NO_VERDICT, WRONG, *FAULTS, BROKEN, EXACT, NEAR, CAPPED, SURPLUS)
"""Why a sample is not kept, in the order in which it is asked."""
_NGRAM = 3  # of tokens, by which two samples are compared


@dataclass(frozen=True, slots=True)
class Rules:
    """What a sample needs. `plain` says for which problems answers have no tags.

    `max_similarity`: the Jaccard index of 3-grams from which two samples of a problem are one; from 1 on, only equal
    ones are. `seed` decides what is left to chance.
    """

    plain: Callable[[Problem], bool]
    seed: str
    limits: ReadableLimits = field(default_factory=ReadableLimits)
    min_score: float = 1.0
    require_format: bool = True
    require_thought: bool = False
    tidy: bool = False
    max_similarity: float = 0.9
    keep_per_prompt: int = 4
    prefer: Prefer = "random"
    thought_opened: bool = False
    control_tokens: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Graders:
    """`decides` is the task's grade or a judge's verdict; `known` is the grade that a judge is compared with."""

    decides: RewardPart
    known: RewardPart | None = None


@dataclass(frozen=True, slots=True)
class Sifted:
    """A sample, the text that would be learnt from, and why it is not kept: `reason` is empty for one that is.

    `verdicts`: what decided and what was known, where both were asked and answered.
    """

    rollout: Rollout
    text: str
    reason: str = ""
    told: str = ""
    verdicts: tuple[float, float] | None = None


def rejection_sampling(
    *,
    batches: Iterable[Sequence[Problem]],
    settings: SampleSettings,
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    graders: Graders,
    rules: Rules,
    max_rows: int,
    on_batch: Callable[[Sequence[Sifted]], None],
) -> list[Sifted]:
    """Samples and sifts batch by batch, until all are done or `max_rows` (0 for all) are kept."""
    everything: list[Sifted] = []
    num_kept = 0
    for problems in batches:
        # a problem has a key of its own, so what is sampled does not depend on the batches: the step is always 0
        rollouts = sample_rollouts(sampler, tokenizer, problems, settings, 0)
        found = sift(rollouts, graders, rules)
        for number, sample in enumerate(found):
            num_kept += not sample.reason
            if not sample.reason and max_rows and num_kept > max_rows:
                found[number] = replace(sample, reason=SURPLUS)
        everything += found
        on_batch(found)
        if max_rows and num_kept >= max_rows:
            break
    return everything


def sift(rollouts: Sequence[Sequence[Rollout]], graders: Graders, rules: Rules) -> list[Sifted]:
    """Every sample with its reason, in order. Each inner list holds the samples of one problem."""
    samples = [Sifted(r, r.text, _shape_reason(r, rules)) for siblings in rollouts for r in siblings]
    samples = _graded(samples, graders, rules)
    samples = _each_passing(samples, lambda sample: _read(sample, rules))
    if rules.tidy:
        samples = _tidied(samples, graders, rules)
    sifted: list[Sifted] = []
    for siblings in rollouts:
        sifted += _chosen(samples[len(sifted) : len(sifted) + len(siblings)], rules)
    return sifted


def counts(samples: Iterable[Sifted]) -> dict[str, int]:
    """How many were dropped for each of `REASONS`, in that order."""
    found = Counter(sample.reason for sample in samples)
    return {reason: found[reason] for reason in REASONS}


def agreement(samples: Iterable[Sifted], min_score: float) -> dict[str, float | int] | None:
    """How often a judge and a known answer say the same, over all samples that both have judged; `None` without any.

    A judge that always says yes agrees as often as samples are right, so the four counts are there too.
    """
    pairs = [(v[0] >= min_score, v[1] >= min_score) for sample in samples if (v := sample.verdicts) is not None]
    if not pairs:
        return None
    found = Counter(pairs)
    return {
        "agreement": (found[True, True] + found[False, False]) / len(pairs),
        "num": len(pairs),
        "both_right": found[True, True],
        "both_wrong": found[False, False],
        "only_judge_right": found[True, False],
        "only_rule_right": found[False, True],
    }


def _shape_reason(rollout: Rollout, rules: Rules) -> str:
    if rollout.completion.finish_reason != "stop":
        return CUT
    if rules.control_tokens.intersection(rollout.completion.tokens[:-1]):
        return CONTROL
    parsed = parse_completion(rollout.text, thought_opened=rules.thought_opened)
    if rules.require_format and not rules.plain(rollout.problem) and not parsed.well_formed:
        return FORMAT
    return NO_THOUGHT if rules.require_thought and not parsed.thought else ""


def _each_passing(samples: Sequence[Sifted], look: Callable[[Sifted], Sifted]) -> list[Sifted]:
    return [sample if sample.reason else look(sample) for sample in samples]


def _graded(samples: Sequence[Sifted], graders: Graders, rules: Rules) -> list[Sifted]:
    parts = {"verdict": graders.decides} | ({"grade": graders.known} if graders.known else {})
    scores = iter(_scores([sample.rollout for sample in samples if not sample.reason], parts))

    def look(sample: Sifted) -> Sifted:
        found, told = next(scores)
        score, known = found["verdict"], found.get("grade")
        if score is None:
            return replace(sample, reason=NO_VERDICT if graders.known else UNGRADED, told=told)
        verdicts = None if known is None else (score, known)
        if score < rules.min_score:
            told = f"score {score:g}, {rules.min_score:g} is needed"
            return replace(sample, reason=WRONG, told=told, verdicts=verdicts)
        return replace(sample, verdicts=verdicts)

    return _each_passing(samples, look)


def _scores(
    rollouts: Sequence[Rollout], parts: Mapping[str, RewardPart]
) -> list[tuple[Mapping[str, float | None], str]]:
    """What each part says of each rollout, `None` for a failure, and the reason of the failure."""
    groups = grade_groups([[rollout] for rollout in rollouts], parts)
    return [(group.rewards[0].parts, group.rewards[0].reason) for group in groups]


def _read(sample: Sifted, rules: Rules) -> Sifted:
    rollout = sample.rollout
    language = asked_language(rollout.problem)
    fault = fault_of(rollout.text, language, rules.limits, thought_opened=rules.thought_opened)
    return replace(sample, reason=fault.kind, told=fault.told) if fault else sample


def _tidied(samples: Sequence[Sifted], graders: Graders, rules: Rules) -> list[Sifted]:
    """The samples with tidied texts. What was changed is judged once more, and has to be right still."""

    def tidy(sample: Sifted) -> Sifted:
        plain = rules.plain(sample.rollout.problem)
        return replace(sample, text=tidied(sample.text, thought_opened=rules.thought_opened, plain=plain))

    def is_changed(sample: Sifted) -> bool:
        return not sample.reason and sample.text != sample.rollout.text

    samples = _each_passing(samples, tidy)
    again = [replace(sample.rollout, text=sample.text) for sample in samples if is_changed(sample)]
    scores = iter(_scores(again, {"verdict": graders.decides}))

    def look(sample: Sifted) -> Sifted:
        if not is_changed(sample):
            return sample
        score = next(scores)[0]["verdict"]
        shape = _shape_reason(replace(sample.rollout, text=sample.text), rules)
        if score is not None and score >= rules.min_score and not shape:
            return sample
        return replace(sample, reason=BROKEN, told=shape or f"score {score} after tidying")

    return _each_passing(samples, look)


def _chosen(siblings: Sequence[Sifted], rules: Rules) -> list[Sifted]:
    """The samples of one problem without duplicates, and of the others the ones that are preferred."""
    order = _preferred([number for number, sample in enumerate(siblings) if not sample.reason], siblings, rules)
    threshold = rules.max_similarity if rules.max_similarity < 1 else 2.0
    curated = without_duplicates(order, lambda n: siblings[n].text, threshold=threshold, ngram=_NGRAM)
    reasons = {dropped.item: (dropped.kind, dropped.reason) for dropped in curated.dropped}
    left = list(curated.kept)
    if rules.prefer == "diverse":
        left = _spread(left, siblings)
    reasons |= {n: (CAPPED, f"{rules.keep_per_prompt} others stay") for n in left[rules.keep_per_prompt :]}
    return [
        replace(sample, reason=reasons[n][0], told=reasons[n][1]) if n in reasons else sample
        for n, sample in enumerate(siblings)
    ]


def _preferred(numbers: Sequence[int], siblings: Sequence[Sifted], rules: Rules) -> list[int]:
    def chance(number: int) -> int:
        rollout = siblings[number].rollout
        return rollout_key(rules.seed, "keep", rollout.problem.problem_id, rollout.sibling)

    if rules.prefer == "shortest":
        return sorted(numbers, key=lambda number: (len(siblings[number].text), chance(number)))
    return sorted(numbers, key=chance)


def _spread(numbers: Sequence[int], siblings: Sequence[Sifted]) -> list[int]:
    """The first, and then always the one that is least like those already chosen."""
    grams = {number: shingles(normal_text(siblings[number].text), _NGRAM) for number in numbers}
    left, order = list(numbers), list[int]()
    nearest = dict.fromkeys(numbers, 0.0)  # of each, its likeness to what it is most like among the chosen
    while left:
        best = min(left, key=lambda number: nearest[number])
        left.remove(best)
        order.append(best)
        for number in left:
            nearest[number] = max(nearest[number], jaccard(grams[number], grams[best]))
    return order
