"""What a thought does besides calculating: it checks results, gives paths up, corrects itself. Counted by program.

The grammar is that of the bundled model's thoughts (`melete.corpus.traces`), in English and Spanish:

    8-2=7 / Wait, 8-2=6       a result is taken back at once
    Check: ... Yes, 9.        a chain is undone and arrives where it began
    Wait, 11 is not 9.        it does not, and the chain is done again
    No, not 24. / Yes, 24.    a combination misses its target, or reaches it

In other text, sentences that begin with a marker are counted ("Wait, ...", "Let me check ...").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MAX_CHARACTERS = 100_000
_STEP = re.compile(r"(?:(?:Wait|Espera), )?(\d{1,9}[+*-]\d{1,9})=(-?\d{1,9})")
_TAKEN_BACK = re.compile(r"(?:Wait|Espera), \d")
_IS_NOT = re.compile(r"(?:Wait, -?\d{1,9} is not -?\d{1,9}|Espera, -?\d{1,9} no es -?\d{1,9})\.")
_REACHED = re.compile(r"(?:Yes|Sí), -?\d{1,9}\.")
_MISSED = re.compile(r"No, (?:not|no) -?\d{1,9}\.")
_CHECK = re.compile(r"(?:Check|Comprueba):")
_SENTENCE = re.compile(r"[.!?:]\s+|\n")
_GIVES_UP = re.compile(
    r"(?:wait|hmm|actually|no, |that(?:'s| is) (?:not right|wrong)|espera|en realidad)\b", re.IGNORECASE
)
_VERIFIES = re.compile(
    r"(?:let(?:'s| me| us) (?:double-)?(?:check|verify)|check(?:ing)?\b|to verify|verifying|comprob|verific)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How often a result was compared with what it should be, and how often a path was given up."""

    verifications: int
    backtracks: int


@dataclass(frozen=True, slots=True)
class Correction:
    """A result that was replaced: whether it had been right, and whether the new one is."""

    right_before: bool
    right_after: bool


def behaviour(text: str) -> Behaviour:
    r"""Verifications and backtracks of a completion. A failed comparison is both.

    >>> behaviour("<think>\n8-2=7\nWait, 8-2=6\nCheck:\n6+2=8\nYes, 8.\n</think>\n<answer>6</answer>")
    Behaviour(verifications=1, backtracks=1)
    >>> behaviour("<think>3+4=7\nNo, not 24.\n3*8=24\nYes, 24.</think>")
    Behaviour(verifications=2, backtracks=1)
    >>> behaviour("So it is 7. Wait, let me check: no.")
    Behaviour(verifications=0, backtracks=1)
    """
    verifications = backtracks = 0
    for line in _lines(text):
        failed = bool(_IS_NOT.match(line) or _MISSED.match(line))
        if failed or _REACHED.match(line):
            verifications += 1
            backtracks += failed
        elif _TAKEN_BACK.match(line):
            backtracks += 1
        elif not (_STEP.match(line) or _CHECK.match(line)):
            sentences = [sentence.strip() for sentence in _SENTENCE.split(line)]
            verifications += sum(_VERIFIES.match(sentence) is not None for sentence in sentences)
            backtracks += sum(_GIVES_UP.match(sentence) is not None for sentence in sentences)
    return Behaviour(verifications, backtracks)


def corrections(text: str, gold: str) -> list[Correction]:
    r"""The results that a completion replaced, with what they had been and what they became.

    A step that is taken back at once is judged by its own arithmetic. A chain that is done again after a failed check
    is judged by the right result `gold`, where that is a whole number.

    >>> corrections("8-2=7\nWait, 8-2=6", "6"), corrections("3+5=9\nCheck:\n9-5=4\nWait, 4 is not 3.\n3+5=8", "8")
    ([Correction(right_before=False, right_after=True)], [Correction(right_before=False, right_after=True)])
    """
    found: list[Correction] = []
    steps: list[tuple[str, int]] = []
    before_check: int | None = None
    redone: list[int] = []
    for line in _lines(text):
        if _CHECK.match(line) and steps:
            before_check = steps[-1][1]
        elif _IS_NOT.match(line) and before_check is not None:
            redone.append(before_check)
        elif step := _STEP.match(line):
            expression, value = step[1], int(step[2])
            if _TAKEN_BACK.match(line) and steps and steps[-1][0] == expression:
                right = _value(expression)
                found.append(Correction(steps[-1][1] == right, value == right))
            steps.append((expression, value))
    if redone and re.fullmatch(r"-?\d{1,9}", gold):
        found += [Correction(before == int(gold), steps[-1][1] == int(gold)) for before in redone]
    return found


def _lines(text: str) -> Sequence[str]:
    return [line.strip() for line in text[:_MAX_CHARACTERS].replace("<think>", "\n").split("\n")]


def _value(expression: str) -> int:
    left, sign, right = re.split(r"([+*-])", expression, maxsplit=1)
    one, other = int(left), int(right)
    return one + other if sign == "+" else one - other if sign == "-" else one * other
