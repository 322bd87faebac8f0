"""What runs inside the processes of `reasoning_gym`: the library, its scorers, and what keeps them honest.

Arguments and results are JSON. Nothing here is imported by the main process.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import importlib
import json
import math
import random
import re
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from fractions import Fraction
from functools import lru_cache
from typing import Any

from melete.suggest import did_you_mean
from melete.tasks.base import SPLITS, split_of
from melete.tasks.curation import normal_text

MAX_TRIES = 2000  # ten are usual
NO_ANSWER = "it gives no answer of its own, so nothing proves that its scorer pays a right one"
REFUSED = {
    "boxnet": NO_ANSWER,
    "graph_color": NO_ANSWER,
    "propositional_logic": NO_ANSWER,
    "rubiks_cube": NO_ANSWER,
    "rush_hour": NO_ANSWER,
    "composite": "a mixture of tasks does the same, and grades each by its own task",
}
# scorers of 0.1.25 that pay wrong answers in full: there only the gold answer, or a number equal to it, is right
PAYS_WRONG_ANSWERS = {
    "coin_flip": "'0' is paid as a prefix of '0.5'",
    "game_of_life_halting": "any text is paid, because bool('False') is true",
}
NEVER_RIGHT = ("xyzzy plugh", "?", "\u2603")
# modules that call eval() on an answer: a literal is all that they mean
EVALUATES_ANSWERS = (
    "reasoning_gym.algorithmic.string_insertion",
    "reasoning_gym.algorithmic.spiral_matrix",
    "reasoning_gym.algorithmic.binary_matrix",
    "reasoning_gym.games.n_queens",
)
_FUNCTIONS = "sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt pi Abs"
_NAMES = "|".join(_FUNCTIONS.split())
# each repetition is possessive: nothing is tried twice, whatever the text
_FORMULA = re.compile(rf"(?:\b(?:{_NAMES}|[A-Za-z])\b|\d++(?:\.\d*+)?|\.\d++|[-+*/^(),=\s])*+")
_HUGE_POWER = re.compile(r"(?:\*\*|\^)\s*+\(?\s*+-?(?:\d{4,}|\d++\s*+(?:\*\*|\^))")  # 9**9**9 and 2**99999
_MAX_FORMULA = 2000
_scoring = ContextVar("scoring", default=False)
_NOT_FINITE = re.compile(r"(?<![a-z])(?:nan|inf|infinity)(?![a-z])", re.IGNORECASE)


def set_up() -> None:
    """Imports the library, with its ways of running an answer as a program closed."""
    warnings.simplefilter("ignore")
    sympy: Any = importlib.import_module("sympy")
    parser: Any = importlib.import_module("sympy.parsing.sympy_parser")
    parse = parser.parse_expr

    def parse_formula(text: str, *args: Any, **kwargs: Any) -> Any:
        if _scoring.get():  # what the library writes itself is its own affair
            check_formula(text)  # sympy's parser ends in eval()
        return parse(text, *args, **kwargs)

    sympy.parse_expr = parser.parse_expr = parse_formula
    importlib.import_module("reasoning_gym")
    for name in EVALUATES_ANSWERS:
        importlib.import_module(name).eval = ast.literal_eval  # type: ignore[attr-defined]


def check_formula(text: str) -> None:
    """Raises `ValueError` for what is no formula of numbers, single letters and usual functions.

    >>> check_formula("x**2*exp(-x) + C")
    >>> check_formula("x.__class__")
    Traceback (most recent call last):
        ...
    ValueError: not a formula
    """
    if len(text) > _MAX_FORMULA or not _FORMULA.fullmatch(text) or _HUGE_POWER.search(text):
        raise ValueError("not a formula")


def names() -> list[str]:
    """The data sets that can be tasks."""
    return sorted(set(_registered()) - set(REFUSED))


def refused() -> dict[str, str]:
    """The data sets that cannot, with the reason."""
    return {name: reason for name, reason in REFUSED.items() if name in _registered()}


def check(name: str, config: str) -> dict[str, str]:
    """Why there is no such task, and how to mend it; or nothing."""
    registered = _registered()
    if name not in registered:
        return {"what": f"there is no data set {name!r}", "remedy": did_you_mean(name, names())}
    if name in REFUSED:
        return {"what": f"the data set cannot be a task: {REFUSED[name]}", "remedy": "choose another data set"}
    known = [field.name for field in dataclasses.fields(registered[name][1]) if field.name not in ("seed", "size")]
    for key in json.loads(config):
        if key not in known:
            return {"what": f"the data set has no setting {key!r}", "remedy": did_you_mean(key, known)}
    try:
        _loaded(name, config)
    except Exception as error:  # whatever a config's own check raises
        return {"what": f"the config cannot be: {type(error).__name__}: {error}", "remedy": f"settings: {known}"}
    return {}


def draw(name: str, config: str, seed: int, split: str, index: int) -> dict[str, Any]:
    """The first proven item of a split in a sequence of its own; or why there is none."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}")
    source = random.Random(f"reasoning_gym/{name}/{seed}/{split}/{index}")
    unproven = 0
    for _ in range(MAX_TRIES):
        item_seed = source.getrandbits(31)
        item = _item(name, config, item_seed)
        question = str(item["question"])
        if split_of(normal_text(question)) != split:
            continue
        exact = _is_exact(name, config, item_seed)
        if score(name, config, item_seed, item["answer"]) >= 1.0:
            return {
                "item_seed": item_seed,
                "question": question,
                "gold": item["answer"],
                "exact": exact,
                "meta": _meta(item["metadata"]),
            }
        unproven += 1
    why = f" ({unproven} whose gold answer does not score 1)" if unproven else ""
    return {
        "what": f"these settings leave no problem for the {split} split{why}",
        "remedy": "allow larger numbers or more of them, so that there are more different problems",
    }


