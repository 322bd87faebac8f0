"""The weights of a model as its checkpoint has them, which is what an engine outside of transformers can read."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from melete.imports import require


@torch.no_grad()
def checkpoint_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Name -> weight, as `save_pretrained` would write them; not copies where none is needed.

    An adapter is added to copies of what it adapts, and the model keeps it. Of weights that are tied the first stands
    for all: with tied embeddings there is no head. Experts that are kept in one tensor come one by one.
    """
    weights = _with_adapter_added(model) if getattr(model, "_hf_peft_config_loaded", False) else model.state_dict()
    seen: set[tuple[int, torch.Size]] = set()
    once: dict[str, Tensor] = {}
    for name, weight in weights.items():
        place = (weight.data_ptr(), weight.shape)
        if weight.numel() == 0 or place not in seen:
            once[name] = weight
        seen.add(place)
    return dict(revert_weight_conversion(model, once))


def write_checkpoint(model: PreTrainedModel, directory: Path) -> Path:
    """Writes weights and configuration, the adapter added; returns the file of the weights."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    if config.model_type == "deepseek_v3" and not hasattr(config, "topk_method"):
        config.topk_method = "noaux_tc"  # the only one that transformers computes, so it does not write it down
    config.save_pretrained(directory)
    file = directory / "model.safetensors"
    weights = {name: weight.contiguous() for name, weight in checkpoint_weights(model).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return file


def _with_adapter_added(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict that the model would have after the adapter was merged."""
    layers: Any = require("peft.tuners.tuners_utils", extra="lora").BaseTunerLayer
    adapted: dict[str, Any] = {name: part for name, part in model.named_modules() if isinstance(part, layers)}
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        # of an adapted layer everything but what it adapts is the adapter itself
        inner = next((layer for layer in sorted(adapted, key=len, reverse=True) if name.startswith(f"{layer}.")), None)
        if inner is None or name.startswith(f"{inner}.base_layer."):
            weights[_plain(name)] = weight
    for name, layer in adapted.items():
        target = f"{_plain(name)}.{getattr(layer, 'parameter_name', 'weight')}"
        for adapter in layer.active_adapters:
            if adapter not in layer.merged_adapters:
                delta = layer.get_delta_weight(adapter)
                weights[target] = weights[target] + delta.to(weights[target].dtype)
    return weights


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "base_layer")
