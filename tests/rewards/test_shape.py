"""Rewards of shape: golden numbers, laws, and what does not pay."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.rewards.errors import GradingError
from melete.rewards.rules import BatchReward, RewardFunction
from melete.rewards.shape import (
    cosine_length,
    language_consistency,
    length_penalty,
    reasoning_steps,
    repetition_penalty,
    tag_count,
)
from melete.types import Completion, Message, Problem, Rollout


def rollout(text: str = "", length: int = 10, *, problem: str = "p", sibling: int = 0, **meta: str) -> Rollout:
    question = Problem(problem, "t", (Message("user", meta.pop("question", "How many apples are left?")),), "7", meta)
    completion = Completion((5,) * length, (-1.0,) * length, "stop", 0)
    return Rollout(question, sibling, (1, 2), completion, text)


def is_right(rollout: Rollout) -> float:
    if "fail" in rollout.text:
        raise GradingError("no verdict")
    return float("right" in rollout.text)


@pytest.mark.parametrize(
    ("text", "opened", "value"),
    [
        ("<think>a</think><answer>7</answer>", False, 1.0),
        ("a</think><answer>7</answer>", True, 1.0),
        ("<think>a</think><answer>7</answer>", True, 0.75),
        ("<answer>7</answer>", False, 0.5),
        ("<think>a</think>", False, 0.5),
        ("<think>a", False, 0.25),
        ("", False, 0.0),
        ("", True, 0.25),
        ("<think>" * 100, False, 0.0),
        ("<think></think>" * 100 + "<answer></answer>", False, 0.5),
        ("<think>a</think><answer>7</answer><answer>8</answer>", False, 0.5),
        ("</think><think></answer><answer>", False, 0.5),
        ("< think >a< /think >", False, 0.0),
        ("<THINK>a</THINK>", False, 0.0),
    ],
)
def test_a_quarter_for_each_tag_that_stands_once(text: str, opened: bool, value: float):
    assert tag_count(thought_opened=opened)(rollout(text)) == value


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "a"]), max_size=12), st.integers(2, 4))
def test_writing_the_same_tags_again_never_pays(pieces: list[str], times: int):
    reward, text = tag_count(), "".join(pieces)
    assert 0 <= reward(rollout(text)) <= 1
    assert reward(rollout(text * times)) == 0.0


def test_the_length_penalty_of_kimi_by_hand():
    """Lengths 10, 15, 20 and right, right, right: 0.5, 0, -0.5; a wrong answer keeps only what is below 0."""
    reward = length_penalty(is_right)
    assert isinstance(reward, BatchReward)
    group = [rollout("right", 10), rollout("right", 15), rollout("right", 20), rollout("no", 10), rollout("no", 20)]
    assert reward(group) == [0.5, 0.0, -0.5, 0.0, -0.5]


def test_siblings_of_equal_length_get_nothing_and_problems_are_apart():
    reward = length_penalty(is_right)
    batch = [
        rollout("right", 10),
        rollout("right", 10),
        rollout("right", 100, problem="q"),
        rollout("right", 200, problem="q"),
    ]
    assert reward(batch) == [0.0, 0.0, 0.5, -0.5]
    assert reward([]) == [] and reward([rollout("right", 3)]) == [0.0]


def test_a_failed_verdict_fails_its_rollout_alone_and_its_length_does_not_count():
    values = length_penalty(is_right)([rollout("right", 10), rollout("fail", 1000), rollout("right", 20)])
    assert values[0] == 0.5 and values[2] == -0.5 and isinstance(values[1], GradingError)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=8))
def test_the_length_penalty_orders_right_answers_by_length_and_never_pays_wrong_ones(group: list[tuple[int, bool]]):
    rollouts = [rollout("right" if right else "no", length) for length, right in group]
    values = length_penalty(is_right)(rollouts)
    for (length, right), value in zip(group, values, strict=True):
        assert isinstance(value, float) and -0.5 <= value <= (0.5 if right else 0.0)
        for (other, other_right), other_value in zip(group, values, strict=True):
            assert isinstance(other_value, float)
            assert right != other_right or length <= other or value <= other_value


@pytest.mark.parametrize(
    ("text", "length", "value"),
    [
        ("right", 0, 1.0),
        ("right", 50, 0.75),
        ("right", 100, 0.5),
        ("right", 1000, 0.5),
        ("no", 0, -1.0),
        ("no", 50, -0.75),
        ("no", 100, -0.5),
        ("no", 1000, -0.5),
    ],
)
def test_the_cosine_by_hand(text: str, length: int, value: float):
    assert cosine_length(is_right, 100)(rollout(text, length)) == pytest.approx(value)


def test_the_cosine_agrees_with_open_r1():
    """open-r1 swaps the two values of a wrong answer and writes one formula for both."""
    import math

    for length in range(0, 101, 7):
        cosine = math.cos(length / 100 * math.pi)
        right, wrong = 0.5 + 0.5 * (1.0 - 0.5) * (1.0 + cosine), -0.5 + 0.5 * (-1.0 + 0.5) * (1.0 + cosine)
        assert cosine_length(is_right, 100)(rollout("right", length)) == pytest.approx(right)
        assert cosine_length(is_right, 100)(rollout("no", length)) == pytest.approx(wrong)


@settings(max_examples=50)
@given(st.integers(0, 300), st.integers(0, 300))
def test_right_answers_fall_with_length_wrong_ones_rise_and_never_meet(a: int, b: int):
    reward = cosine_length(is_right, 200)
    short, long = sorted((a, b))
    assert reward(rollout("right", short)) >= reward(rollout("right", long)) > 0
    assert reward(rollout("no", short)) <= reward(rollout("no", long)) < 0


def test_a_failed_verdict_fails_the_cosine():
    with pytest.raises(GradingError):
        cosine_length(is_right, 100)(rollout("fail"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0.0),
        ("one two", 0.0),
        ("one two three", 0.0),
        ("one two three four", 0.0),
        ("a a a a", -0.5),  # two n-grams of three words, one of them new
        ("A a a A", -0.5),
        ("a b c a b c", -0.25),  # abc bca cab abc
        ("我我我我", -0.5),
        ("哈 哈 哈 哈", -0.5),
    ],
)
def test_the_repetition_penalty_by_hand(text: str, value: float):
    assert repetition_penalty()(rollout(text)) == pytest.approx(value)


@settings(max_examples=50)
@given(st.text(alphabet="ab ", max_size=60), st.integers(1, 4))
def test_the_repetition_penalty_stays_between_its_bounds(text: str, size: int):
    assert -2.0 < repetition_penalty(size=size, max_penalty=-2.0)(rollout(text)) <= 0.0


ES = "Primero sumamos las manzanas y luego restamos."
EN = "First we add the apples and then we subtract."


@pytest.mark.parametrize(
    ("text", "meta", "low", "high"),
    [
        (f"<think>{EN}</think>7", {}, 1.0, 1.0),
        (f"<think>{ES}</think>7", {}, 0.0, 0.1),
        (f"<think>{ES}</think>7", {"language": "es"}, 1.0, 1.0),
        (f"<think>{EN}</think>7", {"language": "es"}, 0.0, 0.1),
        (f"<think>{ES}</think>7", {"question": "¿Cuántas manzanas quedan?"}, 1.0, 1.0),
        (f"<think>{EN} {ES}</think>7", {}, 0.4, 0.65),
        (f"<think>{ES} $the of and$ `the` 7</think>", {"language": "es"}, 1.0, 1.0),
        (f"<think>{EN}</think>{ES}", {}, 1.0, 1.0),  # only the thought
        ("<think>我们先算</think>7", {"question": "还剩多少苹果？"}, 1.0, 1.0),
        ("<think>我们先算</think>7", {}, 0.0, 0.0),
        (f"<think>{EN}</think>7", {"question": "3+5=?"}, 1.0, 1.0),  # a question without words: the script is judged
        ("<think>Сначала</think>7", {"question": "3+5=?"}, 0.0, 0.0),
        ("<think></think>7", {}, 0.0, 0.0),
        ("<think>3+5=8</think>7", {}, 0.0, 0.0),
        (f"<think>{EN}", {}, 0.0, 0.0),
        (EN, {}, 0.0, 0.0),
        ("", {}, 0.0, 0.0),
    ],
)
def test_language_consistency_is_the_share_of_the_thoughts_words(
    text: str, meta: dict[str, str], low: float, high: float
):
    assert low <= language_consistency()(rollout(text, **meta)) <= high


def test_a_thought_without_words_gets_what_the_setting_says_and_none_gets_nothing():
    reward = language_consistency(wordless=1.0)
    assert reward(rollout("<think>3+5=8</think>8")) == 1.0
    assert reward(rollout("<think></think>8")) == reward(rollout("8")) == 0.0
    assert reward(rollout(f"<think>{ES}</think>8")) < 0.5
    with pytest.raises(ValueError, match="wordless must be 0 to 1, not 2"):
        language_consistency(wordless=2.0)


def test_language_consistency_where_the_template_opened_the_thought():
    assert language_consistency(thought_opened=True)(rollout(f"{EN}</think>7")) == 1.0
    assert language_consistency(thought_opened=True)(rollout(EN)) == 0.0


def test_a_language_that_is_none_fails_the_grading():
    with pytest.raises(ValueError, match="two small letters"):
        language_consistency()(rollout(f"<think>{EN}</think>", language="Spanish"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0.0),
        ("no steps at all", 0.0),
        ("Step 1: add", 1 / 3),
        ("Step 1: add\nStep 2: subtract", 2 / 3),
        ("Step 1: add\nStep 2: subtract\nStep 3: check\nStep 4: more", 1.0),
        ("1. add\n2. subtract\n3) check", 1.0),
        ("- add\n* subtract\n• check", 1.0),
        ("First, add. Second, subtract. Finally, check.", 1.0),
        ("**Step 1** add\n## Step 2: subtract", 2 / 3),
        ("Paso 1: sumar\nLuego, restar", 2 / 3),
        ("Step 1:\nStep 2:\nStep 3:", 0.0),
        ("Step 1: add\n" * 10, 1 / 3),
        ("- a\n" * 1000, 1 / 3),
        ("1.5 and 2.5", 0.0),
        ("the first one", 0.0),
        ("<think>Step 1: add</think>Step 2: b\nStep 3: c", 1 / 3),
        ("<think>Step 1: add\nStep 2: b", 0.0),
    ],
)
def test_steps_are_counted_up_to_three_and_repeating_one_never_pays(text: str, value: float):
    assert reasoning_steps()(rollout(text)) == pytest.approx(value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cosine_length(is_right, 0),
        lambda: repetition_penalty(size=0),
        lambda: repetition_penalty(max_penalty=0.1),
        lambda: repetition_penalty(max_penalty=float("nan")),
        lambda: reasoning_steps(enough=0),
    ],
)
def test_settings_without_sense_are_refused(make: object):
    with pytest.raises(ValueError, match="must be"):
        make()  # type: ignore[operator]


UNITS = [
    "a",
    " ",
    "\n",
    "\t",
    "a ",
    "Step 1: ",
    "Step 1:\n",
    "- ",
    "1. ",
    "**",
    "#",
    "First, ",
    "<think>",
    "</think>",
    "<",
    "<answer>",
    "$",
    "`",
    "好",
    "_",
    "a(",
    "1",
    "é",
    "\x00",
]
REWARDS: dict[str, RewardFunction] = {
    "tags": tag_count(),
    "repetition": repetition_penalty(),
    "language": language_consistency(),
    "opened": language_consistency(thought_opened=True),
    "steps": reasoning_steps(enough=10**9),
}


@pytest.mark.parametrize("unit", UNITS, ids=ascii)
def test_a_megabyte_of_anything_takes_little_time(unit: str):
    text = (unit * 1_000_000)[:1_000_000]
    for name, reward in REWARDS.items():
        for whole in (text, f"<think>{text}</think>"):
            start = time.process_time()
            reward(replace(rollout(), text=whole))
            assert time.process_time() - start < 1.5, name  # well under a second on an idle core
