"""Each rule speaks on rows that provoke it, and is silent on a healthy run; the rows are made by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from melete.health import Finding, findings
from melete.health.history import History
from melete.health.rules import RULES
from melete.schema.health import HEALTH_RULES, HealthSettings

Row = dict[str, Any]
STEPS = 60
STAGE: Row = {
    "name": "rl",
    "kind": "rl",
    "algorithm": "grpo",
    "lr": 1e-3,
    "group_size": 8,
    "prompts_per_step": 16,
    "max_new_tokens": 128,
    "rewards": {"accuracy": 1.0, "format": 0.1, "helpful": 0.5},
    "reward_models": {"helpful": {"model": "judge", "span": "summary"}},
    "algorithm_settings": {"kl_coef": 0.001},
}


def healthy(step: int, chance: random.Random) -> Row:
    """A row of a run in which accuracy, length and KL rise, and entropy falls, as in r1-zero-tiny."""
    done = step / STEPS
    accuracy = 0.4 + 0.45 * done + chance.gauss(0, 0.04)
    form = 0.95 + chance.gauss(0, 0.02)
    helpful = 0.2 + 0.5 * done + chance.gauss(0, 0.1)
    return {
        "stage": "rl",
        "step": step,
        "reward": accuracy + 0.1 * form + 0.5 * helpful,
        "reward/accuracy": accuracy,
        "reward/format": form,
        "reward/helpful": helpful,
        "dead_groups": 0.02 + 0.4 * done**2,
        "all_correct_groups": 0.4 * done**2,
        "truncated_share": max(chance.gauss(0.01, 0.01), 0.0),
        "entropy": 0.18 - 0.13 * done + chance.gauss(0, 0.01),
        "kl": 0.1 * done,
        "approx_kl": 0.01,
        "clip_fraction": 0.02,
        "sampler_mismatch": 0.02,
        "grad_norm": 0.6 + abs(chance.gauss(0, 0.4)),
        "loss": 0.0,
        "length_mean": 17 + 24 * done + chance.gauss(0, 1),
        "grader_failures": 0.0,
        "num_updates": 2.0,
    }


def rows(change: Callable[[Row, float], None] = lambda row, done: None, seed: int = 0) -> list[Row]:
    """Healthy rows, each changed in place; `done` rises from 0 to 1."""
    chance = random.Random(seed)
    made = [healthy(step, chance) for step in range(STEPS)]
    for row in made:
        change(row, row["step"] / STEPS)
    return made


def found(name: str, changed: list[Row], evaluations: tuple[Row, ...] = (), **settings: Any) -> Finding:
    """The finding of one rule; the others may speak too."""
    (finding,) = [one for one in findings(changed, STAGE | settings, evaluations) if one.rule == name]
    return finding


def silent(name: str, changed: list[Row], evaluations: tuple[Row, ...] = (), **settings: Any) -> bool:
    return name not in {finding.rule for finding in findings(changed, STAGE | settings, evaluations)}


def test_there_is_a_rule_for_each_name_that_a_recipe_may_switch_off() -> None:
    assert tuple(RULES) == HEALTH_RULES


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_has_no_findings(seed: int) -> None:
    assert findings(rows(seed=seed), STAGE) == []


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_speaks_before_there_are_rows_or_when_metrics_are_missing(rule: str) -> None:
    empty = History(STAGE, HealthSettings())
    assert RULES[rule](empty) is None
    for step in range(40):
        empty.add({"stage": "rl", "step": step, "loss": 0.1})
    assert RULES[rule](empty) is None


def test_equal_rewards_in_most_groups_are_dead_groups() -> None:
    finding = found("dead_groups", rows(lambda row, done: row.update(dead_groups=0.75, all_correct_groups=0.0)))
    assert (finding.severity, finding.value, finding.limit) == ("warning", 0.75, 0.5)
    assert finding.first_step == 4 and finding.last_step == STEPS - 1
    assert "75%" in finding.says and "group_size = 16" in finding.remedy
    worse = rows(lambda row, done: row.update({"dead_groups": 1.0, "all_correct_groups": 0.0, "reward/accuracy": 0.01}))
    assert found("dead_groups", worse).severity == "serious"
    assert "1.0% of its answers are right" in found("dead_groups", worse).cause

    def alike(row: Row, done: float) -> None:
        row.update(dead_groups=done, all_correct_groups=0.0)

    assert "not so at the start" in found("dead_groups", rows(alike)).cause


def test_dead_groups_mean_nothing_without_siblings_or_where_a_critic_or_teacher_gives_the_credit() -> None:
    dead = rows(lambda row, done: row.update(dead_groups=1.0, all_correct_groups=0.0))
    assert silent("dead_groups", dead, group_size=1)
    assert silent("dead_groups", dead, algorithm="ppo")
    assert silent("dead_groups", dead, teacher="big")


def test_groups_that_are_all_right_are_too_easy_and_not_dead() -> None:
    easy = rows(lambda row, done: row.update(dead_groups=0.95, all_correct_groups=0.95))
    assert found("all_correct_groups", easy).severity == "warning"
    assert silent("dead_groups", easy)
    assert found("all_correct_groups", rows(lambda row, done: row.update(all_correct_groups=0.6))).severity == "note"


def test_completions_that_are_cut_are_truncation_and_the_cause_tells_growth_from_a_low_limit() -> None:
    low = found("truncation", rows(lambda row, done: row.update(truncated_share=0.3)))
    assert low.severity == "warning" and "max_new_tokens = 256" in low.remedy

    def growing(row: Row, done: float) -> None:
        row.update(truncated_share=0.8 * done, length_mean=20 + 100 * done)

    grown = found("truncation", rows(growing))
    assert grown.severity == "serious" and grown.value == pytest.approx(0.76, abs=0.02)
    assert "lower than an answer needs" in low.cause and "have grown up" in found("truncation", rows(growing)).cause


def test_a_fall_of_entropy_is_a_collapse_by_its_share_or_by_its_floor() -> None:
    def falls(row: Row, done: float) -> None:
        row["entropy"] = 0.5 * 0.001**done

    finding = found("entropy_collapse", rows(falls))
    assert finding.severity == "serious" and finding.value < finding.limit
    low = rows(lambda row, done: row.update(entropy=0.005))
    assert found("entropy_collapse", low).first_step == 4  # too low from the start
    assert found("entropy_collapse", low).limit == 0.01


def test_low_entropy_of_a_model_that_is_nearly_always_right_is_no_more_than_a_note() -> None:
    sure = rows(lambda row, done: row.update({"entropy": 0.005, "reward/accuracy": 0.98}))
    assert found("entropy_collapse", sure).severity == "note"


@pytest.mark.parametrize(
    ("metric", "warning", "serious"), [("kl", 2.0, 9.0), ("approx_kl", 0.4, 2.0), ("clip_fraction", 0.4, 0.8)]
)
def test_divergence_and_clipping_have_limits(metric: str, warning: float, serious: float) -> None:
    assert found(metric, rows(lambda row, done: row.update({metric: warning}))).severity == "warning"
    finding = found(metric, rows(lambda row, done: row.update({metric: serious})))
    assert finding.severity == "serious" and finding.value == pytest.approx(serious)


def test_a_clip_of_whole_rows_may_stop_most_tokens() -> None:
    assert silent("clip_fraction", rows(lambda row, done: row.update(clip_fraction=0.7)), algorithm="gspo")


def test_one_step_beyond_a_limit_is_noise() -> None:
    def once(row: Row, done: float) -> None:
        if row["step"] == 30:
            row.update(kl=3.0, approx_kl=0.6, clip_fraction=0.8, truncated_share=0.4, dead_groups=1.0)

    assert findings(rows(once), STAGE) == []


def test_failed_graders_are_counted_against_what_was_sampled() -> None:
    def one(row: Row, done: float) -> None:
        row["grader_failures"] = float(row["step"] == 10)

    rare = found("grader_failures", rows(one))
    assert rare.severity == "note" and (rare.first_step, rare.last_step) == (10, 14)
    many = found("grader_failures", rows(lambda row, done: row.update(grader_failures=32.0)))
    assert many.severity == "serious" and many.value == 0.25 and "25.0%" in many.says
    drawn = rows(lambda row, done: row.update(grader_failures=32.0, num_sampled_groups=64.0))
    assert found("grader_failures", drawn).value == 0.0625


def test_format_that_rises_without_accuracy_is_format_hacking() -> None:
    def form_only(row: Row, done: float) -> None:
        row.update({"reward/format": 0.3 + 0.6 * min(2 * done, 1.0), "reward/accuracy": 0.3})

    finding = found("format_hacking", rows(form_only))
    assert finding.severity == "warning" and "format rose from 0.3" in finding.says
    assert "rewards.format = 0.05" in finding.remedy

    def accuracy_falls(row: Row, done: float) -> None:
        form_only(row, done)
        row["reward/accuracy"] = 0.4 - 0.3 * done

    assert found("format_hacking", rows(accuracy_falls)).severity == "serious"


def test_format_that_rises_with_accuracy_is_learning() -> None:
    def both(row: Row, done: float) -> None:
        row.update({"reward/format": 0.3 + 0.6 * min(3 * done, 1.0)})

    assert silent("format_hacking", rows(both))


def test_without_accuracy_in_the_reward_the_held_out_score_tells_format_hacking() -> None:
    def form_only(row: Row, done: float) -> None:
        del row["reward/accuracy"]
        row["reward/format"] = 0.3 + 0.6 * done

    own = {"rewards": {"format": 1.0}, "reward_models": {}}
    flat, better = (evaluation(0, 0.3), evaluation(40, 0.3)), (evaluation(0, 0.3), evaluation(40, 0.6))
    assert found("format_hacking", rows(form_only), flat, **own).severity == "warning"
    assert silent("format_hacking", rows(form_only), better, **own)
    assert silent("format_hacking", rows(form_only), **own)  # nothing tells whether answers are right


def evaluation(step: int, score: float) -> Row:
    return {"stage": "rl", "step": step, "score": score, "score/low": score - 0.03, "score/high": score + 0.03}


def hacked(row: Row, done: float) -> None:
    """Accuracy rises, then falls, while the reward model's score rises throughout."""
    noise = row["reward/accuracy"] - 0.4 - 0.45 * done
    row.update({"reward/accuracy": 0.7 - 0.6 * max(done - 0.4, 0.0) + noise, "reward/helpful": 0.2 + 2 * done})


