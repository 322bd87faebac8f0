"""Verifiable rewards: what scores, what does not, and failures that stay data."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melete.algorithms import resolve
from melete.batch import Annotations, Batch
from melete.credit import credit
from melete.errors import RecipeError
from melete.rewards import REWARDS, RewardContext, make_reward, make_rewards, reward_settings
from melete.rewards.errors import GradingError
from melete.rewards.grade import Grading, RewardPart, grade_groups, grade_rollout
from melete.rewards.rules import BatchReward, ConcurrentReward, soft_overlong
from melete.tasks import make_task
from melete.text.answers import parse_completion
from melete.text.final_answer import Reading
from melete.types import Completion, FinishReason, Message, Problem, Rollout

TASK = make_task("arithmetic_chain", {})
PROBLEM = Problem("p", "arithmetic_chain", (Message("user", "9+4-7=?"),), "6", {"expression": "9+4-7"})
CONTEXT = RewardContext(TASK.grade, seed=0)


def rollout(
    text: str, *, finish: FinishReason = "stop", sibling: int = 0, problem: Problem = PROBLEM, version: int = 0
) -> Rollout:
    return Rollout(problem, sibling, (1, 2), Completion((5, 6), (-1.0, -1.0), finish, version), text)


def score(name: str, text: str, finish: FinishReason = "stop", *, thought_opened: bool = False) -> float:
    context = replace(CONTEXT, thought_opened=thought_opened)
    return make_rewards([name], context)[name](rollout(text, finish=finish))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>6</answer>", 1.0),
        ("<think>9+4=13\n13-7=6</think>\n<answer> 6. </answer>", 1.0),
        ("The answer is <answer>6</answer>.", 1.0),
        ("<answer>7</answer>", 0.0),
        ("6", 0.0),
        ("The answer is 6.", 0.0),
        ("", 0.0),
        ("<answer>6", 0.0),
        ("<answer></answer>", 0.0),
        ("<answer>6</answer><answer>6</answer>", 0.0),
        ("<answer>6</answer><answer>7</answer>", 0.0),
        ("<answer>6 or 7</answer>", 0.0),
        ("<think><answer>6</answer>", 0.0),
        ("<think><answer>6</answer></think>", 0.0),
        ("<think><answer>6</answer></think><answer>7</answer>", 0.0),
        ("<answer><answer>6</answer></answer>", 0.0),
    ],
)
def test_accuracy_is_the_grade_of_the_one_answer_after_the_thought(text: str, expected: float) -> None:
    assert score("accuracy", text) == expected


@pytest.mark.parametrize(
    ("text", "optional", "required"),
    [
        ("<answer>7</answer>", 1.0, 0.0),
        ("  <answer>7</answer>\n", 1.0, 0.0),
        ("<think>a</think><answer>7</answer>", 1.0, 1.0),
        ("<think>\na\n</think>\n<answer>7</answer>", 1.0, 1.0),
        ("", 0.0, 0.0),
        ("7", 0.0, 0.0),
        ("so <answer>7</answer>", 0.0, 0.0),
        ("<answer>7</answer> done", 0.0, 0.0),
        ("<think>a</think> so <answer>7</answer>", 0.0, 0.0),
        ("<think>a</think>", 0.0, 0.0),
        ("<think>a<answer>7</answer>", 0.0, 0.0),
        ("a</think><answer>7</answer>", 0.0, 0.0),
        ("<answer>7</answer><think>a</think>", 0.0, 0.0),
        ("<think>a</think><think>b</think><answer>7</answer>", 0.0, 0.0),
        ("<think>a<think>b</think></think><answer>7</answer>", 0.0, 0.0),
        ("<answer>7</answer><answer>7</answer>", 0.0, 0.0),
    ],
)
def test_format_wants_tags_in_order_and_nothing_else(text: str, optional: float, required: float) -> None:
    assert score("format", text) == optional
    assert score("format_with_thought", text) == required


@pytest.mark.parametrize("name", ["format", "format_with_thought"])
def test_a_truncated_completion_is_not_well_formed(name: str) -> None:
    text = "<think>a</think><answer>7</answer>"
    assert score(name, text, "stop") == 1.0
    assert score(name, text, "length") == 0.0


def test_a_thought_that_the_template_opened_is_a_thought() -> None:
    for name in ("format", "format_with_thought", "accuracy"):
        assert score(name, "9+4=13</think><answer>6</answer>", thought_opened=True) == 1.0
        assert score(name, "<think>9+4=13</think><answer>6</answer>", thought_opened=True) == float(name == "accuracy")
    assert score("format", "<answer>6</answer>", thought_opened=True) == 0.0


PIECES = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "6", "7", " "])


@given(st.lists(PIECES, max_size=12).map("".join))
def test_what_is_well_formed_has_one_answer_and_what_scores_has_an_answer_outside_the_thought(text: str) -> None:
    parsed = parse_completion(text)
    if parsed.well_formed:
        assert text.count("<answer>") == text.count("</answer>") == 1 and text.count("<think>") <= 1
        assert parsed.answer is not None and text.rstrip().endswith("</answer>")
    if score("accuracy", text):
        assert parsed.answer == "6" and "<answer>" in text.rpartition("</think>")[2]


def test_the_random_reward_is_a_fair_coin_that_never_reads_the_text() -> None:
    coin = make_rewards(["random"], CONTEXT)["random"]
    problems = [TASK.problem("train", index) for index in range(500)]
    tosses = [coin(rollout("x", sibling=s, problem=p, version=3)) for p in problems for s in range(8)]
    assert set(tosses) == {0.0, 1.0}
    assert sum(tosses) / len(tosses) == pytest.approx(0.5, abs=0.03)
    right = [coin(rollout("<answer>6</answer>", sibling=s, problem=p, version=3)) for p in problems for s in range(8)]
    assert right == tosses
    later = [coin(rollout("x", sibling=s, problem=p, version=4)) for p in problems for s in range(8)]
    other = make_rewards(["random"], replace(CONTEXT, seed=1))["random"]
    elsewhere = [other(rollout("x", sibling=s, problem=p, version=3)) for p in problems for s in range(8)]
    for another in (later, elsewhere):
        assert sum(a == b for a, b in zip(tosses, another, strict=True)) / len(tosses) == pytest.approx(0.5, abs=0.03)


def fails(_rollout: Rollout) -> float:
    raise TimeoutError("the verifier took too long")


def not_a_number(_rollout: Rollout) -> float:
    return math.nan


def endless(_rollout: Rollout) -> float:
    return math.inf


def no_number(_rollout: Rollout) -> float:
    return "much"  # type: ignore[return-value]


def long_answer(found: Rollout) -> float:
    return float(len(found.text))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (fails, "TimeoutError: the verifier took too long"),
        (not_a_number, "not finite (nan)"),
        (endless, "not finite (inf)"),
        (no_number, "ValueError"),
    ],
)
def test_a_grader_that_fails_gives_no_reward_and_a_reason_and_the_other_parts_stay(function, reason: str) -> None:
    reward = grade_rollout(rollout("ab"), {"broken": function, "long": long_answer}, {"broken": 1.0, "long": 2.0})
    assert reward.total is None
    assert dict(reward.parts) == {"broken": None, "long": 2.0}
    assert reward.reason.startswith("broken: ") and reason in reward.reason


def test_a_reward_is_the_weighted_sum_of_its_parts() -> None:
    functions = make_rewards(["accuracy", "format"], CONTEXT)
    reward = grade_rollout(rollout("so <answer>6</answer>"), functions, {"accuracy": 2.0, "format": 0.5})
    assert reward.total == 2.0 and reward.parts == {"accuracy": 1.0, "format": 0.0} and not reward.reason


def test_a_failed_grade_leaves_the_statistics_of_its_group() -> None:
    """I25, I28: the advantages of the others are those of a group without the failed rollout."""

    def fails_on_the_third(found: Rollout) -> float:
        return fails(found) if found.sibling == 2 else float(found.sibling)

    def advantages(siblings: list[int]) -> dict[int, float]:
        rows = [[rollout("x", sibling=sibling) for sibling in siblings]]
        groups = grade_groups(rows, {"r": RewardPart(fails_on_the_third)})
        batch = Batch.from_groups(groups, pad_token_id=0)
        update = credit(batch, Annotations({}), resolve("grpo", kl_coef=0.0))
        known = [sibling for sibling in siblings if sibling != 2]
        assert update.num_rows == len(known)
        return dict(zip(known, update.advantages[:, -1].tolist(), strict=True))

    assert advantages([0, 1, 2, 3]) == pytest.approx(advantages([0, 1, 3]))


def test_a_reward_of_ones_own_is_named_by_its_import_path() -> None:
    path = f"{__name__}:long_answer"
    functions = make_rewards(["accuracy", path], CONTEXT)
    assert list(functions) == ["accuracy", path]
    assert functions[path](rollout("abc")) == 3.0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("acuracy", "did you mean accuracy"),
        ("nothing", "known are accuracy"),
        ("", "known are accuracy"),
        ("no_such_module:reward", "no_such_module"),
        ("math:no_such_function", "no_such_function"),
        ("sys", "package.module:function"),
        ("math:pi", "not a function"),
        (":sin", "package.module:function"),
    ],
)
def test_an_unknown_reward_is_refused_and_what_is_known_is_named(name: str, hint: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        make_rewards([name], CONTEXT)
    assert hint in str(refusal.value)


def test_a_module_that_breaks_while_it_is_imported_is_a_refusal(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_rewards.py").write_text("raise RuntimeError('no such luck')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match="no such luck"):
        make_rewards(["broken_rewards:reward"], CONTEXT)


PENALTIES = {"overlong", "repetition", "length", "cosine_length"}


def test_every_reward_of_the_table_is_between_zero_and_one_for_any_text() -> None:
    for name in sorted(
        REWARDS.keys() - PENALTIES - {"code"}
    ):  # a penalty, from -1 to 0; programs have tests of their own
        for text in ("", "<answer>6</answer>", "<think></think><answer>6</answer>", "\x00", "<answer>" * 1000):
            assert 0.0 <= score(name, text) <= 1.0


def of_length(num_tokens: int) -> Rollout:
    return replace(rollout("x"), completion=Completion((5,) * num_tokens, (-1.0,) * num_tokens, "stop", 0))


@pytest.mark.parametrize(
    ("num_tokens", "penalty"), [(1, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (120, -1.0)]
)
def test_overlong_falls_from_zero_to_minus_one_over_the_last_fifth_of_the_limit(
    num_tokens: int, penalty: float
) -> None:
    """I29."""
    assert soft_overlong(100)(of_length(num_tokens)) == pytest.approx(penalty)
    context = replace(CONTEXT, max_new_tokens=100)
    assert make_rewards(["overlong"], context)["overlong"](of_length(num_tokens)) == pytest.approx(penalty)


@pytest.mark.parametrize(("share", "penalties"), [(0.5, [0.0, -0.5, -1.0]), (0.01, [0.0, 0.0, -1.0])])
def test_the_share_says_where_overlong_begins(share: float, penalties: list[float]) -> None:
    """Of 8 tokens half are 4; the smallest share is still one token."""
    assert [soft_overlong(8, cache_share=share)(of_length(n)) for n in (4, 6, 8)] == penalties


def groups_of(*texts: Sequence[str]) -> list[list[Rollout]]:
    problems = [TASK.problem("train", index) for index in range(len(texts))]
    return [
        [rollout(text, sibling=sibling, problem=problem) for sibling, text in enumerate(siblings)]
        for problem, siblings in zip(problems, texts, strict=True)
    ]


def test_a_batch_reward_sees_all_rollouts_at_once_and_each_gets_its_own_score() -> None:
    seen: list[list[str]] = []

    def lengths(rollouts: Sequence[Rollout]) -> list[float]:
        seen.append([found.text for found in rollouts])
        return [float(len(found.text)) for found in rollouts]

    accuracy = make_rewards(["accuracy"], CONTEXT)["accuracy"]
    parts = {"length": RewardPart(BatchReward(lengths), 2.0), "accuracy": RewardPart(accuracy)}
    graded = grade_groups(groups_of(("a", "bbb"), ("cc", "", "a")), parts)
    assert seen == [["a", "bbb", "cc", "", "a"]]
    assert [[reward.parts["length"] for reward in group.rewards] for group in graded] == [[1.0, 3.0], [2.0, 0.0, 1.0]]
    assert [[reward.total for reward in group.rewards] for group in graded] == [[2.0, 6.0], [4.0, 0.0, 2.0]]


def times_out(_rollouts: Sequence[Rollout]) -> list[float]:
    raise TimeoutError("the reward model took too long")


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (lambda _rollouts: [1.0], "ValueError: 1 scores for 3 rollouts"),
        (lambda _rollouts: [1.0] * 4, "ValueError: 4 scores for 3 rollouts"),
        (lambda _rollouts: None, "TypeError"),
        (times_out, "TimeoutError: the reward model took too long"),
    ],
)
def test_a_batch_that_fails_is_a_failure_of_each_rollout_and_the_other_parts_stay(scores, reason: str) -> None:
    """I41, I42."""
    parts = {"broken": RewardPart(BatchReward(scores)), "long": RewardPart(long_answer)}
    graded = grade_groups(groups_of(("ab", "c"), ("",)), parts)
    rewards = [reward for group in graded for reward in group.rewards]
    assert [reward.total for reward in rewards] == [None] * 3
    assert [dict(reward.parts) for reward in rewards] == [{"broken": None, "long": n} for n in (2.0, 1.0, 0.0)]
    assert all(reward.reason.startswith("broken: ") and reason in reward.reason for reward in rewards)


def test_a_score_that_is_not_finite_is_a_failure_of_that_rollout_alone() -> None:
    """I42."""
    parts = {"score": RewardPart(BatchReward(lambda _rollouts: [1.0, math.nan, -2.0]))}
    (group,) = grade_groups(groups_of(("a", "b", "c")), parts)
    assert [reward.total for reward in group.rewards] == [1.0, None, -2.0]
    assert "not finite (nan)" in group.rewards[1].reason


def test_an_exception_in_the_place_of_a_score_is_a_failure_of_that_rollout_alone() -> None:
    """I41."""
    parts = {"judge": RewardPart(BatchReward(lambda _rollouts: [1.0, GradingError("no verdict"), 0.0]))}
    (group,) = grade_groups(groups_of(("a", "b", "c")), parts)
    assert [reward.total for reward in group.rewards] == [1.0, None, 0.0]
    assert group.rewards[1].reason == "judge: no verdict"


def scores(*values: float | Exception) -> BatchReward:
    return BatchReward(lambda _rollouts: list(values))


def totals(parts: dict[str, RewardPart], *texts: Sequence[str]) -> list[list[float | None]]:
    return [[reward.total for reward in group.rewards] for group in grade_groups(groups_of(*texts), parts)]


def test_a_part_behind_a_gate_counts_only_where_the_gate_is_open() -> None:
    """Accuracy 1, 1, 0 and format 1, 0, 1: the second answer is right and pays nothing."""
    parts = {
        "accuracy": RewardPart(scores(1.0, 1.0, 0.0), gate="format"),
        "format": RewardPart(scores(1.0, 0.0, 1.0), 0.25),
    }
    (group,) = grade_groups(groups_of(("a", "b", "c")), parts)
    assert [reward.total for reward in group.rewards] == [1.25, 0.0, 0.25]
    assert [reward.parts["accuracy"] for reward in group.rewards] == [1.0, 1.0, 0.0]  # as it was graded


def test_behind_a_gate_that_failed_nothing_is_known() -> None:
    parts = {
        "accuracy": RewardPart(scores(1.0, 1.0), gate="format"),
        "format": RewardPart(scores(1.0, GradingError("?")), 0.0),
    }
    assert totals(parts, ("a", "b")) == [[1.0, None]]


def test_a_gate_that_is_no_part_is_refused() -> None:
    with pytest.raises(ValueError, match="the gate of accuracy is 'fromat', which is none of accuracy, format"):
        Grading({"accuracy": RewardPart(long_answer, gate="fromat"), "format": RewardPart(long_answer)})


def test_a_part_may_be_brought_to_the_scale_of_its_group_or_of_the_step() -> None:
    """Groups (1, 3) and (10, 10): within the group -1, 1 and 0, 0; over the step the mean is 6."""
    values = scores(1.0, 3.0, 10.0, 10.0)
    assert totals({"r": RewardPart(values, normalise="group")}, ("a", "b"), ("c", "d")) == [[-1.0, 1.0], [0.0, 0.0]]
    step = totals({"r": RewardPart(values, normalise="step")}, ("a", "b"), ("c", "d"))
    deviation = statistics.pstdev([1, 3, 10, 10])
    assert step[0] == pytest.approx([-5 / deviation, -3 / deviation])
    assert step[1] == pytest.approx([4 / deviation] * 2)


def test_what_is_not_known_leaves_the_scale() -> None:
    values = scores(1.0, GradingError("?"), 3.0)
    assert totals({"r": RewardPart(values, 2.0, normalise="group")}, ("a", "b", "c")) == [[-2.0, None, 2.0]]


def test_a_concurrent_reward_begins_before_all_is_written_and_in_several_threads() -> None:
    """Four rewards that wait for each other: graded one after another they would wait for ever."""
    barrier = threading.Barrier(4, timeout=20)

    def waits(found: Rollout) -> float:
        barrier.wait()
        return float(len(found.text))

    rows = groups_of(("a", "bb"), ("ccc", "dddd"))
    with Grading({"r": RewardPart(ConcurrentReward(waits, max_concurrent=4))}) as grading:
        for siblings in rows:
            for found in siblings:
                grading.start(found)
        graded = grading.finish(rows)
    assert [[reward.total for reward in group.rewards] for group in graded] == [[1.0, 2.0], [3.0, 4.0]]


def test_a_concurrent_reward_that_was_not_started_is_graded_all_the_same() -> None:
    parts = {"r": RewardPart(ConcurrentReward(long_answer)), "bad": RewardPart(ConcurrentReward(fails), 0.0)}
    (group,) = grade_groups(groups_of(("a", "bb")), parts)
    assert [reward.parts["r"] for reward in group.rewards] == [1.0, 2.0]
    assert all(reward.total is None and "TimeoutError" in reward.reason for reward in group.rewards)


def test_never_more_than_so_many_are_graded_at_once() -> None:
    running, most, lock = [0], [0], threading.Lock()

    def counts(_found: Rollout) -> float:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.005)
        with lock:
            running[0] -= 1
        return 1.0

    grade_groups(groups_of(["x"] * 20), {"r": RewardPart(ConcurrentReward(counts, max_concurrent=3))})
    assert 1 < most[0] <= 3


@pytest.mark.parametrize("name", sorted(PENALTIES))
def test_penalties_of_the_table_are_between_minus_one_and_one_for_any_text(name: str) -> None:
    context = replace(CONTEXT, max_new_tokens=8)
    part = RewardPart(make_rewards([name], context)[name])
    for text in ("", "<answer>6</answer>", "<think></think><answer>6</answer>", "\x00", "a a " * 1000):
        (group,) = grade_groups([[rollout(text), rollout("x", sibling=1)]], {name: part})
        assert all(reward.total is not None and -1.0 <= reward.total <= 1.0 for reward in group.rewards)


def test_settings_of_a_reward_are_checked() -> None:
    assert reward_settings("code") == {"score": "all", "at_least": "wasm", "wall_s": 5.0, "memory_mib": 256}
    with pytest.raises(RecipeError, match="reward repetition has no setting 'sise'") as refusal:
        make_reward("repetition", CONTEXT, {"sise": 2})
    assert "did you mean size?" in str(refusal.value)
    with pytest.raises(RecipeError, match="reward repetition: "):
        make_reward("repetition", CONTEXT, {"size": 0})
    shorter = make_reward("overlong", replace(CONTEXT, max_new_tokens=100), {"cache_share": 0.5})
    assert shorter(of_length(75)) == -0.5


def in_task(task: str, text: str = "", sibling: int = 0) -> Rollout:
    return rollout(text, sibling=sibling, problem=replace(PROBLEM, problem_id=task, task=task))


def test_a_part_counts_only_for_the_problems_of_its_tasks():
    asked: list[str] = []

    def liked(each: Rollout) -> float:
        asked.append(each.problem.task)
        return 0.5

    parts = {
        "right": RewardPart(lambda _rollout: 1.0, tasks=frozenset({"main"})),
        "liked": RewardPart(liked, 2.0, tasks=frozenset({"general"})),
    }
    groups = grade_groups([[in_task("main")], [in_task("late/general")], [in_task("other")]], parts)
    rewards = [group.rewards[0] for group in groups]
    assert [reward.total for reward in rewards] == [1.0, 1.0, 0.0]
    assert [dict(reward.parts) for reward in rewards] == [{"right": 1.0}, {"liked": 0.5}, {}]
    assert asked == ["late/general"]


def test_a_failing_part_that_does_not_count_harms_nobody():
    def fails(_rollout: Rollout) -> float:
        raise GradingError("no")

    parts = {
        "right": RewardPart(lambda _rollout: 1.0),
        "broken": RewardPart(fails, tasks=frozenset({"general"})),
        "gated": RewardPart(lambda _rollout: 1.0, gate="broken"),
    }
    main, general = grade_groups([[in_task("main")], [in_task("general")]], parts)
    assert main.rewards[0].total == 2.0 and main.rewards[0].reason == ""
    assert general.rewards[0].total is None and general.rewards[0].reason == "broken: no"


def test_a_batch_knows_the_parts_of_all_its_problems():
    parts = {
        "right": RewardPart(lambda _rollout: 1.0, tasks=frozenset({"main"})),
        "liked": RewardPart(lambda _rollout: 0.5, tasks=frozenset({"general"})),
    }
    groups = grade_groups([[in_task("general")], [in_task("main")]], parts)
    batch = Batch.from_groups(groups, 0)
    assert batch.part_names == ("liked", "right")
    assert batch.reward_parts.tolist() == [[0.5, 0.0], [0.0, 1.0]]


def _reading(problem: Problem) -> Reading:
    return "text" if problem.task == "plain" else "tags"


def test_whether_an_answer_is_plain_may_depend_on_the_problem():
    reward = make_rewards(["accuracy"], replace(CONTEXT, reading=_reading))["accuracy"]
    assert reward(in_task("plain", "6")) == 1.0
    assert reward(in_task("tagged", "6")) == 0.0 and reward(in_task("tagged", "<answer>6</answer>")) == 1.0
