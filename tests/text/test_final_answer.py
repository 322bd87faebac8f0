"""Taking the final answer out of a completion: order, thoughts, several answers, and hostile text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.text.final_answer import (
    after_thought,
    answer_of,
    boxed_answers,
    comparable,
    final_answer,
    last_number,
    unwrapped,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{7}", "7"),
        (r"So $\boxed{ 7 }$.", "7"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \mid x>0 \right\}}", r"\left\{ x \mid x>0 \right\}"),
        (r"\boxed{\boxed{7}}", "{7}"),
        (r"\boxed{x=\boxed{7}}", "x={7}"),
        ("\\boxed{1\n2}", "1\n2"),
        (r"{ } } { \boxed{7}", "7"),
        ("<answer>7</answer>", "7"),
        ("<answer>\n 7 \n</answer>", "7"),
        (r"<answer>It is \boxed{7}</answer>", "7"),
        ("3+4=7\n#### 7", "7"),
        ("#### 1,000\n", "1,000"),
        ("#### Step 1\nadd\n#### Result\n#### 7", "7"),
        (r"\boxed{7} <answer>7</answer>", "7"),
        ("\\boxed{7}\n#### Conclusion", "7"),
        (r"\boxed{7} so \boxed{7}", "7"),
        (r"\boxed{1000} so \boxed{1,000}", "1,000"),
        (r"\boxed{(1,2)} so \boxed{\left( 1, 2 \right)}", r"\left( 1, 2 \right)"),
        ("<answer>7</answer> <answer> 7 </answer>", "7"),
        ("#### 7\n#### 7", "7"),
        (r"<think>\boxed{6}</think>\boxed{7}", "7"),
        (r"<think>a</think><think>b</think>\boxed{7}", "7"),
        (r"thinking</think>\boxed{7}", "7"),
        # none
        ("", None),
        ("7", None),
        ("The answer is 7.", None),
        (r"\boxed{7} or \boxed{8}", None),
        (r"\boxed{7}\boxed{8}\boxed{7}", None),
        (r"\boxed{12} \boxed{1 2}", None),
        (r"\boxed{a b} \boxed{ab}", None),
        (r"<answer>7</answer><answer>8</answer>", None),
        (r"\boxed{7} <answer>8</answer>", None),
        (r"<answer>\boxed{7} \boxed{8}</answer>", None),
        ("#### 7\n#### 8", None),
        (r"\boxed{7", None),
        (r"\boxed{7} \boxed{8", None),
        (r"\boxed{\boxed{7}", None),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        (r"\boxed 7", None),
        (r"\boxed{7\}", None),
        ("<answer>7", None),
        ("7</answer>", None),
        ("</answer>7<answer>", None),
        ("<answer></answer>", None),
        ("<answer>7</answer><answer>", None),
        ("<answer><answer>7</answer></answer>", None),
        ("####", None),
        ("##### 7", None),
        (r"<think>\boxed{7}", None),
        (r"<think>\boxed{7}</think>", None),
        (r"\boxed{7}<think>", None),
        (r"\boxed{7}</think>", None),
        (r"<think>a</think>\boxed{7}<think>b", None),
        (r"<think><answer>7</answer></think> done", None),
    ],
)
def test_the_final_answer(text: str, answer: str | None):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"a</think>\boxed{7}", "7"),
        (r"\boxed{7}", None),
        (r"<think>a</think>\boxed{7}", "7"),
        (r"a<think>\boxed{7}", None),
    ],
)
def test_a_template_that_opened_the_thought(text: str, answer: str | None):
    assert final_answer(text, thought_opened=True) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 7.", "7"),
        ("First 3, then 4, so 7", "7"),
        ("It costs $1,250.50.", "1,250.50"),
        ("1,2,3", "3"),
        ("x = -3", "-3"),
        ("10-3", "3"),
        ("(-3)", "-3"),
        ("about 50%", "50%"),
        ("3/4 of it", "3/4"),
        ("in x1 or h2o", None),
        ("none", None),
        (r"6 or \boxed{7}", "7"),
        (r"6 or \boxed{7} or \boxed{8}", None),
        (r"\boxed{", None),
        ("<think>7</think>", None),
        ("<think>7", None),
        ("٧", None),
    ],
)
def test_a_bare_number_counts_where_it_is_asked_for_and_nothing_better_is_there(text: str, answer: str | None):
    assert final_answer(text, bare_number=True) == answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7", " 7 "),
        ("7", "$7$"),
        ("7", "7."),
        ("1000", "1,000"),
        ("1,000", "1{,}000"),
        ("(1,2)", "( 1 , 2 )"),
        ("{7}", "7"),
    ],
)
def test_spacing_dollars_and_separators_do_not_make_an_answer_another(one: str, other: str):
    assert comparable(one) == comparable(other)


@pytest.mark.parametrize(("one", "other"), [("12", "1 2"), ("ab", "a b"), ("7", "-7"), ("{1}{2}", "1}{2"), ("x", "X")])
def test_other_differences_do(one: str, other: str):
    assert comparable(one) != comparable(other)


answers = st.text(alphabet="0123456789xyz+-=()[], ", min_size=1, max_size=20).filter(lambda text: text.strip() != "")


@settings(max_examples=50, deadline=None)
@given(answers, st.text(alphabet="ab \n.{}", max_size=30))
def test_what_is_boxed_comes_out(answer: str, around: str):
    assert final_answer(rf"{around}\boxed{{{answer}}} done") == answer.strip()
    assert final_answer(rf"<think>{around}\boxed{{0}}</think>{around}\boxed{{{answer}}}") == answer.strip()
    assert final_answer(rf"<think>\boxed{{{answer}}}{around}") is None


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [r"\boxed{", "{", "}", r"\{", "7", "<answer>", "</answer>", "<think>", "</think>", "####", "\n", "$"]
        )
    )
)
def test_any_order_of_pieces_gives_an_answer_of_the_visible_text_or_none(pieces: list[str]):
    text = "".join(pieces)
    found, visible = final_answer(text, bare_number=True), after_thought(text)
    assert found is None or (visible is not None and "think>" not in found and found != "")
    boxes = boxed_answers(text)
    assert boxes is None or all(box.count("{") - box.count(r"\{") == box.count("}") for box in boxes)
    assert unwrapped(unwrapped(text)) == unwrapped(text) or len(pieces) > 8


MEGABYTE = [
    "a",
    " ",
    "\n",
    "7",
    "7,",
    "1,234,",
    "7 ",
    "{",
    "}",
    "\\",
    r"\{",
    r"\boxed{",
    r"\boxed{7}",
    r"\boxed ",
    r"\boxed{" + "}" * 3,
    "$",
    "$$",
    "<answer>",
    "<answer>7</answer>",
    "</answer>",
    "<think>",
    "</think>",
    "####",
    "#### \n",
    "\n####",
    "#",
    "-",
    "-7",
    ".",
    "7/",
    "{{}",
    "é",
    "\x00",
    "\ud800",
]


@pytest.mark.parametrize("unit", MEGABYTE, ids=ascii)
def test_a_megabyte_of_anything_takes_less_than_a_second(unit: str):
    text = (unit * 1_000_000)[:1_000_000]
    for whole in (text, rf"\boxed{{{text}}}", f"<answer>{text}</answer>"):
        start = time.process_time()
        final_answer(whole, bare_number=True)
        assert time.process_time() - start < 1
    start = time.process_time()
    last_number(text), comparable(text)
    assert time.process_time() - start < 1


def test_an_answer_is_read_as_the_task_says():
    text = "<think>1+6=8, no, 7</think> So we get 7 apples.\n#### 7"
    assert answer_of(text, "tags") is None
    assert answer_of(text, "text") == "So we get 7 apples.\n#### 7"
    assert answer_of(text, "free") == "7"
    assert answer_of("I have 7.", "free") == "7" and answer_of("<think>7", "free") is None
    assert answer_of("7</think><answer>8</answer>", "free", thought_opened=True) == "8"
