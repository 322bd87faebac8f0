r"""Whether a mathematical answer is the right one, and the reward that says so.

Plain numbers, words, tuples and sets of them are compared here and exactly. Formulas are compared by math-verify
(sympy) in worker processes that are killed when an item takes too long, because no answer may hang or crash a run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import threading
from functools import lru_cache
from typing import Any, cast

from melete.imports import require
from melete.rewards.errors import GradingError
from melete.rewards.math_reading import Collection, Formula, Number, Reading, Words, has_equals, read, split_equals
from melete.rewards.pool import Pool
from melete.rewards.rules import RewardFunction
from melete.text.final_answer import final_answer
from melete.types import Rollout

ITEM_SECONDS = 5.0  # limit of one comparison of formulas
WORKER_MEMORY = 2 * 2**30  # bytes of address space
MAX_ITEMS = 50  # of a tuple or set
_KNOWN_LETTERS = frozenset(["e", "i", "pi", "sin", "cos", "tan", "ln", "log", "exp", "sqrt", "frac"])


class UnreadableGold(GradingError):
    """The reference answer says nothing that an answer could be compared with: the row is to be mended or dropped."""


def math_accuracy(*, thought_opened: bool = False, bare_number: bool = False) -> RewardFunction:
    """1 when the completion's final answer equals `problem.gold`, else 0; 0 where there is no answer.

    See `final_answer` for what an answer is (`bare_number` is for evaluation only) and `math_equal` for equality. The
    reward raises `GradingError` where nothing can be said: see there. Raises `RecipeError` at once when math-verify is
    not installed.
    """
    _installed()

    def reward(rollout: Rollout) -> float:
        gold = rollout.problem.gold
        _readable_gold(gold)  # for every sibling, or only some of a group would have a reward
        answer = final_answer(rollout.text, thought_opened=thought_opened, bare_number=bare_number)
        return 0.0 if answer is None else float(math_equal(gold, answer))

    return reward


def math_equal(gold: str, answer: str, *, seconds: float = ITEM_SECONDS) -> bool:
    r"""Whether `answer` says the same as `gold`; any thread may ask, several at once.

    - Numbers are exact fractions: 0.333 is not 1/3. Thousands separators, `\frac`, mixed numbers, recurring decimals,
      `y=` and units are read. Of two units that differ, or two bases, the numbers are not equal; one may be missing.
    - A gold `50\%` is equal to 0.5, 1/2 and 50. An answer `50\%` is equal to a gold 1/2, and to a gold 50 that leaves
      the sign to the question, but not to a gold 0.5.
    - Tuples and intervals keep their order and brackets; sets and bare lists do not have an order.
    - Names before `=` may be missing; two that differ are not equal. `2+3=5` is 5 only when every part is.
    - Words are compared as words, not as products of letters; case does not matter. A number is never equal to a
      formula with unknowns.
    - All else is compared by math-verify, decimals inside formulas as fractions; without a proof, to fifteen places.

    Never equal: an empty answer, more than `MAX_CHARACTERS` characters, nesting beyond `MAX_NESTING`, powers and
    factorials written beyond `MAX_POWER`, digits with a space between them, digits of other scripts (full-width ones
    are read), unbalanced braces. Raises `UnreadableGold` for such a gold, and `GradingError` when a comparison does
    not end within `seconds` or takes its process down.

    >>> math_equal("1/2", r"\frac{1}{2}"), math_equal("1000", "1,000"), math_equal("(1,2)", "(2,1)")
    (True, True, False)
    """
    reference = _readable_gold(gold)
    reading = read(answer)
    return reading is not None and _equal(reference, reading, seconds)


def _readable_gold(gold: str) -> Reading:
    reading = read(gold)
    if reading is None or not _is_readable(reading):
        raise UnreadableGold(f"the gold answer cannot be read: {gold[:100]!r}")
    return reading


def _is_readable(reading: Reading) -> bool:
    match reading.body:
        case Formula(text):
            return _parses(reading.text if has_equals(reading.text) else text)
        case Collection(items=items):
            return bool(items) and len(items) <= MAX_ITEMS and all(_is_readable(item) for item in items)
        case _:
            return True


def _equal(gold: Reading, answer: Reading, seconds: float) -> bool:
    if gold.name and answer.name:
        return gold.name == answer.name and _equal_bodies(gold, answer, seconds)
    if answer.is_equation and not answer.name:
        if gold.is_equation:
            return _ask(gold.text, answer.text, seconds)
        parts = [read(part) for part in split_equals(answer.text)]
        return all(part is not None and not part.is_equation and _equal(gold, part, seconds) for part in parts)
    if gold.is_equation and not gold.name:
        return _ask(gold.text, answer.text, seconds)
    return _equal_bodies(gold, answer, seconds)


def _equal_bodies(gold: Reading, answer: Reading, seconds: float) -> bool:
    match gold.body, answer.body:
        case Number() as a, Number() as b:
            return _equal_numbers(a, b)
        case Words() as a, Words() as b:
            return a == b
        case Collection() as a, Collection() as b:
            return _equal_collections(a, b, seconds)
        case (Collection(), Number() | Words()) | (Number() | Words(), Collection()):
            several, single = (gold, answer) if isinstance(gold.body, Collection) else (answer, gold)
            return _is_set_of(several.body, single, seconds)
        case (Words(text), _) | (_, Words(text)) if (
            len(text) > 1 or isinstance(gold.body, Number) or isinstance(answer.body, Number)
        ):
            return False
        case _:
            wanted = isinstance(gold.body, Number) and isinstance(answer.body, Formula)
            is_wrong_kind = wanted and _has_unknowns(_formula_of(answer))
            return not is_wrong_kind and _ask(_formula_of(gold), _formula_of(answer), seconds)


def _has_unknowns(text: str) -> bool:
    """Whether letters stand for something: no formula with unknowns is a number, and "not 0" is no product.

    >>> _has_unknowns("not 0"), _has_unknowns(r"2\\sqrt{3}+e"), _has_unknowns("sin(0)")
    (True, False, False)
    """
    letters = re.findall(r"[A-Za-z]+", re.sub(r"\\[A-Za-z]+", " ", text))
    return any(run not in _KNOWN_LETTERS for run in letters)


def _is_set_of(several: Any, single: Reading, seconds: float) -> bool:
    if several.brackets != "{}" or len(several.items) != 1:
        return False
    return _equal(several.items[0], single, seconds)


def _equal_numbers(gold: Number, answer: Number) -> bool:
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if gold.is_percent and not answer.is_percent:
        return answer.value in (gold.value, gold.value / 100)
    if answer.is_percent and not gold.is_percent:
        if gold.is_fraction:
            return answer.value / 100 == gold.value
        return gold.value.denominator == 1 and answer.value == gold.value
    return gold.value == answer.value


def _equal_collections(gold: Collection, answer: Collection, seconds: float) -> bool:
    unordered = ("{}", "")
    if len(answer.items) > MAX_ITEMS:
        return False
    if gold.brackets not in unordered or answer.brackets not in unordered:
        same_form = gold.brackets == answer.brackets and len(gold.items) == len(answer.items)
        return same_form and all(_equal(a, b, seconds) for a, b in zip(gold.items, answer.items, strict=True))
    left = list(answer.items)
    for item in gold.items:
        found = next((other for other in left if _equal(item, other, seconds)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _formula_of(reading: Reading) -> str:
    """What the computer algebra system is given: a plain number as an exact one, all else as it was written."""
    match reading.body:
        case Number(value=value):
            sign = "-" if value < 0 else ""
            whole = value.denominator == 1
            return f"{sign}{abs(value)}" if whole else rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
        case Formula(text) | Words(text):
            return text
        case _:
            return reading.text


# ---- in the parent: the processes ----

_pool_lock = threading.Lock()
_pool: Pool | None = None
if hasattr(os, "register_at_fork"):  # a lock that another thread held would never be free in the child

    def _new_lock() -> None:
        global _pool_lock
        _pool_lock = threading.Lock()

    os.register_at_fork(after_in_child=_new_lock)


def math_pool() -> Pool:
    """The processes that compare formulas, shared by the whole program and started when they are needed."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _installed()
            size = max(2, min(8, os.cpu_count() or 1))  # two at least: one bad item must not hold up all others
            _pool = Pool(size, setup="melete.rewards.mathematics:_set_up", memory=WORKER_MEMORY)
        return _pool


