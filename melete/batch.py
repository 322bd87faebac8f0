"""Flat rows of tokens, packed from graded groups and split into micro-batches.

    RolloutGroup --from_groups--> Batch --annotate--> Annotations --credit--> TrainBatch --microbatches--> update

Rows are padded on the right. Every stream `x[:, t]` describes token `t`; `loss_mask` is True on the tokens that the
policy wrote, its end-of-turn token included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from melete.errors import DataError, TrainingError
from melete.functional.aggregate import Denominators, Mode, denominators
from melete.parts import beginnings, row_parts
from melete.types import Rollout, RolloutGroup

MaskedRow = tuple[list[int], list[bool]]  # tokens, and which of them are the completion's


def masked_row(prompt: Sequence[int], completion: Sequence[int]) -> MaskedRow:
    """Prompt and completion as one row.

    >>> masked_row([7, 8], [5])
    ([7, 8, 5], [False, False, True])
    """
    return [*prompt, *completion], [False] * len(prompt) + [True] * len(completion)


def rollout_row(rollout: Rollout) -> MaskedRow:
    """The very tokens that were sampled, as one row."""
    return masked_row(rollout.prompt_tokens, rollout.completion.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """The graded rollouts of one step as rows.

    A group of problem "p" with prompt [7, 8], completions [5, 9] and [6] and rewards 1 and 0 is
        tokens    [[7, 8, 5, 9],   attention_mask [[1, 1, 1, 1],   loss_mask [[0, 0, 1, 1],   rewards [1, 0]
                   [7, 8, 6, 0]]                   [1, 1, 1, 0]]              [0, 0, 1, 0]]   group_ids [0, 0]
    """

    tokens: Tensor  # [B, T] long
    attention_mask: Tensor  # [B, T] bool
    loss_mask: Tensor  # [B, T] bool
    rollout_logprobs: Tensor  # [B, T] fp32, 0 where the sampler drew nothing
    group_ids: Tensor  # [B] long, numbered by first appearance of the group's id
    rewards: Tensor  # [B] fp32, 0 where not valid
    valid: Tensor  # [B] bool, False where a grader failed
    truncated: Tensor  # [B] bool, True where the limit cut the completion
    reward_parts: Tensor  # [B, K] fp32 in the order of `part_names`, 0 where a part is missing
    part_names: tuple[str, ...]
    policy_versions: Tensor  # [B] long, the weights that wrote the row

    @classmethod
    def from_groups(cls, groups: Sequence[RolloutGroup], pad_token_id: int) -> Batch:
        """Rows in the order of the groups; groups with the same id are one group, however they were split."""
        number_of: dict[str, int] = {}
        rows: list[MaskedRow] = []
        logprobs: list[list[float]] = []
        group_ids: list[int] = []
        rewards: list[float | None] = []
        truncated: list[bool] = []
        parts: list[list[float]] = []
        versions: list[int] = []
        # not every part counts for every problem
        part_names = tuple(dict.fromkeys(name for group in groups for reward in group.rewards for name in reward.parts))
        for group in groups:
            for rollout, reward in zip(group.rollouts, group.rewards, strict=True):
                place = f"{group.group_id}, sibling {rollout.sibling}"
                _check(rollout, reward.total, place)
                completion = rollout.completion
                rows.append(rollout_row(rollout))
                logprobs.append([0.0] * len(rollout.prompt_tokens) + list(completion.logprobs))
                group_ids.append(number_of.setdefault(group.group_id, len(number_of)))
                rewards.append(reward.total)
                truncated.append(completion.finish_reason == "length")
                parts.append([reward.parts.get(name) or 0.0 for name in part_names])
                versions.append(completion.policy_version)
        tokens, attention_mask, loss_mask = _pad_rows(rows, pad_token_id)
        return cls(
            tokens=tokens,
            attention_mask=attention_mask,
            loss_mask=loss_mask,
            rollout_logprobs=_pad(logprobs, 0.0, torch.float32),
            group_ids=torch.tensor(group_ids, dtype=torch.long),
            rewards=torch.tensor([0.0 if reward is None else reward for reward in rewards], dtype=torch.float32),
            valid=torch.tensor([reward is not None for reward in rewards], dtype=torch.bool),
            truncated=torch.tensor(truncated, dtype=torch.bool),
            reward_parts=torch.tensor(parts, dtype=torch.float32).reshape(len(rows), len(part_names)),
            part_names=part_names,
            policy_versions=torch.tensor(versions, dtype=torch.long),
        )

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, prompt and completion [B]."""
        return self.attention_mask.sum(dim=1)


