"""Conversations as tokens, once; the model's own chat template decides how turns look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from melete.errors import ModelError
from melete.types import Message

if TYPE_CHECKING:  # loading transformers takes a second, and graders do without
    from transformers import PreTrainedTokenizerBase


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """The tokens that the model completes: the conversation and the opening of the assistant's turn.

    Raises `ModelError` when the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template", remedy="set tokenizer.chat_template and save it")
    turns = [{"role": m.role, "content": m.content} for m in messages]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    return tuple(cast(list[int], ids))


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up.

    Raises `ModelError` when the tokenizer has none; `load_tokenizer` gives it one.
    """
    if not isinstance(tokenizer.pad_token_id, int):
        raise ModelError("the tokenizer has no pad token", remedy="set tokenizer.pad_token = tokenizer.eos_token")
    return tokenizer.pad_token_id


def opens_thought(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template itself writes `<think>` at the start of the assistant's turn."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True, tokenize=False)
    return str(text).rstrip().endswith("<think>")


def decode_completion(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The completion as graders and people read it: without the end-of-turn token, with the tags."""
    kept = tokens[:-1] if tokens and tokens[-1] == tokenizer.eos_token_id else tokens
    return str(tokenizer.decode(list(kept), skip_special_tokens=False))


def tokens_after_thought(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> tuple[int, ...]:
    """The completion's own tokens that follow `</think>`: all where there is no thought, none where it never ends.

    Nothing is encoded again, so a score belongs to the very tokens that were sampled.
    """
    text = decode_completion(tokenizer, tokens)
    if "</think>" not in text:
        return () if "<think>" in text else tuple(tokens)
    low, high = 0, len(tokens)
    while low < high:  # the shortest prefix that holds the closing tag
        middle = (low + high) // 2
        if "</think>" in str(tokenizer.decode(list(tokens[:middle]), skip_special_tokens=False)):
            high = middle
        else:
            low = middle + 1
    return tuple(tokens[low:])
