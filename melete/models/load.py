"""Models and tokenizers in Hugging Face's format, with errors that say what is wrong with a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from melete.errors import ModelError
from melete.forward.products import quickened
from melete.models.adapters import base_of, is_adapter, with_adapter_merged
from melete.models.fit import DAMAGED, available_memory, bytes_to_train, refuse_if_too_large
from melete.models.places import resolve_model
from melete.models.templates import choose_template
from melete.runs.atomic import new_directory

logging.disable_progress_bar()  # loading a file is not worth a line of the live view
Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
DType: TypeAlias = Literal["auto", "float32", "bfloat16"]


def pick_device(device: Device = "auto") -> str:
    """The device that is meant: "auto" is CUDA, else MPS, else the CPU. Raises `ModelError` for one that is missing."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, is_there in there.items() if is_there)
    if not there[device]:
        remedy = f"device: auto, {', '.join(name for name, is_there in there.items() if is_there)}"
        raise ModelError(f"this machine, or this torch, has no {device}", place="device", remedy=remedy)
    return device


def pick_dtype(dtype: DType, device: str) -> torch.dtype:
    """The number format that is meant: "auto" is bfloat16 where CUDA has it, else float32."""
    if dtype == "auto":
        has_bfloat16 = device == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return getattr(torch, dtype)


def load_model(name: str | Path, *, device: Device = "auto", dtype: DType = "auto") -> PreTrainedModel:
    """A causal language model in evaluation mode; an adapter that was kept apart is merged into its base.

    Raises `ModelError` when directory, configuration or weights cannot be used, or the weights exceed the memory. Code
    in the directory is never run.
    """
    path = resolve_model(str(name))
    if is_adapter(path):
        return with_adapter_merged(load_model(base_of(path), device=device, dtype=dtype), path)
    place = pick_device(device)
    number = pick_dtype(dtype, place)
    refuse_if_too_large(path, bytes_each=number.itemsize, available=available_memory(place))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=number,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, loading = loaded
    except Exception as error:  # what a damaged file makes of the library is beyond counting
        raise ModelError(f"the model cannot be loaded: {error}", place=str(path), remedy=DAMAGED) from error
    if missing := sorted(loading["missing_keys"]):  # transformers would go on with random numbers in their place
        what = f"{len(missing)} weights are missing, the first is {missing[0]}"
        raise ModelError(what, place=str(path), remedy=DAMAGED)
    return quickened(model.to(place).eval())


def refuse_too_large_to_train(path: Path, *, device: Device, dtype: DType, with_adapter: bool) -> None:
    """Raises `ModelError` with the numbers when weights, gradients and Adam's averages exceed the memory."""
    place = pick_device(device)
    each = bytes_to_train(pick_dtype(dtype, place).itemsize, with_adapter=with_adapter)
    base = resolve_model(base_of(path)) if is_adapter(path) else path
    refuse_if_too_large(base, bytes_each=each, available=available_memory(place), to="train")


def load_tokenizer(name: str | Path, *, chat_template: str = "auto") -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory, with a pad token (its end-of-turn token where it has none).

    One without a chat template is given one (`models/templates`); `chat_template` may name another or be a file.
    Raises `ModelError` when there is none, it cannot be read, or its tokens do not belong to the model beside it.
    """
    path = resolve_model(str(name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what a damaged file makes of the library is beyond counting
        remedy = "save the tokenizer beside the model (tokenizer.save_pretrained)"
        raise ModelError(f"the tokenizer cannot be loaded: {error}", place=str(path), remedy=remedy) from error
    if tokenizer.eos_token_id is None:
        remedy = "set tokenizer.eos_token to the token that ends a turn, and save it"
        raise ModelError("the tokenizer has no token that ends a text", place=str(path), remedy=remedy)
    choose_template(tokenizer, chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def refuse_mismatch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Raises `ModelError` when the tokenizer is not the model's.

    That is seen when it has tokens that the model has no embedding for, or when a text of the model's would end with
    what is a common word to the tokenizer.
    """
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    remedy = "use the tokenizer that was saved with the model"
    if len(tokenizer) > rows:
        what = f"the tokenizer does not match: it has {len(tokenizer)} tokens, and the model has embeddings for {rows}"
        raise ModelError(what, place=place, remedy=remedy)
    ends = _as_list(model.config.get_text_config(decoder=True).eos_token_id)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    if ends and special.isdisjoint(ends):
        shown = ", ".join(f"{end} ({tokenizer.convert_ids_to_tokens(end)!r} here)" for end in ends)
        what = f"the tokenizer does not match: the model ends a text with token {shown}, which is no special token"
        raise ModelError(what, place=place, remedy=f"{remedy}, or correct eos_token_id in config.json")


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes model and tokenizer as a whole or not at all; a directory that is there already is replaced.

    Plain transformers, too, will end an answer with the tokenizer's token for that, which a chat template may have set.
    """
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        ends, end = _as_list(generation.eos_token_id), tokenizer.eos_token_id
        if end not in ends:
            generation.eos_token_id = [end, *ends] if ends else end
    with new_directory(directory) as unfinished:
        model.save_pretrained(unfinished, safe_serialization=True)
        tokenizer.save_pretrained(unfinished)
