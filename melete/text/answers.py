"""Taking a completion apart: the thought, the answer, and whether the tags are in order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

_TAG = re.compile(r"</?think>|</?answer>")


@dataclass(frozen=True, slots=True)
class ParsedCompletion:
    """`thought` and `answer` are `None` where there is none; `well_formed` says whether nothing else is there."""

    thought: str | None
    answer: str | None
    well_formed: bool


def parse_completion(text: str, *, thought_opened: bool = False) -> ParsedCompletion:
    """Thought and answer of a completion.

    Well-formed is: at most one `<think>...</think>`, then exactly one `<answer>...</answer>`, and only white space
    around them. Only an `<answer>` after the thought counts, and more than one answer counts as none.
    `thought_opened` tells that the prompt's template has written `<think>` already.

    >>> parse_completion("<think>3+5=8</think><answer>8</answer>")
    ParsedCompletion(thought='3+5=8', answer='8', well_formed=True)
    >>> parse_completion("<answer>8</answer><answer>9</answer>")
    ParsedCompletion(thought=None, answer=None, well_formed=False)
    """
    whole = f"<think>{text}" if thought_opened else text
    tags = [match.group() for match in _TAG.finditer(whole)]
    pieces = [piece.strip() for piece in _TAG.split(whole)]
    if tags == ["<answer>", "</answer>"]:
        return ParsedCompletion(None, pieces[1], not pieces[0] and not pieces[2])
    if tags == ["<think>", "</think>", "<answer>", "</answer>"]:
        return ParsedCompletion(pieces[1], pieces[3], not any((pieces[0], pieces[2], pieces[4])))
    return _malformed(whole)


def without_thought(text: str, *, thought_opened: bool = False) -> str:
    """What a reader is shown: all that stands outside the thought. A thought that never ends leaves nothing.

    >>> without_thought("<think>a cat</think> The cat sleeps."), without_thought("Hello."), without_thought("<think>a")
    ('The cat sleeps.', 'Hello.', '')
    """
    whole = f"<think>{text}" if thought_opened else text
    head, opened, rest = whole.partition("<think>")
    if not opened:
        return whole.strip()
    _, closed, tail = rest.partition("</think>")
    return f"{head}{tail if closed else ''}".strip()


def _malformed(text: str) -> ParsedCompletion:
    head, closed, tail = text.rpartition("</think>")  # what stands before another end of a thought was thought
    before = head if closed else text
    thought = before.split("<think>", 1)[1].strip() if "<think>" in before else None
    visible = tail if closed or thought is None else ""
    # tag by tag, because a pattern with "anything" in the middle takes quadratic time on unclosed tags
    tags, pieces = _TAG.findall(visible), _TAG.split(visible)
    answers = [pieces[i + 1] for i, pair in enumerate(pairwise(tags)) if pair == ("<answer>", "</answer>")]
    is_one = tags.count("<answer>") == 1 and len(answers) == 1  # one inside another is two
    return ParsedCompletion(thought, answers[0].strip() if is_one else None, False)