@dataclass(frozen=True, slots=True)
class Annotations:
    """The streams [B, T] that an algorithm asked for (`Algorithm.needs`), by name: old_logprobs, ref_logprobs, ...

    `policy_version` is that of the weights which `old_logprobs` belong to: those at the start of the update.
    """

    streams: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    policy_version: int = 0

    def __post_init__(self) -> None:
        # a copy without gradient: whatever happens to the caller's tensors, these stay as they were computed
        object.__setattr__(self, "streams", {name: stream.detach().clone() for name, stream in self.streams.items()})


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Rows with their advantages, ready for the learner; a micro-batch is a TrainBatch too.

    `totals` belong to the whole optimizer step: rows that were dropped for want of signal, and the rows of the other
    micro-batches, are in them.
    """

    tokens: Tensor  # [B, T] long
    attention_mask: Tensor  # [B, T] bool
    loss_mask: Tensor  # [B, T] bool
    advantages: Tensor  # [B, T] fp32, 0 outside loss_mask
    streams: Mapping[str, Tensor]  # [B, T] each
    totals: Denominators
    num_dropped_rows: int = 0
    rollout_logprobs: Tensor | None = None  # [B, T] fp32; None where no sampler wrote the rows

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, prompt and completion [B]."""
        return self.attention_mask.sum(dim=1)

    def select(self, rows: Tensor) -> TrainBatch:
        """The rows with these numbers (or True in this mask [B]); `totals` stay those of the whole step."""
        return self._each(lambda stream: stream[rows])

    def minibatches(self, num_parts: int, order: Sequence[int]) -> list[TrainBatch]:
        """The rows in the given order, dealt into parts that are optimizer steps of their own.

        Each part's denominators are its share of the whole's. So the parts' gradients add up to `num_parts` times that
        of the whole, and rows that were dropped for want of signal still count.
        """
        if sorted(order) != list(range(self.num_rows)):
            raise ValueError(f"order must name each of the {self.num_rows} rows once")
        totals = self.totals.share(num_parts)
        parts = [torch.tensor(order[start::num_parts], dtype=torch.long) for start in range(num_parts)]
        return [replace(self.select(rows).trimmed(), totals=totals) for rows in parts]

    def to(self, device: torch.device | str) -> TrainBatch:
        return self._each(lambda stream: stream.to(device))

    def trimmed(self) -> TrainBatch:
        """Without the columns that are padding in every row."""
        longest = int(self.lengths.max()) if self.num_rows else 0
        return self._each(lambda stream: stream[:, :longest])

    def _each(self, change: Callable[[Tensor], Tensor]) -> TrainBatch:
        return replace(
            self,
            tokens=change(self.tokens),
            attention_mask=change(self.attention_mask),
            loss_mask=change(self.loss_mask),
            advantages=change(self.advantages),
            streams={name: change(stream) for name, stream in self.streams.items()},
            rollout_logprobs=None if self.rollout_logprobs is None else change(self.rollout_logprobs),
        )


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows to be scored and nothing else."""

    tokens: Tensor  # [B, T] long
    attention_mask: Tensor  # [B, T] bool
    loss_mask: Tensor  # [B, T] bool

    @classmethod
    def pack(cls, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad_token_id: int) -> TokenRows:
        """Of (tokens, loss mask) rows, padded on the right."""
        return cls(*_pad_rows(rows, pad_token_id))

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, prompt and completion [B]."""
        return self.attention_mask.sum(dim=1)

    def select(self, rows: Tensor | Sequence[int]) -> TokenRows:
        """The rows with these numbers, without the columns that are padding in all of them."""
        picked = torch.as_tensor(rows, dtype=torch.long)
        longest = int(self.lengths[picked].max()) if len(picked) else 0
        return TokenRows(*(stream[picked, :longest] for stream in (self.tokens, self.attention_mask, self.loss_mask)))

    def to(self, device: torch.device | str) -> TokenRows:
        return TokenRows(self.tokens.to(device), self.attention_mask.to(device), self.loss_mask.to(device))


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Pairs as rows: row 2i is the chosen completion of pair i and row 2i + 1 the rejected one.

    `ref_sums` [2P] are the reference's log-probs summed over each completion; 0 where the algorithm has no reference.
    """

    rows: TokenRows
    ref_sums: Tensor

    @property
    def num_pairs(self) -> int:
        return self.rows.num_rows // 2

    def microbatches(self, max_tokens: int) -> list[PairBatch]:
        """Splits so that rows * longest row <= max_tokens; a pair stays together, for its two rows share one loss."""
        pairs = [(2 * pair, 2 * pair + 1) for pair in range(self.num_pairs)]
        parts = row_parts(self.rows.lengths, max_tokens, together=pairs)
        return [PairBatch(self.rows.select(part), self.ref_sums[part]) for part in parts]


@dataclass(frozen=True, slots=True)
class RankedRows:
    """Completions of which some are better than others: the rows of one id stand in order, best first.

    A pair is a ranking of two. `margins` is how far a row's score should be ahead of the rows behind it.
    """

    rows: TokenRows
    ranking_ids: Tensor  # [B] long
    margins: Tensor  # [B] fp32

    def __post_init__(self) -> None:
        for name in ("ranking_ids", "margins"):
            if getattr(self, name).shape != (self.rows.num_rows,):
                raise ValueError(f"{name} must have one entry for each of the {self.rows.num_rows} rows")

    def comparisons(self) -> tuple[Tensor, Tensor]:
        """Row numbers of the better and of the worse completion of every pair [N], over all rankings."""
        is_same = self.ranking_ids[:, None] == self.ranking_ids[None]
        better, worse = is_same.triu(diagonal=1).nonzero(as_tuple=True)
        return better, worse

    def select(self, rows: Sequence[int]) -> RankedRows:
        """The rows with these numbers."""
        picked = torch.as_tensor(rows, dtype=torch.long)
        return RankedRows(self.rows.select(picked), self.ranking_ids[picked], self.margins[picked])

    def microbatches(self, max_tokens: int) -> list[list[int]]:
        """Numbers of the rows of each part (see `row_parts`). A ranking stays together; a single row is left out."""
        rankings: dict[int, list[int]] = {}
        for row, number in enumerate(int(number) for number in self.ranking_ids.unbind()):
            rankings.setdefault(number, []).append(row)
        compared = [rows for rows in rankings.values() if len(rows) > 1]
        return row_parts(self.rows.lengths, max_tokens, together=compared)


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Completions that somebody liked or did not; `mismatched` are the same prompts with other rows' completions.

    The reference's sums [B] belong to both; KTO reads its baseline off the mismatched rows.
    """

    rows: TokenRows
    desirable: Tensor  # [B] bool
    ref_sums: Tensor  # [B]
    mismatched: TokenRows
    mismatched_ref_sums: Tensor  # [B]


