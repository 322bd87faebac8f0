"""vLLM behind the sampler's protocol: its engine in this process, with the learner's weights pushed into it.

In this process a push hands over tensors and copies nothing between processes. Every push is checked: see `probe.py`.
What differs from the native sampler:

- A rollout's key is the seed of its request. The same keys, weights, requests and version of vLLM on the same machine
  give the same completions. The tokens are not those of the native sampler, and logits depend in their last bits on
  the rows that are computed together, so that of other requests a row may differ from where a token was nearly a tie
  (vLLM's own VLLM_BATCH_INVARIANT=1 promises more, on some GPUs).
- vLLM tells log-probs after its cuts. With `top_k` or `top_p` those of the full softmax are computed by a plain forward
  pass of the model, one row at a time.
- A completion ends at the longest sequence that vLLM has room for, with the reason "length".
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from melete.errors import ModelError
from melete.imports import require
from melete.sampling.checkpoint import checkpoint_weights, write_checkpoint
from melete.sampling.native import _end_tokens
from melete.sampling.probe import TOLERANCES, Scores, model_scores, probe_prompts, refuse_difference
from melete.sampling.protocol import OnCompletion
from melete.types import Completion, FinishReason, SampleRequest, SamplingSettings

LEAST_TEMPERATURE = 0.01  # vLLM takes this for anything between it and 0
PROBE_TOKENS = 64
# what vLLM is told before it is imported, unless the user has: nothing on the screen, nothing sent home
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
SEED_BITS = (1 << 63) - 1
PLACE = 'sampler = "vllm"'


@dataclass(slots=True)
class _Row:
    """A row that is being written: its request, its key, and how many of its tokens were searched for a stop string."""

    number: int
    sibling: int
    num_searched: int = 0


class VLLMSampler:
    """Samples with vLLM; `model` is what it is sent, and what its log-probs are compared with after every push.

    `max_rows` bounds the rows that are written at once. `memory_share` is the share of a GPU's memory that the engine
    may take, weights included; `cache_bytes` says instead how large its cache of keys and values is. `tolerance` is the
    mean difference of log-probs, in nats, that a push may show. Raises `RecipeError` where vLLM is not installed and
    `ModelError` where it cannot run the model, or does not compute what the model computes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_rows: int = 256,
        version: int = 0,
        memory_share: float = 0.3,
        cache_bytes: int | None = None,
        tolerance: float | None = None,
    ) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self.vllm: Any = require("vllm", extra="vllm")
        self.model, self.tokenizer, self.policy_version = model, tokenizer, version
        self.end_tokens = sorted(_end_tokens(model, tokenizer))
        self.tolerance = TOLERANCES[model.dtype] if tolerance is None else tolerance
        self._names = map(str, itertools.count())
        self._before: tuple[Scores, Scores] | None = None
        self._is_sound = False
        self.llm: Any = self._engine(max_rows, memory_share, cache_bytes)
        config = self.llm.llm_engine.vllm_config
        # longer than a block of the prefix cache, so that a probe would find what was left there; one token is written
        length = max(PROBE_TOKENS, config.cache_config.block_size + 16)
        self._probes = probe_prompts(tokenizer, min(length, config.model_config.max_model_len - 1))
        try:
            self._verify(f"as it was loaded, policy version {version}")
        except Exception as error:
            self.close()
            raise error if isinstance(error, ModelError) else self._cannot_run(error) from error

    def _engine(self, max_rows: int, memory_share: float, cache_bytes: int | None) -> Any:
        on_cpu = self.model.device.type == "cpu"
        with tempfile.TemporaryDirectory(prefix="melete-vllm-") as place, _as_before(self.model.device):
            write_checkpoint(self.model, Path(place))
            try:
                return self.vllm.LLM(
                    model=place,
                    skip_tokenizer_init=True,  # tokens go in and come out
                    generation_config="vllm",
                    dtype=str(self.model.dtype).removeprefix("torch."),
                    seed=0,
                    max_model_len=-1,  # as much as the model and the cache have room for
                    max_num_seqs=max_rows,
                    gpu_memory_utilization=memory_share,
                    kv_cache_memory_bytes=cache_bytes,
                    enforce_eager=on_cpu,
                    enable_prefix_caching=True,
                    logprobs_mode="processed_logprobs",  # at the temperature, not before it
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                )
            except Exception as error:  # what the engine makes of a model, a driver or too little memory
                raise self._cannot_run(error) from error

    def _cannot_run(self, error: Exception) -> ModelError:
        remedy = 'sampler = "native"; or another sampler_memory_share, if memory is what it lacks'
        return ModelError(f"vLLM cannot run {type(self.model).__name__}: {error}", place=PLACE, remedy=remedy)

    def close(self) -> None:
        """Gives the engine's memory back; the sampler cannot be used any more."""
        if self.llm is None:
            return
        self.llm.llm_engine.engine_core.shutdown()
        self.llm, self._is_sound = None, False
        require("vllm.distributed", extra="vllm").cleanup_dist_env_and_memory()
        gc.collect()

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Copies `weights` by name into the model, unless they are its own, and pushes the model into the engine.

        An adapter is merged on the way, and prompts kept from earlier weights are forgotten. Raises `KeyError` for a
        name and `ValueError` for a shape that the model does not have; nothing is changed then. Raises `ModelError`
        when the engine does not compute with the new weights afterwards; it then samples no more until a push succeeds.
        """
        own = self.model.state_dict(keep_vars=True)
        for name, weight in weights.items():
            if own[name].shape != weight.shape:
                raise ValueError(f"{name} is {tuple(own[name].shape)} here, not {tuple(weight.shape)}")
        with torch.no_grad():
            for name, weight in weights.items():
                if own[name].data_ptr() != weight.data_ptr():
                    own[name].copy_(weight)
        place = f"the push of policy version {version}"
        self._is_sound = False
        with _as_before(self.model.device):
            pushed = iter(checkpoint_weights(self.model).items())
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": pushed})
            self.llm.apply_model(_pack_heads)
        if not self.llm.reset_prefix_cache():
            what = "vLLM did not empty its prefix cache, so it would go on from what earlier weights made of a prompt"
            raise ModelError(what, place=f"{PLACE}, {place}", remedy='sampler = "native"')
        self._verify(place)
        self.policy_version = version

    def state_dict(self) -> dict[str, Any]:
        """Weights and their version; not copies."""
        return {"model": self.model.state_dict(), "policy_version": self.policy_version}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state."""
        self.load_weights(state["model"], version=state["policy_version"])

    def _verify(self, place: str) -> None:
        """Raises `ModelError` when the engine's log-probs of the probes are not the model's."""
        settings: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1, "logprobs": 0, "detokenize": False}
        asked = [{"prompt_token_ids": list(prompt)} for prompt in self._probes]
        # what is scored is never read out of the prefix cache; so first as samples are, which does read it
        written = self.llm.generate(asked, self.vllm.SamplingParams(**settings), use_tqdm=False)
        scored = self.llm.generate(asked, self.vllm.SamplingParams(**settings, prompt_logprobs=0), use_tqdm=False)
        following = [output.outputs[0].token_ids[0] for output in written]
        engine = Scores(
            torch.tensor(
                [
                    at[token].logprob
                    for output, prompt in zip(scored, self._probes, strict=True)
                    for at, token in zip(output.prompt_logprobs[1:], prompt[1:], strict=True)
                ]
            ),
            torch.tensor([float(_logprobs(output.outputs[0])[0]) for output in written]),
        )
        model = model_scores(self.model, self._probes, following)
        refuse_difference(engine, model, self._before, self.tolerance, f"{PLACE}, {place}")
        self._before, self._is_sound = (engine, model), True

    @torch.inference_mode()
    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        *,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """For each request one completion per key, in order; `on_completion` hears of each as soon as it is written.

        Raises `ValueError` for an empty prompt, a request without keys, a prompt that is too long for the engine, or a
        temperature that vLLM would change.
        """
        self._refuse_impossible(requests, settings)
        engine = self.llm.llm_engine
        done: list[list[Completion | None]] = [[None] * len(request.keys) for request in requests]
        waiting: dict[str, _Row] = {}
        try:
            for number, request in enumerate(requests):
                for sibling, key in enumerate(request.keys):
                    name, prompt = next(self._names), {"prompt_token_ids": list(request.prompt_tokens)}
                    engine.add_request(name, prompt, self._params(settings, key))
                    waiting[name] = _Row(number, sibling)
            while waiting:
                for row, completion in self._ended(engine.step(), waiting, requests, settings):
                    done[row.number][row.sibling] = completion
                    if on_completion:
                        on_completion(row.number, row.sibling, completion)
        finally:
            if waiting:
                engine.abort_request(list(waiting))
        return [[completion for completion in siblings if completion is not None] for siblings in done]

    def _refuse_impossible(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> None:
        for number, request in enumerate(requests):
            if not request.prompt_tokens or not request.keys:
                raise ValueError(f"request {number} has no {'keys' if request.prompt_tokens else 'prompt'}")
        if 0 < settings.temperature < LEAST_TEMPERATURE:
            raise ValueError(f"temperature must be 0 or at least {LEAST_TEMPERATURE} here, not {settings.temperature}")
        if not self._is_sound:
            what = "the last push of weights failed, so nobody knows what the engine would write with"
            raise ModelError(what, place=PLACE, remedy="push weights again")

    def _ended(
        self,
        outputs: Sequence[Any],
        waiting: dict[str, _Row],
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
    ) -> Iterator[tuple[_Row, Completion]]:
        """The rows that end with what the engine wrote in a step; they wait no longer."""
        for output in outputs:
            row = waiting.get(output.request_id)
            if row is None:  # ended already, and the engine was a token further
                continue
            completion = self._completion(output, row, requests[row.number].prompt_tokens, settings)
            if completion is not None:
                del waiting[output.request_id]
                if not output.finished:
                    self.llm.llm_engine.abort_request([output.request_id])
                yield row, completion

    def _params(self, settings: SamplingSettings, key: int) -> Any:
        kinds: Any = require("vllm.sampling_params", extra="vllm").RequestOutputKind
        return self.vllm.SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=key & SEED_BITS,
            max_tokens=settings.max_new_tokens,
            stop_token_ids=self.end_tokens,
            logprobs=0,  # of the token that was drawn
            detokenize=False,
            # stop strings are looked for here, by the native sampler's rule
            output_kind=kinds.CUMULATIVE if settings.stop_strings else kinds.FINAL_ONLY,
        )

    def _completion(
        self, output: Any, row: _Row, prompt: Sequence[int], settings: SamplingSettings
    ) -> Completion | None:
        """What the engine has written of a row, once it is to end there."""
        found = output.outputs[0]
        tokens = list[int](found.token_ids)
        reason: FinishReason = "stop" if found.finish_reason == "stop" else "length"
        if output.finished and found.finish_reason not in ("stop", "length"):
            what = f"vLLM gave a completion up: {found.finish_reason}"
            raise ModelError(what, place=PLACE, remedy='sampler = "native"')
        length = self._end_of_stop_string(tokens, row, settings)
        if length is not None:
            tokens, reason = tokens[:length], "stop"
        elif not output.finished:
            return None
        is_cut = settings.temperature > 0 and (settings.top_k > 0 or settings.top_p < 1)
        logprobs = (
            self._full_logprobs(prompt, tokens, settings.temperature) if is_cut else _logprobs(found)[: len(tokens)]
        )
        return Completion(tuple(tokens), tuple(logprobs), reason, self.policy_version)

    def _end_of_stop_string(self, tokens: Sequence[int], row: _Row, settings: SamplingSettings) -> int | None:
        """How many tokens there are when the first stop string is complete; None where there is none so far."""
        if not settings.stop_strings:
            return None
        reach = max(len(text.encode()) for text in settings.stop_strings) + 1  # as far back as the native sampler looks
        for end in range(row.num_searched + 1, len(tokens) + 1):
            tail = self.tokenizer.decode(list(tokens[max(0, end - reach) : end]))
            if any(text in tail for text in settings.stop_strings):
                return end
        row.num_searched = len(tokens)
        return None

    def _full_logprobs(self, prompt: Sequence[int], tokens: Sequence[int], temperature: float) -> list[float]:
        """Log-probs of `tokens` by the model's full softmax at `temperature`."""
        row = torch.tensor([[*prompt, *tokens]], device=self.model.device)
        logits = self.model(input_ids=row).logits[0, len(prompt) - 1 : -1].float() / temperature
        return logits.log_softmax(dim=-1).gather(1, row[0, len(prompt) :, None])[:, 0].tolist()


def _pack_heads(model: torch.nn.Module) -> None:
    """On a CPU a head multiplies with a packed copy, which a push does not reach where the head is the embedding."""
    for module in model.modules():
        if hasattr(module, "cpu_linear") and hasattr(module, "tie_weights"):
            layer: Any = module
            layer.quant_method.process_weights_after_loading(layer)


def _logprobs(found: Any) -> list[float]:
    return [float(at[token].logprob) for at, token in zip(found.logprobs, found.token_ids, strict=True)]


@contextlib.contextmanager
def _as_before(device: torch.device) -> Iterator[None]:
    """vLLM sets every seed and, on a CPU, takes `torch.set_num_threads` away; afterwards both are as they were.

    Meanwhile the engine is told to stay in this process.
    """
    setting, numpy_state, python_state = "VLLM_ENABLE_V1_MULTIPROCESSING", np.random.get_state(), random.getstate()
    set_num_threads, num_threads, said = torch.set_num_threads, torch.get_num_threads(), os.environ.get(setting)
    os.environ[setting] = "0"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(num_threads)
            if said is None:
                del os.environ[setting]
            else:
                os.environ[setting] = said
