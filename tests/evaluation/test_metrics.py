from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.evaluation.metrics import bootstrap_interval, majority_at_k, pass_at_k, win_rate

SAMPLES = st.lists(st.sampled_from(["6", "7", "8", None]), min_size=1, max_size=7)


@pytest.mark.parametrize(("k", "expected"), [(1, 0.3), (5, 0.9167), (8, 1.0)])
def test_pass_at_k_of_three_right_in_ten(k: int, expected: float) -> None:
    assert pass_at_k(10, 3, k) == pytest.approx(expected, abs=5e-5)


@given(st.integers(1, 30), st.data())
def test_pass_at_k_equals_the_binomial_form_and_grows_with_k(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_at_k(n, c, k) == pytest.approx(1 - comb(n - c, k) / comb(n, k))
    assert k == 1 or pass_at_k(n, c, k) >= pass_at_k(n, c, k - 1) - 1e-12


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_counts_that_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"must be in|not possible"):
        pass_at_k(n, c, k)


def _slow_majority(answers: list[str | None], right: str, k: int) -> float:
    """Every subset and every way of breaking its tie, written out."""
    outcomes = []
    for subset in combinations(answers, k):
        votes = [answer for answer in subset if answer is not None]
        best = max((votes.count(a) for a in votes), default=0)
        winners = sorted({a for a in votes if votes.count(a) == best})
        outcomes.append(sum(a == right for a in winners) / len(winners) if winners else 0.0)
    return sum(outcomes) / len(outcomes)


@given(SAMPLES, st.data())
def test_majority_equals_the_naive_count_over_all_subsets(answers: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(answers)))
    correct = [answer == "6" for answer in answers]
    assert majority_at_k(answers, correct, k) == pytest.approx(_slow_majority(answers, "6", k))


@given(SAMPLES, st.data())
def test_pass_at_k_is_never_below_majority_at_k_and_equals_it_at_one(
    answers: list[str | None], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    correct = [answer == "6" for answer in answers]
    assert pass_at_k(len(answers), sum(correct), k) >= majority_at_k(answers, correct, k) - 1e-12
    assert pass_at_k(len(answers), sum(correct), 1) == pytest.approx(majority_at_k(answers, correct, 1))


@given(SAMPLES, st.randoms())
def test_majority_of_all_samples_does_not_depend_on_their_order(answers: list[str | None], source: object) -> None:
    correct = [answer == "6" for answer in answers]
    pairs = list(zip(answers, correct, strict=True))
    source.shuffle(pairs)  # type: ignore[attr-defined]
    k = len(answers)
    assert majority_at_k(answers, correct, k) == majority_at_k([a for a, _ in pairs], [c for _, c in pairs], k)


def test_unparsable_answers_do_not_vote_and_nobody_voting_is_wrong() -> None:
    assert majority_at_k([None, None, None, "6"], [False, False, False, True], 4) == 1.0
    assert majority_at_k([None, None], [False, False], 2) == 0.0


def test_a_three_way_tie_is_right_one_time_in_three() -> None:
    assert majority_at_k(["6", "7", "8"], [True, False, False], 3) == pytest.approx(1 / 3)


def test_voting_helps_a_right_plurality_and_hurts_a_wrong_one() -> None:
    right, wrong = [True] * 7 + [False] * 9, [True] * 5 + [False] * 11
    assert majority_at_k(["6"] * 7 + list("abcdefghi"), right, 16) == 1.0 > 7 / 16
    assert majority_at_k(["6"] * 5 + ["7"] * 11, wrong, 16) == 0.0 < 5 / 16


def test_random_subsets_come_near_all_subsets_and_repeat_with_their_seed() -> None:
    answers, correct = ["6"] * 7 + ["7"] * 5 + [None] * 4, [True] * 7 + [False] * 9
    exact = majority_at_k(answers, correct, 8, num_subsets=13_000)
    drawn = [majority_at_k(answers, correct, 8, 4000, np.random.default_rng(3)) for _ in range(2)]
    assert drawn[0] == drawn[1] == pytest.approx(exact, abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=30)
def test_the_interval_holds_the_mean_of_a_balanced_sample_and_stays_within_its_values(values: list[float]) -> None:
    interval = bootstrap_interval(values, rng=np.random.default_rng(0))
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval.mean == pytest.approx(sum(values) / len(values))


def test_the_interval_covers_the_true_rate_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        values = rng.binomial(16, rng.beta(2, 3, size=100)) / 16
        interval = bootstrap_interval(values.tolist(), rng=rng, num_resamples=400)
        covered += interval.low <= 0.4 <= interval.high
    assert 0.90 <= covered / 300 <= 0.99


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no problems"):
        bootstrap_interval([], rng=np.random.default_rng(0))


GRADES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=6)


@given(GRADES, GRADES)
def test_the_win_rate_is_the_naive_count_and_what_one_wins_the_other_loses(
    ours: list[float], theirs: list[float]
) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in ours for b in theirs]
    assert win_rate(ours, theirs) == pytest.approx(sum(pairs) / len(pairs))
    assert win_rate(ours, theirs) + win_rate(theirs, ours) == pytest.approx(1.0)
    assert win_rate(ours, ours) == 0.5


def test_a_win_rate_needs_grades_on_both_sides() -> None:
    with pytest.raises(ValueError, match="at least one grade"):
        win_rate([], [1.0])
