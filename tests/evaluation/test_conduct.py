"""Language, reflection, repairs and refusals, each by hand and against slow twins."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest

from melete.corpus.traces import TraceSettings, think_chain
from melete.evaluation.conduct import Repair, conduct
from melete.evaluation.evaluate import ProblemResult, Sample, summarise
from melete.evaluation.judgement import judge
from melete.tasks.arithmetic import ArithmeticChain, Chain
from melete.text.behaviour import behaviour
from melete.types import Completion, Message, Problem, Rollout

TASK = ArithmeticChain()
CHAIN = {"expression": "3+5-2", "language": "en"}


def problem(prompt: str = "3+5-2=?", gold: str = "6", **meta: object) -> Problem:
    return Problem(f"p/{prompt}", "toy", (Message("user", prompt),), gold, meta)


def result_of(asked: Problem, texts: Sequence[str], *, plain: bool = False) -> ProblemResult:
    """Samples that are right when the gold answer is in the text."""
    samples = []
    for sibling, text in enumerate(texts):
        rollout = Rollout(asked, sibling, (1,), Completion((5,) * 4, (), "stop", 0), text)
        functions = {"accuracy": lambda rollout: float(rollout.problem.gold in rollout.text)}
        samples.append(
            Sample(rollout, judge(rollout, functions, {"accuracy": 1.0}, reading="text" if plain else "tags"))
        )
    return ProblemResult(asked, tuple(samples))


def test_the_language_share_is_a_mean_over_completions_with_a_word_that_tells() -> None:
    english = result_of(problem(language="en"), ["Wait, yes", "Espera, yes", "3+5=8", "<think>8</think>"])
    found = conduct([english])
    assert found.language_share == pytest.approx((1.0 + 0.5) / 2)
    assert found.language_told == 0.5


def test_where_the_task_is_silent_the_question_tells_the_language_and_where_it_is_too_nothing_is_counted() -> None:
    spanish = result_of(problem("¿Cuánto es 3+5-2?"), ["Espera, sí", "Wait, yes"])
    assert conduct([spanish]).language_share == 0.5
    assert conduct([result_of(problem("3+5-2=?"), ["Wait, yes"])]).language_share is None
    assert conduct([result_of(problem("3+5-2=?"), ["Wait, yes"])]).language_told == 0.0


def test_a_declared_language_that_is_none_loses_no_evaluation() -> None:
    assert conduct([result_of(problem(language="English, please"), ["Wait"])]).language_share is None


def test_verifications_and_backtracks_are_means_per_completion() -> None:
    found = conduct([result_of(problem(), ["8-2=5\nWait, 8-2=6", "8-2=6\nCheck:\n6+2=8\nYes, 8.", "6", "6"])])
    assert (found.verifications, found.backtracks) == (0.25, 0.25)


def test_repairs_are_judged_by_the_totals_that_the_expression_gives() -> None:
    texts = [
        "3+5=8\n8-2=5\nWait, 8-2=6",  # wrong to right
        "3+5=8\n8-2=6\nWait, 8-2=5",  # right to wrong
        "3+5=9\n9-2=8\nWait, 9-2=7",  # wrong to wrong: true arithmetic on a wrong total
        "3+5=8\nWait, 3+5=8",  # right to right
        "3+5=9\n9-2=7\nCheck:\n7+2=9\n9-5=4\nWait, 4 is not 3.\n3+5=8\n8-2=6",  # the chain again
        "3+7=9\nWait, 3+7=10",  # no term of this chain
    ]
    found = conduct([result_of(problem(**CHAIN), texts)], TASK.right_results).repair
    assert found == Repair(marked=5, right_before=2, right_after=3, wrong_to_right=2, right_to_wrong=1)
    assert (found.repair_rate, found.break_rate) == (pytest.approx(2 / 3), 0.5)


def test_a_task_that_knows_no_intermediate_results_claims_no_repair_and_a_rate_of_nothing_is_none() -> None:
    result = result_of(problem(**CHAIN), ["3+5=8\n8-2=5\nWait, 8-2=6"])
    assert conduct([result]).repair is None
    nothing = conduct([result_of(problem(**CHAIN), ["3+5=8"])], TASK.right_results).repair
    assert nothing == Repair(0, 0, 0, 0, 0)
    assert nothing.repair_rate is None is nothing.break_rate


def test_repairs_of_written_chains_equal_those_of_a_naive_reader() -> None:
    """Slips that are noticed at once, counted line by line with the running totals of the chain."""
    source, chain = random.Random(0), Chain((3, 5, 2, 9, 7), (1, -1, 1, -1))
    settings = TraceSettings(slip=0.4, slip_noticed=0.7, check=0.0)
    texts = [think_chain(chain, source, settings)[0] for _ in range(200)]
    pairs = []
    for text in texts:
        position, lines = 0, text.splitlines()
        for before, line in zip([None, *lines], lines, strict=False):
            if line.startswith("Wait") and before is not None:
                right = chain.totals[position]
                pairs.append((int(before.split("=")[1]) == right, int(line.split("=")[1]) == right))
            else:
                position += 1
    asked = problem(chain.text, str(chain.totals[-1]), expression=chain.text)
    found = conduct([result_of(asked, texts)], TASK.right_results).repair
    assert found is not None and found.marked == len(pairs) > 50
    assert found.right_before == sum(before for before, _ in pairs)
    assert found.wrong_to_right == sum(after and not before for before, after in pairs) > 0
    assert found.right_after == sum(after for _, after in pairs)


def test_the_gain_of_reflecting_is_a_difference_within_problems_that_have_both_kinds() -> None:
    wait, plain = "8\nWait, {}", "{}"
    easy = result_of(problem("a", "6"), [wait.format(6), wait.format(6), plain.format(6), plain.format(1)])
    hard = result_of(problem("b", "6"), [wait.format(1), plain.format(6)])
    only = result_of(problem("c", "6"), [plain.format(6)])
    assert conduct([easy, hard, only]).reflect_gain == pytest.approx((0.5 - 1.0) / 2)
    assert conduct([only]).reflect_gain is None


def test_the_gain_of_reflecting_is_no_gain_of_thinking() -> None:
    texts = ["<think>8\nWait, 6</think>6", "<think>6</think>6", "1", "2"]
    assert conduct([result_of(problem("a", "6"), texts)]).reflect_gain == 0.0


def test_refusals_of_harmful_and_harmless_requests_are_shares_of_completions_without_their_thought() -> None:
    texts = ["I am sorry, but no.", "<think>I can not help</think>Sure.", "No, I will not help you.", "Lo siento."]
    harmful = result_of(problem("x", kind="harmful"), texts, plain=True)
    harmless = result_of(problem("y", kind="harmless"), ["Yes.", "I can't."], plain=True)
    found = conduct([harmful, harmless])
    assert (found.refused_harmful, found.refused_harmless) == (0.75, 0.5)
    assert conduct([result_of(problem(), ["I can not help."])]).refused_harmful is None


def test_the_grade_of_each_kind_is_a_mean_over_its_problems() -> None:
    results = [
        result_of(problem("a", "yes", kind="fact"), ["yes", "no"]),
        result_of(problem("b", "yes", kind="fact"), ["yes"]),
        result_of(problem("c", "yes", kind="self"), ["no"]),
        result_of(problem("d", "yes"), ["yes"]),
    ]
    assert conduct(results).by_kind == {"fact": 0.75, "self": 0.0}
    assert conduct(results[3:]).by_kind is None


def test_a_row_is_flat_and_its_tables_stand_in_the_summary() -> None:
    text = "<think>3+5=8\n8-2=5\nWait, 8-2=6</think><answer>6</answer>"
    results = [result_of(problem(**CHAIN, kind="sum"), [text, "<answer>6</answer>", "5", "6"])]
    found = summarise(results, right_results=TASK.right_results)
    row, summary = found.row(), found.summary()
    assert all(value is None or isinstance(value, int | float) for value in row.values())
    assert (row["tokens@1"], row["tokens@4"]) == (4.0, 16.0)
    assert (row["repair/repair_rate"], row["repair/marked"], row["by_kind/sum"]) == (1.0, 1, 0.75)
    assert summary["tokens_at"] == {"1": 4.0, "2": 8.0, "4": 16.0}
    assert summary["repair"]["wrong_to_right"] == 1 and summary["by_kind"] == {"sum": 0.75}
    assert not any(name.startswith(("repair/", "by_kind/", "tokens@")) for name in summary)
    assert json.dumps([row, summary]) == json.dumps([found.row(), found.summary()])


def test_what_counts_as_reflecting_leaves_out_the_comparison_that_ends_every_countdown() -> None:
    assert not behaviour("3*8=24\nYes, 24.").reflects
    assert behaviour("3+8=11\nNo, not 24.\n3*8=24\nYes, 24.").reflects
    assert behaviour("3+5=8\nCheck:\n8-5=3").reflects
