"""Problems out of files: rows with a question and a gold answer, each row proven before it is trained on.

A row whose gold answer does not score 1 would teach the opposite of what it says. It is listed in the report, with the
reason, and belongs to no split. A row that cannot be read at all ends the reading, with file, line and column.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from melete.datasets.tables import TableRow, read_table
from melete.errors import DataError, MeleteError, RecipeError
from melete.suggest import did_you_mean
from melete.tasks.base import Split, split_of
from melete.tasks.curation import Dropped, decontaminated, normal_text, question_of, without_duplicates
from melete.tasks.settings import read_settings
from melete.text.final_answer import comparable
from melete.text.numbers import parse_integer
from melete.types import Message, Problem

Grader = Callable[[Problem, str], float]
MAX_ANSWER = 20_000  # characters; a longer answer is a wrong one, except for programs
QUESTIONS = ("question", "prompt", "problem")
ANSWERS = ("answer", "gold", "expected", "target")
IDS = ("id", "problem_id", "task_id", "row_id")
ROLES = ("question", "answer", "messages", "system", "id", "meta")
_LETTER = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]{1,2}(?=\s|$)|$)")


def grade_exact(problem: Problem, answer: str) -> float:
    """1 when the texts are the same apart from case, spacing, forms of the same letter and a full stop."""
    return float(_plain_text(answer) == _plain_text(problem.gold))


def grade_integer(problem: Problem, answer: str) -> float:
    """1 when both are the same integer and nothing else, apart from thousands separators and a leading `$`."""
    value, gold = (parse_integer(comparable(text).removeprefix("$")) for text in (answer, problem.gold))
    return float(value is not None and value == gold)


def grade_math(problem: Problem, answer: str) -> float:
    """1 when both say the same in mathematics: see `melete.rewards.mathematics.math_equal`."""
    from melete.rewards.mathematics import math_equal  # brings its pool of processes

    return float(math_equal(problem.gold, answer))


def grade_choice(problem: Problem, answer: str) -> float:
    """1 for the gold letter, as B, (B), B. or b, with or without its option's text; also for the text alone.

    A letter with another option's text is wrong. `problem.meta["options"]` are the texts in the order of the letters.

    >>> problem = Problem("p", "t", (), "B", {"options": ["red", "blue"]})
    >>> [grade_choice(problem, answer) for answer in ("(B)", "b. Blue", "blue", "A", "B. red", "A or B")]
    [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    options = [_plain_text(str(option)) for option in problem.meta["options"]]
    gold = ord(problem.gold) - ord("A")
    if not 0 <= gold < len(options):
        return 0.0
    text = answer.strip()
    match = _LETTER.match(text)
    if match and match.group(1).upper() == problem.gold:
        rest = _plain_text(text[match.end() :])
        return float(not rest or rest == options[gold])
    letter_of_another = match and match.end() == len(text) and ord(match.group(1).upper()) - ord("A") < len(options)
    return float(not letter_of_another and _plain_text(text) == options[gold])


def grade_code(problem: Problem, answer: str) -> float:
    """1 when the program passes all tests in `problem.meta["tests"]`, in the strongest sandbox there is.

    See `melete.rewards.code.read_tests` for the form of tests. Raises `GradingError` where nothing can be said.
    """
    from melete.rewards.code import program_of, read_tests  # brings the sandboxes

    return _code_reward().score(program_of(answer), read_tests(problem.meta.get("tests")))


@lru_cache(maxsize=1)
def _code_reward() -> Any:
    from melete.rewards.code import CodeReward

    return CodeReward()


GRADERS: Mapping[str, Grader] = {
    "exact": grade_exact,
    "integer": grade_integer,
    "math": grade_math,
    "choice": grade_choice,
    "code": grade_code,
}


@dataclass(frozen=True, slots=True)
class RowSettings:
    """Where rows come from and how they are judged.

    `plain_answers`: all that is not the thought is the answer. `free_answers`: it may stand in `<answer>`, in a box,
    after `####` or as the last number, as with models that were not taught the tags.
    `path`, `part`: file or directory, and which part of a directory. `held_out`, `held_out_part`: rows to evaluate on;
    without them a tenth is held out, by a hash of the question. `columns`: role (question, answer, messages, system,
    id, meta) -> column. `near_duplicates`: a training row whose Jaccard index with a held-out one is at least this is
    dropped; 0 drops exact repetitions only. `ngram`: above 0, training rows that share so many words in sequence with a
    held-out one are dropped too (10 is usual; not for questions that all begin with the same instruction).
    """

    path: str = ""
    part: str = ""
    held_out: str = ""
    held_out_part: str = ""
    grader: str = "exact"
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    system: str = ""
    plain_answers: bool = False
    free_answers: bool = False
    near_duplicates: float = 0.8
    ngram: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.grader not in GRADERS:
            raise RecipeError(f"no grader is called {self.grader!r}", remedy=did_you_mean(self.grader, GRADERS))
        for role, column in self.columns.items():
            if not isinstance(column, str):
                raise RecipeError(f"columns.{role} must be the name of a column, not {column!r}")
        if not 0 <= self.near_duplicates <= 1 or self.ngram < 0:
            raise RecipeError(
                f"near_duplicates {self.near_duplicates} must be 0 to 1 and ngram {self.ngram} 0 (off) or more"
            )


@dataclass(frozen=True, slots=True)
class RowReport:
    """What became of the rows: how many were read, are trained on and held out, and each that is neither."""

    num_rows: int
    num_train: int
    num_held_out: int
    dropped: tuple[Dropped[Problem], ...]

    def counts(self) -> dict[str, int]:
        """How many rows were dropped, by kind."""
        return dict(Counter(dropped.kind for dropped in self.dropped))

    def __str__(self) -> str:
        lines = [f"{self.num_rows} rows: {self.num_train} to train on, {self.num_held_out} held out"]
        lines += [f"  dropped {row.item.meta['row']} ({row.kind}): {row.reason}" for row in self.dropped]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class RowTask:
    """A task of rows. An index runs through all rows in an order of the seed, then through them in another one."""

    name: str
    rows: Mapping[Split, tuple[Problem, ...]]
    grader: Grader
    report: RowReport
    seed: int = 0
    plain_answers: bool = False
    free_answers: bool = False

    @property
    def waits(self) -> bool:
        """Mathematics may go to a worker process, programs go to a sandbox."""
        return self.grader in (grade_math, grade_code)

    @property
    def graded_by(self) -> str:
        """The sandbox that programs run in; empty for other graders."""
        return _code_reward().executor_name if self.grader is grade_code else ""

    def problem(self, split: Split, index: int) -> Problem:
        """The `index`-th problem; `meta["row"]` tells the row. Raises `RecipeError` for a split without rows."""
        rows = self.rows[split]
        if not rows:
            dropped = ", ".join(f"{count} {kind}" for kind, count in self.report.counts().items())
            raise RecipeError(
                f"task {self.name} has no rows for the {split} split" + (f" (dropped: {dropped})" if dropped else ""),
                remedy="give more rows, or held-out ones in a file of their own (`held_out`)",
            )
        epoch, position = divmod(index, len(rows))
        row = rows[_order(f"{self.seed}/{split}/{epoch}", len(rows))[position]]
        return dataclasses.replace(row, problem_id=f"{self.name}/{split}/{self.seed}/{index}")

    def grade(self, problem: Problem, answer: str) -> float:
        """What the grader says. Raises `GradingError` where it cannot judge."""
        if len(answer) > MAX_ANSWER and self.grader is not grade_code:
            return 0.0
        return self.grader(problem, answer)


@lru_cache(maxsize=8)
def _order(key: str, count: int) -> tuple[int, ...]:
    rows = list(range(count))
    random.Random(key).shuffle(rows)
    return tuple(rows)


Shape = Callable[[TableRow, RowSettings], Problem]


def make_rows(settings: Mapping[str, Any]) -> RowTask:
    """The task `rows` with these settings: see `RowSettings`.

    Raises `RecipeError` for settings that cannot be, and `DataError` for rows that cannot be read.
    """
    checked = read_settings(RowSettings, settings, "rows")
    for role in checked.columns:
        if role not in ROLES:
            raise RecipeError(f"columns has no role {role!r}", remedy=did_you_mean(role, ROLES))
    if not checked.path:
        raise RecipeError("task rows needs a path", remedy='path = "problems.jsonl"')
    train = read_table(Path(checked.path), part=checked.part)
    held_out = read_table(Path(checked.held_out), part=checked.held_out_part) if checked.held_out else None
    return row_task("rows", checked, train, held_out, row_problem)


def row_task(
    name: str, settings: RowSettings, rows: Sequence[TableRow], held_out: Sequence[TableRow] | None, shape: Shape
) -> RowTask:
    """A task of table rows that `shape` makes problems of; every gold answer is proven, splits are cleaned."""
    grader = GRADERS[settings.grader]
    proven, dropped = prove([_named(shape(row, settings), name, row) for row in rows], grader)
    if held_out is None:
        splits = [split_of(normal_text(asked(problem))) for problem in proven]
        tested = [problem for problem, split in zip(proven, splits, strict=True) if split == "held_out"]
        proven = [problem for problem, split in zip(proven, splits, strict=True) if split == "train"]
    else:
        tested, more = prove([_named(shape(row, settings), name, row) for row in held_out], grader)
        dropped += more
    kept, found = _cleaned(proven, [asked(problem) for problem in tested], settings)
    num_rows = len(rows) + len(held_out or ())
    report = RowReport(num_rows, len(kept), len(tested), (*dropped, *found))
    by_split: dict[Split, tuple[Problem, ...]] = {"train": tuple(kept), "held_out": tuple(tested)}
    return RowTask(name, by_split, grader, report, settings.seed, settings.plain_answers, settings.free_answers)


def asked(problem: Problem) -> str:
    """What tells a problem from others: its question, without the instruction or the order of options around it."""
    return str(problem.meta.get("asked") or question_of(problem))


def prove(problems: Sequence[Problem], grader: Grader) -> tuple[list[Problem], list[Dropped[Problem]]]:
    """The problems whose gold answer scores 1, and the others with the reason."""
    proven, dropped = list[Problem](), list[Dropped[Problem]]()
    for problem in problems:
        reason = _doubt(problem, grader)
        if reason:
            dropped.append(Dropped(problem, "gold not proven", reason))
        else:
            proven.append(problem)
    return proven, dropped


def _doubt(problem: Problem, grader: Grader) -> str:
    """Why the gold answer is not one, or nothing."""
    if not problem.gold.strip():
        return "the gold answer is empty"
    if grader is not grade_code:
        return _judged(problem, grader)
    key = repr((problem.gold, problem.meta.get("tests")))
    if key not in _proven:  # a recipe is checked, planned and run by one process, and programs take seconds
        _proven[key] = _judged(problem, grader)
    return _proven[key]


_proven: dict[str, str] = {}  # by program and tests: why it is doubted, or nothing


def _judged(problem: Problem, grader: Grader) -> str:
    try:
        score = grader(problem, problem.gold)
    except MeleteError:  # a library is missing, a setting is wrong: no matter of this row
        raise
    except Exception as error:  # a grader that fails for a row is that row's trouble
        return f"its grader fails: {type(error).__name__}: {error}"
    return "" if score == 1.0 else f"the gold answer {problem.gold[:80]!r} scores {score:g}, not 1"


def _cleaned(
    problems: Sequence[Problem], held_out: Sequence[str], settings: RowSettings
) -> tuple[list[Problem], list[Dropped[Problem]]]:
    """Training problems without those that a held-out question gives away."""
    threshold = settings.near_duplicates or 2.0  # above 1: exact ones only
    curated = without_duplicates(problems, asked, threshold=threshold, known=held_out, only_known=True)
    dropped = [Dropped(row.item, f"{row.kind} of held-out", row.reason) for row in curated.dropped]
    if settings.ngram:
        curated = decontaminated(curated.kept, asked, held_out, ngram=settings.ngram)
        dropped += curated.dropped
    return list(curated.kept), dropped


def row_problem(row: TableRow, settings: RowSettings) -> Problem:
    """The problem of a row with a question (or messages) and an answer."""
    columns = settings.columns
    gold = row.text_or_number(row.column_of("answer", columns, ANSWERS))
    meta = dict(_meta(row, columns))
    if settings.grader == "choice":
        gold, meta = _choice_row(row, gold, meta)
    if settings.grader == "code" and "tests" not in meta and row.has("tests"):
        meta["tests"] = row.get("tests")
    return Problem(row_id(row, columns), "rows", _turns(row, settings), gold, meta)


def row_id(row: TableRow, columns: Mapping[str, str] | None = None) -> str:
    """The id in the row, else its line."""
    if columns and "id" in columns:
        return row.text_or_number(columns["id"])
    found = next((name for name in IDS if row.has(name)), None)
    return row.text_or_number(found) if found else row.place.rpartition(" ")[2]


def _turns(row: TableRow, settings: RowSettings) -> tuple[Message, ...]:
    columns = settings.columns
    name = columns.get("messages", "messages")
    if "messages" in columns or (row.has(name) and "question" not in columns):
        turns = list(row.messages(name))
    else:
        turns = [Message("user", row.text(row.column_of("question", columns, QUESTIONS)))]
    column = columns.get("system", "system")
    system = row.text(column) if "system" in columns or row.has(column) else settings.system
    if system and turns[0].role != "system":
        turns.insert(0, Message("system", system))
    if turns[-1].role != "user":
        place = f"{row.place}, column {name}"
        raise DataError(
            f"the last turn is the {turns[-1].role}'s, not the user's", place=place, remedy="end in a question"
        )
    return tuple(turns)


def _meta(row: TableRow, columns: Mapping[str, str]) -> Mapping[str, Any]:
    column = columns.get("meta", "meta")
    if "meta" not in columns and not row.has(column):
        return {}
    found = row.get(column)
    if not isinstance(found, Mapping):
        raise DataError("must be an object", place=f"{row.place}, column {column}")
    return found


def _choice_row(row: TableRow, gold: str, meta: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    column = "options" if row.has("options") else "choices"
    options = meta.get("options") or row.get(column)
    if not isinstance(options, Sequence) or isinstance(options, str) or not 2 <= len(options) <= 26:
        raise DataError("must be a list of 2 to 26 texts", place=f"{row.place}, column {column}")
    return gold.strip().strip("().").upper(), meta | {"options": [str(option) for option in options]}


def _named(problem: Problem, task: str, row: TableRow) -> Problem:
    meta = {"row": problem.problem_id, "place": row.place} | dict(problem.meta)
    return dataclasses.replace(problem, task=task, meta=meta)


def _plain_text(text: str) -> str:
    return normal_text(text).removesuffix(".").strip()
