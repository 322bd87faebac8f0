"""Training a reward model, and what it is worth on data that it has not seen."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from melete.batch import RankedRows, TokenRows
from melete.datasets.encode import ranked_rows, single_row, step_row
from melete.functional.reward_model import calibration_error, length_correlation, pair_accuracy
from melete.learning.protocol import RewardLearner
from melete.loops.passes import OnStep, batch_numbers
from melete.text.chat import pad_token
from melete.types import LabelledCompletion, LabelledSteps, PreferencePair, RankedCompletions

Ranking = PreferencePair | RankedCompletions
_Row = TypeVar("_Row", PreferencePair, RankedCompletions, LabelledCompletion, LabelledSteps)


@dataclass(frozen=True, slots=True)
class Splits(Generic[_Row]):
    """What is learnt from and what only measures."""

    train: Sequence[_Row]
    held_out: Sequence[_Row]


def split_by_text(rows: Sequence[_Row], held_out_share: float) -> Splits[_Row]:
    """Which side a row is on is decided by a hash of all its text, so rows that repeat never lie on both."""

    def is_held_out(row: _Row) -> bool:
        digest = hashlib.blake2b(_text(row).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 < held_out_share

    return Splits([row for row in rows if not is_held_out(row)], [row for row in rows if is_held_out(row)])


def with_replay(new: Sequence[_Row], old: Sequence[_Row], replay_share: float, seed: str) -> list[_Row]:
    """The new rows and so many of the old ones, drawn by `seed`, that they are `replay_share` of all.

    DeepSeekMath's iterative GRPO (Shao et al. 2024, algorithm 1) has a share of 0.1. With fewer old rows, all of them.
    """
    wanted = round(len(new) * replay_share / (1 - replay_share))
    return [*new, *random.Random(seed).sample(list(old), min(wanted, len(old)))]


def _text(row: Ranking | LabelledCompletion | LabelledSteps) -> str:
    if isinstance(row, PreferencePair):
        written = [row.chosen, row.rejected]
    elif isinstance(row, RankedCompletions):
        written = list(row.completions)
    else:
        written = [row.completion if isinstance(row, LabelledCompletion) else "".join(row.steps)]
    return "\0".join(["\n".join(message.content for message in row.messages), *sorted(written)])


def train(
    *,
    start: int,
    stop: int,
    rows: Sequence[_Row],
    rows_per_step: int,
    tokenizer: PreTrainedTokenizerBase,
    learner: RewardLearner,
    seed: str,
    on_step: OnStep,
) -> None:
    """Steps `start` to `stop - 1`; what kind of loss it is follows from the kind of rows."""
    for step in range(start, stop):
        started = time.perf_counter()
        picked = [rows[number] for number in batch_numbers(step, len(rows), rows_per_step, seed)]
        metrics = _update(picked, tokenizer, learner)
        on_step(step, metrics, {"update_seconds": time.perf_counter() - started})


def _update(
    rows: Sequence[Ranking | LabelledCompletion | LabelledSteps],
    tokenizer: PreTrainedTokenizerBase,
    learner: RewardLearner,
) -> dict[str, float]:
    if isinstance(rows[0], LabelledCompletion):
        packed = TokenRows.pack([single_row(tokenizer, row) for row in rows], pad_token(tokenizer))  # type: ignore[arg-type]
        return learner.update_pointwise(packed, torch.tensor([row.label for row in rows]))  # type: ignore[union-attr]
    if isinstance(rows[0], LabelledSteps):
        return learner.update_steps(*packed_steps(rows, tokenizer))  # type: ignore[arg-type]
    return learner.update_rankings(*packed_rankings(rows, tokenizer))  # type: ignore[arg-type]


def packed_rankings(rows: Sequence[Ranking], tokenizer: PreTrainedTokenizerBase) -> tuple[TokenRows, Tensor, Tensor]:
    """The rows of each ranking together, best first; which ranking each row belongs to [B], and its margin [B]."""
    encoded = [ranked_rows(tokenizer, row) for row in rows]
    numbers = [number for number, ranked in enumerate(encoded) for _ in ranked]
    margins = [rows[number].margin if isinstance(rows[number], PreferencePair) else 0.0 for number in numbers]  # type: ignore[union-attr]
    packed = TokenRows.pack([row for ranked in encoded for row in ranked], pad_token(tokenizer))
    return packed, torch.tensor(numbers), torch.tensor(margins)


def packed_steps(rows: Sequence[LabelledSteps], tokenizer: PreTrainedTokenizerBase) -> tuple[TokenRows, Tensor]:
    """Rows whose mask marks the last token of each step, and the labels of those tokens [B, T]."""
    encoded = [step_row(tokenizer, row) for row in rows]
    marked = []
    for (tokens, _), ends in encoded:
        where = dict(ends)
        marked.append((tokens, [position in where for position in range(len(tokens))]))
    packed = TokenRows.pack(marked, pad_token(tokenizer))
    labels = torch.zeros(packed.tokens.shape, dtype=torch.bool)
    for number, (_, ends) in enumerate(encoded):
        for position, label in ends:
            labels[number, position] = label
    return packed, labels


def evaluate_rankings(
    rows: Sequence[Ranking], tokenizer: PreTrainedTokenizerBase, score: Callable[[TokenRows], Tensor]
) -> dict[str, float]:
    """Pair accuracy over all rankings, calibration, and how far the score follows the length of a completion.

    Calibration is that of sigmoid(score gap) as the probability that a completion is the better one, each pair taken
    both ways round.
    """
    packed, ranking_ids, margins = packed_rankings(rows, tokenizer)
    scores = score(packed).double()
    better, worse = RankedRows(packed, ranking_ids, margins).comparisons()
    gaps = scores[better] - scores[worse]
    is_better = torch.ones_like(gaps, dtype=torch.bool)
    both_ways = torch.cat([gaps, -gaps]).sigmoid(), torch.cat([is_better, ~is_better])
    return {
        "pair_accuracy": float(pair_accuracy(scores[better], scores[worse])),
        "calibration_error": float(calibration_error(*both_ways)),
        "length_correlation": float(length_correlation(scores, packed.loss_mask.sum(dim=1).double())),
        "margin": float(gaps.mean()),
        "score_mean": float(scores.mean()),
        "num_rows": float(len(rows)),
    }


def evaluate_labels(
    rows: Sequence[LabelledCompletion], tokenizer: PreTrainedTokenizerBase, score: Callable[[TokenRows], Tensor]
) -> dict[str, float]:
    """Accuracy of the label, calibration, and correlation with length."""
    packed = TokenRows.pack([single_row(tokenizer, row) for row in rows], pad_token(tokenizer))
    scores, labels = score(packed).double(), torch.tensor([row.label for row in rows])
    lengths = packed.loss_mask.sum(dim=1).double()
    return _agreement(scores, labels, lengths) | {"num_rows": float(len(rows))}


def evaluate_steps(
    rows: Sequence[LabelledSteps], tokenizer: PreTrainedTokenizerBase, step_scores: Callable[[TokenRows], Tensor]
) -> dict[str, float]:
    """The same of single steps; `step_scores` [B, T] gives those at the last token of each step.

    Length is the number of tokens up to the end of the step.
    """
    packed, labels = packed_steps(rows, tokenizer)
    ends = packed.loss_mask
    positions = torch.arange(ends.shape[1]).expand_as(ends)[ends]
    found = _agreement(step_scores(packed)[ends].double(), labels[ends], positions.double())
    return found | {"num_steps": float(ends.sum()), "num_rows": float(len(rows))}


def _agreement(scores: Tensor, labels: Tensor, lengths: Tensor) -> dict[str, float]:
    return {
        "label_accuracy": float(((scores > 0) == labels).double().mean()),
        "share_good": float(labels.double().mean()),
        "calibration_error": float(calibration_error(scores.sigmoid(), labels)),
        "length_correlation": float(length_correlation(scores, lengths)),
    }
