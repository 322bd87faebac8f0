"""The check before the first step: its numbers on paper, and what a stage does with them."""

from __future__ import annotations

import io
import json
import math
import random
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from melete.errors import RunError
from melete.health import Support, dead_chance, health_of_run
from melete.live import View
from melete.models.load import save_model
from melete.models.tiny import tiny_model, train_tokenizer
from melete.pipeline import run_recipe
from melete.schema import Recipe
from melete.schema.health import SupportSettings
from melete.stages import Interrupted

LIMITS = SupportSettings()
EVEN = "tiny_rewards:even_tokens_unless_stopped"
CONSTANT = "builtins:bool"  # every rollout is something, so every reward is 1


@pytest.mark.parametrize(("tries", "group"), [(4, 2), (6, 3), (5, 5), (3, 1)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_chance_of_a_dead_group_is_without_bias(tries: int, group: int, p: float) -> None:
    """Over all outcomes of the tries its mean is p^G + (1 - p)^G, by enumeration."""
    mean = 0.0
    for outcome in product((0, 1), repeat=tries):
        right = sum(outcome)
        mean += p**right * (1 - p) ** (tries - right) * dead_chance(right, tries, group)
    assert mean == pytest.approx(p**group + (1 - p) ** group)


def test_the_usual_formula_with_the_measured_rate_says_too_much() -> None:
    p, size = 0.1, 8
    chances = [math.comb(size, right) * p**right * (1 - p) ** (size - right) for right in range(size + 1)]
    plugged = sum(c * ((k / size) ** size + (1 - k / size) ** size) for k, c in enumerate(chances))
    right = sum(c * dead_chance(k, size, size) for k, c in enumerate(chances))
    assert right == pytest.approx(0.9**8 + 0.1**8) == pytest.approx(0.43, abs=0.005)
    assert plugged == pytest.approx(0.58, abs=0.005)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.data())
def test_with_as_many_tries_as_siblings_a_group_is_dead_or_not(size: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, size))
    assert dead_chance(right, size, size) == float(right in (0, size))


@pytest.mark.parametrize("bad", [(3, 2, 2), (-1, 2, 2), (1, 2, 3), (0, 0, 0)])
def test_too_few_tries_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="says nothing"):
        dead_chance(*bad)


def test_pass_rates_become_a_histogram_and_an_expected_share_of_dead_groups() -> None:
    support = Support(4, 4, pass_rates=(0.0, 0.25, 0.5, 1.0), accuracy_share=1.0, dead_share=0.5)
    assert support.mean_pass_rate == 0.4375
    assert support.histogram == [1, 1, 1, 0, 1]
    assert support.expected_dead_share == 0.5  # the first and the last
    assert support.refusals(LIMITS) == []
    plain = support.as_dict(LIMITS)
    assert json.loads(json.dumps(plain)) == plain and plain["refusals"] == [] and plain["help"] == ""


def test_a_model_that_is_never_right_is_refused_with_what_helps() -> None:
    support = Support(32, 8, pass_rates=(0.0,) * 31 + (0.125,), accuracy_share=0.9, dead_share=0.97)
    rate, dead = support.refusals(LIMITS)
    assert rate == "0.4% of the answers are right, at least 2.0% should be"
    assert dead == "in 97% of the groups all 8 rewards are equal, at most 90% should be"
    assert "easier problems" in support.help() and "group_size = 16" in support.help() and "sft" in support.help()


def test_a_model_that_is_always_right_needs_harder_problems() -> None:
    support = Support(32, 8, pass_rates=(1.0,) * 32, accuracy_share=0.9, dead_share=1.0)
    assert len(support.refusals(LIMITS)) == 1 and support.help().startswith("harder problems")


def test_where_accuracy_has_the_smaller_weight_other_parts_may_teach() -> None:
    assert Support(32, 8, pass_rates=(0.0,) * 32, accuracy_share=0.4, dead_share=0.0).refusals(LIMITS) == []


