"""One thread that writes for everybody: requests join and leave between two tokens.

What is written for a request depends on its prompt, its settings and its keys alone, up to the rounding of sums: the
random number of a token is a function of key and position, and no row sees another.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from melete.errors import DataError
from melete.sampling.drawing import draw
from melete.sampling.keys import uniforms
from melete.serving.slots import Prompt, make_rows
from melete.serving.words import StopSearch
from melete.text.stream import TextStream
from melete.types import SamplingSettings

Finish = Literal["stop", "length", "error"]
DEFAULT_CONTEXT = 4096  # where neither the model nor the caller says how long a conversation may become
CHUNK = 256  # tokens of a prompt that are read between two steps of the others
_log = logging.getLogger("melete.serving")


class QueueFull(Exception):
    """As many requests wait as may."""


class DoesNotFit(DataError):
    """A request that this engine could never serve; the message says why, with the numbers."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token, its log-prob under the model at temperature 1, and the likeliest in its place."""

    token: int
    logprob: float | None  # None for the first token of a prompt
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one answer. The last has a `finish`; `num_tokens` counts those written so far."""

    index: int
    text: str
    scores: tuple[TokenScore, ...] = ()
    finish: Finish | None = None
    num_tokens: int = 0
    error: str = ""


@dataclass(eq=False)
class Job:
    """A prompt and how many answers to it are wanted: one for each key.

    `deliver` is called in the engine's thread and must not wait. With `prompt_scores` the first thing delivered is a
    piece with index -1 that has a score for each token of the prompt.
    """

    prompt: tuple[int, ...]
    keys: tuple[int, ...]
    deliver: Callable[[Piece], None]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None  # None: no scores; 0: only those of the tokens that were written
    prompt_scores: bool = False
    cancelled: bool = field(default=False, init=False)

    def cancel(self) -> None:
        """Nobody listens any more: its rows are let go before the next token."""
        self.cancelled = True


class _Row:
    """One answer that is being written."""

    def __init__(self, job: Job, index: int, tokenizer: PreTrainedTokenizerBase) -> None:
        self.job, self.index = job, index
        self.stream, self.search = TextStream(tokenizer), StopSearch(job.stop)
        self.num_tokens = self.read = self.shown = 0  # tokens; characters that were decoded, and that were let through
        self.scores: deque[tuple[int, TokenScore]] = deque()  # not let through yet, with where their text begins
        self.last_token = 0
        self.is_over = False

    def take(self, token: int, score: TokenScore | None, *, ends: bool) -> Piece | None:
        """Takes the next token; returns what can be shown of it."""
        self.last_token, self.num_tokens = token, self.num_tokens + 1
        text = ""
        if not ends:
            if score:
                self.scores.append((self.read, score))
            decoded = self.stream.add(token)
            self.read += len(decoded)
            text = self.search.add(decoded)
        self.is_over = ends or self.search.found or self.num_tokens == self.job.max_tokens
        if self.is_over:
            text += self.search.add(self.stream.rest()) + self.search.rest()
        self.shown += len(text)
        released: list[TokenScore] = []
        while self.scores and (self.scores[0][0] < self.shown or (self.is_over and not self.search.found)):
            released.append(self.scores.popleft()[1])
        finish: Finish | None = None
        if self.is_over:
            finish = "stop" if ends or self.search.found else "length"
        if not text and not released and finish is None:
            return None
        return Piece(self.index, text, tuple(released), finish, self.num_tokens)


class Engine:
    """Serves one model. `max_rows` answers are written at once, `max_waiting` requests may wait for their turn."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "model",
        max_rows: int = 16,
        max_waiting: int = 64,
        context: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.max_rows, self.max_waiting, self.num_threads = max_rows, max_waiting, num_threads
        longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self.context = min(n for n in (context, longest) if n) if context or longest else DEFAULT_CONTEXT
        embeddings: Any = model.get_input_embeddings()
        self.vocab_size = int(embeddings.weight.shape[0])
        self.end_tokens = end_tokens(model, tokenizer)
        self.num_written = 0  # tokens since the start
        self.encoding = threading.Lock()  # a tokenizer is not made for several threads
        self._waiting: deque[Job] = deque()
        self._change = threading.Condition()
        self._is_closed = False
        self._store = make_rows(model)
        self._rows: list[_Row] = []
        self._reading: tuple[Job, Prompt, list[TokenScore], Tensor | None] | None = None
        self._thread = threading.Thread(target=self._work, name=f"melete-engine-{name}", daemon=True)
        self._thread.start()

    @property
    def num_rows(self) -> int:
        """Answers that are being written."""
        return len(self._rows)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    def submit(self, *jobs: Job) -> None:
        """Queues jobs, all or none.

        Raises `QueueFull`, and `DoesNotFit` for what could never be served.
        """
        for job in jobs:
            self._check(job)
        with self._change:
            if self._is_closed:
                raise QueueFull("the server is ending")
            if len(self._waiting) + len(jobs) > self.max_waiting:
                raise QueueFull(f"{len(self._waiting)} requests wait already; no more than {self.max_waiting} may")
            self._waiting.extend(jobs)
            self._change.notify()

    def room_after(self, prompt: Sequence[int]) -> int:
        """How many tokens can follow this prompt.

        Raises `DoesNotFit` when there is no room for one.
        """
        if len(prompt) >= self.context:
            what = f"the prompt has {len(prompt)} tokens, and {self.name} takes {self.context} with the answer"
            raise DoesNotFit(what)
        return self.context - len(prompt)

    def _check(self, job: Job) -> None:
        if not job.prompt or not job.keys:
            raise DoesNotFit("the prompt is empty" if job.keys else "no answer is wanted")
        if len(job.keys) > self.max_rows:
            raise DoesNotFit(f"{len(job.keys)} answers are wanted, and {self.max_rows} can be written at once")
        if job.max_tokens or len(job.prompt) > self.context:
            job.max_tokens = min(job.max_tokens, self.room_after(job.prompt))
        if not all(0 <= token < self.vocab_size for token in job.prompt):
            raise DoesNotFit(f"the prompt has tokens that the model does not have (0 to {self.vocab_size - 1})")

    def close(self) -> None:
        """Ends the thread; what was being written ends with an error."""
        with self._change:
            self._is_closed = True
            self._change.notify()
        self._thread.join(30)

    def _work(self) -> None:
        if self.num_threads:
            torch.set_num_threads(self.num_threads)
        with torch.inference_mode():
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._is_closed or self._waiting or self._rows or self._reading)
                    if self._is_closed:
                        break
                try:
                    self._drop_cancelled()
                    self._read()
                    if self._rows:
                        self._step()
                except Exception as error:  # whatever a model does, the next request is served
                    _log.exception("%s failed", self.name)
                    self._fail(f"the model failed: {type(error).__name__}")
        self._fail("the server is ending", and_waiting=True)

    def _fail(self, why: str, *, and_waiting: bool = False) -> None:
        jobs = {id(row.job): row.job for row in self._rows}
        if self._reading:
            jobs[id(self._reading[0])] = self._reading[0]
        if and_waiting:
            jobs |= {id(job): job for job in self._waiting}
            self._waiting.clear()
        self._rows.clear()
        self._store.clear()
        self._reading = None
        for job in jobs.values():
            for index in range(len(job.keys)):
                self._deliver(job, Piece(index, "", finish="error", error=why))

    def _drop_cancelled(self) -> None:
        with self._change:
            if any(job.cancelled for job in self._waiting):
                self._waiting = deque(job for job in self._waiting if not job.cancelled)
        if self._reading and self._reading[0].cancelled:
            self._reading = None
        for place in reversed(range(len(self._rows))):
            if self._rows[place].job.cancelled:
                self._remove(place)

    def _remove(self, place: int) -> None:
        self._store.remove(place)
        self._rows[place] = self._rows[-1]
        self._rows.pop()

    def _read(self) -> None:
        """Reads no more than a chunk of prompts; whoever's prompt is read through joins the rows."""
        budget = CHUNK
        while budget > 0:
            if self._reading is None:
                with self._change:
                    if not self._waiting or len(self._rows) + len(self._waiting[0].keys) > self.max_rows:
                        return
                    job = self._waiting.popleft()
                prompt = Prompt(self.model, job.prompt, chunk=CHUNK, all_logits=job.prompt_scores)
                self._reading = (job, prompt, [TokenScore(job.prompt[0], None)], None)
            job, prompt, scores, before = self._reading
            begin = prompt.num_read
            logits = prompt.read_on()
            budget -= prompt.num_read - begin
            if job.prompt_scores:
                self._score_prompt(job, scores, before, logits, begin)
            self._reading = (job, prompt, scores, logits[-1:])
            if prompt.is_read:
                self._join(job, prompt, scores, logits[-1:])
                self._reading = None

    def _score_prompt(
        self, job: Job, scores: list[TokenScore], before: Tensor | None, logits: Tensor, begin: int
    ) -> None:
        """Scores the tokens of a chunk; the first is told by the logits before it."""
        chunk = job.prompt[begin : begin + len(logits)]
        told = logits[:-1] if before is None else torch.cat([before, logits[:-1]])
        scores += self._scores(told, list(chunk[-len(told) :] if len(told) else ()), job.top_logprobs or 0)

    def _join(self, job: Job, prompt: Prompt, scores: list[TokenScore], logits: Tensor) -> None:
        if job.prompt_scores:
            self._deliver(job, Piece(-1, "", tuple(scores)))
        if not job.max_tokens:  # only the prompt was to be scored
            for index in range(len(job.keys)):
                self._deliver(job, Piece(index, "", finish="length"))
            return
        first = len(self._rows)
        for index in range(len(job.keys)):
            self._store.add(prompt.cache, len(job.prompt))
            self._rows.append(_Row(job, index, self.tokenizer))
        self._draw(logits.expand(len(job.keys), -1), list(range(first, len(self._rows))))

    def _step(self) -> None:
        tokens = torch.tensor([row.last_token for row in self._rows], device=self.model.device)
        self._draw(self._store.step(tokens), list(range(len(self._rows))))

    def _draw(self, logits: Tensor, places: list[int]) -> None:
        """Draws a token of each row from its logits, and lets those go that have ended."""
        rows = [self._rows[place] for place in places]
        keys = np.array([row.job.keys[row.index] for row in rows], dtype=np.uint64)
        steps = np.array([row.num_tokens for row in rows], dtype=np.uint64)
        randoms = torch.from_numpy(uniforms(keys, steps)).to(logits.device)
        is_broken = (~logits.amax(dim=-1).isfinite()).tolist()
        ended: list[int] = []
        pieces: list[tuple[Job, Piece]] = []
        for settings, members in _by_settings(rows).items():
            tokens = draw(logits[members], randoms[members], settings)[0].tolist()
            for member, token, score in zip(
                members, tokens, self._scores_of(logits, rows, members, tokens), strict=True
            ):
                row = rows[member]
                if is_broken[member]:
                    why = "the model gave numbers that are not finite"
                    piece = Piece(row.index, "", finish="error", num_tokens=row.num_tokens, error=why)
                    row.is_over = True
                else:
                    self.num_written += 1
                    piece = row.take(token, score, ends=token in self.end_tokens)
                if piece:
                    pieces.append((row.job, piece))
                if row.is_over:
                    ended.append(places[member])
        for place in sorted(ended, reverse=True):
            self._remove(place)
        for job, piece in pieces:  # last, so that who hears of an end finds its rows gone
            self._deliver(job, piece)

    def _scores_of(
        self, logits: Tensor, rows: Sequence[_Row], members: list[int], tokens: list[int]
    ) -> list[TokenScore | None]:
        found: list[TokenScore | None] = [None] * len(members)
        wanted = [number for number, member in enumerate(members) if rows[member].job.top_logprobs is not None]
        if wanted:
            most = max(rows[members[number]].job.top_logprobs or 0 for number in wanted)
            made = self._scores(logits[[members[n] for n in wanted]], [tokens[n] for n in wanted], most)
            for number, score in zip(wanted, made, strict=True):
                count = rows[members[number]].job.top_logprobs or 0
                found[number] = TokenScore(score.token, score.logprob, score.top[:count])
        return found

    def _scores(self, logits: Tensor, tokens: list[int], num_top: int) -> list[TokenScore]:
        if not tokens:
            return []
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
        values, ids = logprobs.topk(min(num_top, logprobs.shape[-1]), dim=-1)
        tops = [tuple(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
        return [TokenScore(token, value, top) for token, value, top in zip(tokens, chosen, tops, strict=True)]

    def _deliver(self, job: Job, piece: Piece) -> None:
        try:
            job.deliver(piece)
        except Exception:  # who listens is gone
            job.cancel()


def _by_settings(rows: Sequence[_Row]) -> dict[SamplingSettings, list[int]]:
    """The rows that are drawn alike, together."""
    groups: dict[SamplingSettings, list[int]] = {}
    for number, row in enumerate(rows):
        job = row.job
        settings = SamplingSettings(1, temperature=job.temperature, top_p=job.top_p, top_k=job.top_k)
        groups.setdefault(settings, []).append(number)
    return groups


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation settings."""
    settings: Any = model.generation_config
    configured = settings.eos_token_id if settings else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*ids, tokenizer.eos_token_id] if token is not None)
