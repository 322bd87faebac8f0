"""Chat templates for models that come without one: the one whose tokens they have, and it ends turns with its token."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from tiny_models import MODELS, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from melete.errors import ModelError
from melete.models.load import load_tokenizer, save_model
from melete.models.templates import NAMES, choose_template, template_text
from melete.text.chat import prompt_tokens
from melete.types import Message

TOKENS = {
    "plain": [],
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


def bare(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer with the tokens of a kind and without a template."""
    made = copy.deepcopy(tokenizer())
    made.chat_template = None
    made.add_tokens(TOKENS[name], special_tokens=True)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_the_template_that_fits_is_chosen_and_ends_turns_with_its_token(name: str) -> None:
    made = bare(name)
    choose_template(made)
    assert made.chat_template == template_text(name)
    assert made.eos_token == (TOKENS[name][-1] if TOKENS[name] else tokenizer().eos_token)


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_begins_with_the_prompt_of_its_last_turn(name: str) -> None:
    made = bare(name)
    choose_template(made)
    text = str(made.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True))
    answered = [*TALK, {"role": "assistant", "content": "four"}]
    assert str(made.apply_chat_template(answered, tokenize=False)).startswith(f"{text}four{made.eos_token}")
    assert "Be kind." in text and text.index("one") < text.index("two") < text.index("three")
    assert text.count(str(made.bos_token)) == (0 if name == "chatml" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_assistant_says_is_marked(name: str) -> None:
    made = bare(name)
    choose_template(made)
    rows = made.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mark in zip(rows["input_ids"], rows["assistant_masks"], strict=True) if mark]
    assert made.decode(marked) == f"two{made.eos_token}"


def test_a_model_without_a_template_is_given_one_that_is_saved_with_it(tmp_path: Path) -> None:
    save_model(MODELS["llama"](), bare("plain"), tmp_path / "m")
    loaded = load_tokenizer(tmp_path / "m")
    assert prompt_tokens(loaded, [Message("user", "one")])
    save_model(MODELS["llama"](), loaded, tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").chat_template == template_text("plain")


def test_a_template_may_be_named_or_a_file(tmp_path: Path) -> None:
    made = bare("chatml")
    choose_template(made, "plain")
    assert made.chat_template == template_text("plain")
    (tmp_path / "own.jinja").write_text("{{ messages[0]['content'] }}")
    choose_template(made, str(tmp_path / "own.jinja"))
    assert made.apply_chat_template(TALK, tokenize=False) == "Be kind."


OWN = """{%- for m in messages -%}
{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' -}}
{%- endfor -%}"""


@pytest.mark.parametrize("is_file", [False, True])
def test_a_turn_ends_as_the_template_says_whatever_ends_a_text(is_file: bool, tmp_path: Path) -> None:
    made = bare("chatml")
    assert made.eos_token != "<|im_end|>"
    if is_file:
        (tmp_path / "own.jinja").write_text(OWN)
        choose_template(made, str(tmp_path / "own.jinja"))
    else:
        made.chat_template = OWN
        choose_template(made)
    assert made.eos_token == "<|im_end|>"


def test_plain_transformers_ends_an_answer_with_the_token_of_the_template(tmp_path: Path) -> None:
    made, model = bare("chatml"), MODELS["llama"]()
    model.resize_token_embeddings(len(made))
    before = made.eos_token_id
    choose_template(made)
    save_model(model, made, tmp_path / "m")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert read.generation_config.eos_token_id == [made.eos_token_id, before]
    assert AutoTokenizer.from_pretrained(tmp_path / "m").eos_token_id == made.eos_token_id != before


def test_a_file_that_is_no_template_is_refused(tmp_path: Path) -> None:
    for text in ("{% for m in", "{{ messages[7]['content'] + 1 }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}"):
        (tmp_path / "own.jinja").write_text(text)
        with pytest.raises(ModelError, match="chat template cannot be used"):
            choose_template(bare("plain"), str(tmp_path / "own.jinja"))


@pytest.mark.parametrize(
    ("chosen", "says"),
    [("chatlm", "did you mean chatml"), ("llama3", "does not have"), ("no/such.jinja", "no chat template")],
)
def test_a_template_that_cannot_be_used_is_refused(chosen: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        choose_template(bare("plain"), chosen)