def score(name: str, config: str, item_seed: int, answer: str) -> float:
    """What the answer to an item is worth, from 0 to 1."""
    gold = _item(name, config, item_seed)["answer"]
    if _is_exact(name, config, item_seed):
        return float(_same(answer, gold))
    return _scored(name, config, item_seed, answer)


def _scored(name: str, config: str, item_seed: int, answer: str) -> float:
    item = _item(name, config, item_seed)
    if not answer.strip() or (_NOT_FINITE.search(answer) and not _NOT_FINITE.search(item["answer"])):
        return 0.0  # complex_arithmetic pays nan in full: no comparison with it is ever false
    scorer, token = _loaded(name, config)[0], _scoring.set(True)
    try:
        if name in PAYS_TOO_MUCH and not PAYS_TOO_MUCH[name](answer, item):
            return 0.0
        value = float(scorer.score_answer(answer, copy.deepcopy(item)))
    except Exception:  # the gold answer has none: it is the form of this one
        return 0.0
    finally:
        _scoring.reset(token)
    return min(1.0, value) if math.isfinite(value) and value > 0 else 0.0


@lru_cache(maxsize=4096)
def _is_exact(name: str, config: str, item_seed: int) -> bool:
    """Whether this scorer cannot be trusted with this item: it pays nonsense."""
    if name in PAYS_WRONG_ANSWERS:
        return True
    gold = normal_text(_item(name, config, item_seed)["answer"])
    return any(_scored(name, config, item_seed, text) >= 1.0 for text in NEVER_RIGHT if normal_text(text) != gold)


def _same(answer: str, gold: str) -> bool:
    if normal_text(answer) == normal_text(gold):
        return True
    first, second = _number(answer), _number(gold)
    return first is not None and second is not None and abs(first - second) <= abs(second) * Fraction(1, 10**6)


def _number(text: str) -> Fraction | None:
    """A number or a fraction of a usual size.

    >>> _number("1/2"), _number("0.5"), _number("1e999"), _number("half")
    (Fraction(1, 2), Fraction(1, 2), None, None)
    """
    if not re.fullmatch(r"\s*-?\d{1,30}(?:\.\d{1,30}|/\d{1,30})?\s*", text, re.ASCII):
        return None
    try:
        return Fraction(text)
    except ZeroDivisionError:
        return None


def _is_24(answer: str, item: dict[str, Any]) -> bool:
    """The scorer takes any four numbers, and cuts 24.5 to 24."""
    numbers = [int(number) for number in re.findall(r"\d+", answer)]
    formula: Any = importlib.import_module("sympy").parse_expr(answer)
    return sorted(numbers) == sorted(item["metadata"]["numbers"]) and formula == 24


# scorers that need one more condition
PAYS_TOO_MUCH: dict[str, Callable[[str, dict[str, Any]], bool]] = {"puzzle24": _is_24}


def _registered() -> dict[str, Any]:
    return importlib.import_module("reasoning_gym.factory").DATASETS


def _dataset(name: str, config: str, seed: int) -> Any:
    kind = _registered()[name][1]
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    settings = json.loads(config)
    for key, value in settings.items():  # JSON has no tuples
        if isinstance(value, list) and isinstance(defaults.get(key), tuple):
            settings[key] = tuple(value)
    return importlib.import_module("reasoning_gym").create_dataset(name, seed=seed, size=1, **settings)


@lru_cache(maxsize=64)
def _loaded(name: str, config: str) -> tuple[Any, bool]:
    """A data set, and whether it may be given another seed: some read theirs when they are made, which is slower."""
    dataset = _dataset(name, config, 0)
    return dataset, all(_dataset(name, config, seed)[0] == _reseeded(dataset, seed)[0] for seed in (1, 2))


def _reseeded(dataset: Any, seed: int) -> Any:
    dataset.seed = dataset.config.seed = seed
    return dataset


@lru_cache(maxsize=1024)
def _item(name: str, config: str, item_seed: int) -> dict[str, Any]:
    dataset, may_reseed = _loaded(name, config)
    return (_reseeded(dataset, item_seed) if may_reseed else _dataset(name, config, item_seed))[0]


def _meta(metadata: dict[str, Any]) -> dict[str, Any]:
    """How hard the item is, and its chain of thought where it has one, as plain data."""
    kept = {key: metadata[key] for key in ("difficulty", "answer_cot") if key in metadata}
    return json.loads(json.dumps(kept, default=str, skipkeys=True))
