"""The steps of a completion: its lines."""

from __future__ import annotations

import itertools

from transformers import PreTrainedTokenizerBase

from melete.text.chat import decode_completion
from melete.types import Rollout


def split_steps(text: str) -> list[str]:
    r"""The lines that say something, each with its line end; blank lines belong to the step before.

    >>> split_steps("<think>3+5=8\n8-2=6\n\n</think><answer>6</answer>")
    ['<think>3+5=8\n', '8-2=6\n\n', '</think><answer>6</answer>']
    """
    steps: list[str] = []
    for line in text.splitlines(keepends=True):
        if steps and not line.strip():
            steps[-1] += line
        else:
            steps.append(line)
    return steps


def step_ends(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[int]:
    """The place, in the completion's tokens, of the last token of each step of `rollout.text`.

    The end-of-turn token belongs to the last step. A token that holds the end of one step and the beginning of the next
    belongs to the first; two steps that end in one token get the same place.
    """
    tokens = rollout.completion.tokens
    bounds = list(itertools.accumulate(len(step) for step in split_steps(rollout.text)))
    ends = []
    for bound in bounds:
        low, high = 0, len(tokens)
        while low < high:  # the shortest prefix that reaches the bound
            middle = (low + high) // 2
            if len(decode_completion(tokenizer, tokens[:middle])) >= bound:
                high = middle
            else:
                low = middle + 1
        ends.append(max(low - 1, 0))
    if ends:
        ends[-1] = len(tokens) - 1
    return ends