def test_without_siblings_only_the_pass_rate_counts() -> None:
    support = Support(4, 1, pass_rates=(0.0, 0.0, 1.0, 0.0), accuracy_share=1.0)
    assert support.expected_dead_share is None and support.unfilled_share() is None
    assert support.refusals(LIMITS) == []
    assert len(Support(4, 1, pass_rates=(0.0,) * 4, accuracy_share=1.0).refusals(LIMITS)) == 1


def test_dynamic_sampling_may_draw_others_for_dead_groups() -> None:
    support = Support(32, 8, dead_share=0.95, max_draws=4)
    assert support.unfilled_share() == pytest.approx(0.8)
    assert support.refusals(LIMITS) == []
    assert "after 2 draws" in Support(32, 8, dead_share=0.98, max_draws=2).refusals(LIMITS)[0]


def test_graders_that_always_fail_are_the_reason_and_not_the_model() -> None:
    support = Support(2, 4, dead_share=1.0, grader_failures=8, reason="accuracy: no gold")
    assert support.refusals(LIMITS) == ["no answer could be graded (accuracy: no gold)"]
    assert "grader" in support.help()


def test_the_measured_share_follows_the_formula_on_drawn_answers() -> None:
    chance, p, size = random.Random(0), 0.2, 8
    rates = tuple(fmean(float(chance.random() < p) for _ in range(size)) for _ in range(4000))
    expected = Support(4000, size, pass_rates=rates).expected_dead_share
    assert expected == pytest.approx(p**size + (1 - p) ** size, abs=0.02)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(["What is 3+5?", "<think>3+5=8</think><answer>8</answer>"] * 20, 380)
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model") / "random"
    save_model(tiny_model(tokenizer, hidden_size=32, num_layers=2), tokenizer, directory)
    return directory


def recipe(model_dir: Path, **changes: Any) -> Recipe:
    stage = {
        "name": "rl",
        "kind": "rl",
        "model": str(model_dir),
        "lr": 5e-3,
        "num_steps": 6,
        "prompts_per_step": 2,
        "group_size": 4,
        "max_new_tokens": 6,
        "warmup_steps": 0,
        "task": {"name": "arithmetic_chain"},
        "rewards": {EVEN: 1.0},
        "evaluation": {"at": [1.0], "num_problems": 2, "num_samples": 1},
        "support": {"num_problems": 5},
    }
    return Recipe.model_validate({"name": "little", "stage": [stage | changes]})


def run(made: Recipe, run_dir: Path) -> str:
    shown = io.StringIO()
    with View(["rl"], True, console=Console(file=shown, width=400)) as view:
        run_recipe(made, run_dir, view=view, command="melete run little", with_report=False)
    return shown.getvalue()


def entry(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "stages" / "rl.json").read_text())


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_check_changes_nothing_that_training_does(model_dir: Path, tmp_path: Path) -> None:
    shown = run(recipe(model_dir), tmp_path / "checked")
    run(recipe(model_dir, support={"num_problems": 0}), tmp_path / "unchecked")
    assert "rl: before training, on 5 problems: 0% of the groups have equal rewards" in shown
    for file in ("metrics.jsonl", "rollouts.jsonl"):
        assert (tmp_path / "checked" / file).read_bytes() == (tmp_path / "unchecked" / file).read_bytes()
    found = entry(tmp_path / "checked")["support"]
    assert found["num_problems"] == 5 and found["dead_share"] == 0.0 and found["mean_pass_rate"] is None
    assert entry(tmp_path / "unchecked")["support"] is None
    assert not (tmp_path / "unchecked" / "evaluations" / "rl" / "support.json").exists()