def demonstrations(
    rows: Sequence[tuple[Sequence[int], Sequence[bool]]],
    pad_token_id: int,
    *,
    aggregation: Mode = "token_mean",
    aggregation_constant: float | None = None,
) -> TrainBatch:
    """A batch for SFT of (tokens, loss mask) rows: advantage 1 on each token that is to be learnt.

    >>> demonstrations([([7, 8, 5], [False, False, True])], 0).advantages
    tensor([[0., 0., 1.]])
    """
    for number, (tokens, mask) in enumerate(rows):
        if len(tokens) != len(mask):
            raise DataError(f"{len(tokens)} tokens but a loss mask of {len(mask)}", place=f"row {number}")
    tokens, attention_mask, loss_mask = _pad_rows(rows, pad_token_id)
    totals = denominators(loss_mask, aggregation, constant=aggregation_constant)
    return TrainBatch(tokens, attention_mask, loss_mask, loss_mask.float(), {}, totals)


def microbatches(
    batch: TrainBatch, max_tokens: int, *, share_beginnings: bool = False, packing: bool = False
) -> list[TrainBatch]:
    """The rows in parts of at most `max_tokens` (`row_parts`; with `packing`, padding is not counted), each trimmed."""
    device, unshared = batch.tokens.device, [()] * batch.num_rows if packing else None
    shared = beginnings(batch.tokens, batch.loss_mask) if share_beginnings else unshared
    parts = row_parts(batch.lengths, max_tokens, beginnings=shared)
    return [batch.select(torch.tensor(part, dtype=torch.long, device=device)).trimmed() for part in parts]


def _check(rollout: Rollout, reward: float | None, place: str) -> None:
    completion = rollout.completion
    if len(completion.tokens) != len(completion.logprobs):
        raise DataError(f"{len(completion.tokens)} tokens but {len(completion.logprobs)} logprobs", place=place)
    if reward is not None and not math.isfinite(reward):
        remedy = "a grader that cannot judge returns None with a reason"
        raise TrainingError(f"reward {reward} is not a finite number", place=place, remedy=remedy)
    if not all(math.isfinite(logprob) for logprob in completion.logprobs):
        raise TrainingError("a log-prob of the sampler is not finite", place=place)


def _pad_rows(rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens = _pad([tokens for tokens, _ in rows], pad, torch.long)
    attention_mask = _pad([[True] * len(tokens) for tokens, _ in rows], False, torch.bool)
    return tokens, attention_mask, _pad([mask for _, mask in rows], False, torch.bool)


def _pad(rows: Sequence[Sequence[float]], fill: float, dtype: torch.dtype) -> Tensor:
    padded = torch.full((len(rows), max((len(row) for row in rows), default=0)), fill, dtype=dtype)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded
