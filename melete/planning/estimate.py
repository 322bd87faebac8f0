"""Work and measurement to seconds and bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from melete.planning.graph import NotEstimated, Text
from melete.planning.sizes import FLOAT, Size
from melete.planning.work import Held, Reading, Work, Writing

_T = TypeVar("_T")

ROWS_PACKED = 256  # of a larger batch, so many rows show how they are padded
ADAPTED_COST = 2 / 3  # of learning: with an adapter the products that make the gradients of weights fall away
OPTIMIZER_COPIES = 3  # gradients and the two averages of AdamW, beside the weights
SPARE = 1.25  # what an allocator and a library's own buffers add to what is counted
PROCESS_BYTES = 600 * 2**20  # Python with torch and transformers, where it has not been measured
TOKENIZER_BYTES = 2**20
DISK_SPEED = 300 * 2**20  # bytes per second, flushed; a small share of any stage's time
TEXT_BYTES_PER_TOKEN = 4
ID_BYTES_PER_TOKEN = 6  # a token's number in JSON
ROW_BYTES = 300  # of a kept row, besides its text


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of one thing on this machine, and what memory it takes.

    A wave of `n` completions takes `step` for each token of the longest, and `token` for every token of all.
    """

    load: float
    step: float
    token: float
    read: float
    """For each token of prompt and completion that a model goes over, padding included."""
    learn: float
    """The same, forward, backward and update."""
    activation_bytes: float
    """Kept for the backward pass, for each token of a micro-batch."""
    process_bytes: float = PROCESS_BYTES


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of some prompts and completions of one source; completions were cut at `cap`."""

    prompt: float
    completions: tuple[int, ...]
    cap: int = 2**31
    row_seconds: float = 0.0
    """To decode and grade one."""

    def cut(self, limit: int | None) -> list[int]:
        """The completions where `limit` tokens are allowed; what was cut before is taken to run on to the limit."""
        return [
            length if limit is None else limit if length >= self.cap else min(length, limit)
            for length in self.completions
        ]

    def upto(self, limit: int | None) -> tuple[float, int]:
        """Mean and longest of these.

        >>> Lengths(5, (2, 4, 8), cap=8).upto(8), Lengths(5, (2, 4, 8), cap=8).upto(3), Lengths(5, (2, 8), 8).upto(20)
        ((4.666666666666667, 8), (2.6666666666666665, 3), (11.0, 20))
        """
        cut = self.cut(limit)
        return sum(cut) / len(cut), max(cut)

    def is_cut(self, limit: int | None) -> bool:
        """Whether the longest are not known: they are assumed to run on to the limit."""
        return limit is not None and limit > self.cap and max(self.completions) >= self.cap


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known: `origin` names the model on disk of a recipe's model; `why_not` says why a model has no speed."""

    origin: Callable[[str], str]
    sizes: Mapping[str, Size] = field(default_factory=dict)
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    lengths: Mapping[tuple[str, str], Lengths] = field(default_factory=dict)
    why_not: Mapping[str, str] = field(default_factory=dict)
    num_cores: int = 1

    def size(self, model: str) -> Size:
        return self._found(self.sizes, model)

    def speed(self, model: str) -> Speed:
        return self._found(self.speeds, model)

    def _found(self, table: Mapping[str, _T], model: str) -> _T:
        origin = self.origin(model)
        if origin not in table:
            raise NotEstimated(self.why_not.get(origin, f"{origin} has not been measured"))
        return table[origin]

    def lengths_of(self, model: str, text: Text) -> Lengths:
        origin = self.origin(model)
        try:
            return self.lengths[origin, text.key]
        except KeyError:
            why = self.why_not.get(text.key) or self.why_not.get(origin) or f"{text.name} has not been measured"
            raise NotEstimated(why) from None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a stage, prompts included where they are read."""

    sampled: float
    read: float
    learnt: float


def tokens_of(work: Work, facts: Facts) -> Tokens:
    """What the stage samples, goes over without learning, and learns from."""
    sampled = sum(
        w.num_calls * w.num_rows * facts.lengths_of(w.model, w.text).upto(w.max_new_tokens)[0] for w in work.writings
    )
    passed = [(reading, _tokens_read(reading, facts)) for reading in work.readings]
    return Tokens(
        sampled=work.num_copies * sampled,
        read=work.num_copies * sum(tokens for reading, tokens in passed if not reading.learns),
        learnt=work.num_copies * sum(tokens for reading, tokens in passed if reading.learns),
    )


def seconds_of(work: Work, facts: Facts) -> float:
    """How long the stage takes.

    Raises `NotEstimated` where a model or the length of its completions has not been measured.
    """
    loaded, split_over = {held.model for held in work.held}, max(min(work.split_over, facts.num_cores), 1)
    total = sum(facts.speed(model).load for model in loaded)
    total += sum(_writing_seconds(writing, facts) for writing in work.writings)
    adapted = {held.model for held in work.held if held.learns and held.share < 1}
    for reading in work.readings:
        speed = facts.speed(reading.model)
        tokens = _tokens_read(reading, facts) * _padding(work, reading, facts)
        learn = speed.learn * (ADAPTED_COST if reading.model in adapted else 1.0)
        total += tokens * (learn if reading.learns else speed.read) / split_over
    if work.num_saves:
        total += work.num_saves * _checkpoint_bytes(work, facts) / DISK_SPEED
    at_once = max(min(work.num_at_once, facts.num_cores), 1)
    return total * math.ceil(work.num_copies / at_once)


def _writing_seconds(writing: Writing, facts: Facts) -> float:
    speed, lengths = facts.speed(writing.model), facts.lengths_of(writing.model, writing.text)
    mean, longest = lengths.upto(writing.max_new_tokens)
    waves = math.ceil(writing.num_rows / writing.rows_at_once)
    prompts = writing.num_rows / writing.siblings * lengths.prompt
    once = waves * longest * speed.step + writing.num_rows * mean * speed.token
    return writing.num_calls * (once + prompts * speed.read + writing.num_rows * lengths.row_seconds)


def _tokens_read(reading: Reading, facts: Facts) -> float:
    if reading.num_tokens is not None:
        return reading.num_tokens
    lengths = _lengths_read(reading, facts)
    return reading.num_rows * (lengths.prompt + lengths.upto(reading.max_new_tokens)[0])


def _lengths_read(reading: Reading, facts: Facts) -> Lengths:
    assert reading.text is not None
    return facts.lengths_of(reading.writer or reading.model, reading.text)


def _padding(work: Work, reading: Reading, facts: Facts) -> float:
    """How many times as many tokens there are with padding."""
    if reading.text is None:
        return 1.0
    lengths = _lengths_read(reading, facts)
    rows = [lengths.prompt + length for length in lengths.cut(reading.max_new_tokens)]
    return padding(rows, max(work.rows_per_update, 1), work.max_tokens)


def padding(lengths: Sequence[float], num_rows: int, max_tokens: int) -> float:
    """Tokens with padding for each one without, when `num_rows` rows of such lengths are packed as a learner does it:
    sorted, in parts of at most `max_tokens`.

    >>> padding([1, 3], 2, 100), padding([1, 3], 2, 4)
    (1.5, 1.0)
    """
    known, count = sorted(lengths), min(num_rows, ROWS_PACKED)
    max_tokens = max_tokens * count // num_rows  # a sample of a large batch has parts that are smaller alike
    rows = [known[int((index + 0.5) / count * len(known))] for index in range(count)]
    total, part = 0.0, 0
    for index, length in enumerate(rows):
        if part and (part + 1) * length > max_tokens:
            total, part = total + part * rows[index - 1], 0
        part += 1
    return (total + part * rows[-1]) / sum(rows)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak of a stage: the program, models with their optimizers, and the work of one moment."""

    process: float
    models: float
    work: float
    num_processes: int = 1

    @property
    def total(self) -> float:
        return self.num_processes * (self.process + SPARE * (self.models + self.work))


