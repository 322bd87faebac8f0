"""What a model is, told without loading its weights."""

from __future__ import annotations

import json

from transformers import AutoConfig

from melete.errors import ModelError
from melete.models.adapters import base_of, is_adapter
from melete.models.fit import GIB, bytes_to_train, num_weights
from melete.models.load import load_tokenizer
from melete.models.places import resolve_model


def described(name: str) -> dict[str, str]:
    """Its facts by name, in the order in which a person asks for them. Raises `ModelError` for what is no model."""
    path = resolve_model(name)
    if is_adapter(path):
        adapter = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        base = base_of(path)
        return {"adapter": f"of rank {adapter.get('r')} for {base}", **described(base)}
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what a damaged file makes of the library is beyond counting
        raise ModelError(f"config.json cannot be read: {error}", place=str(path)) from error
    text = config.get_text_config(decoder=True)
    tokenizer, count = load_tokenizer(path), num_weights(path)
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    special = {"begins": tokenizer.bos_token, "ends": tokenizer.eos_token, "pads": tokenizer.pad_token}
    return {
        "architecture": ", ".join(config.architectures or [config.model_type]),
        "weights": f"{count:,}",
        "layers": f"{text.num_hidden_layers} of width {text.hidden_size}",
        "context": f"{getattr(text, 'max_position_embeddings', 'unknown')} tokens",
        "vocabulary": f"{len(tokenizer):,} tokens",
        "special tokens": ", ".join(f"{role} {token!r}" for role, token in special.items() if token),
        "chat template": _kind(str(tokenizer.chat_template or "")),
        "on disk": f"{size / 2**20:,.1f} MiB",
        "to sample": f"{4 * count / GIB:.2f} GiB and a cache, in float32",
        "to train": f"{_train(count, with_adapter=False)} and activations, all weights in float32",
        "with an adapter": f"{_train(count, with_adapter=True)}, the adapter and activations",
    }


def _train(count: int, *, with_adapter: bool) -> str:
    return f"{bytes_to_train(4, with_adapter=with_adapter) * count / GIB:.2f} GiB"


def _kind(template: str) -> str:
    """What a template looks like, by its tokens."""
    marks = {
        "<|im_start|>": "chatml",
        "<|start_header_id|>": "llama3",
        "<｜Assistant｜>": "deepseek",
        "<start_of_turn>": "gemma",
    }
    kind = next((kind for mark, kind in marks.items() if mark in template), "its own")
    return f"{kind}, opens a thought" if "<think>" in template.rpartition("add_generation_prompt")[2] else kind