def test_a_learned_reward_that_rises_while_accuracy_falls_is_hacked() -> None:
    finding = found("reward_model_hacking", rows(hacked))
    assert finding.severity == "serious" and finding.value > 0.15
    assert finding.says.startswith("helpful, the score of a model, rose") and "accuracy fell" in finding.says
    assert 25 <= finding.first_step <= 50
    assert "rewards.helpful = 0.25" in finding.remedy


def test_a_learned_reward_that_joins_late_is_watched_from_there() -> None:
    def late(row: Row, done: float) -> None:
        hacked(row, done)
        if done < 0.5:
            del row["reward/helpful"]

    assert found("reward_model_hacking", rows(late)).severity in ("warning", "serious")


def test_a_fall_of_the_held_out_score_tells_hacking_where_no_part_is_accuracy() -> None:
    def learned_only(row: Row, done: float) -> None:
        del row["reward/accuracy"]

    own = {"rewards": {"helpful": 1.0}}
    worse = (evaluation(0, 0.6), evaluation(30, 0.62), evaluation(60, 0.5))
    finding = found("reward_model_hacking", rows(learned_only), worse, **own)
    assert finding.severity == "warning" and "the held-out score fell from 0.62 to 0.50" in finding.says
    assert silent("reward_model_hacking", rows(learned_only), (evaluation(0, 0.6), evaluation(60, 0.58)), **own)


