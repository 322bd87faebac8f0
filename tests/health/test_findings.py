"""From rows to findings: once each, in order, the same for a whole run as for a running one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.health import Watch, findings, health_of_run

STAGE = {"name": "rl", "kind": "rl", "group_size": 4, "prompts_per_step": 2}
METRICS = ("reward", "dead_groups", "truncated_share", "entropy", "kl", "grad_norm", "length_mean", "grader_failures")


def truncated(*shares: float, stage: str = "rl") -> list[dict[str, Any]]:
    return [{"stage": stage, "step": step, "truncated_share": share} for step, share in enumerate(shares)]


def test_there_is_one_finding_for_a_rule_with_first_and_last_step_and_the_worst_number() -> None:
    (finding,) = findings(truncated(*[0.0] * 5, *[0.2] * 10, *[0.4] * 10, *[0.0] * 10), STAGE)
    assert (finding.rule, finding.severity, finding.stage) == ("truncation", "warning", "rl")
    # the window of five is above a tenth from its third step at 0.2 to its second-last at 0.4
    assert (finding.first_step, finding.last_step) == (7, 27)
    assert finding.value == pytest.approx(0.4) and finding.limit == 0.1
    assert "40%" in finding.says


def test_a_running_stage_hears_of_a_finding_once_and_again_when_it_gets_serious() -> None:
    watch = Watch(STAGE)
    heard = [(row["step"], new.severity) for row in truncated(*[0.2] * 20, *[1.0] * 20) for new in watch.feed(row)]
    assert heard == [(4, "warning"), (21, "serious")]
    assert [finding.severity for finding in watch.findings()] == ["serious"]


def test_what_was_serious_stays_so_when_it_gets_better() -> None:
    (finding,) = findings(truncated(*[1.0] * 10, *[0.2] * 10), STAGE)
    assert finding.severity == "serious" and finding.last_step == 19


def test_the_most_serious_come_first_and_then_the_earliest() -> None:
    rows = truncated(*[0.2] * 30)
    for row in rows:
        row |= {"kl": 9.0 if row["step"] > 10 else 0.0, "dead_groups": 0.6 if row["step"] > 5 else 0.0}
    assert [(finding.rule, finding.severity) for finding in findings(rows, STAGE)] == [
        ("kl", "serious"),
        ("truncation", "warning"),
        ("dead_groups", "warning"),
    ]


def test_a_recipe_may_move_the_limits_and_silence_rules() -> None:
    rows = truncated(*[0.2] * 10)
    assert findings(rows, {**STAGE, "health": {"truncated_share": [0.3, 0.6]}}) == []
    assert findings(rows, {**STAGE, "health": {"off": ["truncation"]}}) == []
    assert findings(rows, {**STAGE, "health": {"window": 11}}) == []
    assert len(findings(rows, {**STAGE, "health": {"a limit of another version": [1.0, 2.0]}})) == 1


def test_a_finding_is_plain_data_under_the_names_of_the_summary() -> None:
    (finding,) = findings(truncated(*[0.2] * 5), STAGE)
    plain = finding.as_dict()
    assert set(plain) == {
        *("rule", "severity", "stage", "first_step", "last_step"),
        *("value", "limit", "says", "cause", "try"),
    }
    assert json.loads(json.dumps(plain)) == plain
    assert plain["try"] == finding.remedy
    assert finding.line().startswith("rl: warning: 20% of the completions are cut")


def test_the_health_of_a_run_is_that_of_its_stages_of_reinforcement_learning() -> None:
    recipe = {"stage": [{"name": "sft", "kind": "sft"}, STAGE, {"name": "more", "kind": "rl"}]}
    rows = truncated(*[0.9] * 6, stage="sft") + truncated(*[0.2] * 6) + truncated(*[0.9] * 6, stage="more")
    found = health_of_run(iter(rows), recipe)
    assert [(finding.stage, finding.severity) for finding in found] == [("more", "serious"), ("rl", "warning")]
    assert health_of_run([], recipe) == health_of_run(rows, {}) == []


def test_evaluations_may_stand_among_the_rows_or_come_apart() -> None:
    stage = {**STAGE, "rewards": {"liked": 1.0}, "reward_models": {"liked": {"model": "reader"}}}
    rows = [{"stage": "rl", "step": step, "reward/liked": float(step)} for step in range(40)]
    apart = [{"step": 0, "score": 0.8}, {"step": 20, "score": 0.5}]
    among = [{**row, "kind": "evaluation", "stage": "rl"} for row in apart]
    together = [*rows[:0], among[0], *rows[:20], among[1], *rows[20:]]
    found = findings(rows, stage, apart)
    assert found == findings(together, stage)
    assert [finding.rule for finding in found] == ["reward_model_hacking"]


odd = st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e100, -1e100, None])
number = st.one_of(odd, st.floats(-1e100, 1e100), st.floats(0, 2))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(METRICS, number)), max_size=45))
def test_a_watch_finds_the_same_as_the_whole_and_no_row_breaks_it(values: list[dict[str, float | None]]) -> None:
    rows = [{"stage": "rl", "step": step, **row} for step, row in enumerate(values)]
    watch = Watch(STAGE)
    news = [finding for row in rows for finding in watch.feed(row)]
    found = watch.findings()
    assert found == findings(rows, STAGE)
    assert {finding.rule for finding in news} == {finding.rule for finding in found}
    for finding in found:
        assert 0 <= finding.first_step <= finding.last_step < len(rows)
        json.dumps(finding.as_dict(), allow_nan=False)
