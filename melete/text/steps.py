"""The steps of a completion: its lines."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from melete.text.chat import decode_completion
from melete.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAGS = re.compile(r"</?think>|</?answer>")


def split_steps(text: str) -> list[str]:
    r"""The lines that say something, each with its line end.

    A line of tags alone begins the step after it; a blank line belongs to the step before, and at the start to the
    first.

    >>> split_steps("<think>\n3+5=8\n8-2=6\n\n</think>\n<answer>6</answer>")
    ['<think>\n3+5=8\n', '8-2=6\n\n', '</think>\n<answer>6</answer>']
    """
    steps: list[str] = []
    waiting = ""  # tags and blank lines that belong to the step to come
    for line in text.splitlines(keepends=True):
        if _TAGS.sub("", line).strip():
            steps.append(waiting + line)
            waiting = ""
        elif line.strip() or waiting or not steps:
            waiting += line
        else:
            steps[-1] += line
    if waiting and steps:
        steps[-1] += waiting
    elif waiting:
        steps.append(waiting)
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
