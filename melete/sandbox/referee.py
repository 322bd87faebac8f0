"""Test code and the answers it expects, in a sandbox of their own: the program under test is in another one.

In here the functions under test are proxies. A call goes out as plain data, and plain data is what comes back, so
nothing that the program made is ever run next to the tests.
"""

from __future__ import annotations

import ast
import builtins
import functools
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

from melete.sandbox.functions import WIRE, Answer, Functions
from melete.sandbox.protocol import Executor, Limits
from melete.sandbox.wire import decode

_EXTRA_S = 5.0  # the tests' own time, above what the program may use
_MAX_FRAME = 4 * 2**20

# An exception of the program is raised here again when it is one of these. StopIteration is not: it would end a loop of
# the test early. AssertionError is not: it is the test's own word.
_RAISED = (
    "ArithmeticError AttributeError EOFError Exception ImportError IndexError KeyError LookupError MemoryError "
    "NameError NotImplementedError OSError OverflowError RecursionError RuntimeError TypeError UnicodeError ValueError "
    "ZeroDivisionError"
)

_REFEREE = """
import builtins
class _Stop(BaseException):
    pass
class CandidateError(Exception):
    pass
_state = {"passed": 0, "failed": 0, "calls": 0, "error": ""}
def _melete_passed():
    _state["passed"] += 1
def _melete_failed(error):
    if not _state["calls"]:
        raise _Stop("%s: %s" % (type(error).__name__, error))
    _state["failed"] += 1
    _state["error"] = _state["error"] or "%s: %s" % (type(error).__name__, str(error)[:200])
    if _ALL:
        raise _Stop()
def _proxy(name):
    def call(*args, **kwargs):
        write_frame(b"C" + encode((name, args, kwargs)))
        reply = read_frame()
        _state["calls"] += 1
        kind = reply[:1]
        if kind == b"D":
            raise CandidateError("the program ended")
        try:
            value = decode(reply[1:])
            if kind == b"E":
                value, message = str(value[0]), str(value[1])
        except (NotPlain, TypeError, IndexError, RecursionError):
            raise CandidateError("its answer is not plain data") from None
        if kind == b"R":
            return value
        if value in _RAISED:
            raise getattr(builtins, value)(message)
        raise CandidateError("%s: %s" % (value, message))
    call.__name__ = name
    return call
def _judge(setup, names, tests):
    import sys
    sys.stdout = sys.__stdout__ = sys.stderr
    sys.modules["tests"] = module = type(sys)("tests")
    place = module.__dict__
    place.update(_melete_passed=_melete_passed, _melete_failed=_melete_failed)
    finished = False
    try:
        exec(compile(setup, "<setup>", "exec"), place)
        place.update((name, _proxy(name)) for name in names)
        exec(compile(tests, "<tests>", "exec"), place)
        finished = True
    except _Stop as stop:
        if not _state["calls"]:
            _state["error"] = str(stop)
    except Exception as error:
        _state["failed"] += 1
        _state["error"] = _state["error"] or "%s: %s" % (type(error).__name__, str(error)[:200])
    found = (_state["passed"], _state["failed"], _state["calls"], finished, _state["error"])
    write_frame(b"V" + _WORD + encode(found))
"""


@dataclass(frozen=True, slots=True)
class TestCode:
    """Tests as Python: `setup` is run as it is, then `names` become the functions under test, then `tests` is run.

    `asserts`: whether there are assertions; at least one of them must then be reached.
    """

    __test__ = False  # not a class of pytest's

    setup: str
    names: tuple[str, ...]
    tests: str
    asserts: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """How many assertions held and how many did not, and the first thing that went wrong."""

    passed: int
    failed: int
    reason: str = ""


class TestFault(Exception):
    """The tests themselves do not work: nothing is known about the program."""

    __test__ = False


@functools.lru_cache(maxsize=1024)
def check_code(prompt: str, test: str, entry_point: str) -> TestCode:
    """HumanEval's form: `check(candidate)`, with what the prompt defines; the entry point is the candidate there too.

    Raises `TestFault` when the code cannot be parsed.
    """
    tests, asserts = _counted(test)
    return TestCode(prompt, (entry_point,), f"{tests}\ncheck({entry_point})\n", asserts)