def test_a_stage_without_support_is_refused_before_its_first_step_and_again(model_dir: Path, tmp_path: Path) -> None:
    made = recipe(model_dir, rewards={"accuracy": 1.0})
    with pytest.raises(RunError) as refused:
        run(made, tmp_path / "r")
    text = str(refused.value)
    assert "0.0% of the answers are right" in text and "in 100% of the groups all 4 rewards are equal" in text
    assert "easier problems" in text and "group_size = 8" in text and "rl.support.refuse = false" in text
    assert not (tmp_path / "r" / "metrics.jsonl").exists() and not (tmp_path / "r" / "models" / "rl").exists()
    file = tmp_path / "r" / "evaluations" / "rl" / "support.json"
    before = file.stat().st_mtime_ns
    with pytest.raises(RunError, match="next to nothing"):
        run(made, tmp_path / "r")
    assert file.stat().st_mtime_ns == before


def test_a_stage_that_is_told_to_go_on_says_what_is_wrong_while_it_runs_and_in_its_files(
    model_dir: Path, tmp_path: Path
) -> None:
    made = recipe(model_dir, rewards={CONSTANT: 1.0}, support={"num_problems": 3, "refuse": False})
    shown = run(made, tmp_path / "r")
    assert "in 100% of the groups all 4 rewards are equal, at most 90% should be" in shown
    assert shown.count("rl: serious: In 100% of the groups all 4 rewards are equal") == 1
    found = entry(tmp_path / "r")
    assert len(found["support"]["refusals"]) == 1
    assert {finding["rule"] for finding in found["health"]} >= {"dead_groups", "truncation"}
    again = health_of_run(metrics(tmp_path / "r"), json.loads((tmp_path / "r" / "recipe.json").read_text()))
    assert [finding.as_dict() for finding in again] == found["health"]


def test_a_run_that_was_cut_off_has_the_same_check_and_findings(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(model_dir, checkpoint_every_steps=2)
    whole = run(made, tmp_path / "whole")
    monkeypatch.setenv("MELETE_TEST_INTERRUPT_AT", "4")
    with pytest.raises(Interrupted):
        run(made, tmp_path / "cut")
    assert len(metrics(tmp_path / "cut")) == 5
    resumed = run(made, tmp_path / "cut")
    assert "continues at step 5" in resumed and "before training" not in resumed
    assert "rl: serious:" in whole and "rl: serious:" not in resumed  # it was said before the cut
    one, other = entry(tmp_path / "whole"), entry(tmp_path / "cut")
    assert one["health"] and one["health"] == other["health"] and one["support"] == other["support"]


def test_a_teacher_needs_no_rewards_and_no_check(model_dir: Path, tmp_path: Path) -> None:
    made = recipe(
        model_dir, algorithm="on_policy_distillation", teacher=str(model_dir), rewards={"accuracy": 1.0}, num_steps=1
    )
    run(made, tmp_path / "r")
    assert entry(tmp_path / "r")["support"] is None


def test_a_judge_behind_an_endpoint_is_not_asked_before_training(model_dir: Path, tmp_path: Path) -> None:
    made = recipe(
        model_dir,
        num_steps=1,
        rewards={"accuracy": 1.0, "liked": 0.1},
        reward_judges={"liked": {"model": "judge", "base_url": "http://127.0.0.1:9/v1", "timeout_s": 0.2}},
        reward_parts={"accuracy": {"gate": "liked"}},
        support={"num_problems": 2, "refuse": False},
    )
    run(made, tmp_path / "r")
    found = entry(tmp_path / "r")["support"]
    assert found["mean_pass_rate"] == 0.0 and found["grader_failures"] == 0
    assert found["dead_share"] is None  # without the judge nobody knows which rewards are equal


def test_ppo_without_siblings_is_checked_for_its_pass_rate_only(model_dir: Path, tmp_path: Path) -> None:
    made = recipe(
        model_dir, num_steps=1, algorithm="ppo", critic={}, group_size=1, rewards={"accuracy": 0.1, EVEN: 1.0}
    )
    run(made, tmp_path / "r")
    found = entry(tmp_path / "r")["support"]
    assert found["dead_share"] is None and found["expected_dead_share"] is None
    assert found["mean_pass_rate"] == 0.0 and found["histogram"] == [5, 0] and found["refusals"] == []
