"""Model cards: what made a model, from what, with which results; no date, and no place on the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from melete.models.card import Card, card_text, licence_of, write_card

EVALUATION = {
    "label": "final",
    "step": 3,
    "pass@1": 0.5,
    "pass@1/low": 0.4,
    "pass@1/high": 0.6,
    "num_problems": 10,
    "num_samples": 4,
}


@pytest.fixture
def card() -> Card:
    task = {"name": "sums", "min_terms": 2}
    return Card.of_stage(
        {"name": "zero", "kind": "rl", "model": "/home/me/base", "algorithm": "grpo", "task": task},
        recipe="r",
        seed=3,
        base="/home/me/base",
        licence="mit",
        data=["task sums", "/data/mine.jsonl"],
        entry={"evaluations": [EVALUATION]},
    )


def test_a_card_is_read_as_one_of_hugging_faces(card: Card, tmp_path: Path) -> None:
    write_card(card, tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.base_model, data.library_name) == ("mit", "base", "transformers")
    assert data.tags == ["melete", "rl", "grpo"]
    assert licence_of(tmp_path) == "mit"


def test_a_card_tells_settings_data_and_results_and_no_place(card: Card) -> None:
    text = card_text(card)
    assert "task.min_terms = 2" in text and "seed = 3" in text
    assert "| final | 3 | 0.500 | 0.400 to 0.600 | 10 | 4 |" in text
    assert "- mine.jsonl" in text and "/home" not in text and "/data" not in text


@pytest.mark.parametrize("content", [None, "no card", "---\nlicense: [\n---\n", "---\ntags: [a]\n---\n"])
def test_a_base_without_a_licence_has_none(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "README.md").write_text(content)
    assert licence_of(tmp_path) == ""
