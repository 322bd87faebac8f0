"""Equality of mathematical answers, against a table, laws, hostile answers and a clock; workers are real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.errors import RecipeError
from melete.rewards import mathematics
from melete.rewards.errors import GradingError
from melete.rewards.grade import grade_rollout
from melete.rewards.math_reading import MAX_CHARACTERS, normalised, read, read_number
from melete.rewards.mathematics import UnreadableGold, math_accuracy, math_equal, math_pool
from melete.types import Completion, Message, Problem, Rollout

pytest.importorskip("math_verify")

PLAIN_EQUAL = r"""
7 | 7
7 | 7.
7 | 7.0
7 | +7
7 | $7$
7 | \(7\)
7 | \[ 7 \]
7 | **7**
7 | {7}
7 | (7)
7 | 007
7 | x=7
7 | x = 7
7 | f(x)=7
x=7 | 7
7 | 7,000/1000
7 | ７
0 | -0
0 | 0.000
0 | 0/5
-5 | −5
-5 | - 5
1000 | 1,000
1,000 | 1000
1000 | 1{,}000
1000 | 1\,000
1000 | 1,\!000
1000000 | 1,000,000
1,234.5 | 1234.50
0.5 | \frac{1}{2}
0.5 | .5
0.5 | 1/2
\frac{1}{2} | 0.5
\frac{1}{2} | \dfrac12
\frac{1}{2} | \tfrac{2}{4}
\frac12 | \frac{-1}{-2}
-\frac{1}{2} | \frac{-1}{2}
-\frac{1}{2} | -1/2
-\frac{1}{2} | -0.5
\frac{3}{2} | 1\frac{1}{2}
\frac{3}{2} | 1 1/2
1\frac12 | 1.5
1/3 | 0.\overline{3}
1/6 | 0.1\overline{6}
50\% | 0.5
50\% | 1/2
50\% | 50
50\% | 50%
50\% | 50 \%
50\% | 50\text{ percent}
50\% | 50 percent
\frac{1}{2} | 50\%
1/2 | 50%
12.5\% | 12.5\%
12.5\% | 1/8
50 | 50\%
5\text{ cm} | 5
5 | 5\text{ cm}
5 | 5 cm
5 | 5cm
5\text{ cm} | 5\mathrm{cm}
5\text{ cm} | 5\text{ centimeters}
5\text{ cm}^2 | 5\text{ square centimeters}
5\text{ cm}^2 | 5\,\text{cm}^{2}
12 | 12 apples
12\text{ apples} | 12\text{ apple}
12 | 12\text{ square units}
\$5 | 5
\$5 | \$5.00
\$5 | 5 dollars
1,250 | \$1,250
90^\circ | 90
90^{\circ} | 90°
90^\circ | 90\text{ degrees}
60 | 60\text{ miles per hour}
5000000 | 5\text{ million}
5\text{ million} | 5,000,000
101_2 | 101_{2}
101_2 | 101
1e3 | 1000
2.5e-1 | 1/4
(1,2) | (1, 2)
(1,2) | \left( 1,2 \right)
(1,2) | $(1,\; 2)$
(1,2) | (1.0, 4/2)
\left(\frac12, -3\right) | (0.5,-3)
[0,1) | [0, 1)
[0,1) | \left[0,1\right)
\{1,2\} | \{2,1\}
\{2,1\} | \left\{1,2\right\}
\{1,2\} | 2, 1
1,2 | 2,1
1,2 | 2;1
\{5\} | 5
x=1,x=2 | x=2, x=1
x=1, x=2 | 1,2
C | (C)
C | \text{C}
C | c
\text{(C)} | C
\text{Monday} | Monday
\text{even} | even
Yes | yes
north-east | North East
"""

PLAIN_DIFFERENT = r"""
7 | 8
7 | -7
7 | 70
7 | 7.1
7 | 7 8
7 | 7 or 8
7 | 7, 8
7 | 7x
7 | x
7 | seven
7 | y
12 | 1 2
3 | 1 2
21 | 1 2
12 | 1_2
1000 | 1,00
1000 | 10,00
1234 | (1,234)
11 | 10%
0.5 | 50\%
0.5 | 50
50 | 0.5
1 | 100\%
\frac{1}{2} | 50
\frac{1}{3} | 0.333
1/3 | 0.333333333333
0 | 10^{-20}
0.1 | 0.10000000000000000000001
9007199254740993 | 9007199254740992
5\text{ cm} | 5\text{ m}
5\text{ cm} | 5\text{ cm}^2
\$5 | 5\text{ cents}
5 | 5\text{ million}
5 | 5 pi
5 | 5m^2+1
90^\circ | 90\text{ radians}
101_2 | 101_3
x=5 | y=5
x=5 | x=6
5 | 9=5
5 | 5=9
(1,2) | (2,1)
(1,2) | [1,2]
(1,2) | (1,2]
(1,2) | \{1,2\}
(1,2) | 1,2
(0,1) | \{0,1\}
(1,2) | (1,2,3)
(1,2,3) | (1,2)
1,2 | 1
1,2 | 1,2,3
1,2 | 1,1
1 | 1,1
\{1,2\} | (1,2)
\{1,2\} | \{1,2,2\}
C | D
C | Cat
C | C, D
C | A, B, C or D
\text{Monday} | dayMon
\text{Monday} | Tuesday
even | Eevn
yes | no
east | seat
"""

SYMBOLIC_EQUAL = r"""
x^2+2x+1 | (x+1)^2
x^2+2x+1 | x**2 + 2*x + 1
(x-1)(x-2) | x^2-3x+2
\sqrt{8} | 2\sqrt2
\sqrt{8} | 2\sqrt{2}
2\sqrt{2} | sqrt(8)
2\sqrt{2} | 2*sqrt(2)
\frac{\sqrt{3}}{3} | \frac{1}{\sqrt3}
\pi | π
2\pi | 2pi
\frac{\pi}{2} | 0.5\pi
y=2x+1 | 2x+1
y=2x+1 | y = 1+2x
y=2x+1 | y-2x=1
2x+1 | y=2x+1
x^{10} | x^10
x^{1/2} | \sqrt{x}
x^{-1} | \frac{1}{x}
2.5x | \frac{5}{2}x
0.1+0.2 | 0.3
5 | 2+3
5 | 2+3=5
10^{10} | 10000000000
10! | 3628800
\log_2 8 | 3
\cos^2 x+\sin^2 x | 1
(\sqrt{8}, 1) | (2\sqrt2, 1)
\{\sqrt{2},-\sqrt{2}\} | -\sqrt2, \sqrt2
1\pm\sqrt2 | 1+\sqrt2, 1-\sqrt2
x<2 | 2>x
x<2 | (-\infty,2)
(-\infty,1)\cup(2,\infty) | (2,\infty)\cup(-\infty,1)
(-\infty, 2] | (-∞, 2]
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
3+2i | 2i+3
a+b | b+a
\binom{5}{2} | 10
3:4 | \frac{3}{4}
\emptyset | \{\}
|x| | |x|
2^{2023} | 2^{2023}
"""

SYMBOLIC_DIFFERENT = r"""
10 | 10^{10}
3.14 | \pi
\pi | 3.14
\pi | 3.14159265358979
\sqrt2 | 1.4142135623731
\sqrt{2} | 2
10^{-20} | 0.0
\frac{1}{10^{20}} | 0
x^2+2x+1 | (x+2)^2
x+1 | x+2
x | y
x_1 | x_2
2x | x^2
y=2x+1 | y=2x
y=2x+1 | y=2x+1=5
2x+1=5 | 5
\sqrt{8}, 1 | \sqrt{8}
(\sqrt{8}, 1) | (1, \sqrt{8})
x<2 | x>2
x<2 | x\le 2
(-\infty,1)\cup(2,\infty) | (-\infty,1)
\begin{pmatrix}1\\2\end{pmatrix} | \begin{pmatrix}2\\1\end{pmatrix}
n! | n
|x| | x
2^{2023} | 2^{2024}
\frac{1}{x} | \frac{1}{0}
a | \text{or}
8 | 7 or maybe 8
x | x or y
"""

HOSTILE = [
    "",
    " ",
    "$$",
    "{}",
    "()",
    r"\{\}",
    ".",
    ",",
    "-",
    "+",
    "/",
    "%",
    "=",
    "==",
    "x=",
    "=7",
    "7=",
    "7/0",
    "0/0",
    r"\frac{7}{0}",
    "9**9**9",
    "9^9^9",
    "9^{9^{9}}",
    "10^{10^{10}}",
    "10^{1000000000}",
    "(10^9)!",
    "1000000!",
    "7!!!!!!",
    r"\binom{1000000}{500000}",
    r"\sum_{n=1}^{100000000} n",
    r"\prod_{k=1}^{1000000} k",
    "__import__('os')",
    "__import__('os').system('touch PWNED')",
    "().__class__.__bases__[0].__subclasses__()",
    "exec('7')",
    "eval('7')",
    "lambda: 7",
    "[x for x in (7,)]",
    "open('/etc/passwd').read()",
    r"\input{/etc/passwd}",
    r"\write18{touch PWNED}",
    r"\def\x{\x\x}\x",
    r"\newcommand{\7}{7}",
    r"\boxed{7",
    r"7}",
    r"{7",
    "((7",
    "7))",
    "(" * 10_000 + "7" + ")" * 10_000,
    "{" * 10_000 + "7" + "}" * 10_000,
    r"\frac{" * 200 + "7",
    r"\sqrt{" * 60 + "7" + "}" * 60,
    "7" * 1_000_000,
    "0" * 1_000_000 + "7",
    "7." + "0" * 1_000_000,
    "7 " * 100_000,
    "7," * 400,
    "1,234" * 100,
    "-" * 900 + "7",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "Infinity",
    r"\infty",
    "None",
    "True",
    "zoo",
    "oo",
    "I",
    "E",
    "٧",
    "७",
    "七",
    "⑦",
    "Ⅶ",
    "x\u0307",
    "7\x00",
    "\x00",
    "\x1b[31m7",
    "7\u202e8",
    "\u200b7",
    "\ud800",
    "7\ud800",
    "\U0010ffff",
    "7\n8",
    "7\r\n8",
    "7;8",
    "7&8",
    "7|8",
    r"7\\8",
    r"7\8",
    "7e999999999",
    "7e-5",
    "1e999",
    "0x7",
    "0b111",
    "7j",
    "7_000",
    "7'",
    "7''8",
    "<answer>7",
    "<think>7</think>",
    "the answer is 8",
    "not 7",
    "7 or 8",
    "7 and 8",
    r"7\text{ or }8",
    "7?",
    "7!",
    "7..",
    "7...8",
    "~7~8",
    "#7#8",
    "@7",
    '"7" "8"',
    "`7` `8`",
    "7:8",
    r"\\boxed{8}",
    r"\text{7} 8",
    r"\text{" * 100,
    r"\begin{pmatrix}7\end{pmatrix} 8",
    r"\begin{verbatim}7",
    r"\left(7",
    r"\right)7(",
    r"\ce{H2O}",
    r"\url{http://x}",
]
NOT_WRONG = {"7'", "7.."}  # a foot mark, and a full stop too many


def pairs(table: str) -> list[tuple[str, str]]:
    rows = [line.split(" | ") for line in table.strip().splitlines()]
    assert all(len(row) == 2 for row in rows)
    return [(gold, answer) for gold, answer in rows]


def rollout(text: str, gold: str = "7", sibling: int = 0) -> Rollout:
    problem = Problem("p", "maths", (Message("user", "?"),), gold)
    return Rollout(problem, sibling, (1,), Completion((2, 3), (-1.0, -1.0), "stop", 0), text)


@pytest.fixture(autouse=True)
def fresh_answers() -> None:
    mathematics._ask.cache_clear()


@pytest.mark.parametrize(("gold", "answer"), pairs(PLAIN_EQUAL))
def test_plain_answers_that_are_equal(gold: str, answer: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mathematics, "math_pool", lambda: pytest.fail("a plain answer needs no process"))
    assert math_equal(gold, answer) is True


@pytest.mark.parametrize(("gold", "answer"), pairs(PLAIN_DIFFERENT))
def test_plain_answers_that_differ(gold: str, answer: str):
    assert math_equal(gold, answer) is False


@pytest.mark.parametrize(("gold", "answer"), pairs(SYMBOLIC_EQUAL))
def test_formulas_that_are_equal(gold: str, answer: str):
    assert math_equal(gold, answer) is True


@pytest.mark.parametrize(("gold", "answer"), pairs(SYMBOLIC_DIFFERENT))
def test_formulas_that_differ(gold: str, answer: str):
    assert math_equal(gold, answer) is False


def test_the_table_is_large():
    assert sum(len(pairs(t)) for t in (PLAIN_EQUAL, PLAIN_DIFFERENT, SYMBOLIC_EQUAL, SYMBOLIC_DIFFERENT)) >= 220
    assert len(HOSTILE) >= 100


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda text: ascii(text[:30]))
def test_a_hostile_answer_is_wrong_at_once_and_runs_nothing(answer: str):
    start = time.monotonic()
    assert math_equal("7", answer) is (answer in NOT_WRONG)
    assert time.monotonic() - start < 10  # a worker may have to start; a comparison that is too slow raises after five
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda text: ascii(text[:30]))
def test_a_hostile_answer_meets_a_formula(answer: str):
    assert math_equal("x^2+7", answer) is False
    assert not Path("PWNED").exists()


UNREADABLE = [
    "",
    "  ",
    "((((",
    r"\frac{",
    r"\frac{1}{0}",
    "1/0",
    "1 2",
    "٧",
    "\x00",
    "7" * (MAX_CHARACTERS + 1),
    "9**9**9",
    r"\input{x}",
    r"(1,\frac{)",
]


@pytest.mark.parametrize("gold", UNREADABLE)
def test_a_gold_answer_that_cannot_be_read_raises_whatever_the_answer(gold: str):
    for answer in ("1", "", gold, "x+1", r"\frac{"):
        with pytest.raises(UnreadableGold, match="cannot be read"):
            math_equal(gold, answer)


def test_an_unreadable_gold_gives_no_sibling_a_reward():
    reward = math_accuracy()
    for text in (r"\boxed{1}", "no answer at all", r"\boxed{\frac{}"):
        graded = grade_rollout(rollout(text, gold=r"\frac{"), {"math": reward}, {"math": 1.0})
        assert graded.total is None and "cannot be read" in graded.reason


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        (r"\boxed{7}", False, 1.0),
        (r"<think>7?</think>So \boxed{7}.", False, 1.0),
        (r"7?</think>So \boxed{7.0}.", True, 1.0),
        ("<answer>7</answer>", False, 1.0),
        ("3+4\n#### 7", False, 1.0),
        (r"\boxed{8}", False, 0.0),
        (r"\boxed{7} or \boxed{8}", False, 0.0),
        (r"\boxed{7} and again \boxed{7}", False, 1.0),
        (r"<think>\boxed{7}</think>", False, 0.0),
        (r"<think>\boxed{7}", False, 0.0),
        (r"\boxed{7}", True, 0.0),
        (r"\boxed{7", False, 0.0),
        ("The answer is 7.", False, 0.0),
        ("", False, 0.0),
    ],
)
def test_the_reward_is_the_equality_of_the_final_answer(text: str, opened: bool, expected: float):
    assert math_accuracy(thought_opened=opened)(rollout(text)) == expected


def test_evaluation_may_take_a_bare_number():
    assert math_accuracy(bare_number=True)(rollout("The answer is 7.")) == 1.0


def test_without_math_verify_the_reward_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    monkeypatch.setattr(mathematics.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RecipeError, match=r"melete\[math\]"):
        math_accuracy()


lists = st.lists(st.integers(-99, 99), min_size=2, max_size=6)
fractions = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=10**6)


@settings(max_examples=50, deadline=None)
@given(fractions, fractions)
def test_two_fractions_are_equal_exactly_when_their_values_are(a: Fraction, b: Fraction):
    latex = rf"\frac{{{b.numerator}}}{{{b.denominator}}}"
    assert math_equal(f"{a.numerator}/{a.denominator}", latex) is (a == b)
    assert math_equal(str(a), str(a)) is True
    scaled = rf"\dfrac{{{a.numerator * 3}}}{{{a.denominator * 3}}}"
    assert math_equal(str(a), scaled) is True


@settings(max_examples=50, deadline=None)
@given(st.integers(-(10**30), 10**30), st.integers(0, 8))
def test_a_number_is_itself_in_every_spelling(number: int, places: int):
    decimal = f"{number}.{'0' * places}"
    for spelling in (
        f"{number}",
        f"{number:,}",
        f"${number}$",
        decimal,
        f"{number}/1",
        f"n = {number}",
    ):
        assert math_equal(str(number), spelling), spelling
    assert not math_equal(str(number), str(number + 1))
    assert not math_equal(str(number), f"{decimal}1")


@settings(max_examples=50, deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12))
def test_decimals_are_read_exactly(value):
    number = read_number(str(value))
    assert number is not None and number.value == Fraction(value)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-99, 99), min_size=2, max_size=6).flatmap(
        lambda items: st.tuples(st.just(items), st.permutations(items))
    )
)
def test_sets_have_no_order_and_tuples_have(lists: tuple[list[int], list[int]]):
    items, shuffled = lists
    gold, answer = (", ".join(map(str, each)) for each in (items, shuffled))
    assert math_equal(rf"\{{{gold}\}}", rf"\{{{answer}\}}") is True
    assert math_equal(f"({gold})", f"({answer})") is (items == shuffled)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet=r"\{}()[]$^_,.=+-*/0123456789xyfracsqt %", max_size=60))
def test_reading_never_raises_and_a_normal_form_stays(text: str):
    reading = read(text)
    if reading is not None:
        assert reading.text.isascii()
    assert isinstance(normalised(text), str)


@pytest.mark.parametrize(
    "unit",
    [
        "(",
        "{",
        r"\frac{",
        r"\text{",
        "1,",
        "1 ",
        "^",
        r"\{",
        "$",
        "a=",
        "=",
        ".",
        r"\left",
        " ",
        "**",
        "!",
        "9^",
        "é",
        "½",
    ],
)
def test_reading_a_megabyte_takes_no_time(unit: str):
    text = (unit * 1_000_000)[:1_000_000]
    start = time.process_time()
    assert math_equal("7", text) is False
    assert time.process_time() - start < 1
    short = (unit * MAX_CHARACTERS)[:MAX_CHARACTERS]
    read(short)
    read(short[:-1] + "7")
    assert time.process_time() - start < 1


def test_thousands_of_plain_integers_per_second():
    """More than 10,000 on an idle core, extraction included; the bound is for a noisy machine."""
    reward = math_accuracy()
    rollouts = [rollout(rf"<think>{i}+1</think>So it is \boxed{{{i % 2_000}}}.", str(i)) for i in range(4_000)]
    start = time.process_time()
    assert sum(map(reward, rollouts)) == 2_000
    assert 4_000 / (time.process_time() - start) >= 2_000


# polynomials of tens of thousands of terms, which are compared term by term
SLOW_GOLD, SLOW = "(x+y+w)^{299}", "(x+y+z)^{300}"


def test_an_answer_that_takes_too_long_is_a_failure_with_a_reason_and_not_a_zero():
    start = time.monotonic()
    with pytest.raises(GradingError, match=r"did not end within 0\.5 s"):
        math_equal(SLOW_GOLD, SLOW, seconds=0.5)
    assert time.monotonic() - start < 10
    assert math_equal("x+1", "1+x")


def test_a_pathological_answer_delays_no_other():
    with ThreadPoolExecutor(8) as threads:
        slow = threads.submit(math_equal, SLOW_GOLD, SLOW, seconds=3)
        time.sleep(0.2)
        start = time.monotonic()
        golds = [f"x^2+{i}" for i in range(20)]
        assert all(threads.map(lambda gold: math_equal(gold, f"{gold.split('+')[1]}+x^2", seconds=20), golds))
        assert not slow.done() or time.monotonic() - start > 2
        with pytest.raises(GradingError):
            slow.result(60)


def test_a_worker_that_is_killed_while_it_judges_fails_only_its_item():
    assert math_equal("x+1", "1+x")
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(math_equal, SLOW_GOLD, SLOW, seconds=30)
        time.sleep(0.5)
        for worker in list(math_pool()._all):
            os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(GradingError, match="SIGKILL"):
            slow.result(60)
    assert math_equal("x+2", "2+x")


def test_many_threads_get_the_same_verdicts_as_one():
    table = pairs(SYMBOLIC_EQUAL)[:12] + pairs(SYMBOLIC_DIFFERENT)[:12]
    alone = [math_equal(*row) for row in table]
    mathematics._ask.cache_clear()
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda row: math_equal(*row), table)) == alone


def test_neither_torch_nor_sympy_is_loaded_into_the_parent():
    code = (
        "import sys; from melete.rewards.mathematics import math_equal; assert math_equal('1/2', '0.5'); "
        "assert math_equal('x+1', '1+x'); print(*({'torch', 'sympy', 'numpy', 'math_verify'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stderr


@pytest.mark.parametrize("answer", ["not 0", "0 if True else 0", "x*0", "0x", "about 0", "0 or so", r"\\pi x 0"])
def test_a_formula_with_unknowns_is_no_number(answer: str) -> None:
    assert not math_equal("0", answer)


@pytest.mark.parametrize(
    ("gold", "answer"), [("0", r"\\sin(0)"), ("2", r"\\sqrt{4}"), ("1", "e^0"), ("3", r"\\frac{6}{2}")]
)
def test_a_formula_of_numbers_is_one(gold: str, answer: str) -> None:
    assert math_equal(gold, answer)