def test_accuracy_may_fall_without_a_learned_reward_that_rises() -> None:
    def both_fall(row: Row, done: float) -> None:
        row.update({"reward/accuracy": 0.7 - 0.4 * done, "reward/helpful": 0.7 - 0.4 * done})

    assert silent("reward_model_hacking", rows(both_fall))
    assert silent("reward_model_hacking", rows(hacked), reward_models={})


def test_a_mismatch_that_updates_do_not_explain_is_between_sampler_and_learner() -> None:
    finding = found("sampler_mismatch", rows(lambda row, done: row.update(sampler_mismatch=0.3, approx_kl=0.0)))
    assert finding.severity == "serious" and "precision" in finding.cause
    stale = rows(lambda row, done: row.update(sampler_mismatch=0.3, approx_kl=0.0))
    assert "max_staleness = 2" in found("sampler_mismatch", stale, max_staleness=3).remedy
    # 0.08 nats of k3 are a change of the log-prob by about 0.4
    assert silent("sampler_mismatch", rows(lambda row, done: row.update(sampler_mismatch=0.3, approx_kl=0.08)))


def test_length_that_grows_without_reward_explodes_and_with_reward_it_is_thinking() -> None:
    def longer(row: Row, done: float) -> None:
        row["length_mean"] = 20 + 100 * done

    def for_nothing(row: Row, done: float) -> None:
        longer(row, done)
        row["reward"] = 0.5

    finding = found("length_explosion", rows(for_nothing))
    assert finding.severity == "serious" and finding.value > 4
    assert "limit 128" in finding.says
    assert silent("length_explosion", rows(longer))


