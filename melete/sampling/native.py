"""The native sampler: any Hugging Face causal language model, on the device it is on.

Each distinct prompt of a wave is run through the model once and its cache forked to the siblings; rows that have ended
leave the batch.
What a row says depends only on its prompt, its key and the weights: the random number of a token is a function of the
rollout's key and the token's position, so neither the other rows nor the order of work can change it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from melete.sampling.drawing import draw
from melete.sampling.keys import uniforms
from melete.sampling.kv_cache import has_attention, has_full_attention, make_cache, select_rows
from melete.sampling.protocol import OnCompletion
from melete.types import Completion, FinishReason, SampleRequest, SamplingSettings

SPARE_TOKENS = 64  # room in the cache after the prompt before it is doubled
COMPACT_SHARE = 0.75  # rows that ended are removed when no more than this share is still being written


@dataclass
class _Wave:
    """Rows [B] that are written together: their tokens and log-probs so far, and what is left of them in the batch."""

    keys: np.ndarray  # [B] uint64
    tokens: Tensor  # [B, max_new_tokens]
    logprobs: Tensor  # [B, max_new_tokens]
    lengths: Tensor  # [B], 0 while being written
    stopped: Tensor  # [B] bool


class NativeSampler:
    """Samples with the model it is given; `max_rows` bounds the rows that are written at once."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_rows: int = 512, version: int = 0
    ) -> None:
        self.model, self.tokenizer, self.max_rows, self.policy_version = model, tokenizer, max_rows, version
        self.end_tokens = torch.tensor(sorted(_end_tokens(model, tokenizer)), device=model.device)
        # transformers takes a cache under a wrong name without a word and does not use it
        takes = inspect.signature(model.forward).parameters
        self.cache_argument = "cache_params" if "cache_params" in takes else "past_key_values"
        self.num_prefilled_tokens = self.num_decoded_tokens = 0  # how much work was done, padding not counted

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

        def written(number: int, sibling: int, completion: Completion) -> None:
            done[number][sibling] = completion
            if on_completion:
                on_completion(number, sibling, completion)

        try:
            for wave in self._waves(requests):
                places = [(number, start + n) for number, start, part in wave for n in range(len(part.keys))]
                self._write([part for _, _, part in wave], settings, lambda row, c, at=places: written(*at[row], c))
        finally:
            self.model.train(was_training)
        return [[completion for completion in siblings if completion is not None] for siblings in done]

    def _waves(self, requests: Sequence[SampleRequest]) -> Iterator[list[tuple[int, int, SampleRequest]]]:
        """Requests that are written together: prompts of similar length, at most `max_rows` rows.

        With each comes its number and that of its first key, for a request that alone asks for more rows is split.
        """
        wave: list[tuple[int, int, SampleRequest]] = []
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

    def _write(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings, written: Callable[[int, Completion], None]
    ) -> None:
        prompts = {prompt: n for n, prompt in enumerate(dict.fromkeys(request.prompt_tokens for request in requests))}
        logits, cache, mask = self._prefill(list(prompts), settings)
        row_of_key = [prompts[request.prompt_tokens] for request in requests for _ in request.keys]
        row_prompt = torch.tensor(row_of_key, device=logits.device)
        num_rows = len(row_prompt)
        wave = _Wave(
            keys=np.array([key for request in requests for key in request.keys], dtype=np.uint64),
            tokens=torch.zeros(num_rows, settings.max_new_tokens, dtype=torch.long, device=logits.device),
            logprobs=torch.zeros(num_rows, settings.max_new_tokens, device=logits.device),
            lengths=torch.zeros(num_rows, dtype=torch.long, device=logits.device),
            stopped=torch.zeros(num_rows, dtype=torch.bool, device=logits.device),
        )
        select_rows(cache, row_prompt)  # the fork: every sibling gets its prompt's keys and values
        self._decode(logits[row_prompt], cache, mask[row_prompt], wave, settings, written)

    def _prefill(self, prompts: Sequence[tuple[int, ...]], settings: SamplingSettings) -> tuple[Tensor, Cache, Tensor]:
        """Next-token logits [P, V], the cache, and the mask [P, L] of real tokens of left-padded prompts."""
        longest = max(len(prompt) for prompt in prompts)
        device = self.model.device
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long, device=device)
        mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=device)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = True
        self.num_prefilled_tokens += int(mask.sum())
        cache = make_cache(self.model.config, spare=min(SPARE_TOKENS, settings.max_new_tokens))
        output = self.model(
            input_ids=tokens,
            attention_mask=mask.long(),
            position_ids=_positions(mask),
            use_cache=True,
            logits_to_keep=1,
            **{self.cache_argument: cache},
        )
        return output.logits[:, -1], cache, mask

    def _decode(
        self,
        logits: Tensor,
        cache: Cache,
        mask: Tensor,
        wave: _Wave,
        settings: SamplingSettings,
        written: Callable[[int, Completion], None],
    ) -> None:
        """Fills `wave` and hands over each row when it ends; ended rows are dropped from the batch now and then."""
        alive = torch.arange(len(wave.keys), device=logits.device)  # the wave's row of each row of the batch
        next_position = mask.sum(dim=1)
        room = torch.ones(len(alive), settings.max_new_tokens, dtype=torch.bool, device=mask.device)
        width = mask.shape[1]
        mask = torch.cat([mask, room], dim=1)
        for step in range(settings.max_new_tokens):
            drawn = uniforms(wave.keys[alive.cpu().numpy()], np.full(len(alive), step, dtype=np.uint64))
            tokens, logprobs = draw(logits, torch.from_numpy(drawn).to(logits.device), settings)
            wave.tokens[alive, step], wave.logprobs[alive, step] = tokens, logprobs
            ended = torch.isin(tokens, self.end_tokens) | self._ends_with_stop_string(wave, alive, step, settings)
            is_open = wave.lengths[alive] == 0
            self.num_decoded_tokens += int(is_open.sum())
            wave.stopped[alive] |= ended & is_open
            wave.lengths[alive[ended & is_open]] = step + 1
            for row in alive[ended & is_open].tolist():
                written(row, self._completion(wave, row))
            is_open &= ~ended
            num_open = int(is_open.sum())
            if num_open == 0 or step + 1 == settings.max_new_tokens:
                for row in alive[is_open].tolist():
                    written(row, self._completion(wave, row))
                break
            if num_open <= COMPACT_SHARE * len(alive):
                kept = is_open.nonzero()[:, 0]
                alive, tokens, mask, next_position = alive[kept], tokens[kept], mask[kept], next_position[kept]
                select_rows(cache, kept)
            width += 1
            logits = self.model(
                input_ids=tokens[:, None],
                attention_mask=_single_query_mask(mask[:, :width], self.model),
                position_ids=next_position[:, None],
                use_cache=True,
                logits_to_keep=1,
                **{self.cache_argument: cache},
            ).logits[:, -1]
            next_position = next_position + 1

    def _ends_with_stop_string(self, wave: _Wave, alive: Tensor, step: int, settings: SamplingSettings) -> Tensor:
        if not settings.stop_strings:
            return torch.zeros(len(alive), dtype=torch.bool, device=alive.device)
        # a stop string of n bytes can begin at most n tokens back; one more, as some decoders strip a first space
        start = max(0, step - max(len(text.encode()) for text in settings.stop_strings))
        tails = self.tokenizer.batch_decode(wave.tokens[alive, start : step + 1].tolist())
        return torch.tensor([any(s in tail for s in settings.stop_strings) for tail in tails], device=alive.device)

    def _completion(self, wave: _Wave, row: int) -> Completion:
        length = int(wave.lengths[row]) or wave.tokens.shape[1]
        reason: FinishReason = "stop" if bool(wave.stopped[row]) else "length"
        tokens, logprobs = wave.tokens[row, :length].tolist(), wave.logprobs[row, :length].tolist()
        return Completion(tuple(tokens), tuple(logprobs), reason, self.policy_version)


def _positions(mask: Tensor) -> Tensor:
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _single_query_mask(mask: Tensor, model: PreTrainedModel) -> Tensor | None:
    """The mask of a single query per row in the form that the model takes without further work, if one is needed."""
    # a model without attention would multiply the new token by the mask of all tokens
    if bool(mask.all()) or not has_attention(model.config):
        return None
    # a finished mask is taken as it is by every layer, so a window would be lost
    if model.config._attn_implementation == "sdpa" and has_full_attention(model.config):
        return mask[:, None, None, :]
    return mask.long()


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return {token for token in [*ids, tokenizer.eos_token_id] if token is not None}
