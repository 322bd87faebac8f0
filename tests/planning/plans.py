"""Recipes in short, and facts that a person can multiply in the head."""

from __future__ import annotations

from typing import Any

from melete.planning.estimate import Facts, Lengths, Speed
from melete.planning.graph import Graph, Text
from melete.planning.kinds import work_of
from melete.planning.sizes import Size
from melete.planning.work import Work
from melete.schema import Recipe

SUMS: dict[str, Any] = {"name": "arithmetic_chain"}
RL: dict[str, Any] = {
    "name": "rl",
    "kind": "rl",
    "task": SUMS,
    "num_steps": 10,
    "prompts_per_step": 4,
    "group_size": 8,
    "max_new_tokens": 100,
    "max_tokens_per_microbatch": 1000,
    "algorithm_settings": {"kl_coef": 0.0},
    "evaluation": {"at": []},
    "support": {"num_problems": 0},
}
SPEED = Speed(load=1.0, step=0.01, token=0.001, read=0.001, learn=0.002, activation_bytes=1000, process_bytes=10**6)
SIZE = Size(num_parameters=1000, cache_bytes=100, vocab_size=10, activation_bytes=500)
LENGTHS = Lengths(prompt=10, completions=(20, 40), cap=100)


def recipe_of(*stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({"name": "plan", "stage": list(stages)})


def work(*stages: dict[str, Any]) -> Work:
    """The work of the last stage."""
    recipe = recipe_of(*stages)
    return work_of(recipe.stages[-1], Graph(recipe.stages))


def facts_for(*stages: dict[str, Any], lengths: Lengths = LENGTHS, num_cores: int = 1) -> Facts:
    """Every model is as large and as fast as every other, and writes as long."""
    recipe = recipe_of(*stages)
    graph = Graph(recipe.stages)
    works = [work_of(stage, graph) for stage in recipe.stages]
    needs = {(graph.origin(model), text.key) for found in works for model, text, _ in found.needs()}
    needs |= {("tiny", Text.of_task(recipe.stages[-1].task).key)} if getattr(recipe.stages[-1], "task", None) else set()
    origins = {graph.origin(held.model) for found in works for held in found.held}
    return Facts(
        graph.origin,
        sizes=dict.fromkeys(origins, SIZE),
        speeds=dict.fromkeys(origins, SPEED),
        lengths=dict.fromkeys(needs, lengths),
        num_cores=num_cores,
    )
