"""What a written thought does besides going on: it compares results with what they should be, and it turns back.

Counted by program, in English and Spanish. Known exactly is the grammar of the bundled corpus:

    8-2=5 / Wait, 8-2=6             a step that is taken back at once
    Check: / 6+2=8 / Yes, 9.        steps undone from the end, and what they should have arrived at
    Wait, 11 is not 9.              a check that failed, after which the chain is written again
    No, not 24. / Yes, 24.          tries of countdown

Other text is judged by the words that a sentence or line begins with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_NUMBER = r"-?[0-9]{1,9}"
_COMPARES = re.compile(rf"(?:yes|sí|si),? {_NUMBER}", re.IGNORECASE)
_FAILS = re.compile(
    rf"no,? (?:not|no) {_NUMBER}|(?:(?:wait|espera|no),? )?{_NUMBER} (?:is not|isn't|no es|≠|!=) {_NUMBER}",
    re.IGNORECASE,
)
_HEADING = re.compile(r"(?:check|comprueba|comprobación)", re.IGNORECASE)
_CHECKS = re.compile(
    r"(?:(?:let me|let's|let us|i will|i'll|to|now|vamos a|voy a|para) )?"
    r"(?:double[- ]check|re-?check|check|verify|checking|verifying"
    r"|comprueba|comprobemos|compruebo|comprobar|verifica|verifiquemos|verifico|verificar|revisemos)(?!\w)",
    re.IGNORECASE,
)
# of the words of the R1 list, "but", "however" and "evaluate" are left out: they turn sentences, not paths
_TURNS_BACK = re.compile(
    r"(?:(?:but|oh|hmm|no|pero),? )?"
    r"(?:wait|hold on|retry|mistake|wrong|error|oops|scratch that|try again|start over|espera|un momento|me equivoqué"
    r"|i made a mistake|(?:that|this|it)(?: is|'s) (?:wrong|not right|not correct|a mistake)"
    r"|eso (?:está mal|no es correcto)"
    r"|(?:let me|let's) (?:try again|start over|redo|retry|rethink|reconsider|re-?examine)"
    r"|(?:intentemos|probemos|empecemos) de nuevo)(?!\w)",
    re.IGNORECASE,
)
_STEP = re.compile(r"([0-9]{1,9}) ?([+*−×-]) ?([0-9]{1,9}) ?= ?(-?[0-9]{1,9})(?![0-9])")
_PLAIN_SIGNS = str.maketrans("−×", "-*")
_TAG = re.compile(r"</?[A-Za-z]{1,20}>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Step:
    """A calculation as it was written: `left` by `term` gives `result`; the term, such as "-2", tells which step."""

    left: int
    term: str
    result: int


@dataclass(frozen=True, slots=True)
class Correction:
    """A result that was taken back, and the one that was written instead of it for the same term."""

    before: Step
    after: Step


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a text does: verifications compare a result with what it should be, backtracks leave a path.

    `num_checks` counts checks that were begun, whether or not they came to an end.
    """

    verifications: int
    backtracks: int
    num_checks: int
    corrections: tuple[Correction, ...]

    @property
    def reflects(self) -> bool:
        """Whether it turns back or sets out to check; the comparison that ends every countdown is neither."""
        return bool(self.backtracks or self.num_checks)


def behaviour(text: str) -> Behaviour:
    r"""Counts what a completion does before its answer. Time is linear in the text.

    >>> found = behaviour("3+5=8\n8-2=5\nWait, 8-2=6\nCheck:\n6+2=8\n8-5=3\nYes, 3.")
    >>> found.verifications, found.backtracks, [(c.before.result, c.after.result) for c in found.corrections]
    (1, 1, [(5, 6)])
    """
    verifications = backtracks = num_checks = 0
    corrections: list[Correction] = []
    taken_back: dict[str, Step] = {}  # by term: results that wait for the one that replaces them
    last: Step | None = None
    in_check = on_path = False
    for unit in _units(text):
        fails = _FAILS.fullmatch(unit) is not None
        steps = list(_steps(unit))
        turns_back = fails or _TURNS_BACK.match(unit) is not None
        if _HEADING.fullmatch(unit):
            in_check = True
            num_checks += 1
        elif fails or _COMPARES.fullmatch(unit):
            verifications += 1
            in_check = False
        elif _CHECKS.match(unit):
            verifications += 1
            num_checks += 1
        elif in_check and not steps and _LETTER.search(unit):  # a check that ends in words of its own
            verifications += 1
            in_check = False
        if turns_back and on_path:
            backtracks += 1
            if last is not None:
                taken_back[last.term] = last
        for step in () if in_check else steps:
            if before := taken_back.pop(step.term, None):
                corrections.append(Correction(before, step))
            last = step
        on_path = bool(steps) or not turns_back  # "Wait. Hmm, wait." leaves one path, not two
    return Behaviour(verifications, backtracks, num_checks, tuple(corrections))


def _units(text: str) -> Iterator[str]:
    """Sentences and lines of all that comes before the answer, without tags, bullets and the mark at their end."""
    for line in text.partition("<answer>")[0].splitlines():
        for unit in _SENTENCE_END.split(_TAG.sub(" ", line.replace("**", ""))):
            if bare := unit.strip(" \t*#>•").removeprefix("- ").rstrip(".:!? "):
                yield bare


def _steps(unit: str) -> Iterator[Step]:
    for left, sign, number, result in _STEP.findall(unit):
        yield Step(int(left), sign.translate(_PLAIN_SIGNS) + number, int(result))
