"""Balancing a mixture of experts by the bias of its router."""

from __future__ import annotations

import pytest
import torch
from tiny_models import deepseek, llama, tokenizer
from transformers import PreTrainedModel

from melete.algorithms import resolve
from melete.batch import demonstrations
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.models.load import load_model, load_tokenizer
from melete.models.moe import RouterBalancer, bias_step


def router_of(model: PreTrainedModel) -> torch.nn.Module:
    return model.model.layers[1].mlp.gate


def random_rows(seed: int, num_rows: int = 8, length: int = 16) -> torch.Tensor:
    return torch.randint(6, len(tokenizer()), (num_rows, length), generator=torch.Generator().manual_seed(seed))


def test_an_overloaded_expert_falls_and_an_underloaded_one_rises_by_the_rate() -> None:
    """Loads 6, 2, 1, 3 have mean 3: one falls, two rise, one stays."""
    bias = torch.tensor([0.0, 0.5, -0.25, 1.0])
    moved = bias_step(bias, torch.tensor([6.0, 2.0, 1.0, 3.0]), 0.125)
    torch.testing.assert_close(moved, torch.tensor([-0.125, 0.625, -0.125, 1.0]))
    torch.testing.assert_close(bias, torch.tensor([0.0, 0.5, -0.25, 1.0]))


def test_training_on_evens_out_the_load_of_the_experts() -> None:
    """Two of eight experts begin with a bias that sends every token to them: load four times the mean."""
    model = deepseek()
    router_of(model).e_score_correction_bias[:2] = 1.0
    balancer = RouterBalancer(model, rate=0.05)
    learner = LocalLearner(model, optimizer=OptimizerSettings(lr=1e-4), after_step=balancer.step)
    worst = []
    for step in range(40):
        rows = [(row.tolist(), [False, *[True] * 15]) for row in random_rows(step)]
        worst.append(learner.update(demonstrations(rows, 0), resolve("sft"))["expert_load_max"])
    assert worst[0] == pytest.approx(4.0)
    assert sum(worst[-5:]) / 5 < 2.0
    assert learner.weights()["model.layers.1.mlp.gate.e_score_correction_bias"].max() < 1.0


def test_only_training_is_counted_and_each_step_counts_anew() -> None:
    model = deepseek()
    balancer = RouterBalancer(model, rate=0.1)
    with torch.no_grad():
        model(input_ids=random_rows(0))
    assert balancer.step() == {"expert_load_max": 0.0}
    assert not router_of(model).e_score_correction_bias.any()
    model(input_ids=random_rows(0))
    assert float(balancer.loads[0].sum()) == 8 * 16 * 2  # tokens times experts per token
    assert balancer.step()["expert_load_max"] > 1.0
    moved = router_of(model).e_score_correction_bias.clone()
    assert all(size in (0.0, pytest.approx(0.1)) for size in moved.abs().unique().tolist())
    balancer.step()
    assert router_of(model).e_score_correction_bias.equal(moved)


def test_a_model_without_such_routers_has_nothing_to_balance() -> None:
    model = llama()
    balancer = RouterBalancer(model)
    model(input_ids=random_rows(0))
    assert balancer.step() == {}


def test_padding_is_not_counted_so_a_split_changes_no_load():
    """I1: the loads of two trimmed micro-batches add up to those of the padded whole."""
    tokenizer, model = load_tokenizer("tiny"), load_model("tiny")
    balancer = RouterBalancer(model)
    short, long = [5, 6, 7], [8, 9, 10, 11, 12, 13]
    pad = [tokenizer.pad_token_id] * 3
    model(input_ids=torch.tensor([short + pad, long]))
    whole = [load.clone() for load in balancer.loads]
    for load in balancer.loads:
        load.zero_()
    model(input_ids=torch.tensor([short]))
    model(input_ids=torch.tensor([long]))
    for together, apart in zip(whole, balancer.loads, strict=True):
        torch.testing.assert_close(together, apart)
        assert together.sum() == model.config.num_experts_per_tok * 9
