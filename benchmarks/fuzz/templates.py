"""Chat templates, which are programs by anybody, and conversations that try to break out of them."""

from __future__ import annotations

import copy
import random
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.fuzz.law import Broken, outcome
from benchmarks.fuzz.mutate import ODD_TEXTS, changed_bytes, misspelt
from melete.models.load import load_tokenizer
from melete.models.templates import NAMES, choose_template, template_text
from melete.text.chat import conversation_rows, prompt_tokens
from melete.types import Message

TOKENS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ROLES = ("system", "user", "assistant", "user", "assistant")
THOUGHTS_LEFT_OUT = """{%- for m in messages -%}
{%- set words = m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content -%}
<|im_start|>{{ m.role }}{{ '\\n' + words | trim }}<|im_end|>{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\\n<think>\\n' }}{%- endif -%}"""
PIECES = (
    *("{{ messages }}", "{{ messages[0].content }}", "{{ messages[9].content }}", "{{ undefined.name }}", "{{ 1/0 }}"),
    *("{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{%"),
    *("{% for m in messages %}{{ m.content }}{% endfor %}", "{% if %}", "{% include 'x' %}", "{% import 'os' as os %}"),
    *("{{ messages | tojson }}", "{{ 'x' * 100000 }}", "{{ range(10) | list }}", "{% set x = 1 %}", "{{ eos_token }}"),
    *("{{ bos_token }}", "{{ self }}", "{{ lipsum() }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{# "),
    *("{{ messages[-1]['content'] | upper }}", "{{ strftime_now('%Y') }}", "{% generation %}a{% endgeneration %}"),
)


@cache
def _tokenizer() -> Any:
    tokenizer = load_tokenizer("tiny")
    tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS)})
    return tokenizer


@cache
def _good() -> tuple[str, ...]:
    return (*(template_text(name) for name in NAMES), str(load_tokenizer("tiny").chat_template), THOUGHTS_LEFT_OUT)


def templates(draw: random.Random, directory: Path) -> str:
    """A template of a model or a file, then a prompt and a row made with it."""
    tokenizer = copy.copy(_tokenizer())  # its template and tokens are set anew each time
    tokenizer.eos_token = "</s>" if "</s>" in tokenizer.get_vocab() else tokenizer.eos_token
    template = _template(draw)
    file = directory / "template.jinja"
    file.write_bytes(template.encode("utf-8", "surrogatepass"))
    turns = _conversation(draw)

    def case() -> None:
        way = draw.randrange(4)
        if way == 0:
            choose_template(tokenizer, draw.choice([str(file), misspelt(draw, "chatml"), *NAMES]))
        else:
            tokenizer.chat_template = template
            choose_template(tokenizer)
        prompt_tokens(tokenizer, turns)
        for tokens, mask in conversation_rows(tokenizer, turns, last_turn_only=draw.random() < 0.3):
            if len(tokens) != len(mask) or not any(mask):
                raise Broken(f"a row of {len(tokens)} tokens with a mask of {len(mask)}, {sum(mask)} of them learnt")

    return outcome(case, directory)


def _template(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.3:
        return "".join(draw.choice([*PIECES, *ODD_TEXTS[:8], "\n"]) for _ in range(draw.randrange(5)))
    good = draw.choice(_good())
    if kind < 0.4:
        return good
    if kind < 0.6:
        place = draw.randrange(len(good) + 1)
        return good[:place] + draw.choice(PIECES) + good[place:]
    return changed_bytes(draw, good.encode(), draw.choice([1, 1, 2, 5])).decode("utf-8", "replace")


def _conversation(draw: random.Random) -> list[Message]:
    turns = [Message(role, _words(draw)) for role in ROLES[draw.randrange(2) : draw.randrange(2, len(ROLES) + 1)]]
    if draw.random() < 0.2:
        draw.shuffle(turns)
    return turns


def _words(draw: random.Random) -> str:
    words = ["two and two", "<think>\nfour\n</think>\n\n4", draw.choice(TOKENS), draw.choice(ODD_TEXTS[:20]), " "]
    text = "".join(draw.choice(words) for _ in range(draw.randrange(4)))
    return text.encode("utf-8", "replace").decode()  # readers of files refuse half characters before this


KINDS = {"templates": templates}
