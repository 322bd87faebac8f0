"""Whether a completion is fit to be read, and learnt from: one language, no loops, no walls of text; and tidying one.

DeepSeek-R1 (2025, section 3.2 of the supplement) drops thoughts with mixed languages, long paragraphs and code blocks
from what it samples for supervised fine-tuning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from melete.errors import DataError
from melete.text.answers import parse_completion, without_thought
from melete.text.language import guess_language, language_share, scripts_of
from melete.text.repetition import repeated_share, units
from melete.types import Problem

MIXED, REPEATS, LONG, CODE = "mixed languages", "repeats itself", "long paragraph", "code block"
FAULTS = (MIXED, REPEATS, LONG, CODE)
"""What can be wrong with a text, in the order in which it is looked for."""
LATIN = "la"  # Latin has no list of words here, so only its script is judged
_TAG = re.compile(r"</?think>|</?answer>")
_SPACES = re.compile(r"(?<=\S)[ \t]+")
_MAX_BLOCK = 8  # lines; a loop of more is left to the measure of repetition


@dataclass(frozen=True, slots=True)
class ReadableLimits:
    """From where on a text is not readable.

    `repeated_ngram`, `max_repeated_share`: n-grams of so many words, and the share of them that may be repetitions.
    `min_language_share`: of the words that tell a language, in the thought and after it; 0 for any. The other two look
    at thoughts only: characters between two line breaks (0 for any number), and code blocks.
    """

    max_repeated_share: float = 0.3
    repeated_ngram: int = 4
    min_language_share: float = 0.95
    max_paragraph_chars: int = 1000
    no_code_blocks: bool = True


@dataclass(frozen=True, slots=True)
class Fault:
    """One of `FAULTS`, and what was measured."""

    kind: str
    told: str


def asked_language(problem: Problem) -> str:
    """The language that an answer should be in: `meta["language"]`, else that of the last message.

    Where that says nothing, or speaks a language without a list of words, only the script can be judged. Raises
    `DataError` for a declared language that is no code of two letters.

    >>> from melete.types import Message
    >>> asked_language(Problem("p", "t", (Message("user", "¿Cuánto es 3+5?"),), "8"))
    'es'
    >>> asked_language(Problem("p", "t", (Message("user", "3+5=?"),), "8", {"language": "en"}))
    'en'
    """
    declared = problem.meta.get("language")
    if declared is not None:
        try:
            scripts_of(str(declared))
        except ValueError as error:
            raise DataError(str(error), place=problem.problem_id, remedy="correct the problem's language") from error
        return str(declared)
    guessed = guess_language(problem.messages[-1].content) if problem.messages else ""
    return LATIN if guessed in ("", "other") else guessed


def fault_of(text: str, language: str, limits: ReadableLimits, *, thought_opened: bool = False) -> Fault | None:
    """The first thing that makes a completion hard to read, or `None`.

    >>> fault_of("<think>first we add, entonces sumamos</think><answer>8</answer>", "en", ReadableLimits())
    Fault(kind='mixed languages', told='60% of the words that tell are in en, 95% are needed')
    >>> fault_of("<think>" + "3+5=8\\n" * 9 + "</think><answer>8</answer>", "en", ReadableLimits())
    Fault(kind='repeats itself', told='83% of its 4-grams are repetitions, 30% may be')
    """
    thought = parse_completion(text, thought_opened=thought_opened).thought or ""
    share = language_share(text, language) if limits.min_language_share else None
    if share is not None and share < limits.min_language_share:
        needed = f"{limits.min_language_share:.0%} are needed"
        return Fault(MIXED, f"{share:.0%} of the words that tell are in {language}, {needed}")
    visible = without_thought(text, thought_opened=thought_opened)
    repeated = max(repeated_share(units(_TAG.sub(" ", part)), limits.repeated_ngram) for part in (thought, visible))
    if repeated > limits.max_repeated_share:
        allowed = f"{limits.max_repeated_share:.0%} may be"
        return Fault(REPEATS, f"{repeated:.0%} of its {limits.repeated_ngram}-grams are repetitions, {allowed}")
    longest = max(map(len, thought.splitlines()), default=0)
    if 0 < limits.max_paragraph_chars < longest:
        return Fault(LONG, f"{longest} characters without a line break, {limits.max_paragraph_chars} are allowed")
    if limits.no_code_blocks and "```" in thought:
        return Fault(CODE, "a code block in the thought")
    return None


def tidied(text: str, *, thought_opened: bool = False, plain: bool = False) -> str:
    """A thought and an answer in the form of this house: tags on lines of their own, no loops, no stray white space.

    Corrections stay, for they are what a reader learns from. A `plain` answer gets no tags. With `thought_opened` the
    prompt has written `<think>` already. Text that has no answer in order is returned as it is.

    >>> print(tidied("<think> 3+5=8  \\n3+5=8\\n8-2=6</think> <answer> 6</answer>"))
    <think>
    3+5=8
    8-2=6
    </think>
    <answer>6</answer>
    """
    parsed = parse_completion(text, thought_opened=thought_opened)
    answer = without_thought(text, thought_opened=thought_opened) if plain else parsed.answer
    if answer is None or not (plain or parsed.well_formed):
        return text
    thought = tidied_lines(parsed.thought or "")
    shown = answer.strip() if plain else f"<answer>{answer.strip()}</answer>"
    if thought_opened:
        return f"{thought}\n</think>\n{shown}".lstrip("\n")
    return f"<think>\n{thought}\n</think>\n{shown}" if thought else shown


def tidied_lines(text: str) -> str:
    """Lines without stray white space, at most one of them empty in a row, and without blocks that repeat at once.

    >>> tidied_lines("3+5=8\\n8-2=6\\n3+5=8\\n8-2=6\\nCheck:   done")
    '3+5=8\\n8-2=6\\nCheck: done'
    """
    lines: list[str] = []
    for raw in text.strip().splitlines():
        line = _SPACES.sub(" ", raw).rstrip()
        lines.append(line)
        for size in range(1, min(_MAX_BLOCK, len(lines) // 2) + 1):
            if lines[-size:] == lines[-2 * size : -size]:
                del lines[-size:]
                break
    return "\n".join(lines).strip()
