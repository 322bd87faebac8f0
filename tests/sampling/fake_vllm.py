"""A small engine with the shape of vLLM's offline interface, driven by transformers, and faults to order.

It has what the sampler relies on and what makes trouble in the real one: seeds are set and `torch.set_num_threads` is
taken away when it is made; weights are pushed under the names of a checkpoint; blocks of a prompt stay in a cache that
a push does not empty, and prompts that are scored do not read it; log-probs are those after the cuts.
"""

from __future__ import annotations

import enum
import importlib.util
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

BLOCK = 16
# vLLM itself only where it is installed: nothing is skipped elsewhere
ENGINES = ["fake", "real"] if importlib.util.find_spec("vllm") else ["fake"]
Faults = set[str]


class RequestOutputKind(enum.Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int = 16
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        assert self.temperature == 0 or self.temperature >= 0.01, "the real one would take 0.01 and say nothing"
        assert self.seed is None or 0 <= self.seed < 2**63


@dataclass(frozen=True)
class Logprob:
    logprob: float


@dataclass
class _Request:
    name: str
    prompt: list[int]
    params: SamplingParams
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    reason: str | None = None

    def output(self) -> SimpleNamespace:
        found = SimpleNamespace(token_ids=list(self.tokens), logprobs=list(self.logprobs), finish_reason=self.reason)
        return SimpleNamespace(
            request_id=self.name,
            outputs=[found],
            finished=self.reason is not None,
            prompt_logprobs=self.prompt_logprobs,
        )


class _Weights:
    """A checkpoint and the model that it makes."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self.config = AutoConfig.from_pretrained(directory)
        assert json.loads((directory / "config.json").read_text())["architectures"]
        self.dtype, self.checkpoint = dtype, load_file(directory / "model.safetensors")
        self.model = self._made()

    def _made(self) -> PreTrainedModel:
        with tempfile.TemporaryDirectory() as place:
            self.config.save_pretrained(place)
            save_file(self.checkpoint, Path(place) / "model.safetensors", metadata={"format": "pt"})
            return AutoModelForCausalLM.from_pretrained(place, dtype=self.dtype).eval()

    def push(self, weights: Iterable[tuple[str, Tensor]], faults: Faults) -> None:
        pushed = {name: weight.detach().clone() for name, weight in weights}
        if unknown := sorted(pushed.keys() - self.checkpoint.keys()):
            raise ValueError(f"There is no module or parameter named {unknown[0]!r}")
        if "lost" in faults:
            return
        if "half" in faults:  # as where a loader does not know a name that it has learnt to skip
            pushed = {name: weight for name, weight in pushed.items() if "mlp" not in name}
        head = self.model.get_output_embeddings().weight.detach().clone()
        self.checkpoint |= pushed
        self.model = self._made()
        if self.config.tie_word_embeddings:  # the head's packed copy is the old one until it is packed again
            self.model.get_output_embeddings().weight = torch.nn.Parameter(head)

    def pack_head(self) -> None:
        if self.config.tie_word_embeddings:
            self.model.get_output_embeddings().weight = self.model.get_input_embeddings().weight


class LLMEngine:
    def __init__(self, weights: _Weights, faults: Faults, max_rows: int, max_model_len: int) -> None:
        self.weights, self.faults, self.max_rows = weights, faults, max_rows
        self.requests: dict[str, _Request] = {}
        self.blocks: dict[tuple[int, ...], PreTrainedModel] = {}  # beginning of a prompt -> the model that read it
        self.most_rows = 0
        self.max_model_len = int(weights.config.max_position_embeddings)
        assert max_model_len == -1
        self.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(block_size=BLOCK),
            model_config=SimpleNamespace(max_model_len=self.max_model_len),
        )
        self.is_shut_down = False
        self.engine_core = SimpleNamespace(shutdown=lambda: setattr(self, "is_shut_down", True))

    def add_request(self, request_id: str, prompt: Mapping[str, list[int]], params: SamplingParams) -> str:
        assert request_id not in self.requests
        tokens = prompt["prompt_token_ids"]
        if len(tokens) >= self.max_model_len:
            raise ValueError(f"the prompt of {len(tokens)} tokens is longer than the longest sequence")
        generator = torch.Generator()
        if params.seed is not None:
            generator.manual_seed(params.seed)
        self.requests[request_id] = _Request(request_id, list(tokens), params, generator)
        return request_id

    def abort_request(self, request_ids: list[str]) -> None:
        for name in request_ids:  # one that is unknown has ended
            self.requests.pop(name, None)

    @torch.inference_mode()
    def step(self) -> list[SimpleNamespace]:
        if "no step" in self.faults:
            raise ValueError("Head dimension 80 is not supported")
        running = list(self.requests.values())[: self.max_rows]
        self.most_rows = max(self.most_rows, len(running))
        told = []
        for request in running:
            self._write(request)
            if request.reason is not None:
                del self.requests[request.name]
            if request.reason is not None or request.params.output_kind == RequestOutputKind.CUMULATIVE:
                told.append(request.output())
        return told

    def _write(self, request: _Request) -> None:
        params = request.params
        logits = self._logits(request)[0, -1].float()
        if params.temperature == 0:
            token, logprobs = int(logits.argmax()), logits.log_softmax(-1)
        else:
            logprobs = _cut(logits / params.temperature, params).log_softmax(-1)
            token = int(torch.multinomial(logprobs.exp(), 1, generator=request.generator))
        request.tokens.append(token)
        request.logprobs.append({token: Logprob(float(logprobs[token]))})
        if token in params.stop_token_ids:
            request.reason = "stop"
        elif len(request.tokens) == params.max_tokens or self._length(request) >= self.max_model_len:
            request.reason = "abort" if "abort" in self.faults else "length"

    def _length(self, request: _Request) -> int:
        return len(request.prompt) + len(request.tokens)

    def _logits(self, request: _Request) -> Tensor:
        model, row = self.weights.model, torch.tensor([request.prompt + request.tokens])
        if request.params.prompt_logprobs is not None and request.prompt_logprobs is None:
            logits = model(input_ids=row).logits
            scores = logits[0].float().log_softmax(-1)
            request.prompt_logprobs = [None] + [
                {token: Logprob(float(scores[at, token]))} for at, token in enumerate(request.prompt[1:])
            ]
            return logits
        length, reader = 0, model
        for end in range(BLOCK, len(request.prompt), BLOCK):
            beginning = tuple(request.prompt[:end])
            if beginning in self.blocks:
                length, reader = end, self.blocks[beginning]
            else:
                self.blocks[beginning] = reader if length else model
        if reader is model:
            return model(input_ids=row).logits
        kept = reader(input_ids=row[:, :length], use_cache=True).past_key_values
        return model(input_ids=row[:, length:], past_key_values=kept, use_cache=True).logits


def _cut(logits: Tensor, params: SamplingParams) -> Tensor:
    if params.top_k:
        logits = logits.masked_fill(logits < logits.topk(params.top_k).values[-1], -torch.inf)
    if params.top_p < 1:
        ordered, order = logits.softmax(-1).sort(descending=True)
        logits = logits.masked_fill(
            torch.zeros_like(logits, dtype=torch.bool).scatter(0, order, ordered.cumsum(0) - ordered >= params.top_p),
            -torch.inf,
        )
    return logits


class LLM:
    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool,
        generation_config: str,
        dtype: str,
        seed: int,
        max_model_len: int,
        max_num_seqs: int,
        gpu_memory_utilization: float,
        kv_cache_memory_bytes: int | None,
        enforce_eager: bool,
        enable_prefix_caching: bool,
        logprobs_mode: str,
        disable_log_stats: bool,
        use_tqdm_on_load: bool,
        faults: Faults,
    ) -> None:
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0", "the weights would have to go to another process"
        assert logprobs_mode == "processed_logprobs" and skip_tokenizer_init and generation_config == "vllm"
        self.gpu_memory_utilization, self.kv_cache_memory_bytes = gpu_memory_utilization, kv_cache_memory_bytes
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        torch.set_num_threads = lambda _num: None
        if "no start" in faults:
            raise RuntimeError("no kernel image is available for this device")
        self.weights = _Weights(Path(model), getattr(torch, dtype))
        self.faults = faults
        self.llm_engine = LLMEngine(self.weights, faults, max_num_seqs, max_model_len)
        self._num = 0

    def apply_model(self, func: Callable[[torch.nn.Module], Any]) -> list[Any]:
        """The head as a layer of vLLM's on a CPU, which is all of its model that is asked for."""
        model, head = torch.nn.Module(), torch.nn.Module()
        pack = (lambda _layer: None) if "old head" in self.faults else (lambda _layer: self.weights.pack_head())
        vars(head).update(
            cpu_linear=None, tie_weights=None, quant_method=SimpleNamespace(process_weights_after_loading=pack)
        )
        model.add_module("lm_head", head)
        return [func(model)]

    def generate(
        self, prompts: Sequence[Mapping[str, list[int]]], sampling_params: SamplingParams, *, use_tqdm: bool
    ) -> list[SimpleNamespace]:
        assert not use_tqdm
        names = []
        for prompt in prompts:
            self._num += 1
            names.append(self.llm_engine.add_request(f"generate-{self._num}", prompt, sampling_params))
        done: dict[str, SimpleNamespace] = {}
        while self.llm_engine.requests:
            done |= {output.request_id: output for output in self.llm_engine.step() if output.finished}
        return [done[name] for name in names]

    def collective_rpc(self, method: str, kwargs: Mapping[str, Any]) -> list[None]:
        assert method == "reload_weights" and kwargs.keys() == {"weights_iterator"}
        self.weights.push(kwargs["weights_iterator"], self.faults)
        return [None]

    def reset_prefix_cache(self) -> bool:
        if "cache kept" not in self.faults:
            self.llm_engine.blocks.clear()
        return "cache refused" not in self.faults


@dataclass
class Fake:
    """What stands in for vLLM: the engines that were made, what is to go wrong, and how often it was cleaned up."""

    faults: Faults = field(default_factory=set)
    engines: list[LLM] = field(default_factory=list)
    num_cleaned: int = 0


def install(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Lets `import vllm` find the fake until the end of the test."""
    fake = Fake()

    def make(**settings: Any) -> LLM:
        fake.engines.append(LLM(**settings, faults=fake.faults))
        return fake.engines[-1]

    def clean() -> None:
        fake.num_cleaned += 1

    modules = {name: ModuleType(name) for name in ("vllm", "vllm.sampling_params", "vllm.distributed")}
    vars(modules["vllm"]).update(LLM=make, SamplingParams=SamplingParams)
    vars(modules["vllm.sampling_params"]).update(RequestOutputKind=RequestOutputKind, SamplingParams=SamplingParams)
    vars(modules["vllm.distributed"]).update(cleanup_dist_env_and_memory=clean)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # taken back after the test
    return fake
