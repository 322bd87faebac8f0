"""Written chains of thought for the bundled tasks: right, with slips, with corrections, and with checks.

A slip is a wrong result of one step. Some slips are noticed at once ("Wait, 8-2=6"), some only by a check that undoes
the steps from the end and should arrive at the first number, some never. A check is honest work, written without
looking at the first pass, so it pays: a chain with a check ends in the right answer more often than one without.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from melete.tasks.arithmetic import Chain
from melete.tasks.countdown import evaluate_expression

WORDS = {
    "en": {"wait": "Wait, ", "check": "Check:", "is_not": "{} is not {}.", "right": "Yes, {}.", "miss": "No, not {}."},
    "es": {
        "wait": "Espera, ",
        "check": "Comprueba:",
        "is_not": "{} no es {}.",
        "right": "Sí, {}.",
        "miss": "No, no {}.",
    },
}


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Rates of what people do when they calculate; all are probabilities."""

    slip: float = 0.06
    slip_noticed: float = 0.4
    slip_in_check: float = 0.01
    check: float = 0.3


def think_chain(chain: Chain, source: random.Random, settings: TraceSettings, language: str = "en") -> tuple[str, int]:
    """A thought about a chain and the answer it arrives at (not always the right one)."""
    words = WORDS[language]
    lines, total = _forward(chain, source, settings, words["wait"])
    if source.random() >= settings.check:
        return "\n".join(lines), total
    lines.append(words["check"])
    undone = _undo(chain, total, source, settings, lines)
    if undone == chain.numbers[0]:
        lines.append(words["right"].format(undone))
        return "\n".join(lines), total
    lines.append(words["wait"] + words["is_not"].format(undone, chain.numbers[0]))
    again, total = _forward(chain, source, settings, words["wait"])
    return "\n".join(lines + again), total


def _forward(chain: Chain, source: random.Random, settings: TraceSettings, wait: str) -> tuple[list[str], int]:
    lines, total = [], chain.numbers[0]
    for sign, number in zip(chain.signs, chain.numbers[1:], strict=True):
        right = total + sign * number
        step = f"{total}{'+' if sign > 0 else '-'}{number}="
        if source.random() < settings.slip:
            wrong = _slipped(right, source)
            lines.append(f"{step}{wrong}")
            if source.random() < settings.slip_noticed:
                lines.append(f"{wait}{step}{right}")
            else:
                right = wrong
        else:
            lines.append(f"{step}{right}")
        total = right
    return lines, total


def _undo(chain: Chain, total: int, source: random.Random, settings: TraceSettings, lines: list[str]) -> int:
    for sign, number in zip(reversed(chain.signs), reversed(chain.numbers[1:]), strict=True):
        right = total - sign * number
        if source.random() < settings.slip_in_check:
            right = _slipped(right, source)
        if right < 0:  # an earlier slip led below zero: the mistake is plain before the end
            return right
        lines.append(f"{total}{'-' if sign > 0 else '+'}{number}={right}")
        total = right
    return total


def _slipped(right: int, source: random.Random) -> int:
    wrong = right + source.choice((-10, -2, -1, 1, 2, 10))
    return wrong if 0 <= wrong <= 99 else right + 1


def think_countdown(
    numbers: list[int], gold: str, target: int, source: random.Random, max_misses: int = 4, language: str = "en"
) -> str:
    """Tries combinations line by line, rejects those that miss the target, and ends with one that reaches it."""
    words = WORDS[language]
    lines: list[str] = []
    for _ in range(source.randint(0, max_misses)):
        steps, value = _random_try(numbers, source)
        if value != target and steps:
            lines += [*steps, words["miss"].format(target)]
    lines += _steps_of(gold)
    return "\n".join([*lines, words["right"].format(target)])


def _random_try(numbers: list[int], source: random.Random) -> tuple[list[str], int]:
    order = source.sample(numbers, len(numbers))
    steps, value = [], order[0]
    for number in order[1:]:
        sign = source.choice("+-*")
        result = {"+": value + number, "-": value - number, "*": value * number}[sign]
        if not 0 < result <= 99:
            return [], -1
        steps.append(f"{value}{sign}{number}={result}")
        value = result
    return steps, value


def _steps_of(gold: str) -> list[str]:
    """The steps of a left-to-right expression such as (3+5)*2: 3+5=8, 8*2=16."""
    flat = gold.replace("(", "").replace(")", "")
    parts: list[str] = []
    for character in flat:
        if character in "+-*" or not parts or parts[-1] in ("+", "-", "*"):
            parts.append(character)
        else:
            parts[-1] += character
    steps, left = [], parts[0]
    for sign, right in zip(parts[1::2], parts[2::2], strict=True):
        result = evaluate_expression(f"{left}{sign}{right}")
        if result is None:
            raise ValueError(f"not a left-to-right expression: {gold}")
        steps.append(f"{left}{sign}{right}={result[0]}")
        left = str(result[0])
    return steps