@functools.lru_cache(maxsize=1024)
def assert_code(asserts: tuple[str, ...], setup: str) -> TestCode:
    """MBPP's form: assertions that call a function by its name. Names that nothing else defines are the program's.

    Raises `TestFault` when the code cannot be parsed.
    """
    text = "\n".join(asserts)
    try:
        defined = set(_bound(ast.parse(setup))) | set(_bound(ast.parse(text))) | set(dir(builtins))
        calls = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    except SyntaxError as error:
        raise TestFault(f"the tests are not Python: {error}") from error
    names = {function.id for function in calls if isinstance(function, ast.Name)} - defined
    tests, counts = _counted(text)
    return TestCode(setup, tuple(sorted(names)), tests, counts)


def _bound(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


class _Counting(ast.NodeTransformer):
    """Wraps each assertion, so that it is counted and the next one is reached."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        wrapper = cast(ast.Try, ast.parse(_WRAPPER).body[0])
        wrapper.body = [node]
        return ast.copy_location(wrapper, node)


_WRAPPER = """
try:
    pass
except Exception as _melete_error:
    _melete_failed(_melete_error)
else:
    _melete_passed()
"""


def _counted(source: str) -> tuple[str, bool]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise TestFault(f"the tests are not Python: {error}") from error
    asserts = any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    return ast.unparse(ast.fix_missing_locations(_Counting().visit(tree))), asserts


def judge(executor: Executor, source: str, code: TestCode, limits: Limits, *, every: bool = False) -> Judgement:
    """Runs the tests in one sandbox against the program in another; `every` goes on after the first that fails.

    What goes wrong before the program's first answer is the tests' doing, what goes wrong after it the program's.
    Raises `TestFault`, or `SandboxError` when a sandbox cannot start.
    """
    word = secrets.token_bytes(8)
    settings = f"_WORD, _ALL, _RAISED = {word!r}, {not every}, {_RAISED.split()!r}"
    text = f"{WIRE}\n{_REFEREE}\n{settings}\n_judge({code.setup!r}, {code.names!r}, {code.tests!r})\n"
    own = replace(limits, wall_s=limits.wall_s + _EXTRA_S, cpu_s=limits.cpu_s + _EXTRA_S, output_bytes=_MAX_FRAME * 4)
    with Functions(executor, source, limits) as program:
        referee = executor.start(text, limits=own)
        answers = 0
        try:
            while (frame := referee.receive(_MAX_FRAME)) is not None and frame.startswith(b"C"):
                answer = program.call(frame[1:])
                answers += 1
                if answer is None and not every:
                    return Judgement(0, 1, _how_it_ended(program))
                referee.send(_reply(answer))
        finally:
            ended = referee.close()
        if frame is not None and frame.startswith(b"V" + word):
            return _judgement(frame[1 + len(word) :], program, code)
        if answers == 0:
            raise TestFault(f"the tests {ended.ended} without a verdict: {ended.stderr.strip()}")
        return Judgement(0, 1, f"no verdict on its answers: the tests {ended.ended}")


def _reply(answer: Answer | None) -> bytes:
    if answer is None:
        return b"D"
    return b"E" + (answer.raised or b"") if answer.result is None else b"R" + answer.result


def _judgement(data: bytes, program: Functions, code: TestCode) -> Judgement:
    passed, failed, calls, finished, error = cast(tuple[int, int, int, bool, str], decode(data))
    if calls == 0:
        raise TestFault(error or "the tests call no function of the program")
    if not passed and not failed and (code.asserts or not finished):
        return Judgement(0, 1, error or "no assertion was reached")
    return Judgement(passed, failed, _how_it_ended(program) if program.ended else error)


def _how_it_ended(program: Functions) -> str:
    execution = program.close()
    tail = execution.stderr.strip().splitlines()
    return f"the program {execution.ended}" + (f": {tail[-1][:200]}" if tail else "")