def _installed() -> None:
    if importlib.util.find_spec("math_verify") is None:  # importing it here would load sympy into the parent
        require("math_verify", extra="math")


@lru_cache(maxsize=65536)
def _parses(gold: str) -> bool:
    return bool(math_pool().call("melete.rewards.mathematics:_can_parse", [gold], ITEM_SECONDS))


@lru_cache(maxsize=65536)
def _ask(gold: str, answer: str, seconds: float) -> bool:
    return bool(math_pool().call("melete.rewards.mathematics:_verify", [gold, answer], seconds))


# ---- in the worker ----

_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])|\\imath")


def _set_up() -> None:
    require("math_verify", extra="math")
    logging.disable(logging.CRITICAL)
    _verify("x^2+2x+1", "(x+1)^2")  # fills the caches of the grammar


def _can_parse(text: str) -> bool:
    return _parse(text) is not None


def _verify(gold: str, answer: str) -> bool:
    math_verify = require("math_verify", extra="math")
    left, right = _parse(gold), _parse(answer)
    if left is None or right is None:
        return False
    return math_verify.verify(
        left, right, float_rounding=12, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=False
    )


@lru_cache(maxsize=512)  # siblings have one gold answer
def _parse(latex: str) -> Any:
    """A sympy object, or `None`: straight from the grammar, without math-verify's search for an answer in prose."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy, normalize_latex
    from sympy import nan, zoo

    config = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    try:
        latex = normalize_latex(latex, config)
        parsed = cast(Any, latex2sympy(latex, is_real=not _IMAGINARY.search(latex), normalization_config=None))
        return None if parsed is None or parsed.has(zoo, nan) else parsed
    except MemoryError:
        raise
    except Exception:  # the grammar's and sympy's own: what cannot be read is no answer
        return None
