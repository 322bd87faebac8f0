"""Engines from the names that people give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from melete.machine.threads import threads_for
from melete.models.load import Device, DType, load_model, load_tokenizer, refuse_mismatch
from melete.serving.engine import Engine

MAX_ROWS, MAX_WAITING = 32, 128


def served_names(models: Sequence[str]) -> list[str]:
    """A short name for each model: a known name as it is, a directory's last part, and the run's where those are alike.

    >>> served_names(["tiny", "runs/a/models/rl", "owner/name"])
    ['tiny', 'rl', 'name']
    >>> served_names(["runs/a/models/rl", "runs/b/models/rl"])
    ['a/rl', 'b/rl']
    """
    parts = [[part for part in Path(model).parts if part != "models"] or [model] for model in models]
    names = [part[-1] for part in parts]
    longer = ["/".join(part[-2:]) if names.count(name) > 1 else name for part, name in zip(parts, names, strict=True)]
    return [
        f"{name}-{longer[:number].count(name) + 1}" if longer.count(name) > 1 else name
        for number, name in enumerate(longer)
    ]


def load_engine(
    model: str,
    *,
    name: str = "",
    max_rows: int = MAX_ROWS,
    context: int | None = None,
    device: Device = "auto",
    dtype: DType = "auto",
) -> Engine:
    """An engine that serves this model.

    Raises `ModelError` when it cannot be loaded, or its tokenizer is another model's.
    """
    loaded, tokenizer = load_model(model, device=device, dtype=dtype), load_tokenizer(model)
    refuse_mismatch(loaded, tokenizer, model)
    return Engine(
        loaded,
        tokenizer,
        name=name or served_names([model])[0],
        max_rows=max_rows,
        max_waiting=MAX_WAITING,
        context=context,
        num_threads=threads_for(loaded.num_parameters(), torch.get_num_threads()),
    )
