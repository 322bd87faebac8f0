"""Training a reward model, and what it is worth on data that it has not seen."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from melete.batch import TokenRows
from melete.datasets.encode import pair_rows, single_row, step_row
from melete.functional.reward_model import calibration_error, length_correlation, pair_accuracy
from melete.learning.protocol import RewardLearner
from melete.loops.preference import OnStep, batch_numbers
from melete.text.chat import pad_token
from melete.types import LabelledCompletion, LabelledSteps, PreferencePair

_Row = TypeVar("_Row", PreferencePair, LabelledCompletion, LabelledSteps)


@dataclass(frozen=True, slots=True)
class Splits(Generic[_Row]):
    """What is learnt from and what only measures."""

    train: Sequence[_Row]
    held_out: Sequence[_Row]


def split_by_prompt(rows: Sequence[_Row], held_out_share: float) -> Splits[_Row]:
    """Which side a row is on is decided by a hash of all its text, so rows that repeat never lie on both."""

    def is_held_out(row: _Row) -> bool:
        digest = hashlib.blake2b(_text(row).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 < held_out_share

    return Splits([row for row in rows if not is_held_out(row)], [row for row in rows if is_held_out(row)])


def _text(row: PreferencePair | LabelledCompletion | LabelledSteps) -> str:
    prompt = "\n".join(message.content for message in row.messages)
    if isinstance(row, PreferencePair):
        return "\0".join([prompt, *sorted((row.chosen, row.rejected))])
    return "\0".join([prompt, row.completion if isinstance(row, LabelledCompletion) else "".join(row.steps)])


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
    rows: Sequence[PreferencePair | LabelledCompletion | LabelledSteps],
    tokenizer: PreTrainedTokenizerBase,
    learner: RewardLearner,
) -> dict[str, float]:
    pad = pad_token(tokenizer)
    if isinstance(rows[0], PreferencePair):
        return learner.update_rankings(*packed_pairs(rows, tokenizer))  # type: ignore[arg-type]
    if isinstance(rows[0], LabelledCompletion):
        packed = TokenRows.pack([single_row(tokenizer, row) for row in rows], pad)  # type: ignore[arg-type]
        return learner.update_pointwise(packed, torch.tensor([row.label for row in rows]))  # type: ignore[union-attr]
    return learner.update_steps(*packed_steps(rows, tokenizer))  # type: ignore[arg-type]


def packed_pairs(rows: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase) -> tuple[TokenRows, Tensor]:
    """Rows 2i and 2i + 1 are pair i, chosen first; and which pair each row belongs to [2P]."""
    encoded = [row for pair in rows for row in pair_rows(tokenizer, pair)]
    return TokenRows.pack(encoded, pad_token(tokenizer)), torch.arange(len(encoded)) // 2


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


def evaluate_pairs(
    rows: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, score: Callable[[TokenRows], Tensor]
) -> Mapping[str, float]:
    """Pair accuracy, calibration, and how far the score follows the length of a completion."""
    packed, _ = packed_pairs(rows, tokenizer)
    scores = score(packed).double()
    chosen, rejected = scores.view(-1, 2).unbind(dim=1)
    # of either order, so that the outcome is not always the same
    turned = torch.arange(len(chosen)) % 2 == 1
    probability = torch.where(turned, rejected - chosen, chosen - rejected).sigmoid()
    return {
        "pair_accuracy": float(pair_accuracy(chosen, rejected)),
        "calibration_error": float(calibration_error(probability, ~turned)),
        "length_correlation": float(length_correlation(scores, packed.loss_mask.sum(dim=1).double())),
        "margin": float((chosen - rejected).mean()),
        "score_mean": float(scores.mean()),
        "num_rows": float(len(rows)),
    }


def evaluate_labels(
    rows: Sequence[LabelledCompletion], tokenizer: PreTrainedTokenizerBase, score: Callable[[TokenRows], Tensor]
) -> Mapping[str, float]:
    """Accuracy of the label, calibration, and correlation with length."""
    packed = TokenRows.pack([single_row(tokenizer, row) for row in rows], pad_token(tokenizer))
    scores, labels = score(packed).double(), torch.tensor([row.label for row in rows])
    return {
        "label_accuracy": float(((scores > 0) == labels).double().mean()),
        "calibration_error": float(calibration_error(scores.sigmoid(), labels)),
        "length_correlation": float(length_correlation(scores, packed.loss_mask.sum(dim=1).double())),
        "num_rows": float(len(rows)),
    }
