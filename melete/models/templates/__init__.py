"""Chat templates for models that come without one; each is a Jinja file beside this one."""

from __future__ import annotations

import contextlib
from functools import cache
from importlib import resources
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from melete.errors import ModelError
from melete.suggest import did_you_mean

NAMES = ("plain", "chatml", "llama3")
END_OF_TURN = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}


@cache
def template_text(name: str) -> str:
    """The template of that name."""
    return resources.files(__name__).joinpath(f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


def choose_template(tokenizer: PreTrainedTokenizerBase, chosen: str = "auto") -> None:
    """Gives the tokenizer a chat template: its own or the fitting one for "auto", else the named one or a file's.

    The token with which the template ends a turn becomes the one that ends a text, because that is what the model is to
    write: the tokens of some models name another. Raises
    `ModelError` for an unknown name and for a template whose tokens the tokenizer does not have.
    """
    if chosen == "auto":
        if tokenizer.chat_template:
            with contextlib.suppress(Exception):  # it will be told when a conversation is written with it
                tokenizer.eos_token = end_of_turn(tokenizer) or tokenizer.eos_token
            return
        chosen = fitting_template(tokenizer)
    tokenizer.chat_template = template_text(chosen) if chosen in NAMES else _from_file(chosen)
    end = END_OF_TURN.get(chosen)
    if end is not None and end not in tokenizer.get_vocab():
        what = f"the template {chosen} ends turns with {end}, which the tokenizer does not have"
        raise ModelError(what, place="chat_template", remedy=f"chat_template: auto or one of {', '.join(NAMES)}")
    try:
        found = end_of_turn(tokenizer)
    except Exception as error:  # a template is a program by anybody
        what = f"the chat template cannot be used: {error}"
        raise ModelError(what, place=chosen, remedy="a Jinja template in Hugging Face's form") from error
    if found:
        tokenizer.eos_token = found


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """The special token that the chat template writes after the assistant's words; empty if it is none."""
    said = "words of the assistant"
    turns = [{"role": "user", "content": "words"}, {"role": "assistant", "content": said}]
    after = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(said)[2].lstrip()
    special = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
    return max((token for token in special if after.startswith(token)), key=len, default="")


def fitting_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template whose tokens the tokenizer has; the plain one, of words alone, where it has none of them."""
    vocabulary = tokenizer.get_vocab()
    if "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary:
        return "chatml"
    return "llama3" if {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"} <= vocabulary.keys() else "plain"


def _from_file(chosen: str) -> str:
    path = Path(chosen)
    if not path.is_file():
        what = f"there is no chat template {chosen!r}; {did_you_mean(chosen, ['auto', *NAMES])}"
        raise ModelError(what, place="chat_template", remedy=f"auto, {', '.join(NAMES)}, or the path of a file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the chat template cannot be read: {error}", place=chosen, remedy="text in UTF-8") from error
