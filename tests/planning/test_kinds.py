"""How much each kind of stage does, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planning.plans import RL, SUMS, recipe_of, work

from melete.config import bundled_recipes, load_recipe
from melete.planning.graph import Graph, NotEstimated, Text, num_rows
from melete.planning.kinds import JUDGING, work_of
from melete.planning.work import Held, Reading, Work, Writing

SFT = {"name": "sft", "kind": "sft", "data": "made", "num_epochs": 2, "rows_per_step": 10}
MADE = {"name": "made", "kind": "write", "rows": {"chains": 30, "general": 10}}


def rows_of(found: tuple[Any, ...], **wanted: Any) -> float:
    alike = [one for one in found if all(getattr(one, key) == value for key, value in wanted.items())]
    return sum(one.num_rows * getattr(one, "num_calls", 1) for one in alike)


def held(found: Work) -> list[tuple[str, bool]]:
    return [(one.role, one.learns) for one in found.held]


def test_reinforcement_learning_samples_and_learns_from_every_rollout():
    found = work(RL)
    text = Text.of_task(recipe_of(RL).stages[0].task)
    assert found.writings == (Writing("tiny", text, 32, 100, num_calls=10, siblings=8),)
    assert found.readings == (Reading("tiny", text, 320, "tiny", 100, learns=True),)
    assert found.held == (Held("model", "tiny", learns=True),)
    assert (found.num_updates, found.writes_model, found.texts_logged) == (10, True, 80)


def test_evaluations_are_full_ones_and_small_ones_between():
    evaluation = {"at": [0.0, 0.5, 1.0], "num_problems": 20, "num_samples": 4, "quick_every_steps": 3}
    found = work(RL | {"evaluation": evaluation | {"quick_num_problems": 5}})
    assert rows_of(found.writings, siblings=4) == 3 * 80
    assert rows_of(found.writings, siblings=1) == 3 * 5  # after steps 3, 6 and 9


def test_the_check_before_training_samples_once():
    assert rows_of(work(RL | {"support": {"num_problems": 6}}).writings, num_calls=1) == 6 * 8


def test_a_reference_is_held_and_reads_every_rollout():
    found = work(RL | {"algorithm_settings": {"kl_coef": 0.1}})
    assert held(found) == [("model", True), ("reference", False)]
    assert rows_of(found.readings, learns=False) == 320
    assert found.saves_reference


def test_beside_an_adapter_few_weights_learn_and_no_reference_is_held():
    found = work(RL | {"algorithm_settings": {"kl_coef": 0.1}, "adapter": {}})
    assert found.held == (Held("model", "tiny", learns=True, share=0.1),)
    assert rows_of(found.readings, learns=False) == 320
    assert not found.saves_reference


def test_a_critic_learns_beside_the_policy_and_a_shared_trunk_costs_no_model():
    own = work(RL | {"algorithm": "ppo", "critic": {}})
    assert ("critic", True) in held(own)
    shared = work(RL | {"algorithm": "ppo", "critic": {"trunk": "shared"}})
    assert ("critic", True) not in held(shared)


def test_epochs_are_learnt_from_and_later_updates_need_the_old_log_probs():
    found = work(RL | {"num_epochs": 3})
    assert rows_of(found.readings, learns=True) == 960
    assert rows_of(found.readings, learns=False) == 320


def test_reward_models_read_and_judges_write():
    stage = RL | {
        "rewards": {"liked": 1.0, "judged": 1.0},
        "reward_models": {"liked": {"model": "reader"}},
        "reward_judges": {"judged": {"model": "judge", "num_calls": 2}},
    }
    found = work(stage)
    assert rows_of(found.readings, model="reader") == 320
    assert rows_of(found.writings, model="judge", text=JUDGING) == 640
    away = stage["reward_judges"]["judged"] | {"base_url": "https://host/v1"}
    assert not [one for one in work(stage | {"reward_judges": {"judged": away}}).held if one.role == "judge"]


def test_late_problems_have_their_share_of_the_stage():
    found = work(RL | {"late": {"task": {"name": "countdown"}, "start": 0.5, "share": 0.4}})
    by_task = {one.text.name: one.num_rows for one in found.readings}
    assert by_task == pytest.approx({"arithmetic_chain": 256, "countdown": 64})


def test_a_comparison_is_its_runs_and_as_many_at_a_time_as_it_has_workers():
    single = work(RL)
    no_kl = {name: {"kl_coef": 0.0} for name in ("grpo", "rloo")}
    compared = {"kind": "compare", "algorithms": ["grpo", "rloo"], "seeds": [0, 1, 2], "num_workers": 4}
    found = work(RL | compared | {"settings_of": no_kl})
    assert (found.num_copies, found.num_at_once) == (6, 4)
    assert found.readings == single.readings
    with_reference = work(RL | compared | {"settings_of": no_kl | {"rloo": {"kl_coef": 0.1}}})
    assert ("reference", False) in held(with_reference)  # what any of the rows needs


def test_demonstrations_are_counted_where_they_are_made():
    found = work(MADE, SFT)
    assert rows_of(found.readings, learns=True) == 80
    assert found.num_updates == 8
    assert found.writings == ()  # no task, so no evaluation


def test_rows_of_a_file_are_counted(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": [], "completion": str(n)}) + "\n" for n in range(25)))
    assert rows_of(work(SFT | {"data": str(file)}).readings) == 50
    with pytest.raises(NotEstimated, match="cannot be read"):
        work(SFT | {"data": str(tmp_path / "none.jsonl")})


def test_half_of_what_rejection_sampling_may_keep_is_assumed_to_be_kept():
    reject = {"name": "kept", "kind": "reject", "task": SUMS, "num_prompts": 100, "samples_per_prompt": 4}
    graph = Graph(recipe_of(reject | {"keep_per_prompt": 2}).stages)
    assert num_rows(graph.parts("kept")) == 100
    graph = Graph(recipe_of(reject | {"max_rows": 30}).stages)
    assert num_rows(graph.parts("kept")) == 30


def test_rejection_sampling_writes_in_batches_and_a_judge_is_asked_of_each_sample():
    reject = {"name": "kept", "kind": "reject", "task": SUMS, "num_prompts": 300, "samples_per_prompt": 4}
    found = work(reject | {"judge": {"model": "judge", "num_calls": 1}})
    (own,) = [one for one in found.writings if one.model == "tiny"]
    assert (own.num_rows, own.num_calls, own.siblings) == (512, 3, 4)
    assert rows_of(found.writings, model="judge") == 3 * 512


def test_the_part_of_a_mix_that_is_used_up_first_decides():
    other = {"name": "other", "kind": "write", "rows": {"general": 30}}
    mix = {"name": "mix", "kind": "mix", "parts": {"made": 3, "other": 1}}
    parts = Graph(recipe_of(MADE, other, mix).stages).parts("mix")
    assert num_rows(parts) == 53  # 40 of made are three quarters
    assert {(part.text.name, round(part.num_rows)) for part in parts} == {
        ("chains", 30),
        ("general", 10),
        ("general", 13),
    }
    assert num_rows(Graph(recipe_of(MADE, other, mix | {"num_rows": 20}).stages).parts("mix")) == 20


def test_a_pair_is_two_texts():
    pairs = {"name": "pairs", "kind": "pairs", "task": SUMS, "num_prompts": 100, "pairs_per_prompt": 2}
    reward_model = {"name": "rm", "kind": "reward_model", "data": "pairs", "held_out_share": 0.2, "rows_per_step": 8}
    found = work(pairs, reward_model)
    assert rows_of(found.readings, learns=True) == pytest.approx(160)  # 100 pairs, a fifth held out
    assert rows_of(found.readings, learns=False) == pytest.approx(40)
    assert (found.num_updates, found.rows_per_update) == (10, 16)


def test_online_preferences_sample_and_offline_ones_do_not():
    stage = {"name": "dpo", "kind": "preference", "task": SUMS, "pairs_per_step": 10, "evaluation": {"at": []}}
    online = work(stage | {"num_steps": 5, "samples_per_prompt": 4})
    assert rows_of(online.writings) == 200
    assert rows_of(online.readings, learns=True) == 100
    assert ("reference", False) in held(online)
    pairs = {"name": "pairs", "kind": "pairs", "task": SUMS, "num_prompts": 100}
    offline = work(pairs, stage | {"data": "pairs"})
    assert offline.writings == ()
    assert (offline.num_updates, rows_of(offline.readings, learns=True)) == (5, 100)


def test_distillation_shares_the_writing_between_student_and_teacher():
    stage = {"name": "kd", "kind": "distill", "teacher": "big", "task": SUMS, "num_steps": 10, "prompts_per_step": 40}
    found = work(stage | {"student_share": 0.25, "evaluation": {"at": []}})
    assert rows_of(found.writings, model="tiny") == 100
    assert rows_of(found.writings, model="big") == 300
    assert rows_of(found.readings, model="big") == 400


def test_an_exam_holds_one_model_at_a_time():
    exam = {"task": SUMS, "num_problems": 10, "num_samples": 4, "max_new_tokens": 50}
    found = work({"name": "exam", "kind": "evaluate", "models": ["tiny", "big"], "tasks": {"sums": exam}})
    assert found.one_at_a_time
    assert [(one.model, one.num_rows, one.is_kept) for one in found.writings] == [("tiny", 40, True), ("big", 40, True)]


def test_pre_training_counts_tokens_and_splits_them_over_its_workers():
    found = work({"name": "base", "kind": "pretrain", "num_tokens": 10**6, "num_workers": 2})
    assert (found.readings[0].num_tokens, found.split_over) == (10**6, 2)


def test_a_kind_that_is_not_known_is_not_estimated_and_never_nothing():
    class Unknown:
        kind, name = "astrology", "stars"

    with pytest.raises(NotEstimated, match="kind astrology"):
        work_of(Unknown(), Graph([]))


def test_a_model_goes_back_to_the_one_on_disk():
    graph = Graph(recipe_of(MADE, SFT | {"model": "student-qwen"}, RL | {"model": "sft"}).stages)
    assert graph.origin("rl") == "student-qwen"
    base = {"name": "base", "kind": "pretrain"}
    graph = Graph(recipe_of(base, RL | {"model": "base"}).stages)
    assert (graph.origin("rl"), graph.is_new("base"), graph.is_new("tiny")) == ("base", True, False)


@pytest.mark.parametrize("name", sorted(bundled_recipes()))
def test_every_stage_of_every_bundled_recipe_is_known(name: str):
    stages = load_recipe(name, []).stages
    graph = Graph(stages)
    for stage in stages:
        assert stage.kind == "replicate" or isinstance(work_of(stage, graph), Work)
