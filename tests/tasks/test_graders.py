"""Graders read untrusted text: hostile and malformed answers score 0, and nothing runs or hangs."""

from __future__ import annotations

import random
import re
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melete.corpus.traces import TraceSettings, think_chain
from melete.errors import RecipeError
from melete.tasks import make_task
from melete.tasks.arithmetic import ArithmeticChain, Chain
from melete.tasks.base import step_labels_of
from melete.tasks.countdown import Countdown, evaluate_expression
from melete.text.numbers import parse_integer
from melete.text.steps import split_steps
from melete.types import Message, Problem

PUZZLE = Problem(
    "p", "countdown", (Message("user", "Reach 16 with 2,3,5."),), "(3+5)*2", {"numbers": [2, 3, 5], "target": 16}
)
CHAIN = Problem("c", "arithmetic_chain", (Message("user", "9+4-7=?"),), "6", {"expression": "9+4-7"})

WORTHLESS = [
    "",
    " ",
    "__import__('os').system('touch pwned')",
    "print(16)",
    "(lambda: 16)()",
    "[x for x in (16,)][0]",
    "9**9**9",
    "2**3**5",
    "(3+5)<<1",
    "32//2+3-3",
    "16",
    "3+5",
    "(3+5)*2*1",
    "(3+5)*2+2-2",
    "3+3+5+5",
    "(3+5)*2=16",
    "(3+5)*2;",
    "(3+5)*2 # sixteen",
    "(3+5)*2\x00",
    "(3+5)*2,",
    "(3+5)*2.0",
    "(3+5)*2j",
    "(3+5)*0x2",
    "(3+5)*0b10",
    "(3+5)*02",
    "(3+5)*0_2",
    "(３+５)*２",
    "(٣+٥)*٢",
    "(3+5)×2",
    "(3+5)*²",
    "(3+5)2",
    "--(3+5)*2",
    "-(-3-5)*2",
    "~(3+5)*2",
    "not 3",
    "True*16",
    "'3'+'5'",
    "3 if 5 else 2",
    "((3+5)*2",
    "(3+5)*2)",
    "(" * 10_000 + "3" + ")" * 10_000,
    "(" * 90 + "3" + ")" * 90,
    "9" * 10_000,
    "9" * 190,
    "*".join(["999999"] * 25),
    "-" * 150 + "3",
    "1+" * 5_000 + "1",
    "\n" * 300 + "(3+5)*2",
    "nan",
    "inf",
    "\ud800",
]


@pytest.mark.parametrize("answer", WORTHLESS, ids=range(len(WORTHLESS)))
def test_a_hostile_or_malformed_expression_scores_zero_at_once_and_runs_nothing(
    answer: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Countdown().grade(PUZZLE, answer) == 0.0
    assert time.process_time() - started < 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "answer", ["(3+5)*2", "2*(5+3)", " ( 5 + 3 ) * 2 ", "((3+5)*(2))", "2*(3+5)", "(3\n+5)*2", "(5+3)*2"]
)
def test_every_spelling_of_a_right_expression_scores_one(answer: str) -> None:
    assert Countdown().grade(PUZZLE, answer) == 1.0


@pytest.mark.parametrize("answer", ["(3+5)+2", "3*5+2", "(3-5)*2", "(3+5)*3", "(3+5)*5", "2*2*2*2"])
def test_a_wrong_value_or_a_wrong_number_scores_zero(answer: str) -> None:
    assert Countdown().grade(PUZZLE, answer) == 0.0


@given(st.text(alphabet="0123456789+-*() ", max_size=30))
def test_an_expression_that_is_read_has_the_value_that_python_gives_it(text: str) -> None:
    found = evaluate_expression(text)
    if found is not None:
        # safe: the alphabet holds neither names nor quotes, and powers were refused
        assert "**" not in text and found[0] == eval(text.strip())


