"""Text as tokens: what is learnt is the completion and the end of the turn, and nothing else."""

from __future__ import annotations

import copy
import itertools

import pytest
from tiny_models import tokenizer
from transformers import PreTrainedTokenizerFast

from melete.batch import TokenRows
from melete.datasets.encode import completion_row, pair_rows, single_row, step_row
from melete.text.chat import decode_completion, pad_token, prompt_tokens
from melete.types import Demonstration, LabelledCompletion, LabelledSteps, Message, PreferencePair

QUESTION = (Message("system", "be brief"), Message("user", "what is 1+2?"))


def pads_with_the_end() -> PreTrainedTokenizerFast:
    other = copy.deepcopy(tokenizer())
    other.pad_token = other.eos_token
    assert other.pad_token_id == other.eos_token_id
    return other


TOKENIZERS = pytest.mark.parametrize("make", [tokenizer, pads_with_the_end])


@TOKENIZERS
@pytest.mark.parametrize("completion", ["3", "", "<think>1+2=3</think>\n<answer>3</answer>", "<|user|>hello"])
def test_the_mask_covers_the_completion_and_the_end_of_turn_and_nothing_else(make, completion: str) -> None:
    """I31, I32."""
    words = make()
    tokens, mask = completion_row(words, QUESTION, completion)
    prompt = prompt_tokens(words, QUESTION)
    assert len(tokens) == len(mask)
    assert tuple(tokens[: len(prompt)]) == prompt and not any(mask[: len(prompt)]) and all(mask[len(prompt) :])
    assert tokens[-1] == words.eos_token_id
    assert decode_completion(words, tokens[len(prompt) :]) == completion


@TOKENIZERS
def test_the_end_of_turn_is_learnt_and_the_padding_is_not_even_where_they_are_one_token(make) -> None:
    """I31, I32."""
    words = make()
    rows = [completion_row(words, QUESTION, text) for text in ("3", "one and two and three")]
    packed = TokenRows.pack(rows, pad_token(words))
    assert packed.loss_mask.sum(dim=1).tolist() == [sum(mask) for _, mask in rows]
    assert packed.lengths.tolist() == [len(tokens) for tokens, _ in rows]
    learnt = packed.tokens[packed.loss_mask]
    assert int((learnt == words.eos_token_id).sum()) == 2
    assert not bool((packed.loss_mask & ~packed.attention_mask).any())


@TOKENIZERS
def test_a_row_is_the_conversation_as_the_template_writes_it(make) -> None:
    words = make()
    turns = [{"role": m.role, "content": m.content} for m in (*QUESTION, Message("assistant", "one and two"))]
    tokens, _ = completion_row(words, QUESTION, "one and two")
    assert tokens == words.apply_chat_template(turns, tokenize=True, return_dict=False)


def test_both_rows_of_a_pair_have_the_same_prompt() -> None:
    pair = PreferencePair("a", QUESTION, "3", "one and two")
    assert pair_rows(tokenizer(), pair) == tuple(
        completion_row(tokenizer(), QUESTION, text) for text in ("3", "one and two")
    )


def test_a_label_changes_no_token() -> None:
    expected = completion_row(tokenizer(), QUESTION, "3")
    for row in (Demonstration("a", QUESTION, "3"), LabelledCompletion("a", QUESTION, "3", False)):
        assert single_row(tokenizer(), row) == expected


@TOKENIZERS
def test_the_end_of_a_step_is_its_last_token(make) -> None:
    words = make()
    steps = ("<think>1+2=3\n", "3+1=4\n\n", "", "</think><answer>4</answer>")
    (tokens, mask), ends = step_row(words, LabelledSteps("a", QUESTION, steps, (True, False, True, True)))
    prompt = len(prompt_tokens(words, QUESTION))
    assert [label for _, label in ends] == [True, False, True]  # the empty step has no token
    bounds = [prompt, *(end + 1 for end, _ in ends)]
    read = [words.decode(tokens[low:high]) for low, high in itertools.pairwise(bounds)]
    assert read == [step for step in steps if step]
    assert tokens[bounds[-1] :] == [words.eos_token_id]
    assert mask == [False] * prompt + [True] * (len(tokens) - prompt)


def test_a_row_of_one_step_has_the_tokens_of_the_completion() -> None:
    row, ends = step_row(tokenizer(), LabelledSteps("a", QUESTION, ("one and two",), (True,)))
    assert row == completion_row(tokenizer(), QUESTION, "one and two")
    assert ends == [(len(row[0]) - 2, True)]


def test_a_row_without_steps_has_no_ends() -> None:
    row, ends = step_row(tokenizer(), LabelledSteps("a", QUESTION, (), ()))
    assert row == completion_row(tokenizer(), QUESTION, "") and ends == []
