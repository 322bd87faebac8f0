"""The tokenizer and the architecture of the bundled base."""

from __future__ import annotations

import pytest
from tiny_models import deepseek, tokenizer

from melete.models.tiny import SPECIAL_TOKENS, TAGS


@pytest.mark.parametrize("piece", [*SPECIAL_TOKENS, *TAGS, *(str(n) for n in range(100))])
def test_special_tokens_tags_and_numbers_to_99_are_one_token_each(piece: str) -> None:
    assert len(tokenizer().encode(piece, add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    "text", ["what is 12+3?", "  two  spaces\n\n\ttab", "äöü 你好 🙂", "<think>12345</think>", "a\r\nb"]
)
def test_any_text_survives_encoding_and_decoding(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text, add_special_tokens=False)) == text


def test_the_model_is_deepseek_v3_with_experts_in_all_but_the_first_layer() -> None:
    model = deepseek()
    assert model.config.model_type == "deepseek_v3"
    routers = [hasattr(layer.mlp, "gate") for layer in model.model.layers]
    assert routers == [False, True]
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