def memory_of(work: Work, facts: Facts) -> Memory:
    """The peak of a stage; a speed that was not measured is made up for by the model's widths."""
    held = [_held_bytes(model, facts) for model in work.held]
    if work.one_at_a_time:
        held = [max(held)] if held else []
    shared = min(work.num_at_once, work.num_copies) if work.num_copies > 1 else 1
    if work.split_over > 1:  # each process holds one of the models
        held, shared = held[:1], work.split_over
    process = max([speed.process_bytes for speed in facts.speeds.values()], default=PROCESS_BYTES)
    moments = [_writing_bytes(writing, facts) for writing in work.writings]
    moments += [_learning_bytes(work, reading, facts) for reading in work.readings if reading.learns]
    return Memory(process, sum(held), max(moments, default=0.0), shared)


def _held_bytes(held: Held, facts: Facts) -> float:
    weights = FLOAT * facts.size(held.model).num_parameters
    return weights * (1 + OPTIMIZER_COPIES * held.share) if held.learns else weights


def _longest(lengths: Lengths | None, limit: int | None) -> tuple[float, float]:
    """Tokens of prompt and of the longest completion that memory must be able to hold."""
    if lengths is None:
        return 0.0, float(limit or 0)
    return lengths.prompt, float(limit if limit is not None else lengths.upto(limit)[1])


