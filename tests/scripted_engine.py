"""An engine that writes what a test wants, through all that an answer of the model's own goes through."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from melete.serving.engine import Engine

THOUGHT = "<think>\nTwo and two.\nThat is four.\n</think>\n\nIt is <answer>4</answer>."


class Script:
    """Makes an engine write given texts, one for each key in turn; `gate` holds it back at a token."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.texts = engine, [THOUGHT]
        self.stop_at, self.gate = -1, threading.Event()
        self.original: Callable[[torch.Tensor, list[int]], None] = engine._draw
        engine._draw = self.draw  # type: ignore[method-assign]

    def draw(self, logits: torch.Tensor, places: list[int]) -> None:
        words = self.engine.tokenizer
        forced = torch.full_like(logits, -1e9).contiguous()
        for number, place in enumerate(places):
            row = self.engine._rows[place]
            text = self.texts[row.index % len(self.texts)]
            tokens = [*words.encode(text, add_special_tokens=False), words.eos_token_id]
            forced[number, tokens[min(row.num_tokens, len(tokens) - 1)]] = 0  # type: ignore[call-overload]
            if row.num_tokens == self.stop_at:
                self.gate.wait(20)
        self.original(forced, places)
