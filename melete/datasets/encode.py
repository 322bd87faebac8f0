"""Text to tokens, once: a prompt rendered by the chat template, a completion, and the end of the turn."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from melete.batch import MaskedRow, masked_row
from melete.datasets.formats import Row
from melete.text.chat import conversation_rows, encode_piece, prompt_tokens, unrepeated, written_tokens
from melete.types import Demonstration, LabelledCompletion, LabelledSteps, Message, PreferencePair, RankedCompletions


def completion_row(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], completion: str) -> MaskedRow:
    """Prompt and completion; the mask covers the completion and the end-of-turn token."""
    conversation = [*messages, Message("assistant", completion)]
    [row] = conversation_rows(tokenizer, conversation, last_turn_only=True)
    return row


def demonstration_rows(
    tokenizer: PreTrainedTokenizerBase, row: Demonstration, *, last_turn_only: bool = False
) -> list[MaskedRow]:
    """What is learnt from a demonstration: every turn of the assistant, or the last alone.

    That is one row, or several where the template takes the thoughts of earlier turns away.
    """
    conversation = [*row.messages, Message("assistant", row.completion)]
    return conversation_rows(tokenizer, conversation, last_turn_only=last_turn_only)


def ranked_rows(tokenizer: PreTrainedTokenizerBase, row: RankedCompletions | PreferencePair) -> list[MaskedRow]:
    """The rows of a ranking, best first; a pair is a ranking of two."""
    completions = row.completions if isinstance(row, RankedCompletions) else (row.chosen, row.rejected)
    return [completion_row(tokenizer, row.messages, completion) for completion in completions]


def pair_rows(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> tuple[MaskedRow, MaskedRow]:
    """The chosen and the rejected row."""
    chosen, rejected = ranked_rows(tokenizer, pair)
    return chosen, rejected


def single_row(tokenizer: PreTrainedTokenizerBase, row: Demonstration | LabelledCompletion) -> MaskedRow:
    """The prompt and the last turn of the assistant."""
    return completion_row(tokenizer, row.messages, row.completion)


def longest_row(tokenizer: PreTrainedTokenizerBase, row: Row) -> int:
    """Tokens of the longest row that is made of a row of data."""
    if isinstance(row, LabelledSteps):
        return len(step_row(tokenizer, row)[0][0])
    if isinstance(row, LabelledCompletion):
        return len(single_row(tokenizer, row)[0])
    made = demonstration_rows(tokenizer, row) if isinstance(row, Demonstration) else ranked_rows(tokenizer, row)
    return max(len(tokens) for tokens, _ in made)


def step_row(tokenizer: PreTrainedTokenizerBase, row: LabelledSteps) -> tuple[MaskedRow, list[tuple[int, bool]]]:
    """The row, and for each step the position of its last token with its label.

    Steps are tokenised one by one, so that a boundary between steps is one between tokens; an empty step is left out.
    """
    prompt = prompt_tokens(tokenizer, row.messages)
    steps = list(row.steps)
    if steps and steps[0].lstrip().startswith("<think>"):
        steps[0] = unrepeated(steps[0], str(tokenizer.decode(list(prompt), skip_special_tokens=False)))
    tokens, ends = list(prompt), list[tuple[int, bool]]()
    for step, label in zip(steps, row.labels, strict=True):
        written = encode_piece(tokenizer, step)
        tokens += written
        if written:
            ends.append((len(tokens) - 1, label))
    return masked_row(prompt, [*tokens[len(prompt) :], *written_tokens(tokenizer, "")]), ends