def _writing_bytes(writing: Writing, facts: Facts) -> float:
    size, rows = facts.size(writing.model), min(writing.num_rows, writing.rows_at_once)
    known = facts.lengths.get((facts.origin(writing.model), writing.text.key))
    tokens = sum(_longest(known, writing.max_new_tokens))
    # a cache that is full is doubled: for a moment there are the old one and the new
    return rows * (1.5 * tokens * size.cache_bytes + 4 * FLOAT * size.vocab_size)


def _learning_bytes(work: Work, reading: Reading, facts: Facts) -> float:
    size, speed = facts.size(reading.model), facts.speeds.get(facts.origin(reading.model))
    per_token = speed.activation_bytes if speed else size.activation_bytes
    writer = facts.origin(reading.writer or reading.model)
    known = facts.lengths.get((writer, reading.text.key)) if reading.text else None
    tokens = work.max_tokens
    if known is not None:
        tokens = min(tokens, work.rows_per_update * sum(_longest(known, reading.max_new_tokens)))
    return tokens * per_token


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes that stay, and those that are there for a moment beside them."""

    kept: float
    passing: float

    @property
    def total(self) -> float:
        return self.kept + self.passing


def disk_of(work: Work, facts: Facts) -> Disk:
    """What a stage writes: the last checkpoints, a model, data and the completions that are kept."""
    checkpoint = _checkpoint_bytes(work, facts) if work.num_saves else 0.0
    kept = work.kept_checkpoints * checkpoint
    if work.writes_model:
        kept += FLOAT * facts.size(work.held[0].model).num_parameters + TOKENIZER_BYTES
    kept += work.texts_logged * ROW_BYTES
    for part in work.rows_written:
        kept += part.num_rows * (ROW_BYTES + TEXT_BYTES_PER_TOKEN * part.texts_per_row * (part.max_new_tokens or 100))
    for writing in work.writings:
        if writing.is_kept:
            known = facts.lengths.get((facts.origin(writing.model), writing.text.key))
            mean = known.upto(writing.max_new_tokens)[0] if known else writing.max_new_tokens
            kept += writing.num_calls * writing.num_rows * ID_BYTES_PER_TOKEN * mean
    return Disk(work.num_copies * kept, checkpoint * min(work.num_at_once, work.num_copies))


def _checkpoint_bytes(work: Work, facts: Facts) -> float:
    """Weights and the optimizer's averages of what learns, and the reference's weights."""
    learners = [FLOAT * facts.size(held.model).num_parameters * held.share for held in work.held if held.learns]
    return OPTIMIZER_COPIES * sum(learners) + (learners[0] if work.saves_reference else 0.0)
