"""`arithmetic_chain`: sums and differences of several small numbers, such as 9+4-7+12.

Too much to do in the head of a tiny model, easy one step at a time: the smallest task on which thinking pays.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from melete.errors import RecipeError
from melete.tasks.base import Split, check_gold, draw_from_split
from melete.text.answers import parse_completion
from melete.text.numbers import parse_integer
from melete.types import Message, Problem

QUESTIONS = ("{}=?", "What is {}?", "Compute {}.", "Work out {}.")
_TERM = re.compile(r"[+-]?\d+")
_ANSWER = re.compile(r"<answer>.*", re.DOTALL)
_AROUND = re.compile(r"</?think>|[A-Za-z]+,|\s")  # a tag, a word such as "Wait,", white space
PREGUNTAS = ("¿Cuánto es {}?", "Calcula {}.")


@dataclass(frozen=True, slots=True)
class Chain:
    """An expression: `numbers[0]` followed by `signs[i] numbers[i + 1]`; every running total is within bounds.

    >>> Chain((9, 4, 7), (1, -1)).text, Chain((9, 4, 7), (1, -1)).totals
    ('9+4-7', (9, 13, 6))
    """

    numbers: tuple[int, ...]
    signs: tuple[int, ...]

    @property
    def text(self) -> str:
        rest = "".join(f"{'+' if s > 0 else '-'}{n}" for s, n in zip(self.signs, self.numbers[1:], strict=True))
        return f"{self.numbers[0]}{rest}"

    @property
    def totals(self) -> tuple[int, ...]:
        running = [self.numbers[0]]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            running.append(running[-1] + sign * number)
        return tuple(running)


def draw_chain(source: random.Random, num_terms: int, max_number: int, max_total: int) -> Chain:
    """A chain of `num_terms` different numbers in 1..max_number whose running totals stay in 0..max_total."""
    numbers = source.sample(range(1, max_number + 1), num_terms)
    signs: list[int] = []
    total = numbers[0]
    for number in numbers[1:]:
        possible = [s for s in (1, -1) if 0 <= total + s * number <= max_total]
        signs.append(source.choice(possible))
        total += signs[-1] * number
    return Chain(tuple(numbers), tuple(signs))


@dataclass(frozen=True, slots=True)
class ArithmeticChain:
    """Difficulty is the number of terms and the size of the numbers."""

    min_terms: int = 5
    max_terms: int = 6
    max_number: int = 15
    max_total: int = 60
    language: str = "en"
    seed: int = 0
    name: str = "arithmetic_chain"

    def __post_init__(self) -> None:
        if not 2 <= self.min_terms <= self.max_terms:
            raise RecipeError(f"min_terms {self.min_terms} and max_terms {self.max_terms} must satisfy 2 <= min <= max")
        if self.max_terms > self.max_number:
            raise RecipeError(f"max_terms {self.max_terms} different numbers do not fit into 1..{self.max_number}")
        if self.max_total < 2 * self.max_number:
            raise RecipeError(f"max_total {self.max_total} must be at least twice max_number {self.max_number}")
        if self.language not in ("en", "es"):
            raise RecipeError(f"language {self.language!r} is not known; it is 'en' or 'es'")

    def problem(self, split: Split, index: int) -> Problem:
        source = random.Random(f"{self.name}/{self.seed}/{split}/{index}")
        chain = draw_from_split(split, lambda: self._draw(source), lambda chain: chain.text)
        question = source.choice(QUESTIONS if self.language == "en" else PREGUNTAS).format(chain.text)
        meta = {"expression": chain.text, "num_terms": len(chain.numbers), "language": self.language}
        gold = str(chain.totals[-1])
        problem = Problem(
            f"{self.name}/{split}/{self.seed}/{index}", self.name, (Message("user", question),), gold, meta
        )
        return check_gold(self, problem)

    def _draw(self, source: random.Random) -> Chain:
        num_terms = source.randint(self.min_terms, self.max_terms)
        return draw_chain(source, num_terms, self.max_number, self.max_total)

    def grade(self, problem: Problem, answer: str) -> float:
        value = parse_integer(answer)
        return float(value is not None and value == int(problem.gold))

    def label_steps(self, problem: Problem, steps: Sequence[str]) -> list[bool]:
        r"""A line is right when it is one true step of the chain, forwards or undone, that was not yet written.

        The last line is right when the answer in it is. A line that calculates nothing is not a right step: else a
        policy that is paid by the step would write many of them.

        >>> chain = ArithmeticChain()
        >>> problem = Problem("p", "arithmetic_chain", (), "6", {"expression": "3+5-2"})
        >>> chain.label_steps(problem, ["<think>3+5=8\n", "8-2=5\n", "8-2=6\n", "</think><answer>6</answer>"])
        [True, False, True, True]
        """
        left = _true_steps(str(problem.meta["expression"]))
        labels = []
        for step in steps:
            thought, _, after = step.rpartition("</think>") if "</think>" in step else (step, "", step)
            answer = parse_completion(after).answer
            calculated = _AROUND.sub("", _ANSWER.sub("", thought))
            is_right = calculated in left or (answer is not None and not calculated)
            labels.append(is_right and (answer is None or self.grade(problem, answer) == 1.0))
            left.discard(calculated)
        return labels

    def right_results(self, problem: Problem) -> dict[str, int]:
        """The running total that each term should lead to; numbers differ, so a term tells its place in the chain.

        >>> ArithmeticChain().right_results(Problem("p", "arithmetic_chain", (), "6", {"expression": "3+5-2"}))
        {'+5': 8, '-2': 6}
        """
        first, *terms = _TERM.findall(str(problem.meta["expression"]))
        totals = itertools.accumulate(map(int, terms), initial=int(first))
        return dict(zip(terms, itertools.islice(totals, 1, None), strict=True))


def _true_steps(expression: str) -> set[str]:
    """The steps of "3+5-2", forwards and undone.

    >>> sorted(_true_steps("3+5-2"))
    ['3+5=8', '6+2=8', '8-2=6', '8-5=3']
    """
    first, *rest = _TERM.findall(expression)
    total, found = int(first), set[str]()
    for term in rest:
        after = total + int(term)
        undone = term.translate(str.maketrans("+-", "-+"))
        found |= {f"{total}{term}={after}", f"{after}{undone}={total}"}
        total = after
    return found
