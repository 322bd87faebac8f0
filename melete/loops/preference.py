"""Preference optimisation: pairs in, a policy out; offline from a data set or online from the current policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from melete.algorithms.preference import PreferenceAlgorithm
from melete.batch import LabelledBatch, MaskedRow, PairBatch, TokenRows, masked_row, rollout_row
from melete.datasets.encode import pair_rows
from melete.learning.protocol import PairLearner
from melete.loops.passes import OnStep, batch_numbers
from melete.loops.rl_rollouts import SampleSettings, sample_rollouts
from melete.rewards.grade import RewardPart, grade_groups
from melete.sampling.protocol import Sampler
from melete.text.chat import pad_token
from melete.types import PreferencePair, Problem, RolloutGroup


class PairData:
    """Encoded pairs with the reference's sums of each, computed when first asked for and kept."""

    def __init__(self, pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase) -> None:
        self.rows = [pair_rows(tokenizer, pair) for pair in pairs]
        self.pad = pad_token(tokenizer)
        self.ref_sums: dict[int, tuple[float, float]] = {}

    def batch(self, numbers: Sequence[int], learner: PairLearner, *, with_reference: bool) -> PairBatch:
        """The pairs with these numbers."""
        rows = TokenRows.pack([row for number in numbers for row in self.rows[number]], self.pad)
        missing = [number for number in dict.fromkeys(numbers) if number not in self.ref_sums] if with_reference else []
        if missing:
            fresh = TokenRows.pack([row for number in missing for row in self.rows[number]], self.pad)
            sums = learner.ref_sums(fresh).view(-1, 2).tolist()
            self.ref_sums |= {number: (good, bad) for number, (good, bad) in zip(missing, sums, strict=True)}
        sums = [value for number in numbers for value in self.ref_sums.get(number, (0.0, 0.0))]
        return PairBatch(rows, torch.tensor(sums))

    def labelled(self, numbers: Sequence[int], learner: PairLearner) -> LabelledBatch:
        """Both completions of these pairs as single rows, liked and disliked, and crossed with the next pair's."""
        if len(self.rows) < 2:
            raise ValueError("one pair has no other pair's completions to be compared with; give at least two")
        # a batch of one borrows from the pair after it in the data
        following = [*numbers[1:], numbers[0] if len(numbers) > 1 else (numbers[0] + 1) % len(self.rows)]
        rows = [row for number in numbers for row in self.rows[number]]
        others = [row for number in following for row in self.rows[number]]
        mismatched = [_spliced(row, other) for row, other in zip(rows, others, strict=True)]
        packed, crossed = TokenRows.pack(rows, self.pad), TokenRows.pack(mismatched, self.pad)
        return LabelledBatch(
            rows=packed,
            desirable=torch.arange(len(rows)) % 2 == 0,
            ref_sums=learner.ref_sums(packed),
            mismatched=crossed,
            mismatched_ref_sums=learner.ref_sums(crossed),
        )


def _spliced(row: MaskedRow, other: MaskedRow) -> MaskedRow:
    """The prompt of `row` with the completion of `other`."""
    prompt = [token for token, learnt in zip(*row, strict=True) if not learnt]
    completion = [token for token, learnt in zip(*other, strict=True) if learnt]
    return masked_row(prompt, completion)


def train_offline(
    *,
    start: int,
    stop: int,
    data: PairData,
    pairs_per_step: int,
    learner: PairLearner,
    algorithm: PreferenceAlgorithm,
    seed: str,
    on_step: OnStep,
) -> None:
    """Steps `start` to `stop - 1` over given pairs."""
    for step in range(start, stop):
        started = time.perf_counter()
        numbers = batch_numbers(step, len(data.rows), pairs_per_step, seed)
        metrics = _update(data, numbers, learner, algorithm)
        on_step(step, metrics, {"update_seconds": time.perf_counter() - started})


def train_online(
    *,
    start: int,
    stop: int,
    problems: Callable[[int], Sequence[Problem]],
    settings: SampleSettings,
    sampler: Sampler,
    judge: Mapping[str, RewardPart],
    learner: PairLearner,
    algorithm: PreferenceAlgorithm,
    tokenizer: PreTrainedTokenizerBase,
    on_step: OnStep,
) -> None:
    """Online DPO: sample from the current policy, the best against the worst, one step, again (Guo et al. 2024).

    The parts of `judge` decide which is better.

    A prompt whose samples are all alike in grade makes no pair.
    """
    for step in range(start, stop):
        clock = [time.perf_counter()]
        rollouts = sample_rollouts(sampler, tokenizer, problems(step), settings, step)
        groups = grade_groups(rollouts, judge)
        clock.append(time.perf_counter())
        rows = [rows for group in groups for rows in best_against_worst(group)]
        data = PairData([], tokenizer)
        data.rows = rows
        enough = len(rows) >= (2 if algorithm.unpaired else 1)
        metrics = _update(data, list(range(len(rows))), learner, algorithm) if enough else {}
        sampler.load_weights(learner.weights(), version=step + 1)
        totals = [reward.total for group in groups for reward in group.rewards if reward.total is not None]
        lengths = [len(rollout.completion.tokens) for group in groups for rollout in group.rollouts]
        metrics |= {"reward": sum(totals) / max(len(totals), 1), "num_pairs": float(len(rows))}
        metrics["length_mean"] = sum(lengths) / len(lengths)
        seconds = {"sample_seconds": clock[1] - clock[0], "update_seconds": time.perf_counter() - clock[1]}
        on_step(step, metrics, seconds)


def best_against_worst(group: RolloutGroup) -> list[tuple[MaskedRow, MaskedRow]]:
    """One pair of rows, made of the very tokens that were sampled, or none where no two grades differ."""
    graded = [(r.total, n) for n, r in enumerate(group.rewards) if r.total is not None]
    if len({total for total, _ in graded}) < 2:
        return []
    best, worst = max(graded, key=lambda found: found[0])[1], min(graded, key=lambda found: found[0])[1]
    return [(rollout_row(group.rollouts[best]), rollout_row(group.rollouts[worst]))]


def _update(
    data: PairData, numbers: Sequence[int], learner: PairLearner, algorithm: PreferenceAlgorithm
) -> dict[str, float]:
    if algorithm.unpaired:
        return learner.update_labelled(data.labelled(numbers, learner), algorithm)
    return learner.update_pairs(data.batch(numbers, learner, with_reference=algorithm.needs_reference), algorithm)
