"""The native sampler: any Hugging Face causal language model, on the device it is on.

Each distinct prompt of a wave is run through the model once, for all of its siblings; rows that have ended leave the
batch. Architectures that `melete.forward` knows are written with its lean forward pass, others with their own.
What a row says depends only on its prompt, its key and the weights: the random number of a token is a function of the
rollout's key and the token's position, so neither the other rows nor the order of work can change it.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from melete.forward.memory import Memory
from melete.forward.notes import Notes
from melete.forward.rows import Prompts, Rows, lean_model
from melete.forward.static_rows import StaticRows, can_be_static
from melete.machine.forks import Fork, Tell, Work, can_fork
from melete.machine.threads import in_lanes, num_lanes
from melete.sampling.copies import Copies
from melete.sampling.drawing import draw
from melete.sampling.keys import uniforms
from melete.sampling.protocol import OnCompletion
from melete.sampling.rows import CachedRows, WrittenRows
from melete.sampling.shared_weights import SharedWeights
from melete.types import Completion, FinishReason, SampleRequest, SamplingSettings

PARAMETERS_OF_THREADS = 2_000_000  # of a smaller model two threads wait for Python longer than for products
ROWS_OF_LANE = 32  # that a part of a wave has at least, if it is written beside another
LANES_ARE_FORKS = sys.platform == "linux"  # a wave has the same lanes whether or not they can be forked just then
_Noted = tuple[int, Sequence[int]] | None  # the first place of a prompt, and those of what was written behind it
_Written = Callable[[int, int, Completion, _Noted], None]  # of a key of a request, by their numbers
_RowWritten = Callable[[int, Completion, _Noted], None]
_Part = tuple[int, int, SampleRequest]  # number of a request, of the first of its keys, and those keys
SPARE_TOKENS = 32  # room in a cache of transformers: more would be read with more gaps, less be moved more often
STEPS_AHEAD = 16  # whose random numbers are made at once


@dataclass(frozen=True)
class _Lane:
    """What is written beside other lanes, and where its states are noted."""

    number: int
    parts: list[_Part]
    notes: Notes | None

    def job(self, settings: SamplingSettings, version: int, weights: int) -> dict[str, Any]:
        """What a copy of this process is told of it; `at` is the next place in the memory."""
        return {
            "number": self.number,
            "parts": [(number, start, part.prompt_tokens, part.keys) for number, start, part in self.parts],
            "settings": dataclasses.asdict(settings),
            "version": version,
            "weights": weights,
            "at": self.notes.at if self.notes else None,
        }


@dataclass
class _Wave:
    """Rows [R] that are in the batch: what has been written of them so far."""

    numbers: list[int]  # [R], of each row at the start
    keys: np.ndarray  # [R] uint64
    tokens: Tensor  # [R, max_new_tokens]
    logprobs: Tensor  # [R, max_new_tokens]
    is_open: Tensor  # [R] bool, while a row is being written
    prompt_places: list[int] | None  # [R] the first place of each row's prompt; None where nothing is noted
    places: Tensor | None  # [R, max_new_tokens] where each token is noted, -1 where it is not

    def some(self, rows: Tensor) -> _Wave:
        """These rows only."""
        kept = rows.tolist()
        return _Wave(
            [self.numbers[row] for row in kept],
            self.keys[kept],
            self.tokens[rows],
            self.logprobs[rows],
            self.is_open[rows],
            None if self.prompt_places is None else [self.prompt_places[row] for row in kept],
            None if self.places is None else self.places[rows],
        )


class NativeSampler:
    """Samples with the model it is given; `max_rows` bounds the rows that are written at once."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_rows: int = 512, version: int = 0
    ) -> None:
        self.model, self.tokenizer, self.max_rows, self.policy_version = model, tokenizer, max_rows, version
        self.end_tokens = torch.tensor(sorted(_end_tokens(model, tokenizer)), device=model.device)
        self.lean = lean_model(model)
        self.memory = None if self.lean is None else Memory(self.lean)
        self.num_prefilled_tokens = self.num_decoded_tokens = 0  # how much work was done, padding not counted
        self._counting = threading.Lock()
        self._copies = Copies(model)

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Copies `weights` by name, unless they are the model's own, and takes their version.

        Raises `KeyError` for a name and `ValueError` for a shape that the model does not have; nothing is copied then.
        """
        own = self.model.state_dict(keep_vars=True)
        for name, weight in weights.items():
            if own[name].shape != weight.shape:
                raise ValueError(f"{name} is {tuple(own[name].shape)} here, not {tuple(weight.shape)}")
        with torch.no_grad():
            for name, weight in weights.items():
                if own[name].data_ptr() != weight.data_ptr():
                    own[name].copy_(weight)
        self.policy_version = version

    def state_dict(self) -> dict[str, Any]:
        """Weights and their version, for a sampler with weights of its own; not copies."""
        return {"model": self.model.state_dict(), "policy_version": self.policy_version}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state."""
        self.load_weights(state["model"], version=state["policy_version"])

    @torch.inference_mode()
    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        *,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """For each request one completion per key, in order; `on_completion` hears of each as soon as it is written.

        Raises `ValueError` for an empty prompt or a request without keys.
        """
        for number, request in enumerate(requests):
            if not request.prompt_tokens or not request.keys:
                raise ValueError(f"request {number} has no {'keys' if request.prompt_tokens else 'prompt'}")
        was_training = self.model.training
        self.model.eval()
        done: list[list[Completion | None]] = [[None] * len(request.keys) for request in requests]

        told = threading.Lock()

        def written(number: int, sibling: int, completion: Completion, noted: _Noted) -> None:
            with told:
                if self.memory is not None and noted is not None:
                    prompt = requests[number].prompt_tokens
                    self.memory.remember_prompt(prompt, range(noted[0], noted[0] + len(prompt)))
                    self.memory.remember((*prompt, *completion.tokens[:-1]), noted[1])
                if done[number][sibling] is None:  # a lane that is written again says what has been said
                    done[number][sibling] = completion
                    if on_completion:
                        on_completion(number, sibling, completion)

        try:
            for wave in self._waves(requests):
                if self.lean is not None:
                    self.lean.refresh()
                self._write_lanes(self._lanes(wave), settings, written)
        finally:
            self.model.train(was_training)
        return [[completion for completion in siblings if completion is not None] for siblings in done]

    def _write_lanes(self, lanes: Sequence[_Lane], settings: SamplingSettings, written: _Written) -> None:
        """Lanes but the first in copies of this process where there can be some, else in threads or one by one."""
        if len(lanes) == 1 or not can_fork():
            num = len(lanes) if self.model.num_parameters() >= PARAMETERS_OF_THREADS else 1
            list(in_lanes(lambda lane: self._write_lane(lane, settings, written), lanes, num))
            return
        weights, forks = self._forks(len(lanes) - 1)
        left = list(lanes[1 + len(forks) :])
        given: list[tuple[Fork, _Lane]] = []
        try:
            for fork, lane in zip(forks, lanes[1:], strict=False):
                try:
                    fork.start(lane.job(settings, self.policy_version, weights), self._listener(lane, written))
                    given.append((fork, lane))
                except OSError:  # it has ended meanwhile
                    left.append(lane)
            self._write_lane(lanes[0], settings, written)
            left.extend(lane for fork, lane in given if not fork.join())
        except BaseException:
            self.close()
            raise
        if left:
            self.close()
        for lane in left:
            self._write_lane(lane, settings, written)

    def _forks(self, num: int) -> tuple[int, Sequence[Fork]]:
        """The number of the present weights, and copies of this process that can have them."""
        adapters = self.lean.adapters() if self.lean else ()
        memory = (id(self.memory.lanes), len(self.memory.lanes)) if self.memory else ()
        state = (*adapters, *memory, *self.end_tokens.tolist(), torch.get_num_threads())
        forks = self._copies.ready(num, state, self._work_of_copy)
        return self._copies.weights.number if self._copies.weights else 0, forks

    def _work_of_copy(self, weights: SharedWeights) -> Work:
        number = weights.number

        def work(job: dict[str, Any], tell: Tell) -> None:
            nonlocal number
            self._counting = threading.Lock()  # another thread may have held it when the copy was made
            self.policy_version = job["version"]
            if job["weights"] != number and self.lean is not None:
                weights.take()
                self.lean.refresh(always=True)
                number = job["weights"]

            def tell_row(number: int, sibling: int, completion: Completion, noted: _Noted) -> None:
                tell([number, sibling, dataclasses.astuple(completion), noted])

            notes = self.memory.lanes[job["number"]] if self.memory and job["at"] is not None else None
            if notes:
                notes.at = job["at"]
            parts = [(n, start, SampleRequest(tuple(text), tuple(keys))) for n, start, text, keys in job["parts"]]
            asked = job["settings"]
            settings = SamplingSettings(**asked | {"stop_strings": tuple(asked["stop_strings"])})
            before = self.num_prefilled_tokens, self.num_decoded_tokens
            self._write_lane(_Lane(job["number"], parts, notes), settings, tell_row)
            counts = self.num_prefilled_tokens - before[0], self.num_decoded_tokens - before[1]
            tell([*counts, notes.at if notes else None])

        return work

    def _listener(self, lane: _Lane, written: _Written) -> Callable[[Any], None]:
        def hear(told: Any) -> None:
            if len(told) == 3:
                self._count(*told[:2])
                if lane.notes:
                    lane.notes.at = told[2]
            else:
                number, sibling, (tokens, logprobs, reason, version), noted = told
                written(number, sibling, Completion(tuple(tokens), tuple(logprobs), reason, version), noted)

        return hear

    def close(self) -> None:
        """Ends the copies of this process that wait for work; whoever samples again makes others."""
        self._copies.close()

    def _write_lane(self, lane: _Lane, settings: SamplingSettings, written: _Written) -> None:
        numbers = [(number, start + n) for number, start, part in lane.parts for n in range(len(part.keys))]

        def row_written(row: int, completion: Completion, noted: _Noted) -> None:
            written(*numbers[row], completion, noted)

        self._write([part for _, _, part in lane.parts], settings, row_written, lane.notes)

    def _lanes(self, wave: list[_Part]) -> list[_Lane]:
        """The wave in parts that are written side by side, each with prompts of its own."""
        num_rows = sum(len(part.keys) for _, _, part in wave)
        is_small = not LANES_ARE_FORKS and self.model.num_parameters() < PARAMETERS_OF_THREADS
        alone = self.lean is None or is_small
        most = 1 if alone else num_lanes(torch.get_num_threads(), self.model.device.type)
        num = max(1, min(most, len(wave), num_rows // ROWS_OF_LANE))
        lanes: list[list[_Part]] = [[]]
        begun = 0
        for part in wave:
            if begun >= num_rows * len(lanes) / num:
                lanes.append([])
            lanes[-1].append(part)
            begun += len(part[2].keys)
        notes = [self.memory.lane(number, max(most, 1)) if self.memory else None for number in range(len(lanes))]
        return [_Lane(number, parts, note) for number, (parts, note) in enumerate(zip(lanes, notes, strict=True))]

    def _waves(self, requests: Sequence[SampleRequest]) -> Iterator[list[_Part]]:
        """Requests that are written together: prompts of similar length, at most `max_rows` rows.

        With each comes its number and that of its first key, for a request that alone asks for more rows is split.
        """
        wave: list[_Part] = []
        num_rows = 0
        # equal prompts side by side, so that they share a wave
        for number, request in sorted(enumerate(requests), key=lambda r: (len(r[1].prompt_tokens), r[1].prompt_tokens)):
            for start in range(0, len(request.keys), self.max_rows):
                part = SampleRequest(request.prompt_tokens, request.keys[start : start + self.max_rows])
                if wave and num_rows + len(part.keys) > self.max_rows:
                    yield wave
                    wave, num_rows = [], 0
                wave.append((number, start, part))
                num_rows += len(part.keys)
        if wave:
            yield wave

    @torch.inference_mode()  # which a thread has of its own
    def _write(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings, written: _RowWritten, notes: Notes | None
    ) -> None:
        prompts = {prompt: n for n, prompt in enumerate(dict.fromkeys(request.prompt_tokens for request in requests))}
        row_of_key = [prompts[request.prompt_tokens] for request in requests for _ in request.keys]
        rows, logits = self._rows(list(prompts), torch.tensor(row_of_key, device=self.model.device), settings, notes)
        num_rows = len(row_of_key)
        wave = _Wave(
            numbers=list(range(num_rows)),
            keys=np.array([key for request in requests for key in request.keys], dtype=np.uint64),
            tokens=torch.zeros(num_rows, settings.max_new_tokens, dtype=torch.long, device=logits.device),
            logprobs=torch.zeros(num_rows, settings.max_new_tokens, device=logits.device),
            is_open=torch.ones(num_rows, dtype=torch.bool, device=logits.device),
            prompt_places=rows.prompt_places,
            places=None if rows.prompt_places is None else torch.full((num_rows, settings.max_new_tokens), -1),
        )
        self._decode(logits, rows, wave, settings, written)

    def _rows(
        self, prompts: Sequence[tuple[int, ...]], prompt_of: Tensor, settings: SamplingSettings, notes: Notes | None
    ) -> tuple[WrittenRows, Tensor]:
        """Rows that are about to be written, and the logits [B, V] of their first tokens."""
        self._count(sum(len(prompt) for prompt in prompts), 0)
        if self.lean is not None:
            shared = Prompts(self.lean, prompts, notes)
            logits, limit = shared.logits[prompt_of], settings.max_new_tokens
            if prompt_of.device.type == "cuda" and can_be_static(self.lean, shared, len(prompt_of), limit):
                return StaticRows(self.lean, shared, prompt_of, limit=limit), logits
            return Rows(self.lean, shared, prompt_of, notes), logits
        room = min(SPARE_TOKENS, settings.max_new_tokens)
        cached = CachedRows(self.model, prompts, prompt_of, room=room, limit=settings.max_new_tokens)
        return cached, cached.logits

    def _decode(
        self,
        logits: Tensor,
        rows: WrittenRows,
        wave: _Wave,
        settings: SamplingSettings,
        written: _RowWritten,
    ) -> None:
        """Hands over each row when it ends; ended rows are dropped from the batch now and then."""
        is_end = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        is_end[self.end_tokens[(self.end_tokens >= 0) & (self.end_tokens < logits.shape[1])]] = True
        num_open, num_decoded = len(wave.numbers), 0
        ahead: list[Tensor] = []  # the random numbers of the next steps, the last step first
        for step in range(settings.max_new_tokens):
            if not ahead:
                steps = np.arange(step, step + STEPS_AHEAD, dtype=np.uint64)[::-1]
                ahead = list(torch.from_numpy(uniforms(wave.keys, steps[:, None])).to(logits.device).unbind())
            tokens, logprobs = draw(logits, ahead.pop(), settings)
            wave.tokens[:, step], wave.logprobs[:, step] = tokens, logprobs
            num_decoded += num_open
            stopped = is_end.index_select(0, tokens)
            if settings.stop_strings:
                stopped |= self._ends_with_stop_string(wave, step, settings)
            ended = wave.is_open & stopped if step + 1 < settings.max_new_tokens else wave.is_open
            if over := ended.nonzero()[:, 0].tolist():
                for row in over:
                    reason: FinishReason = "stop" if bool(stopped[row]) else "length"
                    written(wave.numbers[row], *self._completion(wave, row, step + 1, reason))
                wave.is_open &= ~ended
                num_open -= len(over)
            if num_open == 0:
                break
            if num_open <= rows.compact_share * len(wave.numbers):
                kept = wave.is_open.nonzero()[:, 0]
                wave, tokens, ahead = wave.some(kept), tokens[kept], []
                rows.keep(kept)
            logits = rows.step(tokens)
            if wave.places is not None and rows.places is not None:
                wave.places[:, step] = torch.arange(rows.places.start, rows.places.stop)
        self._count(0, num_decoded)

    def _count(self, num_prefilled: int, num_decoded: int) -> None:
        with self._counting:  # lanes count at the same time
            self.num_prefilled_tokens += num_prefilled
            self.num_decoded_tokens += num_decoded

    def _ends_with_stop_string(self, wave: _Wave, step: int, settings: SamplingSettings) -> Tensor:
        # a stop string of n bytes can begin at most n tokens back; one more, as some decoders strip a first space
        start = max(0, step - max(len(text.encode()) for text in settings.stop_strings))
        tails = self.tokenizer.batch_decode(wave.tokens[:, start : step + 1].tolist())
        found = [any(text in tail for text in settings.stop_strings) for tail in tails]
        return torch.tensor(found, device=wave.tokens.device)

    def _completion(self, wave: _Wave, row: int, length: int, reason: FinishReason) -> tuple[Completion, _Noted]:
        """What was written, and where all of it but the last token is noted."""
        tokens, logprobs = wave.tokens[row, :length].tolist(), wave.logprobs[row, :length].tolist()
        completion = Completion(tuple(tokens), tuple(logprobs), reason, self.policy_version)
        if wave.places is None or wave.prompt_places is None:
            return completion, None
        places = wave.places[row, : length - 1].tolist()
        return completion, None if -1 in places else (wave.prompt_places[row], places)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return {token for token in [*ids, tokenizer.eos_token_id] if token is not None}
