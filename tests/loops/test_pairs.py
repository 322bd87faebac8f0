"""Pairs out of graded samples: the better is chosen, the widest gap comes first, and noise is decided by the seed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.loops.pairs import sampled_pairs
from melete.loops.preference import best_against_worst
from melete.types import Completion, FinishReason, Message, Problem, Reward, Rollout, RolloutGroup

Sample = tuple[float | None, str, FinishReason]  # grade, text, why it stopped


def group_of(samples: Sequence[Sample], name: str = "p/0") -> RolloutGroup:
    """Sibling i has the tokens [100 + i, 200 + i] after a prompt of [1, 7]."""
    problem = Problem(name, "p", (Message("user", "?"),), "1")
    rollouts = tuple(
        Rollout(problem, i, (1, 7), Completion((100 + i, 200 + i), (-1.0, -1.0), finish, 0), text)
        for i, (_, text, finish) in enumerate(samples)
    )
    return RolloutGroup(name, problem, rollouts, tuple(Reward(grade, {"a": grade}) for grade, _, _ in samples))


def texts(samples: Sequence[Sample], num_pairs: int = 100, label_noise: float = 0.0) -> list[tuple[str, str]]:
    return [(p.chosen, p.rejected) for p in sampled_pairs(group_of(samples), num_pairs, label_noise, "0")]


FOUR: list[Sample] = [(0.5, "b", "stop"), (0.0, "d", "stop"), (1.0, "a", "stop"), (0.25, "c", "stop")]


def test_the_widest_gap_comes_first() -> None:
    assert texts(FOUR) == [("a", "d"), ("a", "c"), ("b", "d"), ("a", "b"), ("b", "c"), ("c", "d")]


@pytest.mark.parametrize("num_pairs", [0, 1, 2, 6, 7])
def test_there_are_no_more_pairs_than_asked_for(num_pairs: int) -> None:
    assert texts(FOUR, num_pairs) == texts(FOUR)[:num_pairs]


def test_gaps_of_one_width_stand_in_the_order_of_the_siblings() -> None:
    assert texts([(0.0, "x", "stop"), (1.0, "b", "stop"), (0.0, "y", "stop"), (1.0, "a", "stop")]) == [
        ("b", "x"),
        ("b", "y"),
        ("a", "x"),
        ("a", "y"),
    ]


def test_equal_grades_make_no_pair() -> None:
    """I5: there is nothing to prefer."""
    assert texts([(0.5, "a", "stop"), (0.5, "b", "stop")]) == []
    assert texts([(1.0, "a", "stop"), (1.0, "b", "stop"), (0.0, "c", "stop")]) == [("a", "c"), ("b", "c")]


def test_equal_texts_make_no_pair() -> None:
    assert texts([(1.0, "a", "stop"), (0.0, "a", "stop")]) == []
    assert texts([(1.0, "a", "stop"), (0.0, "a", "stop"), (0.5, "b", "stop")]) == [("a", "b"), ("b", "a")]


def test_what_was_cut_at_the_limit_stays_out() -> None:
    """I29."""
    assert texts([(1.0, "a", "length"), (0.5, "b", "stop"), (0.0, "c", "stop"), (-1.0, "d", "length")]) == [("b", "c")]


def test_what_no_grader_could_judge_stays_out() -> None:
    """I41."""
    assert texts([(None, "a", "stop"), (0.5, "b", "stop"), (0.0, "c", "stop")]) == [("b", "c")]
    assert texts([(None, "a", "stop"), (0.5, "b", "stop")]) == []
    assert texts([(1.0, "a", "stop")]) == []


GRADES = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
SAMPLES = st.lists(
    st.tuples(GRADES, st.sampled_from("abcd"), st.sampled_from(["stop", "length"])), min_size=1, max_size=6
)


@given(SAMPLES)
@settings(max_examples=50)
def test_pairs_are_those_of_a_loop_over_all_siblings(samples: list[Sample]) -> None:
    wanted = []
    for better, good, one in samples:
        for worse, bad, other in samples:
            if better is None or worse is None or "length" in (one, other):
                continue
            if better > worse and good != bad:
                wanted.append((good, bad))
    assert sorted(texts(samples)) == sorted(wanted)


def test_a_pair_carries_the_prompt_and_an_id_of_its_own() -> None:
    pairs = sampled_pairs(group_of(FOUR), 6, 0.0, "0")
    assert [pair.pair_id for pair in pairs] == [f"p/0/{number}" for number in range(6)]
    assert {pair.messages for pair in pairs} == {(Message("user", "?"),)}


def turned(label_noise: float, seed: str, num_groups: int = 400) -> list[bool]:
    """Which pairs are the wrong way round."""
    groups = [group_of([(1.0, "good", "stop"), (0.0, "bad", "stop")], f"p/{n}") for n in range(num_groups)]
    pairs = [pair for group in groups for pair in sampled_pairs(group, 1, label_noise, seed)]
    assert all({pair.chosen, pair.rejected} == {"good", "bad"} for pair in pairs)
    return [pair.chosen == "bad" for pair in pairs]


@pytest.mark.parametrize("label_noise", [0.0, 0.25, 1.0])
def test_noise_turns_its_share_of_the_pairs_round(label_noise: float) -> None:
    found = turned(label_noise, "0")
    assert len(found) == 400
    assert sum(found) / 400 == pytest.approx(label_noise, abs=0.07 if 0 < label_noise < 1 else 0)


def test_the_seed_and_the_problem_alone_decide_which_pairs_are_turned() -> None:
    first = turned(0.5, "0")
    assert turned(0.5, "0") == first
    assert turned(0.5, "0", num_groups=50) == first[:50]
    agreement = sum(a == b for a, b in zip(first, turned(0.5, "1"), strict=True)) / 400
    assert 0.4 < agreement < 0.6


def test_more_noise_turns_the_same_pairs_and_more() -> None:
    little, much = turned(0.2, "0"), turned(0.6, "0")
    assert all(b for a, b in zip(little, much, strict=True) if a)


def test_the_best_stands_against_the_worst_with_the_very_tokens_that_were_sampled() -> None:
    """I32: the texts say something else and are not read."""
    (chosen, rejected), *others = best_against_worst(group_of(FOUR))
    assert chosen == ([1, 7, 102, 202], [False, False, True, True])
    assert rejected == ([1, 7, 101, 201], [False, False, True, True])
    assert others == []


@pytest.mark.parametrize("grades", [[1.0, 1.0, 1.0], [None, None], [0.5], [None, 0.5, 0.5]])
def test_samples_that_are_alike_in_grade_make_no_pair_of_rows(grades: list[float | None]) -> None:
    assert best_against_worst(group_of([(grade, "a", "stop") for grade in grades])) == []


def test_what_no_grader_could_judge_is_neither_best_nor_worst() -> None:
    """I41."""
    ((chosen, rejected),) = best_against_worst(
        group_of([(None, "a", "stop"), (0.2, "b", "stop"), (0.1, "c", "length"), (None, "d", "stop")])
    )
    assert (chosen[0][2:], rejected[0][2:]) == ([101, 201], [102, 202])
