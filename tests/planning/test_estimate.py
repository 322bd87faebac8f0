"""Seconds and bytes from work and measurement, worked out by hand."""

from __future__ import annotations

import math

import pytest
from planning.plans import LENGTHS, RL, SIZE, SPEED, SUMS, facts_for, work

from melete.planning.estimate import (
    FLOAT,
    SPARE,
    Facts,
    Lengths,
    disk_of,
    memory_of,
    padding,
    seconds_of,
    tokens_of,
)
from melete.planning.graph import NotEstimated

NO_KL = {"grpo": {"kl_coef": 0.0}}
ONE_CALL = {"name": "pairs", "kind": "pairs", "task": SUMS, "num_prompts": 8, "samples_per_prompt": 4}


def test_tokens_are_rows_times_their_mean_length():
    found = tokens_of(work(RL), facts_for(RL))
    assert found.sampled == 320 * 30
    assert found.learnt == 320 * (10 + 30)
    assert found.read == 0


def test_a_wave_takes_its_longest_row_in_steps_and_all_of_its_tokens():
    # 40 steps of 0.01 s, 32 completions of 30 tokens, 8 prompts of 10 tokens that are read; a second to load
    expected = 1 + 40 * 0.01 + 32 * 30 * 0.001 + 8 * 10 * 0.001
    assert seconds_of(work(ONE_CALL), facts_for(ONE_CALL)) == pytest.approx(expected)


def test_more_rows_than_fit_are_written_in_waves():
    exam = {"task": SUMS, "num_problems": 256, "num_samples": 4, "max_new_tokens": 100}
    stage = {"name": "exam", "kind": "evaluate", "models": ["tiny"], "tasks": {"sums": exam}, "max_rows": 512}
    expected = 1 + 2 * 40 * 0.01 + 1024 * 30 * 0.001 + 256 * 10 * 0.001
    assert seconds_of(work(stage), facts_for(stage)) == pytest.approx(expected)
    narrow = stage | {"max_rows": 256}
    assert seconds_of(work(narrow), facts_for(narrow)) == pytest.approx(expected + 2 * 40 * 0.01)


def test_learning_takes_its_tokens_with_their_padding():
    facts = facts_for(RL)
    second_pass = seconds_of(work(RL | {"num_epochs": 2}), facts) - seconds_of(work(RL), facts)
    # the 32 rows of an update, 16 of 30 tokens and 16 of 50, are packed as 20 rows of 50 and 12 of 50: 1600 for 1280
    padded = 320 * 40 * 1.25
    old_logprobs = padded * SPEED.read  # asked for as soon as there is more than one update
    assert second_pass == pytest.approx(padded * SPEED.learn + old_logprobs)


def test_learning_with_an_adapter_takes_two_thirds_of_the_time() -> None:
    def another_pass(further: dict[str, object]) -> float:
        once, twice = RL | further | {"num_epochs": 2}, RL | further | {"num_epochs": 3}
        return seconds_of(work(twice), facts_for(twice)) - seconds_of(work(once), facts_for(once))

    assert another_pass({"adapter": {"rank": 4}}) == pytest.approx(another_pass({}) * 2 / 3, rel=0.01)


def test_padding_is_that_of_sorted_rows_in_parts():
    assert padding([2, 4], 2, 8) == pytest.approx(8 / 6)
    assert padding([5], 10, 100) == 1
    lengths = [10, 10, 10, 50]
    assert padding(lengths, 4, 10**6) == pytest.approx(200 / 80)
    assert padding(lengths, 4, 60) == pytest.approx(1.0)


def test_a_checkpoint_takes_time_too():
    stage = RL | {"checkpoint_every_steps": 1}
    assert seconds_of(work(stage), facts_for(stage)) > seconds_of(work(RL), facts_for(RL))


def test_runs_at_the_same_time_need_a_core_each():
    stage = RL | {
        "kind": "compare",
        "algorithms": ["grpo"],
        "settings_of": NO_KL,
        "seeds": [0, 1, 2, 3],
        "num_workers": 4,
    }
    alone = seconds_of(work(RL), facts_for(RL))
    assert seconds_of(work(stage), facts_for(stage, num_cores=1)) == pytest.approx(4 * alone)
    assert seconds_of(work(stage), facts_for(stage, num_cores=2)) == pytest.approx(2 * alone)
    assert seconds_of(work(stage), facts_for(stage, num_cores=8)) == pytest.approx(alone)


