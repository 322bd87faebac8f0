"""Tokenizers with the special tokens and the manners of chat templates of four kinds, each written anew and small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from melete.models.templates import choose_template

TEXTS = ["system\nuser\nassistant\nwords of the user\n\nwhat is one and two and three? You are a helpful assistant.\n"]

# a beginning, headers, and words without the blanks around them
LLAMA3 = """
{{- bos_token -}}
{%- for m in messages -%}
<|start_header_id|>{{ m.role }}<|end_header_id|>{{ '\n\n' + m.content | trim }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}{%- endif -%}
"""
# thoughts stay only behind the user's last turn, where there is always one, if an empty one
QWEN3 = """
{%- set place = namespace(of_last_question=0) -%}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{%- set place.of_last_question = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\n' -}}
{%- if m.role == 'assistant' -%}
{%- set thought, answer = '', m.content -%}
{%- if '</think>' in m.content -%}
{%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
{%- set answer = m.content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{%- if loop.index0 > place.of_last_question and (loop.last or thought) -%}
{{- '<think>\n' + thought + '\n</think>\n\n' -}}
{%- endif -%}
{{- answer + '<|im_end|>\n' -}}
{%- else -%}
{{- m.content + '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
# ChatML with a system's turn of its own, whose beginning is the token that begins a turn
SMOLLM2 = """
{%- for m in messages -%}
{%- if loop.first and m.role != 'system' -%}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
# the template opens the thought, and takes it out of the history; only the assistant's turns have an end
R1_DISTILL = """
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{{- m.content -}}
{%- elif m.role == 'user' -%}{{- '<｜User｜>' + m.content -}}
{%- else -%}{{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<｜Assistant｜><think>\n' -}}{%- endif -%}
"""


def byte_level(
    special: list[str], *, bos: str | None, eos: str, pad: str, template: str, words: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with these special tokens; `words` are tokens that are not special, such as <think>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"\s*[\r\n]+|\s+(?!\S)|\s+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"), behavior="isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    # line ends in a row become one token, so that a header's end may merge with the words behind it
    tokenizer.train_from_iterator([*TEXTS * 20, *["\n\n\n\n"] * 50, *["\n\n"] * 50], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    if bos:  # as Llama's, which begins every text that is not told otherwise
        numbers = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=numbers)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)
    fast.chat_template = template.strip("\n")
    choose_template(fast)
    return fast


@cache
def llama3() -> PreTrainedTokenizerFast:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(special, bos=special[0], eos=special[1], pad=special[1], template=LLAMA3)


@cache
def qwen3() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    thought = ("<think>", "</think>")
    return byte_level(special, bos=None, eos="<|im_end|>", pad="<|endoftext|>", template=QWEN3, words=thought)


@cache
def smollm2() -> PreTrainedTokenizerFast:
    """Its beginning of a text is the beginning of a turn, and nothing puts another one before."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = byte_level(special, bos=None, eos="<|im_end|>", pad="<|im_end|>", template=SMOLLM2)
    words.bos_token = "<|im_start|>"
    return words


@cache
def r1_distill() -> PreTrainedTokenizerFast:
    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
    roles = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")  # not special there either
    return byte_level(special, bos=special[0], eos=special[1], pad=special[1], template=R1_DISTILL, words=roles)


KINDS: Mapping[str, Callable[[], PreTrainedTokenizerFast]] = {
    "llama3": llama3,
    "qwen3": qwen3,
    "smollm2": smollm2,
    "r1_distill": r1_distill,
}
