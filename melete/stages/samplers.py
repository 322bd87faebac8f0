"""The sampler of a stage, as its settings want it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TypeAlias

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from melete.models.fit import available_memory
from melete.sampling.native import NativeSampler
from melete.sampling.vllm import VLLMSampler
from melete.schema.base import SamplerStage

StageSampler: TypeAlias = NativeSampler | VLLMSampler


@contextlib.contextmanager
def open_sampler(
    stage: SamplerStage,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_rows: int | None = None,
    lags_behind: bool = False,
) -> Iterator[StageSampler]:
    """The sampler that `stage` names, until the stage is done with it; `max_rows` at once, else as many as suit it.

    One that lags behind the learner has weights of its own. Raises `RecipeError` for an engine that is not installed
    and `ModelError` for a model that it cannot run.
    """
    model = copy.deepcopy(model) if lags_behind else model
    rows = {} if max_rows is None else {"max_rows": max_rows}
    if stage.sampler == "native":
        with contextlib.closing(NativeSampler(model, tokenizer, **rows)) as native:
            yield native
        return
    share = stage.sampler_memory_share
    free = available_memory("cpu") if model.device.type == "cpu" else None
    cache_bytes = None if free is None else int(share * free)
    engine = VLLMSampler(model, tokenizer, **rows, memory_share=share, cache_bytes=cache_bytes)
    try:
        yield engine
    finally:
        engine.close()