def test_completions_that_were_cut_are_taken_to_run_on_to_the_limit():
    lengths = Lengths(prompt=0, completions=(4, 8), cap=8)
    assert lengths.upto(8) == (6, 8)
    assert lengths.upto(100) == (52, 100)
    assert lengths.is_cut(100) and not lengths.is_cut(8)


def test_memory_is_models_with_their_optimizers_and_the_larger_of_two_moments():
    found = memory_of(work(RL), facts_for(RL))
    assert found.models == FLOAT * SIZE.num_parameters * 4  # weights, gradients, two averages
    writing = 32 * (1.5 * (10 + 100) * SIZE.cache_bytes + 4 * FLOAT * SIZE.vocab_size)
    learning = 1000 * SPEED.activation_bytes
    assert found.work == max(writing, learning) == learning
    assert found.total == SPEED.process_bytes + SPARE * (found.models + found.work)


def test_a_smaller_microbatch_needs_less_memory():
    small = RL | {"max_tokens_per_microbatch": 200}
    assert memory_of(work(small), facts_for(small)).work < memory_of(work(RL), facts_for(RL)).work


def test_frozen_models_are_their_weights_alone():
    stage = RL | {"algorithm_settings": {"kl_coef": 0.1}}
    more = memory_of(work(stage), facts_for(stage)).models - memory_of(work(RL), facts_for(RL)).models
    assert more == FLOAT * SIZE.num_parameters


def test_an_exam_needs_room_for_its_largest_model_only():
    exam = {"task": SUMS, "num_problems": 2, "num_samples": 2, "max_new_tokens": 10}
    stage = {"name": "exam", "kind": "evaluate", "models": ["tiny", "big"], "tasks": {"sums": exam}}
    assert memory_of(work(stage), facts_for(stage)).models == FLOAT * SIZE.num_parameters


def test_processes_each_need_their_own_memory():
    stage = RL | {"kind": "compare", "algorithms": ["grpo"], "settings_of": NO_KL, "seeds": [0, 1, 2], "num_workers": 2}
    assert memory_of(work(stage), facts_for(stage)).total == 2 * memory_of(work(RL), facts_for(RL)).total


def test_memory_is_estimated_without_a_measured_speed():
    known = facts_for(RL)
    found = memory_of(work(RL), Facts(known.origin, sizes=known.sizes))
    assert found.work == 1000 * SIZE.activation_bytes
    assert math.isfinite(found.total)


def test_disk_is_two_checkpoints_a_model_and_a_third_checkpoint_for_a_moment():
    found = disk_of(work(RL | {"checkpoint_every_steps": 2}), facts_for(RL))
    weights = FLOAT * SIZE.num_parameters
    assert found.passing == 3 * weights
    assert found.kept == pytest.approx(2 * 3 * weights + weights + 2**20 + 80 * 300)
    once = disk_of(work(RL | {"checkpoint_every_steps": 0}), facts_for(RL))
    assert found.kept - once.kept == 3 * weights


def test_evaluations_are_kept_as_tokens():
    stage = RL | {"evaluation": {"at": [1.0], "num_problems": 10, "num_samples": 2}}
    assert disk_of(work(stage), facts_for(stage)).kept - disk_of(work(RL), facts_for(RL)).kept == 20 * 30 * 6


def test_what_has_not_been_measured_says_so():
    known = facts_for(RL)
    unmeasured = Facts(known.origin, sizes=known.sizes, lengths=known.lengths, why_not={"tiny": "tiny: no luck"})
    with pytest.raises(NotEstimated, match="no luck"):
        seconds_of(work(RL), unmeasured)
    with pytest.raises(NotEstimated, match="arithmetic_chain has not been measured"):
        seconds_of(work(RL), Facts(known.origin, sizes=known.sizes, speeds=known.speeds))
    assert LENGTHS.upto(None) == (30, 40)
