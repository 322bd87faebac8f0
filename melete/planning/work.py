"""What a stage does, in numbers: what it samples, reads, learns from, holds and keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from melete.planning.graph import Part, Text

ROWS_AT_ONCE = 512  # completions that the sampler writes side by side


@dataclass(frozen=True, slots=True)
class Writing:
    """`num_calls` times a model writes `num_rows` completions, `siblings` of each problem."""

    model: str
    text: Text
    num_rows: int
    max_new_tokens: int
    num_calls: int = 1
    siblings: int = 1
    is_kept: bool = False
    """The run keeps the tokens, as it does those of an evaluation."""
    rows_at_once: int = ROWS_AT_ONCE


@dataclass(frozen=True, slots=True)
class Reading:
    """A model goes over texts, and learns from them if it `learns`.

    How long they are is known from who wrote them (`writer`, up to `max_new_tokens`), or is `num_tokens` in all.
    """

    model: str
    text: Text | None = None
    num_rows: float = 0
    writer: str | None = None
    max_new_tokens: int | None = None
    learns: bool = False
    num_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A model in memory; one that learns has gradients and the optimizer's two averages beside its weights."""

    role: str
    model: str
    learns: bool = False
    share: float = 1.0  # of its weights that learn: few where an adapter does


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage does. It does all of it `num_copies` times, `num_at_once` at the same time (a comparison)."""

    writings: tuple[Writing, ...] = ()
    readings: tuple[Reading, ...] = ()
    held: tuple[Held, ...] = ()
    num_updates: int = 0
    checkpoint_every: int = 0
    saves_reference: bool = False
    max_tokens: int = 0
    """Tokens of a micro-batch, padding included."""
    rows_per_update: int = 0
    writes_model: bool = False
    rows_written: tuple[Part, ...] = ()
    texts_logged: int = 0
    """Completions that are kept for people to read."""
    num_copies: int = 1
    num_at_once: int = 1
    split_over: int = 1
    """Processes that share the work of one copy."""
    one_at_a_time: bool = False
    """Of the models that are held, only one is in memory at a time."""

    @property
    def num_saves(self) -> int:
        every = self.checkpoint_every
        return 0 if not self.num_updates else 1 if not every else -(-self.num_updates // every)

    @property
    def kept_checkpoints(self) -> int:
        return min(2, self.num_saves)

    def needs(self) -> Iterator[tuple[str, Text, int]]:
        """The completions whose length has to be known: model, source and the longest that is allowed."""
        yield from ((writing.model, writing.text, writing.max_new_tokens) for writing in self.writings)
        for reading in self.readings:
            if reading.text is not None:
                yield reading.writer or reading.model, reading.text, reading.max_new_tokens or 0
        for part in self.rows_written:
            if part.writer:
                yield part.writer, part.text, part.max_new_tokens or 0