def test_a_single_spike_of_the_gradient_is_a_note_and_several_are_a_warning() -> None:
    def at(*steps: int) -> list[Row]:
        return rows(lambda row, done: row.update(grad_norm=20.0 if row["step"] in steps else 0.5))

    once = found("gradient_norm", at(30))
    assert once.severity == "note" and (once.first_step, once.last_step) == (30, 30) and once.value == 40
    assert found("gradient_norm", at(30, 34, 38)).severity == "warning"
    assert found("gradient_norm", at(15, 37, 59)).severity == "note"  # far from each other
    assert silent("gradient_norm", rows(lambda row, done: row.update(grad_norm=1.5 if row["step"] == 30 else 0.05)))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_is_serious_at_once(value: float | None) -> None:
    first = rows()[:1]
    first[0]["grad_norm"] = value
    assert found("gradient_norm", first).severity == "serious"
    assert "grad_norm of step 0 is not a number" in found("gradient_norm", first).says


def test_a_reward_that_never_rises_teaches_nothing() -> None:
    def noise_only(row: Row, done: float) -> None:
        row["reward"] = 0.5 + random.Random(row["step"]).gauss(0, 0.05)

    finding = found("flat_reward", rows(noise_only))
    assert finding.severity == "warning" and finding.value == STEPS and finding.first_step == 29
    assert "In 60 steps the reward has not risen" in finding.says
    assert silent("flat_reward", rows(noise_only)[:25])  # too early to tell


def test_a_reward_that_rises_and_levels_off_or_was_high_from_the_start_is_not_flat() -> None:
    assert silent("flat_reward", rows(lambda row, done: row.update(reward=min(0.5 + 2 * done, 1.0))))
    assert silent("flat_reward", rows(lambda row, done: row.update({"reward": 1.0, "reward/accuracy": 0.96})))
    assert silent("flat_reward", rows(lambda row, done: row.update(reward=0.5)), teacher="big")


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("gradient_norm", "flat_reward")])
def test_missing_numbers_among_the_rows_are_left_out(rule: str) -> None:
    names = {"truncation": "truncated_share", "entropy_collapse": "entropy", "length_explosion": "length_mean"}
    name = names.get(rule, rule)

    def gaps(row: Row, done: float) -> None:
        if row["step"] % 3 == 0:
            row.update({key: None for key in (name, "reward/accuracy", "reward/format", "reward/helpful")})

    assert findings(rows(gaps), STAGE) == []