@given(st.text(max_size=300))
def test_no_text_makes_a_grader_raise(text: str) -> None:
    assert Countdown().grade(PUZZLE, text) in (0.0, 1.0)
    assert make_task("arithmetic_chain", {}).grade(CHAIN, text) in (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6", 6),
        (" 6 ", 6),
        ("6.", 6),
        ("+6", 6),
        ("-6", -6),
        ("006", 6),
        ("\n6\n", 6),
        ("9" * 18, 10**18 - 1),
        ("", None),
        (".", None),
        ("-", None),
        ("6.0", None),
        ("6..", None),
        ("6 7", None),
        ("6 or 7", None),
        ("6e3", None),
        ("0x6", None),
        ("1_000", None),
        ("1,000", None),
        ("６", None),
        ("²", None),
        ("--6", None),
        ("- 6", None),
        ("six", None),
        ("nan", None),
        ("9" * 19, None),
        ("9" * 100_000, None),
        ("__import__('os')", None),
    ],
)
def test_an_integer_is_one_number_of_ascii_digits_and_nothing_else(text: str, value: int | None) -> None:
    assert parse_integer(text) == value
    assert make_task("arithmetic_chain", {}).grade(CHAIN, text) == float(value == 6)


@given(st.integers(-(10**18) + 1, 10**18 - 1))
def test_every_integer_of_eighteen_digits_is_read_back(value: int) -> None:
    assert parse_integer(f" {value}. ") == value


SUM = Problem("p", "arithmetic_chain", (Message("user", "3+5-2=?"),), "6", {"expression": "3+5-2"})


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("", []),
        ("<think>\n3+5=8\n8-2=6\n</think>\n<answer>6</answer>", [True, True, True]),
        ("<think>3+5=8\n8-2=6</think>\n<answer>6</answer>", [True, True, True]),
        ("<think>3+5=9\n9-2=7\n</think><answer>7</answer>", [False, False, False]),  # what follows a slip is lost
        ("<think>3+5=9\nWait, 3+5=8\n8-2=6\n</think><answer>6</answer>", [False, True, True, True]),
        ("<think>3+5=8\n8-2=5\n</think><answer>6</answer>", [True, False, True]),
        ("3+5=8\n8-2=6\n6+2=8\n8-5=3\n<answer>6</answer>", [True] * 5),  # a check undoes the steps
        ("3+5=8\n3+5=8\n", [True, False]),  # nothing is paid twice
        ("3+5=8, 8-2=6", [False]),  # one step a line
        ("3+5-2=6", [False]),
        ("3+5=8-2=6", [False]),
        ("3+5=08", [False]),
        ("1+1=2\n5+3=8", [False, False]),  # true, and no step of this chain
        ("let us see\n\n<answer>6</answer>", [False, True]),  # words are no step
        ("<answer>six</answer>", [False]),
        ("<answer>6</answer><answer>6</answer>", [False]),
        ("<think>8-2=6</think><answer>6</answer>", [True]),
        ("<think>8-2=5</think><answer>6</answer>", [False]),
        ("<think>words</think><answer>6</answer>", [False]),
    ],
)
def test_a_step_is_right_when_it_is_one_true_step_of_the_chain(text: str, labels: list[bool]) -> None:
    assert step_labels_of(make_task("arithmetic_chain", {}), SUM, text) == labels


def test_the_steps_of_a_written_trace_are_right() -> None:
    """But for its words: thoughts of the corpus without slips, with checks."""
    task = ArithmeticChain(min_terms=4, max_terms=4)
    source = random.Random(0)
    for index in range(20):
        problem = task.problem("train", index)
        chain = draw_from_text(problem.meta["expression"])
        thought, total = think_chain(chain, source, TraceSettings(slip=0, slip_in_check=0, check=1.0))
        text = f"<think>\n{thought}\n</think>\n<answer>{total}</answer>"
        labels = dict(zip(split_steps(text), step_labels_of(task, problem, text), strict=True))
        assert all(label == ("=" in step or "<answer>" in step) for step, label in labels.items())


def draw_from_text(expression: str) -> Chain:
    first, *terms = re.findall(r"[+-]?\d+", expression)
    return Chain((int(first), *(abs(int(t)) for t in terms)), tuple(1 if t[0] == "+" else -1 for t in terms))


@given(st.text(max_size=60))
def test_any_text_has_a_label_for_each_step(text: str) -> None:
    """I41."""
    labels = step_labels_of(make_task("arithmetic_chain", {}), SUM, text)
    assert len(labels) == len(split_steps(text)) and set(labels) <= {True, False}


def test_a_step_of_endless_digits_takes_no_time() -> None:
    started = time.process_time()
    step_labels_of(make_task("arithmetic_chain", {}), SUM, "1+" * 50_000 + "9" * 50_000)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("name", ["countdown", "verse"])
def test_a_task_that_judges_answers_only_says_so(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} judges answers, not single steps") as refusal:
        step_labels_of(make_task(name, {}), PUZZLE, "1+2=3")
    assert "arithmetic_chain" in refusal.value.remedy
