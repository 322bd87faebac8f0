"""The comparison with TRL: what it counts, what it asks of both sides, and its tables. TRL is not needed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from melete.models.load import load_model, load_tokenizer
from melete.sampling.native import NativeSampler
from melete.text.chat import prompt_tokens
from melete.types import Message

ROOT = Path(__file__).parents[1]


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the benchmark by its name."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.against_trl.{name}")


def small(part: Any, **changes: Any) -> Any:
    said = {"num_prompts": 2, "group_size": 4, "prompt_tokens": 6, "max_new_tokens": 16, "mean_tokens": 8.0}
    return part("workloads").Workload("B", **(said | changes))


def tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, tie_word_embeddings=False, **shape))


def test_the_floor_counts_the_products_of_the_formula(part: Any) -> None:
    floor = part("floor")
    matrices = floor.matrices_of(tiny_llama())
    # four of 8 x 8 and three of 8 x 12 in each of two layers, and the head of 8 x 16
    layers, head = 2 * (4 * 64 + 3 * 96), 128
    steps = floor.batches([3, 3], [1, 3])
    # 6 prompt tokens and two first logits; one row goes on for two tokens; 6 + 0 + 2 tokens are read in training
    assert [(b.num_tokens, b.num_predicted, b.has_gradient) for b in steps] == [
        (6, 2, False),
        (1, 1, False),
        (1, 1, False),
        (8, 4, True),
    ]
    forward = 2 * (layers * 6 + head * 2) + 2 * 2 * (layers + head)
    assert floor.num_operations(matrices, steps) == forward + 3 * 2 * (layers * 8 + head * 4)
    found = floor.measure(matrices, steps)
    assert found["num_products"] == 15 * 3 + 15 * 3 and found["operations"] == floor.num_operations(matrices, steps)
    assert found["step_seconds"] == found["rollout_seconds"] + found["update_seconds"] > 0


def test_the_update_is_counted_in_parts_that_add_up(part: Any) -> None:
    steps = [batch for batch in part("floor").batches([10, 10], [30] * 8, max_tokens=100) if batch.has_gradient]
    assert len(steps) == 3 and max(batch.num_tokens for batch in steps) <= 100
    assert sum(batch.num_tokens for batch in steps) == 20 + 8 * 29
    assert sum(batch.num_predicted for batch in steps) == 240


def test_an_expert_counts_for_its_share_of_the_tokens(part: Any) -> None:
    matrices = part("floor").matrices_of(load_model("tiny"))
    experts = [matrix for matrix in matrices if matrix.share < 1]
    assert len(experts) == 3 * 8 * 2 and {matrix.share for matrix in experts} == {2 / 8}  # 2 of 8, in three layers
    assert sum(matrix.is_head for matrix in matrices) == 1


@pytest.mark.parametrize("model", ["llama-2.4m", "tiny"])
def test_prompts_have_the_length_that_is_said_and_differ(model: str, part: Any, tmp_path: Path) -> None:
    workloads = part("workloads")
    workload = small(part, equal_lengths=True, prompt_tokens=11)
    place = workloads.prepare(model, workload, tmp_path)
    tokenizer, steps = load_tokenizer(place), workloads.prompts_of(place)
    assert len(steps) == workloads.NUM_STEPS and {len(step) for step in steps} == {2}
    texts = [text for step in steps for text in step]
    as_melete = [prompt_tokens(tokenizer, [Message("user", text)]) for text in texts]
    as_trl = [
        tuple(tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True).input_ids)
        for text in texts
    ]
    assert as_melete == as_trl and {len(tokens) for tokens in as_melete} == {11}
    assert len(set(as_melete)) == len(texts)


def test_end_tokens_bring_completions_to_the_wanted_mean(part: Any, tmp_path: Path) -> None:
    workloads = part("workloads")
    workload = small(part, max_new_tokens=64, mean_tokens=20.0)
    place = workloads.prepare("llama-2.4m", workload, tmp_path)
    assert workloads.prepare("llama-2.4m", workload, tmp_path) == place  # and is not made again
    ends = json.loads((place / "generation_config.json").read_text())["eos_token_id"]
    assert len(ends) > 10 and len(set(ends)) == len(ends)
    tokenizer = load_tokenizer(place)
    assert set(NativeSampler(load_model(place), tokenizer).end_tokens.tolist()) == set(ends)
    assert tokenizer.eos_token_id in ends


def test_a_step_says_what_the_tables_need(part: Any, tmp_path: Path) -> None:
    workloads, melete_step = part("workloads"), part("melete_step")
    workload = small(part)
    place = workloads.prepare("llama-2.4m", workload, tmp_path)
    spec = workloads.Spec(str(place), workload, torch.get_num_threads())
    assert workloads.Spec.from_json(spec.as_json()) == spec
    row = melete_step.Steps(spec).run(0)
    assert row.keys() >= {"rollout_seconds", "update_seconds", "step_seconds", "peak_mb", "threads", "prompts_hash"}
    assert row["completion_tokens"] == sum(row["lengths"]) and len(row["lengths"]) == 8
    assert row["prompt_tokens"] == 2 * 6 and max(row["lengths"]) <= 16
    assert row["rollout_seconds"] + row["update_seconds"] == pytest.approx(row["step_seconds"])
    assert row["dropped_rows"] == 0  # the reward of each group varies, so all rows are learnt from
    json.dumps(row)


def test_equal_lengths_are_equal(part: Any, tmp_path: Path) -> None:
    workloads = part("workloads")
    workload = small(part, equal_lengths=True)
    place = workloads.prepare("llama-2.4m", workload, tmp_path)
    row = part("melete_step").Steps(workloads.Spec(str(place), workload, torch.get_num_threads())).run(0)
    assert set(row["lengths"]) == {16}


def canned(side: str, step: int, seconds: float, *, tokens: int = 100, peak: float = 100.0) -> dict[str, Any]:
    case = {"model": "m", "workload": "A", "num_prompts": 2, "group_size": 4, "threads_given": 1, "commit": "abc"}
    times = {"rollout_seconds": seconds / 4, "update_seconds": 3 * seconds / 4, "step_seconds": seconds}
    times["cpu_seconds"] = 2 * seconds
    row = {**case, "side": side, "step": step, "is_warm": step > 0, **times}
    if side == "floor":
        return {**row, "operations": 2e9}
    quantiles = [1.0, 10.0, 20.0, 30.0, 40.0]
    return {**row, "completion_tokens": tokens, "lengths": [tokens], "length_quantiles": quantiles, "peak_mb": peak}


def test_tables_take_the_median_of_the_ratios_of_pairs(part: Any) -> None:
    seconds = {"melete": [9.0, 1.0, 2.0, 4.0], "trl": [90.0, 3.0, 8.0, 20.0], "floor": [1.0, 0.5, 1.0, 2.0]}
    rows = [
        canned(side, step, times[step], tokens=200 if side == "trl" else 100, peak=400.0 if side == "trl" else 100.0)
        for step in range(4)
        for side, times in seconds.items()
    ]
    rows.append({**canned("trl_batching", -1, 1.0), "is_warm": False, "failed": "out | of memory"})
    page = part("table").rendered(rows, {"machine": "a small one"})
    # ratios 3, 4, 5; twice the tokens halve them; the first round is not counted
    assert "| m | A | 2 x 4 | 1 | 3 | 4.00 | 2.00 | 4.00 | 4.00 | 4.00 | 25% | 2.00 | out / of memory | abc |" in page
    assert "| m | A | 2 x 4 | 1 | Melete | 0.50 | 1.50 | 2.00 | 4.00 | 100 | 50 | 100 | 0 |" in page
    assert "| m | A | 2 x 4 | 1 | floor | 0.25 | 0.75 | 1.00 | 2.00 | 2 GFLOP |" in page
    assert "| m | A | 2 x 4 | 1 | TRL | 200 | 1 | 10 | 20 | 30 | 40 |" in page
    assert "- machine: a small one" in page


def test_a_case_without_counted_steps_is_left_out(part: Any) -> None:
    assert part("table").cases_of([canned("melete", 0, 1.0)]) == []


def test_quick_is_one_small_case(part: Any) -> None:
    main = part("__main__")
    found = list(main.cases(main.arguments_of(["--quick", "--models", "tiny"])))
    assert [(model, workload.name, workload.num_rows) for model, workload in found] == [("llama-2.4m", "A", 128)]
    with pytest.raises(SystemExit):
        main.arguments_of(["--workloads", "D"])
