"""What is kept of a step's rollouts: every token with its own advantage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from melete.config import load_recipe
from melete.live import View
from melete.models.load import load_tokenizer
from melete.pipeline import run_recipe
from melete.stages.rollout_rows import advantage_spans


def test_tokens_of_the_same_advantage_are_one_piece_and_the_pieces_are_the_text():
    tokenizer = load_tokenizer("tiny")
    text = "Hmm, 3+4=7 is so é 中."
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert advantage_spans(tokenizer, tokens, [0.25] * len(tokens)) == [(text, 0.25)]
    spans = advantage_spans(tokenizer, tokens, [float(n) for n in range(len(tokens))])
    assert "".join(piece for piece, _ in spans) == text
    assert [value for _, value in spans] == sorted(value for _, value in spans)
    assert advantage_spans(tokenizer, [], []) == []


@pytest.mark.parametrize("name", ["r1-zero-tiny", "ppo-tiny"])
def test_a_run_keeps_the_advantages_that_its_learner_saw(name: str, tmp_path: Path):
    cuts = (
        "num_steps=3",
        "warmup_steps=1",
        "prompts_per_step=4",
        "evaluation.num_problems=2",
        "evaluation.num_samples=1",
    )
    more = ("rl.critic.warmup_steps=1",) if name == "ppo-tiny" else ()
    recipe = load_recipe(name, (*(f"rl.{cut}" for cut in cuts), *more))
    with View(["rl"], True) as view:
        run_recipe(recipe, tmp_path / "run", view=view, command="melete run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert rows and all("".join(piece for piece, _ in row["credit"]).startswith(row["text"]) for row in rows)
    if name == "ppo-tiny":  # a critic tells token from token
        assert max(len(row["credit"]) for row in rows) > 2
        return
    assert all(len(row["credit"]) == 1 for row in rows)
    for step in range(3):
        group = [row for row in rows if row["step"] == step]
        mean = sum(row["reward"] for row in group) / len(group)
        for row in group:
            assert (row["credit"][0][1] > 0) == (row["reward"] > mean + 1e-6)
