"""Text to tokens, once: a prompt rendered by the chat template, a completion, and the end of the turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from melete.batch import MaskedRow, masked_row
from melete.text.chat import prompt_tokens
from melete.types import Demonstration, LabelledCompletion, LabelledSteps, Message, PreferencePair, RankedCompletions


def completion_row(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], completion: str) -> MaskedRow:
    """Prompt and completion; the mask covers the completion and the end-of-turn token."""
    written = [*tokenizer.encode(completion, add_special_tokens=False), cast(int, tokenizer.eos_token_id)]
    return masked_row(prompt_tokens(tokenizer, messages), written)


def ranked_rows(tokenizer: PreTrainedTokenizerBase, row: RankedCompletions | PreferencePair) -> list[MaskedRow]:
    """The rows of a ranking, best first; a pair is a ranking of two."""
    completions = row.completions if isinstance(row, RankedCompletions) else (row.chosen, row.rejected)
    return [completion_row(tokenizer, row.messages, completion) for completion in completions]


def pair_rows(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> tuple[MaskedRow, MaskedRow]:
    """The chosen and the rejected row."""
    chosen, rejected = ranked_rows(tokenizer, pair)
    return chosen, rejected


def single_row(tokenizer: PreTrainedTokenizerBase, row: Demonstration | LabelledCompletion) -> MaskedRow:
    return completion_row(tokenizer, row.messages, row.completion)


def step_row(tokenizer: PreTrainedTokenizerBase, row: LabelledSteps) -> tuple[MaskedRow, list[tuple[int, bool]]]:
    """The row, and for each step the position of its last token with its label.

    Steps are tokenised one by one, so that a boundary between steps is one between tokens; an empty step is left out.
    """
    prompt = prompt_tokens(tokenizer, row.messages)
    tokens, ends = list(prompt), list[tuple[int, bool]]()
    for step, label in zip(row.steps, row.labels, strict=True):
        written = tokenizer.encode(step, add_special_tokens=False)
        tokens += written
        if written:
            ends.append((len(tokens) - 1, label))
    return masked_row(prompt, [*tokens[len(prompt) :], cast(int, tokenizer.eos_token_id)]), ends
