"""Evaluation: many samples of each held-out problem, and what they say about the policy that wrote them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from melete.evaluation.conduct import Conduct, RightResults, conduct
from melete.evaluation.judgement import Judgement
from melete.evaluation.metrics import Interval, bootstrap_interval, majority_at_k, pass_at_k, win_rate
from melete.evaluation.reflection import LONG_PHRASES, ReflectionCount, reflection
from melete.sampling.keys import rollout_key
from melete.sampling.protocol import Sampler
from melete.text.chat import decode_completion, prompt_tokens
from melete.types import Problem, Rollout, SampleRequest, SamplingSettings

KS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of an evaluation and how it was judged."""

    rollout: Rollout
    judgement: Judgement

    @property
    def num_tokens(self) -> int:
        return len(self.rollout.completion.tokens)


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """All samples of one problem."""

    problem: Problem
    samples: tuple[Sample, ...]

    @property
    def judged(self) -> tuple[Sample, ...]:
        """The samples that the grader did not fail on."""
        return tuple(sample for sample in self.samples if sample.judgement.correct is not None)

    @property
    def num_correct(self) -> int:
        return sum(bool(sample.judgement.correct) for sample in self.judged)

    @property
    def grades(self) -> list[float]:
        """What the task gave the judged samples."""
        found = [sample.judgement.reward.parts["accuracy"] for sample in self.judged]
        return [grade for grade in found if grade is not None]


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What an evaluation found. Rates are means over problems; `None` where there was nothing to count.

    `score` is the mean grade, which is pass@1 where a grade is 0 or 1. `wins` is the win rate against another result.
    `pass_at` and `majority_at` map k to a mean and its bootstrap interval; `tokens_at` maps k to the tokens that k
    samples of a problem cost, as a mean over the same problems.
    """

    num_samples: int
    score: Interval
    pass_at: dict[int, Interval]
    majority_at: dict[int, Interval]
    tokens_at: dict[int, float]
    share_thinking: float
    format_share: float
    length_mean: float
    length_p95: float
    truncated_share: float
    accuracy_with_thought: float | None
    accuracy_without_thought: float | None
    reflection: ReflectionCount
    reflection_long: ReflectionCount
    conduct: Conduct
    grader_failures: int
    num_tokens: int
    problems: tuple[ProblemResult, ...]
    wins: Interval | None = None

    def row(self) -> dict[str, Any]:
        """The flat row of `metrics.jsonl`: pass@k and maj@k with intervals, and every other number by its name.

        What a table holds stands under both names: tokens@k, by_kind/KIND, repair/NUMBER.
        """
        row: dict[str, Any] = {"score": self.score.mean, "score/low": self.score.low, "score/high": self.score.high}
        for name, table in (("pass", self.pass_at), ("maj", self.majority_at)):
            for k, interval in table.items():
                key = f"{name}@{k}"
                row |= {key: interval.mean, f"{key}/low": interval.low, f"{key}/high": interval.high}
        if self.wins:
            row |= {"win_rate": self.wins.mean, "win_rate/low": self.wins.low, "win_rate/high": self.wins.high}
        row |= {f"tokens@{k}": tokens for k, tokens in self.tokens_at.items()}
        return row | self._scalars() | self.conduct.row()

    def summary(self) -> dict[str, Any]:
        """The entry of `summary.json`: the scalars, `pass` and `majority` as {k: [mean, low, high]}, other tables."""
        inner = ("tokens@", "by_kind/", "repair/")
        return {
            **{name: value for name, value in self.row().items() if not name.startswith(inner)},
            "pass": {str(k): list(interval) for k, interval in self.pass_at.items()},
            "majority": {str(k): list(interval) for k, interval in self.majority_at.items()},
            "tokens_at": {str(k): tokens for k, tokens in self.tokens_at.items()},
            "reflection_words": self.reflection.by_word,
            **self.conduct.summary(),
        }

    def table(self) -> list[dict[str, Any]]:
        """One row per problem."""
        return [
            {
                "problem_id": result.problem.problem_id,
                "num_correct": result.num_correct,
                "num_judged": len(result.judged),
                "num_answers": len({s.judgement.answer for s in result.judged} - {None}),
                "length_mean": _mean([sample.num_tokens for sample in result.samples]),
            }
            for result in self.problems
        ]

    def _scalars(self) -> dict[str, Any]:
        return {
            "num_problems": len(self.problems),
            "num_samples": self.num_samples,
            "share_thinking": self.share_thinking,
            "format_share": self.format_share,
            "length_mean": self.length_mean,
            "length_p95": self.length_p95,
            "truncated_share": self.truncated_share,
            "accuracy_with_thought": self.accuracy_with_thought,
            "accuracy_without_thought": self.accuracy_without_thought,
            "reflection_per_1k": self.reflection.per_1k,
            "reflection_share": self.reflection.share,
            "reflection_long_per_1k": self.reflection_long.per_1k,
            **self.conduct.scalars(),
            "grader_failures": self.grader_failures,
            "num_tokens": self.num_tokens,
        }


def evaluate(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    num_samples: int,
    settings: SamplingSettings,
    grade: Callable[[Rollout], Judgement],
    key_parts: Sequence[int | str],
    right_results: RightResults | None = None,
) -> EvaluationResult:
    """Sample every problem `num_samples` times, judge, and count.

    `key_parts` (run seed, stage, ...) decide the random numbers together with problem and sibling: the same parts
    give two policies the same luck, so that before and after can be compared problem by problem. `right_results` is
    the task's knowledge of intermediate results, for counting what corrections repair.
    """
    if not problems:
        raise ValueError("an evaluation needs at least one problem")
    requests = [
        SampleRequest(
            prompt_tokens(tokenizer, problem.messages),
            tuple(rollout_key(*key_parts, problem.problem_id, sibling) for sibling in range(num_samples)),
        )
        for problem in problems
    ]
    results = []
    for problem, request, completions in zip(problems, requests, sampler.sample(requests, settings), strict=True):
        rollouts = [
            Rollout(problem, sibling, request.prompt_tokens, made, decode_completion(tokenizer, made.tokens))
            for sibling, made in enumerate(completions)
        ]
        results.append(ProblemResult(problem, tuple(Sample(rollout, grade(rollout)) for rollout in rollouts)))
    return summarise(results, seed=rollout_key(*key_parts, "statistics"), right_results=right_results)


def summarise(
    results: Sequence[ProblemResult], *, seed: int = 0, right_results: RightResults | None = None
) -> EvaluationResult:
    """Every number of an evaluation from its judged samples; a pure function, `seed` draws subsets and resamples.

    A sample whose grader failed leaves the rates of success and is counted; pass@k and maj@k are means over the
    problems with at least k judged samples, and absent where no problem has as many.
    """
    rng, score_rng = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    samples = [sample for result in results for sample in result.samples]
    judged = {k: [result for result in results if len(result.judged) >= k] for k in KS}
    lengths = [sample.num_tokens for sample in samples]
    texts, num_tokens = [sample.rollout.text for sample in samples], sum(lengths)
    ks = [k for k in KS if judged[k]]
    return EvaluationResult(
        num_samples=max(len(result.samples) for result in results),
        score=bootstrap_interval([_score(result) for result in results if result.judged] or [0.0], rng=score_rng),
        pass_at={k: bootstrap_interval([_pass(result, k) for result in judged[k]], rng=rng) for k in ks},
        majority_at={k: bootstrap_interval([_majority(result, k, rng) for result in judged[k]], rng=rng) for k in ks},
        tokens_at={k: k * _mean([_length(result) for result in judged[k]]) for k in ks},
        share_thinking=_rate([sample.judgement.has_thought for sample in samples]),
        format_share=_rate([sample.judgement.has_format for sample in samples]),
        length_mean=num_tokens / len(samples),
        length_p95=float(np.quantile(lengths, 0.95)),
        truncated_share=_rate([sample.rollout.completion.finish_reason == "length" for sample in samples]),
        accuracy_with_thought=_accuracy(samples, with_thought=True),
        accuracy_without_thought=_accuracy(samples, with_thought=False),
        reflection=reflection(texts, num_tokens),
        reflection_long=reflection(texts, num_tokens, LONG_PHRASES),
        conduct=conduct(results, right_results),
        grader_failures=sum(sample.judgement.correct is None for sample in samples),
        num_tokens=num_tokens,
        problems=tuple(results),
    )


def compared(result: EvaluationResult, first: EvaluationResult, *, seed: int = 0) -> EvaluationResult:
    """`result` with its win rate against `first`, problem by problem, where both have graded samples of one problem."""
    before = {one.problem.problem_id: one.grades for one in first.problems}
    both = [(one.grades, before.get(one.problem.problem_id, [])) for one in result.problems]
    rates = [win_rate(ours, theirs) for ours, theirs in both if ours and theirs]
    wins = bootstrap_interval(rates, rng=np.random.default_rng([seed, 2])) if rates else None
    return replace(result, wins=wins)


def _score(result: ProblemResult) -> float:
    return _mean(result.grades)


def _pass(result: ProblemResult, k: int) -> float:
    return pass_at_k(len(result.judged), result.num_correct, k)


def _majority(result: ProblemResult, k: int, rng: np.random.Generator) -> float:
    judgements = [sample.judgement for sample in result.judged]
    return majority_at_k([j.answer for j in judgements], [bool(j.correct) for j in judgements], k, rng=rng)


def _length(result: ProblemResult) -> float:
    return _mean([sample.num_tokens for sample in result.judged])


def _accuracy(samples: Sequence[Sample], *, with_thought: bool) -> float | None:
    alike = [sample.judgement for sample in samples if sample.judgement.has_thought == with_thought]
    outcomes = [judgement.correct for judgement in alike if judgement.correct is not None]
    return _rate(outcomes) if outcomes else None


def _rate(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
