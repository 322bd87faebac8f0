"""Conversations as tokens."""

from __future__ import annotations

import copy

import pytest
from tiny_models import ending_often, llama, tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from melete.batch import Batch
from melete.errors import ModelError
from melete.sampling.native import NativeSampler
from melete.text.chat import decode_completion, opens_thought, prompt_tokens, tokens_after_thought
from melete.types import Message, Problem, Reward, Rollout, RolloutGroup, SampleRequest, SamplingSettings

QUESTION = (Message("system", "be brief"), Message("user", "what is 1+2?"))


def greedy_for_bos() -> PreTrainedTokenizerFast:
    """A tokenizer that puts a beginning of its own before every text, as Llama's does."""
    other = copy.deepcopy(tokenizer())
    other.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    assert other.encode("a")[0] == other.bos_token_id
    return other


@pytest.mark.parametrize("make", [tokenizer, greedy_for_bos])
def test_a_prompt_has_exactly_one_beginning_and_ends_with_the_opened_turn(make) -> None:
    """I31."""
    tokens = prompt_tokens(make(), QUESTION)
    assert tokens[0] == make().bos_token_id
    assert tokens.count(make().bos_token_id) == 1
    assert make().decode(list(tokens)) == "<|bos|><|system|>be brief<|user|>what is 1+2?<|assistant|>"
    assert make().eos_token_id not in tokens


def test_an_earlier_turn_of_the_assistant_ends_with_the_end_of_turn_token_and_no_newline() -> None:
    """I31."""
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    tokens = prompt_tokens(tokenizer(), turns)
    assert tokenizer().decode(list(tokens)) == "<|bos|><|user|>a<|assistant|>b<|end|><|user|>c<|assistant|>"


def test_the_tokens_of_a_turn_begin_those_of_the_next() -> None:
    """I35."""
    first = [Message("user", "what is 12?")]
    later = [*first, Message("assistant", "12"), Message("user", "sure?")]
    short, long = prompt_tokens(tokenizer(), first), prompt_tokens(tokenizer(), later)
    assert long[: len(short)] == short


def test_the_loss_mask_is_exactly_what_the_policy_wrote() -> None:
    """I31, I32: the end-of-turn token is in, the prompt and the padding are out, even if all are the same token."""
    sampler = NativeSampler(ending_often(llama()), tokenizer())
    problem = Problem("p/0", "p", QUESTION, "3")
    prompt = prompt_tokens(tokenizer(), QUESTION)
    completions = sampler.sample([SampleRequest(prompt, tuple(range(6)))], SamplingSettings(10))[0]
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    rollouts = tuple(Rollout(problem, n, prompt, completion, "") for n, completion in enumerate(completions))
    group = RolloutGroup("g", problem, rollouts, (Reward(1.0, {}),) * 6)
    batch = Batch.from_groups([group], pad_token_id=tokenizer().eos_token_id)
    for row, completion in enumerate(completions):
        assert tuple(batch.tokens[row][batch.loss_mask[row]].tolist()) == completion.tokens
        assert tuple(batch.tokens[row, : len(prompt)].tolist()) == prompt


def test_a_completion_is_decoded_without_its_end_of_turn_token_and_with_its_tags() -> None:
    text = "<think>1+2=3</think><answer>3</answer>"
    tokens = tokenizer().encode(text, add_special_tokens=False)
    assert decode_completion(tokenizer(), [*tokens, tokenizer().eos_token_id]) == text
    assert decode_completion(tokenizer(), tokens) == text
    assert decode_completion(tokenizer(), []) == ""


def test_whether_the_template_opens_the_thought_is_read_from_it() -> None:
    opening = copy.deepcopy(tokenizer())
    opening.chat_template = opening.chat_template.replace(
        "<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}"
    )
    assert opens_thought(opening)
    assert not opens_thought(tokenizer())


def test_a_tokenizer_without_chat_template_is_refused_with_a_remedy() -> None:
    bare = copy.deepcopy(tokenizer())
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template") as refusal:
        prompt_tokens(bare, QUESTION)
    assert refusal.value.remedy


@pytest.mark.parametrize("is_ended", [True, False])
@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("<think>1+2=3</think><answer>3</answer>", "<answer>3</answer>"),
        ("<think>1+2=3</think>\n one and two", "\n one and two"),
        ("1+2=3</think>3", "3"),  # the template opened the thought
        ("one and two", "one and two"),
        ("<think></think>", ""),
        ("<think>a</think>b</think>c", "b</think>c"),
        ("", ""),
    ],
)
def test_what_follows_a_thought_are_the_very_tokens_that_were_sampled(text: str, after: str, is_ended: bool) -> None:
    """I32: a suffix of the completion, its end-of-turn token included."""
    tokens = (*tokenizer().encode(text, add_special_tokens=False), *[tokenizer().eos_token_id] * is_ended)
    found = tokens_after_thought(tokenizer(), tokens)
    assert found == tokens[len(tokens) - len(found) :]
    assert decode_completion(tokenizer(), found) == after
    assert (found[-1:] == (tokenizer().eos_token_id,)) == is_ended


@pytest.mark.parametrize("text", ["<think>", "<think>1+2=3", "one <think>two"])
def test_nothing_follows_a_thought_that_never_ends(text: str) -> None:
    tokens = [*tokenizer().encode(text, add_special_tokens=False), tokenizer().eos_token_id]
    assert tokens_after_thought(tokenizer(), tokens) == ()


def test_a_closing_tag_in_several_tokens_is_one() -> None:
    """A model may spell the tag, or have none of its own."""
    spelled = [token for letter in "</think>" for token in tokenizer().encode(letter, add_special_tokens=False)]
    assert len(spelled) == 8
    after = tokenizer().encode("one", add_special_tokens=False)
    assert tokens_after_thought(tokenizer(), [*spelled, *after]) == tuple(after)
