"""The learning-rate schedule, and what weight decay acts on."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import deepseek

from melete.learning.optimizer import OptimizerSettings, lr_at, make_optimizer


@pytest.mark.parametrize(
    ("schedule", "min_lr_ratio", "expected"),
    [
        ("constant", 0.0, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", 0.0, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),
        ("linear", 0.2, [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2]),
        ("cosine", 0.0, [0.5, 1.0, 1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0.0, 0.0]),
        ("cosine", 0.5, [0.5, 1.0, 1.0, (6 + math.sqrt(2)) / 8, 0.75, (6 - math.sqrt(2)) / 8, 0.5, 0.5]),
    ],
)
def test_the_rate_of_each_step(schedule: str, min_lr_ratio: float, expected: list[float]) -> None:
    """Two steps of warm-up, then four steps down; steps beyond the schedule stay at its end."""
    settings = OptimizerSettings(1.0, warmup_steps=2, schedule=schedule, num_steps=6, min_lr_ratio=min_lr_ratio)
    assert [lr_at(step, settings) for step in range(8)] == pytest.approx(expected, abs=1e-12)


def test_without_warmup_the_first_step_has_the_full_rate() -> None:
    assert lr_at(0, OptimizerSettings(3e-4, schedule="cosine", num_steps=10)) == 3e-4


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup_steps=st.integers(0, 5),
    num_steps=st.integers(1, 20),
    min_lr_ratio=st.floats(0, 1),
)
def test_the_rate_rises_to_its_height_and_never_rises_again(
    schedule: str, warmup_steps: int, num_steps: int, min_lr_ratio: float
) -> None:
    settings = OptimizerSettings(
        2.0, warmup_steps=warmup_steps, schedule=schedule, num_steps=num_steps, min_lr_ratio=min_lr_ratio
    )
    rates = [lr_at(step, settings) for step in range(num_steps + 5)]
    warm, rest = rates[:warmup_steps], rates[warmup_steps:]
    assert all(later > earlier for earlier, later in pairwise(warm))
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(rest))
    assert rest[0] == pytest.approx(2.0)
    assert min(rest) >= 2.0 * min_lr_ratio - 1e-12


def test_weight_decay_acts_on_matrices_and_spares_norms() -> None:
    model = deepseek()
    decayed, spared = make_optimizer(model, OptimizerSettings(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim == 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_a_frozen_parameter_is_not_handed_to_the_optimizer() -> None:
    model = deepseek()
    model.model.embed_tokens.requires_grad_(False)
    groups = make_optimizer(model, OptimizerSettings()).param_groups
    assert not any(p is model.model.embed_tokens.weight for group in groups for p in group["params"])
