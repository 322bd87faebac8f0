"""`countdown`: reach a target with the given numbers, each used exactly once, by +, - and *.

Finding an expression is a search; checking one is easy. The grader reads the expression with `ast` and exact integers,
never with `eval`.
"""

from __future__ import annotations

import ast
import random
import re
from dataclasses import dataclass

from melete.errors import RecipeError
from melete.tasks.base import Split, check_gold, draw_from_split
from melete.types import Message, Problem

QUESTIONS = ("Reach {target} with {numbers}.", "Make {target} from {numbers}.")
PREGUNTAS = ("Llega a {target} con {numbers}.",)
_OPERATIONS = {ast.Add: int.__add__, ast.Sub: int.__sub__, ast.Mult: int.__mul__}
# narrower than Python's own: no comments, no 1_0 or 0x10, nothing that makes the parser warn
_ALLOWED = re.compile(r"[0-9+*() \t\n-]{1,200}")
_MAX_VALUE = 10**9


def evaluate_expression(text: str) -> tuple[int, list[int]] | None:
    """Value and sorted numbers of an expression of integers, +, -, * and parentheses; `None` for anything else.

    >>> evaluate_expression("(3+5)*2"), evaluate_expression("2**9"), evaluate_expression("__import__('os')")
    ((16, [2, 3, 5]), None, None)
    """
    if not _ALLOWED.fullmatch(text):
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        numbers: list[int] = []
        return _walk(tree, numbers), sorted(numbers)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _walk(node: ast.expr, numbers: list[int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        value = _OPERATIONS[type(node.op)](_walk(node.left, numbers), _walk(node.right, numbers))
        if abs(value) <= _MAX_VALUE:
            return value
    raise ValueError("not an expression of integers, +, -, * and parentheses")


@dataclass(frozen=True, slots=True)
class Countdown:
    """Difficulty is how many numbers there are and how large they and the target may be."""

    num_numbers: int = 3
    max_number: int = 10
    max_target: int = 30
    language: str = "en"
    seed: int = 0
    name: str = "countdown"

    def __post_init__(self) -> None:
        if not 2 <= self.num_numbers <= 6:
            raise RecipeError(f"num_numbers must be from 2 to 6, not {self.num_numbers}")
        if self.max_number < self.num_numbers:
            raise RecipeError(f"{self.num_numbers} different numbers do not fit into 1..{self.max_number}")
        if self.max_target < self.max_number:
            raise RecipeError(f"max_target {self.max_target} must be at least max_number {self.max_number}")
        if self.language not in ("en", "es"):
            raise RecipeError(f"language {self.language!r} is not known; it is 'en' or 'es'")

    def problem(self, split: Split, index: int) -> Problem:
        source = random.Random(f"{self.name}/{self.seed}/{split}/{index}")
        numbers, target, gold = draw_from_split(
            split,
            lambda: draw_puzzle(source, self.num_numbers, self.max_number, self.max_target),
            lambda puzzle: puzzle_text(puzzle[0], puzzle[1]),
        )
        return check_gold(self, self._problem(source, f"{split}/{self.seed}/{index}", numbers, target, gold))

    def _problem(self, source: random.Random, key: str, numbers: list[int], target: int, gold: str) -> Problem:
        template = source.choice(QUESTIONS if self.language == "en" else PREGUNTAS)
        question = template.format(target=target, numbers=list_numbers(numbers))
        meta = {"numbers": numbers, "target": target, "language": self.language}
        return Problem(f"{self.name}/{key}", self.name, (Message("user", question),), gold, meta)

    def grade(self, problem: Problem, answer: str) -> float:
        result = evaluate_expression(answer)
        return float(result == (problem.meta["target"], sorted(problem.meta["numbers"])))


def list_numbers(numbers: list[int]) -> str:
    return ",".join(str(n) for n in numbers)


def puzzle_text(numbers: list[int], target: int) -> str:
    """What identifies a puzzle, whatever the order and the wording."""
    return f"countdown {sorted(numbers)} -> {target}"


def draw_puzzle(source: random.Random, count: int, max_number: int, max_target: int) -> tuple[list[int], int, str]:
    """Different numbers, a target in 1..max_target that they reach, and an expression that reaches it."""
    while True:
        numbers = source.sample(range(1, max_number + 1), count)
        value, text = numbers[0], str(numbers[0])
        for number in numbers[1:]:
            sign = source.choice("+-*")
            text = f"({text}){sign}{number}" if sign == "*" and not text.isdigit() else f"{text}{sign}{number}"
            value = {"+": value + number, "-": value - number, "*": value * number}[sign]
            if not 0 < value <= 99:
                break
        else:
            if value <= max_target:
                source.shuffle(numbers)
                return numbers, value, text
