"""Low-rank adapters through peft: added to a model, switched off, merged into it, or kept apart from it.

The layers are put into the model itself, so it stays what it is to sampler, learner and transformers. Hu et al. (2021);
the rank-stabilised scale alpha / sqrt(rank) is from Kalajdzievski (2023).
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from melete.errors import ModelError
from melete.imports import require
from melete.models.places import ADAPTER, BUNDLED, FETCHED
from melete.runs.atomic import new_directory, write_atomically


@dataclass(frozen=True, slots=True)
class LoRA:
    """`target_modules` are the last parts of the names of linear layers; empty for all but the heads.

    Of a mixture that keeps its experts in one tensor peft adapts the experts in place of the linear layers that have
    their names (gate_proj, up_proj, down_proj): shared experts and dense first layers stay as they are. `dropout` is at
    work in an `Updater`'s steps alone.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: Sequence[str] = ()
    rank_stabilised: bool = False


def add_adapter(model: PreTrainedModel, settings: LoRA, *, seed: int) -> None:
    """Freezes the model and adds an adapter that changes nothing yet: A is drawn with `seed`, B is 0.

    A scalar head goes on being trained. Raises `ModelError` when the names fit no linear layer.
    """
    peft = require("peft", extra="lora")
    heads = {name.rpartition(".")[2] for name in ("score", "lm_head") if hasattr(model, name)}
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = set(settings.target_modules) or linear - heads
    if unknown := sorted(chosen - linear):
        what = f"no linear layer of {type(model).__name__} is called {', '.join(unknown)}"
        raise ModelError(what, place="adapter.target_modules", remedy=f"of {', '.join(sorted(linear))}")
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=sorted(chosen),
        use_rslora=settings.rank_stabilised,
    )
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        model.add_adapter(config)
    if isinstance(head := getattr(model, "score", None), nn.Module):
        head.requires_grad_(True)
    model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """peft also writes down what it would do with experts, and warns where there are none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        yield


def has_adapter(model: nn.Module) -> bool:
    """Whether an adapter was added and not merged."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


@contextlib.contextmanager
def without_adapter(model: PreTrainedModel) -> Iterator[None]:
    """The model as it was before the adapter: the reference, without a second copy of the weights."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


@torch.no_grad()
def merge_adapter(model: PreTrainedModel) -> None:
    """Adds the adapter to the weights it belongs to; the model is then a plain one again."""
    layers = require("peft.tuners.tuners_utils", extra="lora").BaseTunerLayer
    outermost: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, layers) and not any(name.startswith(f"{outer}.") for outer in outermost):
            outermost[name] = module
    for name, inner in outermost.items():
        while isinstance(inner, layers):  # experts are wrapped once for each of their parameters
            inner.merge()
            inner = inner.base_layer
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, inner)
    model._hf_peft_config_loaded = False
    del model.peft_config
    model.requires_grad_(True)


def save_adapter(model: PreTrainedModel, tokenizer: Any, directory: Path, *, base: str) -> None:
    """Writes the adapter with the tokenizer; `base` is the name of the model that it belongs to, for `load_model`."""
    with new_directory(directory) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        file = unfinished / ADAPTER
        config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
        write_atomically(file, json.dumps(config, indent=2, sort_keys=True) + "\n")


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter alone."""
    return (directory / ADAPTER).is_file() and not (directory / "config.json").is_file()


def base_of(directory: Path) -> str:
    """The model that an adapter belongs to; a relative path starts at the adapter. Raises `ModelError` without one."""
    try:
        name = str(json.loads((directory / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"the adapter does not say which model it belongs to: {error}"
        raise ModelError(what, place=str(directory / ADAPTER), remedy="save the adapter again") from error
    is_name = name in BUNDLED or name in FETCHED or os.path.isabs(name)
    beside = directory / name
    return name if is_name or not beside.is_dir() else str(beside)


def with_adapter_merged(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """The base with the adapter of `directory` merged into it. Raises `ModelError` when they do not belong together."""
    require("peft", extra="lora")
    if not any(directory.glob("adapter_model*.safetensors")):  # the library would take a file that is unpickled
        remedy = "save the adapter again as safetensors"
        raise ModelError("the adapter has no weights as safetensors", place=str(directory), remedy=remedy)
    own_names: Any = getattr(model, "_weight_conversions", None)
    try:
        with _quiet():
            model.load_adapter(str(directory))
    except Exception as error:  # what a damaged file makes of the library is beyond counting
        raise ModelError(f"the adapter cannot be loaded: {error}", place=str(directory)) from error
    merge_adapter(model)
    model._weight_conversions = own_names  # loading left the adapter's names there, under which all would be saved
    return model.eval()
