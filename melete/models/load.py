"""Models and tokenizers in Hugging Face's format, with errors that say what is wrong with a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from melete.errors import ModelError
from melete.models.places import resolve_model
from melete.runs.atomic import new_directory

logging.disable_progress_bar()  # loading a file is not worth a line of the live view
DAMAGED = "copy or save the model again; its files are incomplete or damaged"


def load_model(name: str | Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Raises `ModelError` when directory, configuration or weights cannot be used. Code in the directory is never run.
    """
    path = resolve_model(str(name))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
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
    return model.eval()


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory, with a pad token (its end-of-turn token where it has none).

    Raises `ModelError` when there is none or it cannot be read.
    """
    path = resolve_model(str(name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what a damaged file makes of the library is beyond counting
        remedy = "save the tokenizer beside the model (tokenizer.save_pretrained)"
        raise ModelError(f"the tokenizer cannot be loaded: {error}", place=str(path), remedy=remedy) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes model and tokenizer as a whole or not at all; a directory that is there already is replaced."""
    with new_directory(directory) as unfinished:
        model.save_pretrained(unfinished, safe_serialization=True)
        tokenizer.save_pretrained(unfinished)
