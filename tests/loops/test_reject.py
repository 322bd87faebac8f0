"""Rejection sampling: every sample is kept or bears one reason, and filters come in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.loops import reject
from melete.loops.reject import Graders, Rules, Sifted, agreement, counts, sift
from melete.rewards.errors import GradingError
from melete.rewards.grade import RewardPart
from melete.rewards.rules import BatchReward, accuracy
from melete.text.readable import ReadableLimits
from melete.types import Completion, FinishReason, Message, Problem, Rollout

RIGHT = "<think>\n3+5=8\n8-2=6\n</think>\n<answer>6</answer>"
CHECKED = "<think>\n3+5=8\n8-2=6\nCheck:\n6+2=8\n8-5=3\n</think>\n<answer>6</answer>"
MIXED = "<think>\nentonces because\n</think>\n<answer>6</answer>"
LOOP = "<think>\n" + "3+5=8\n" * 9 + "</think>\n<answer>6</answer>"


def siblings(texts: Sequence[str], name: str = "p/0", finish: FinishReason = "stop", gold: str = "6") -> list[Rollout]:
    problem = Problem(name, "p", (Message("user", f"How much is 3+5-2? ({name})"),), gold, {"language": "en"})
    return [
        Rollout(problem, i, (1, 7), Completion((40, 41, 2), (-1.0,) * 3, finish, 0), text)
        for i, text in enumerate(texts)
    ]


def grade(problem: Problem, answer: str) -> float:
    if answer == "broken":
        raise GradingError("no grade")
    return 0.5 if answer == "half" else float(answer == problem.gold)


RULE = RewardPart(accuracy(grade))


def rules(**changes: Any) -> Rules:
    return replace(Rules(plain=lambda _problem: False, seed="0"), **changes)


def reasons(texts: Sequence[str], graders: Graders | None = None, **changes: Any) -> list[str]:
    return [sample.reason for sample in sift([siblings(texts)], graders or Graders(RULE), rules(**changes))]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (RIGHT, ""),
        ("<answer>6</answer>", ""),
        ("The answer is 6.", "tags not in order"),
        ("<think>6<answer>6</answer>", "tags not in order"),
        ("<answer>7</answer>", "wrong"),
        ("<answer>half</answer>", "wrong"),
        ("<answer>broken</answer>", "not graded"),
        (MIXED, "mixed languages"),
        (LOOP, "repeats itself"),
        ("<think>\n" + "7" * 1001 + "\n</think>\n<answer>6</answer>", "long paragraph"),
        ("<think>\n```\n6\n```\n</think>\n<answer>6</answer>", "code block"),
    ],
)
def test_the_reason_of_a_single_sample(text: str, reason: str) -> None:
    assert reasons([text]) == [reason]


def test_what_was_cut_at_the_limit_is_dropped_however_good() -> None:
    """I29."""
    (sample,) = sift([siblings([RIGHT], finish="length")], Graders(RULE), rules())
    assert sample.reason == "cut at the limit"


def test_a_control_token_inside_the_text_is_no_text() -> None:
    """The end of the turn is one too, and stands at the end of every sample."""
    assert reasons([RIGHT], control_tokens=frozenset({2})) == [""]
    assert reasons([RIGHT], control_tokens=frozenset({41})) == ["control tokens"]


def test_a_wrong_sample_that_cannot_be_read_is_counted_as_wrong() -> None:
    assert reasons([MIXED.replace(">6<", ">7<")]) == ["wrong"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ["", "", "wrong", "tags not in order"]),
        ({"require_thought": True}, ["", "no thought", "wrong", "tags not in order"]),
        ({"min_score": 0.5}, ["", "", "", "tags not in order"]),
        ({"require_format": False}, ["", "", "wrong", "wrong"]),
    ],
)
def test_what_is_needed_can_be_set(changes: dict[str, Any], found: list[str]) -> None:
    thoughtful = "<think>\n3+5-2 gives\n</think>\n<answer>half</answer>"
    assert reasons([RIGHT, "<answer>6</answer>", thoughtful, "6"], **changes) == found


def test_an_empty_thought_is_none() -> None:
    assert reasons(["<think>\n</think>\n<answer>6</answer>"], require_thought=True) == ["no thought"]


def test_a_plain_task_wants_no_tags() -> None:
    graders = Graders(RewardPart(accuracy(grade, reading="text")))
    assert reasons(["6", "<think>3+3</think>6"], graders, plain=lambda _problem: True) == ["", ""]


def test_duplicates_are_dropped_and_one_of_them_stays() -> None:
    found = reasons([RIGHT, RIGHT, RIGHT.replace("\n", "  \n"), CHECKED])
    assert sorted(found) == ["", "", "exact duplicate", "exact duplicate"]


def test_near_duplicates_count_once_unless_only_equal_ones_do() -> None:
    one = "<think>\nwe add the two small numbers here and now we see it is good\n</think>\n<answer>6</answer>"
    other = one.replace("good", "fine")
    assert sorted(reasons([one, other], max_similarity=0.7)) == ["", "near duplicate"]
    assert reasons([one, other], max_similarity=1.0) == ["", ""]
    rounds = [f"<think>\n{'a b ' * n}\n</think>\n<answer>6</answer>" for n in (4, 5)]  # of the same 3-grams
    anything = ReadableLimits(max_repeated_share=1.0)
    assert sorted(reasons(rounds, max_similarity=0.99, limits=anything)) == ["", "near duplicate"]
    assert reasons(rounds, max_similarity=1.0, limits=anything) == ["", ""]


def test_the_same_text_for_two_problems_is_no_duplicate() -> None:
    found = sift([siblings([RIGHT], "p/0"), siblings([RIGHT], "p/1")], Graders(RULE), rules())
    assert [sample.reason for sample in found] == ["", ""]


DIFFERENT = [f"<think>\n{line}\n</think>\n<answer>6</answer>" for line in ("3+3=6", "2+4=6", "9-3=6", "1+5=6 and done")]


@pytest.mark.parametrize("prefer", ["random", "shortest", "diverse"])
@pytest.mark.parametrize("cap", [1, 2, 3, 4, 5])
def test_no_problem_gives_more_than_the_cap(prefer: str, cap: int) -> None:
    found = reasons(DIFFERENT, keep_per_prompt=cap, prefer=prefer)
    assert found.count("") == min(cap, 4) and found.count("enough of this prompt") == 4 - min(cap, 4)


def test_the_shortest_stay() -> None:
    found = reasons([CHECKED, RIGHT, "<answer>6</answer>"], keep_per_prompt=2, prefer="shortest")
    assert found == ["enough of this prompt", "", ""]


def test_of_two_that_are_nearly_the_same_the_preferred_one_stays() -> None:
    long = "<think>\nwe add the two small numbers here and now we see it is good\n</think>\n<answer>6</answer>"
    short = long.replace(" good", "")
    for texts in ([long, short], [short, long]):
        found = dict(zip(texts, reasons(texts, max_similarity=0.7, prefer="shortest"), strict=True))
        assert found == {short: "", long: "near duplicate"}


def test_the_diverse_ones_are_least_alike() -> None:
    """Of two kinds of thought one each stays, whichever comes first."""
    plus = [
        f"<think>\nwe begin with the sum of all and go on to the end of it: {n}\n</think>\n<answer>6</answer>"
        for n in (1, 2)
    ]
    minus = [
        f"<think>\ntake every part away and look at what is left over there: {n}\n</think>\n<answer>6</answer>"
        for n in (1, 2)
    ]
    for seed in range(8):
        found = reasons([*plus, *minus], keep_per_prompt=2, prefer="diverse", seed=str(seed))
        assert sorted(found[:2]) == sorted(found[2:]) == ["", "enough of this prompt"]


def test_the_seed_and_the_problem_alone_decide_which_stay_by_chance() -> None:
    def kept(seed: str, name: str) -> list[bool]:
        found = sift([siblings(DIFFERENT, name)], Graders(RULE), rules(keep_per_prompt=1, seed=seed))
        return [not sample.reason for sample in found]

    assert kept("0", "p/0") == kept("0", "p/0")
    assert len({tuple(kept("0", f"p/{n}")) for n in range(40)}) == 4
    assert len({tuple(kept(str(n), "p/0")) for n in range(40)}) == 4


def test_tidied_texts_are_what_would_be_learnt() -> None:
    loose = "<think>3+5=8 \n3+5=8\n8-2=6</think> <answer> 6</answer>"
    (sample,) = sift([siblings([loose])], Graders(RULE), rules(tidy=True))
    assert (sample.text, sample.rollout.text, sample.reason) == (RIGHT, loose, "")
    (sample,) = sift([siblings([loose])], Graders(RULE), rules())
    assert sample.text == loose


def test_two_texts_that_are_the_same_once_tidied_count_once() -> None:
    loose = RIGHT.replace("8-2=6", "8-2=6\n8-2=6")
    assert sorted(reasons([RIGHT, loose], tidy=True)) == ["", "exact duplicate"]
    assert reasons([RIGHT, loose]) == ["", ""]


def test_what_tidying_breaks_is_dropped_and_only_what_was_changed_is_judged_again() -> None:
    """A grader that wants the space that tidying takes away."""
    asked: list[str] = []

    def wants_space(rollout: Rollout) -> float:
        asked.append(rollout.text)
        return float(rollout.text == RIGHT or rollout.text.endswith(" </answer>"))

    texts = [RIGHT, "<answer>6 </answer>"]
    assert reasons(texts, Graders(RewardPart(wants_space)), tidy=True) == ["", "tidying broke it"]
    assert asked == [*texts, "<answer>6</answer>"]


def judge(*verdicts: float | str) -> RewardPart:
    """Says this of each in turn; a text is a failure."""

    def scores(rollouts: Sequence[Rollout]) -> list[float | Exception]:
        found = [verdicts[rollout.sibling] for rollout in rollouts]
        return [GradingError(verdict) if isinstance(verdict, str) else verdict for verdict in found]

    return RewardPart(BatchReward(scores))


ANSWERS = [f"<answer>{answer}</answer>" for answer in ("6", "7", "6", "7", "6", "broken")]


def test_a_judge_decides_and_is_compared_with_the_rule() -> None:
    graders = Graders(judge(1.0, 1.0, 0.0, 0.0, "no JSON", 1.0), RULE)
    found = sift([siblings(ANSWERS)], graders, rules())
    assert [sample.reason for sample in found[:5]] == ["", "", "wrong", "wrong", "no verdict"]
    assert found[4].told == "verdict: no JSON"
    assert found[5].reason == ""  # the judge could tell where the rule could not
    assert agreement(found, 1.0) == {
        "agreement": 0.5,
        "num": 4,
        "both_right": 1,
        "both_wrong": 1,
        "only_judge_right": 1,
        "only_rule_right": 1,
    }


def test_a_mean_verdict_below_the_needed_one_is_wrong() -> None:
    graders = Graders(judge(0.5, 1.0), RULE)
    assert reasons(ANSWERS[:2], graders) == ["wrong", ""]
    assert reasons(ANSWERS[:2], graders, min_score=0.5) == ["", ""]


def test_a_judge_is_not_asked_about_what_is_dropped_anyway() -> None:
    asked: list[str] = []

    def scores(rollouts: Sequence[Rollout]) -> list[float | Exception]:
        asked.extend(rollout.text for rollout in rollouts)
        return [1.0] * len(rollouts)

    reasons(["6", RIGHT, LOOP], Graders(RewardPart(BatchReward(scores)), RULE))
    assert asked == [RIGHT, LOOP]


def test_without_a_judge_there_is_no_agreement() -> None:
    found = sift([siblings([RIGHT])], Graders(RULE), rules())
    assert agreement(found, 1.0) is None and agreement([], 1.0) is None


TEXTS = st.lists(
    st.tuples(
        st.sampled_from(
            [RIGHT, CHECKED, MIXED, LOOP, "6", "<answer>7</answer>", "<answer>broken</answer>", *DIFFERENT]
        ),
        st.sampled_from(["stop", "stop", "length"]),
    ),
    max_size=8,
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(TEXTS, max_size=4), st.integers(1, 3), st.booleans(), st.sampled_from(["random", "shortest", "diverse"])
)
def test_every_sample_is_accounted_for_once_and_in_order(
    problems: list[list[tuple[str, FinishReason]]], cap: int, tidy: bool, prefer: Any
) -> None:
    groups = [[siblings([text], f"p/{n}", finish)[0] for text, finish in samples] for n, samples in enumerate(problems)]
    groups = [[replace(rollout, sibling=i) for i, rollout in enumerate(group)] for group in groups]
    found = sift(groups, Graders(RULE), rules(keep_per_prompt=cap, tidy=tidy, prefer=prefer))
    assert [sample.rollout for sample in found] == [rollout for group in groups for rollout in group]
    dropped = counts(found)
    kept = [sample for sample in found if not sample.reason]
    assert tuple(dropped) == reject.REASONS
    assert sum(dropped.values()) + len(kept) == len(found)
    for group in groups:
        own = [sample.text for sample in kept if sample.rollout in group]
        good = {text.rollout.text for text in found if text.rollout in group and text.reason in ("", reject.CAPPED)}
        assert len(own) == len(set(own)) == min(cap, len(good))


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_a_problem_is_sifted_the_same_alone_and_among_others(problems: list[list[tuple[str, FinishReason]]]) -> None:
    groups = [
        [replace(siblings([text], f"p/{n}", finish)[0], sibling=i) for i, (text, finish) in enumerate(samples)]
        for n, samples in enumerate(problems)
    ]
    alone: list[Sifted] = []
    for group in groups:
        alone += sift([group], Graders(RULE), rules(keep_per_prompt=1))
    assert sift(groups, Graders(RULE), rules(keep_per_prompt=1)) == alone


def test_limits_reach_the_filter() -> None:
    assert reasons([LOOP], limits=ReadableLimits(max_repeated_share=1.0)) == [""]
