"""How fast a step was, against what its arithmetic alone would take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import llama
from torch import nn

from melete.config import load_recipe
from melete.learning.throughput import Arithmetic, operations_per_second
from melete.live import View
from melete.models.load import load_model
from melete.pipeline import run_recipe


def test_operations_are_two_for_each_weight_that_a_token_meets():
    model = llama()
    head = model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    found = Arithmetic.of(model)
    assert (found.trunk, found.head) == (2 * linear, 2 * head.weight.numel())
    assert found.of_step(0, 10) == 4 * 10 * (found.trunk + found.head), "sampling, forward, and twice backward"
    assert found.of_step(7, 0, num_passes=2) == 7 * 7 * found.trunk, "of a prompt no logits are made"


def test_of_a_mixtures_experts_a_token_meets_few():
    model = load_model("tiny")
    experts = sum(weight.numel() for weight in model.parameters() if weight.dim() == 3)
    per_token, num_experts = model.config.num_experts_per_tok, model.config.n_routed_experts
    rest = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)) - model.lm_head.weight.numel()
    assert experts > 0
    assert Arithmetic.of(model).trunk == pytest.approx(2 * (rest + experts * per_token / num_experts))


def test_the_speed_of_products_is_measured_once():
    torch.manual_seed(0)
    first = operations_per_second(torch.device("cpu"), torch.float32, 1)
    assert first > 1e8 and operations_per_second(torch.device("cpu"), torch.float32, 1) == first


def test_every_step_of_a_run_tells_its_speed_and_the_metrics_stay_a_function_of_the_recipe(tmp_path: Path):
    cuts = (
        "num_steps=2",
        "warmup_steps=1",
        "prompts_per_step=2",
        "evaluation.num_problems=2",
        "evaluation.num_samples=1",
    )
    with View(["rl"], True) as view:
        run_recipe(load_recipe("r1-zero-tiny", [f"rl.{cut}" for cut in cuts]), tmp_path / "r", view=view, command="x")
    rows = [json.loads(line) for line in (tmp_path / "r" / "timings.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "sample_seconds" in row]
    assert len(steps) == 2
    for row in steps:
        assert 0 < row["floor_share"] < 1 and row["tokens_per_second"] > 0
    assert "floor_share" not in (tmp_path / "r" / "metrics.jsonl").read_text()
