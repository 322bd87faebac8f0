"""Chat templates for models that come without one; each is a Jinja file beside this one."""

from __future__ import annotations

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
    return resources.files(__package__).joinpath(f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


def choose_template(tokenizer: PreTrainedTokenizerBase, chosen: str = "auto") -> None:
    """Gives the tokenizer a chat template: its own or the fitting one for "auto", else the named one or a file's.

    The token that ends a turn becomes the one that ends a text, because that is what the model is to write. Raises
    `ModelError` for an unknown name and for a template whose tokens the tokenizer does not have.
    """
    if chosen == "auto":
        if tokenizer.chat_template:
            return
        chosen = fitting_template(tokenizer)
    if chosen not in NAMES:
        tokenizer.chat_template = _from_file(chosen)
        return
    tokenizer.chat_template = template_text(chosen)
    end = END_OF_TURN.get(chosen)
    if end is not None:
        if end not in tokenizer.get_vocab():
            what = f"the template {chosen} ends turns with {end}, which the tokenizer does not have"
            raise ModelError(what, place="chat_template", remedy=f"chat_template: auto or one of {', '.join(NAMES)}")
        tokenizer.eos_token = end


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
