"""The size of a model from its files, without loading anything."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL_FILE = 2**26  # a larger file is known by its size, its beginning and its end
_SAMPLE = 2**20
FLOAT = 4  # bytes of a number: models are loaded in single precision


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters, what one token leaves in the cache, and what is made of one token while it is learnt from."""

    num_parameters: int
    cache_bytes: int
    vocab_size: int
    activation_bytes: int
    """A guess from the widths, for as long as it has not been measured."""


def size_of(directory: Path) -> Size:
    """Raises `OSError`, `ValueError` or `KeyError` for files that cannot be read."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    num_parameters = sum(_num_numbers(file) for file in directory.glob("*.safetensors"))
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    vocab = config["vocab_size"]
    return Size(
        num_parameters=num_parameters,
        cache_bytes=FLOAT * layers * _cached_per_layer(config),
        vocab_size=vocab,
        # about twenty hidden states per layer, and log-probs, logits and gradients of the vocabulary
        activation_bytes=FLOAT * (20 * layers * hidden + 4 * vocab),
    )


def _cached_per_layer(config: Mapping[str, Any]) -> int:
    """Numbers of a key and a value of one token."""
    heads = config["num_attention_heads"]
    if config.get("kv_lora_rank"):  # latent attention is cached as whole keys and values
        return heads * (config["qk_nope_head_dim"] + config["qk_rope_head_dim"] + config["v_head_dim"])
    width = config.get("head_dim") or config["hidden_size"] // heads
    return 2 * (config.get("num_key_value_heads") or heads) * width


def _num_numbers(file: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= 2**28:
            raise ValueError(f"{file.name} has no header")
        header = json.loads(opened.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def content_key(directory: Path) -> str:
    """A hash of the directory's files; of large ones only size, beginning and end are read."""
    digest = hashlib.sha256()
    for file in sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as opened:
            if size <= SMALL_FILE:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
            else:
                digest.update(opened.read(_SAMPLE))
                opened.seek(-_SAMPLE, 2)
                digest.update(opened.read())
    return digest.hexdigest()[:24]
