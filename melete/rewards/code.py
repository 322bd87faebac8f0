"""Programs judged by what they do: run in a sandbox, and compared with what is expected outside of it.

No expected output ever enters the sandbox of the program, and no exit code counts. A program that crashes, hangs or
breaks a limit scores 0; a sandbox that does not start and tests that do not work raise `GradingError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from melete.rewards.errors import GradingError
from melete.sandbox import Executor, Limits, SandboxError, best_executor
from melete.sandbox.functions import Functions
from melete.sandbox.referee import TestCode, TestFault, assert_code, check_code, judge
from melete.sandbox.wire import NotPlain, decode, encode
from melete.text.answers import parse_completion, without_thought
from melete.types import Rollout

Score = Literal["all", "fraction"]
_FENCE = re.compile(r"^ *```[^\n`]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_JSON_TAGS, _JSON_KEYS = b"NTFifslt" + b"d", b"s"
_SLACK = 1024  # bytes that an answer may be longer than four times the one expected, before it is read


@dataclass(frozen=True, slots=True)
class StreamTests:
    """Cases of (standard input, standard output expected); space at the end of a line and of the text is free."""

    cases: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class CallTests:
    """Cases of (arguments, result expected) of one function, as JSON has them: a tuple equals a list."""

    function: str
    cases: tuple[tuple[tuple[Any, ...], Any], ...]


@dataclass(frozen=True, slots=True)
class CheckTests:
    """HumanEval's form: test code that defines `check(candidate)`. `prompt` begins the program."""

    prompt: str
    entry_point: str
    test: str


@dataclass(frozen=True, slots=True)
class AssertTests:
    """MBPP's form: assertions about functions of the program, after `setup`."""

    asserts: tuple[str, ...]
    setup: str = ""


Tests = StreamTests | CallTests | CheckTests | AssertTests


@dataclass(frozen=True, slots=True)
class Verdict:
    """`passed` of `total` tests, and the first reason why one was not."""

    passed: int
    total: int
    reason: str = ""

    def score(self, kind: Score) -> float:
        """1 when all are passed, else 0 or the fraction that is."""
        return float(self.passed == self.total) if kind == "all" else self.passed / self.total


class CodeReward:
    """Judges the program in a completion by the tests in `problem.meta["tests"]` (see `read_tests`).

    `executor_name` tells which sandbox was used, for the record. Raises `RecipeError` when there is none that is as
    strong as `at_least`.
    """

    def __init__(
        self,
        *,
        executor: Executor | None = None,
        at_least: str | None = None,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
        score: Score = "all",
        thought_opened: bool = False,
    ) -> None:
        self._executor = executor or best_executor(at_least)
        self._limits, self._thought_opened = limits, thought_opened
        self._score: Score = score

    @property
    def executor_name(self) -> str:
        """The sandbox that programs run in."""
        return self._executor.name

    def __call__(self, rollout: Rollout) -> float:
        """The score of a rollout. Raises `GradingError` when nothing can be said about it."""
        tests = read_tests(rollout.problem.meta.get("tests"))
        return self.score(program_of(self._answer(rollout.text)), tests)

    def _answer(self, text: str) -> str:
        """What stands in `<answer>` after the thought, else all but the thought; as it is where there are no tags."""
        answer = parse_completion(text, thought_opened=self._thought_opened).answer
        if answer is not None:
            return answer
        has_thought = self._thought_opened or "<think>" in text
        return without_thought(text, thought_opened=self._thought_opened) if has_thought else text

    def score(self, program: str, tests: Tests) -> float:
        """The score of a program. Raises `GradingError` when nothing can be said about it."""
        verdict = grade_program(
            program, tests, executor=self._executor, limits=self._limits, every=self._score == "fraction"
        )
        return verdict.score(self._score)


def program_of(answer: str) -> str:
    """The last fenced block of an answer, or all of it when it has none.

    >>> program_of("Here it is:\\n```python\\nprint(1)\\n```\\nDone.")
    'print(1)\\n'
    """
    blocks = _FENCE.findall(answer)
    return blocks[-1] if blocks else answer


def grade_program(
    program: str,
    tests: Tests,
    *,
    executor: Executor,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
    every: bool = False,
) -> Verdict:
    """Runs a program against tests; `every` goes on after the first that fails.

    Time limits hold for each case of `StreamTests`, and for all calls together otherwise. Raises `GradingError` when
    the sandbox does not start or the tests themselves do not work.
    """
    try:
        if isinstance(tests, StreamTests):
            return _stream(program, tests, executor, limits, every)
        if isinstance(tests, CallTests):
            return _calls(program, tests, executor, limits, every)
        source, code = _with_tests(program, tests)
        judgement = judge(executor, source, code, limits, every=every)
    except (SandboxError, TestFault) as error:
        raise GradingError(f"{executor.name}: {error}") from error
    return Verdict(judgement.passed, judgement.passed + judgement.failed, judgement.reason)


