"""Reward models and critics: the trunk of a language model with one linear head, in Hugging Face's format.

transformers takes the score at the last token that is not `config.pad_token_id`. A pad token that also ends turns would
hide the end of every row from it, so a scalar model has a pad token that ends none; `scalar_tokenizer` has the same.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from melete.errors import ModelError
from melete.forward.products import quickened
from melete.models.adapters import is_adapter
from melete.models.load import (
    DAMAGED,
    Device,
    DType,
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    resolve_model,
)

HEAD = "score.weight"


def new_scalar_model(
    directory: str | Path,
    *,
    seed: int = 0,
    init_scale: float = 0.0,
    device: Device = "auto",
    dtype: DType = "auto",
) -> PreTrainedModel:
    """A model with one number per token, in evaluation mode; its trunk has the weights of the model in `directory`.

    The head of a reward model found there is kept. A new one is drawn with `seed` from a normal distribution with
    deviation init_scale / sqrt(hidden_size + 1): 0 for a critic, whose values then start at 0; 1 for a reward model, as
    in Stiennon et al. (2020).
    Raises `ModelError` when the directory cannot be used, weights other than the head's are missing, or no token may
    serve for padding. Code in the directory is never run. "auto" is float32 on every device: scores are compared.
    """
    path = resolve_model(str(directory))
    with _whole(path) as whole:
        model, missing = _load(whole, dtype, num_labels=1)
    _refuse_missing(missing - {HEAD}, path)
    if HEAD in missing:
        _start_head(model, seed, init_scale)
    model.config.get_text_config().pad_token_id = _pad_token_id(model, load_tokenizer(path), path)
    return model.to(pick_device(device))


def load_scalar_model(directory: str | Path, *, device: Device = "auto", dtype: DType = "auto") -> PreTrainedModel:
    """A reward model or critic in evaluation mode.

    Raises `ModelError` when the directory cannot be used or holds a model without the head. Code in it is never run.
    """
    path = resolve_model(str(directory))
    model, missing = _load(path, dtype)
    if HEAD in missing:
        remedy = "train one with a stage of kind reward_model"
        raise ModelError("this model has no head for scores: it is no reward model", place=str(path), remedy=remedy)
    _refuse_missing(missing, path)
    return model.to(pick_device(device))


def scalar_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer to save beside a scalar model: a copy that pads with the model's own pad token."""
    changed = copy.deepcopy(tokenizer)
    pad = model.config.get_text_config().pad_token_id
    if pad is not None and pad != changed.pad_token_id:
        changed.pad_token = changed.convert_ids_to_tokens(pad)
    return changed


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A directory with all weights: that of an adapter is put together with its base for the time being."""
    if not is_adapter(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as room:
        load_model(path, device="cpu", dtype="float32").save_pretrained(room)
        yield Path(room)


def _load(path: Path, dtype: DType, **settings: Any) -> tuple[Any, set[str]]:
    """The model and the names of the weights that its files lack."""
    try:
        with _without_report():
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                path,
                dtype=torch.float32 if dtype == "auto" else pick_dtype(dtype, "cpu"),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **settings,
            )
        model, loading = loaded
    except Exception as error:  # what a damaged file makes of the library is beyond counting
        raise ModelError(f"the model cannot be loaded: {error}", place=str(path), remedy=DAMAGED) from error
    head, missing = getattr(model, "score", None), set(loading["missing_keys"])
    is_scalar = isinstance(head, torch.nn.Linear) and head.bias is None and (head.out_features == 1 or HEAD in missing)
    if not is_scalar or model.base_model is model:
        what = f"{type(model).__name__} does not give one score per token by a linear head"
        raise ModelError(what, place=str(path), remedy="a decoder such as Llama, Qwen or DeepSeek-V3, with one label")
    return quickened(model.eval()), missing


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers warns of each weight that is left out or new; here that is meant, or refused with an error."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _refuse_missing(missing: set[str], path: Path) -> None:
    if missing:  # transformers would go on with random numbers in their place
        what = f"{len(missing)} weights are missing, the first is {min(missing)}"
        raise ModelError(what, place=str(path), remedy=DAMAGED)


@torch.no_grad()
def _start_head(model: PreTrainedModel, seed: int, init_scale: float) -> None:
    weight = model.get_parameter(HEAD)
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    weight.copy_(drawn * init_scale / (weight.shape[1] + 1) ** 0.5)


def _pad_token_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> int:
    """A token that ends no row: the tokenizer's pad or the model's, else unk, bos or another special token.

    Only the last real token of a row must differ from it, so bos serves, even though every row starts with it.
    """
    config = model.config.get_text_config()
    of_model: Any = config.eos_token_id
    ends = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    special = sorted(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    named = [tokenizer.pad_token_id, config.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    for number in [*named, *special]:
        if isinstance(number, int) and number not in ends and 0 <= number < config.vocab_size:
            return number
    remedy = "give the tokenizer a pad token of its own (tokenizer.pad_token) that the model has an embedding for"
    raise ModelError("every special token ends a turn, so none can serve for padding", place=str(path), remedy=remedy)