def _with_tests(program: str, tests: CheckTests | AssertTests) -> tuple[str, TestCode]:
    if isinstance(tests, AssertTests):
        return program, assert_code(tests.asserts, tests.setup)
    whole = program if _defines(program, tests.entry_point) else tests.prompt + program
    return whole, check_code(tests.prompt, tests.test, tests.entry_point)


def _defines(program: str, name: str) -> bool:
    """Whether it is a whole program, not the body that continues a prompt. Read as text: parsers can be crashed."""
    return (
        re.search(rf"^(?:(?:async )?def {re.escape(name)}\b|{re.escape(name)}\s*=)", program, re.MULTILINE) is not None
    )


def _stream(program: str, tests: StreamTests, executor: Executor, limits: Limits, every: bool) -> Verdict:
    passed, reason = 0, ""
    for index, (given, expected) in enumerate(tests.cases):
        execution = executor.run(program, stdin=given, limits=limits)
        if execution.ended == "exited" and _lines(execution.stdout) == _lines(expected):
            passed += 1
            continue
        tail = execution.stderr.strip().splitlines()
        reason = reason or f"case {index}: the program {execution.ended}" + (f": {tail[-1][:200]}" if tail else "")
        if not every:
            break
    return Verdict(passed, len(tests.cases), reason)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _calls(program: str, tests: CallTests, executor: Executor, limits: Limits, every: bool) -> Verdict:
    passed, reason = 0, ""
    with Functions(executor, program, limits) as functions:
        for index, (arguments, expected) in enumerate(tests.cases):
            answer = functions.call(encode((tests.function, arguments, {})))
            if answer is not None and answer.result is not None and _agrees(answer.result, expected):
                passed += 1
                continue
            reason = reason or f"case {index}: " + ("wrong" if answer is not None else "the program ended")
            if not every:
                break
    return Verdict(passed, len(tests.cases), reason)


def _agrees(result: bytes, expected: Any) -> bool:
    """Whether an untrusted result is the one expected: built from JSON's types, and never from much longer bytes."""
    if len(result) > 4 * len(encode(expected)) + _SLACK:
        return False
    try:
        return _same(decode(result, _JSON_TAGS, _JSON_KEYS), expected)
    except (NotPlain, RecursionError):
        return False


def _same(value: Any, expected: Any) -> bool:
    if isinstance(expected, list | tuple):
        same_length = isinstance(value, list | tuple) and len(value) == len(expected)
        return same_length and all(map(_same, value, expected))
    if isinstance(expected, dict):
        same_keys = isinstance(value, dict) and value.keys() == expected.keys()
        return same_keys and all(_same(value[key], expected[key]) for key in expected)
    if isinstance(expected, bool) or isinstance(value, bool) or expected is None:
        return value is expected
    if isinstance(expected, float) and math.isnan(expected):
        return isinstance(value, float) and math.isnan(value)
    return value == expected


def read_tests(data: Any) -> Tests:
    """The tests of a problem from plain data, as it stands in a JSON file.

    {"kind": "stream", "cases": [{"input": "1\\n", "output": "2\\n"}]},
    {"kind": "calls", "function": "f", "cases": [{"args": [1], "expected": 2}]},
    {"kind": "check", "prompt": "...", "entry_point": "f", "test": "def check(candidate): ..."} or
    {"kind": "asserts", "asserts": ["assert f(1) == 2"], "setup": "import math"}. Raises `GradingError` for another
    form, and where there is no test at all.
    """
    try:
        tests = _tests(data)
    except (KeyError, TypeError, ValueError) as error:
        raise GradingError(f"the problem's tests cannot be read: {type(error).__name__}: {error}") from error
    if not getattr(tests, "cases", True) or not getattr(tests, "asserts", True):
        raise GradingError("the problem has no tests")
    return tests


def _tests(data: Mapping[str, Any]) -> Tests:
    kind = data["kind"]
    if kind == "stream":
        return StreamTests(tuple((str(case["input"]), str(case["output"])) for case in data["cases"]))
    if kind == "calls":
        cases: Sequence[Any] = data["cases"]
        return CallTests(str(data["function"]), tuple((tuple(case["args"]), case["expected"]) for case in cases))
    if kind == "check":
        return CheckTests(str(data["prompt"]), str(data["entry_point"]), str(data["test"]))
    if kind == "asserts":
        return AssertTests(tuple(map(str, data["asserts"])), str(data.get("setup", "")))
    raise ValueError(f"kind {kind!r} is none of stream, calls, check, asserts")
