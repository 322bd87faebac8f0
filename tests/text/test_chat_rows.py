"""Rows of conversations: the mask covers what the assistant said and the end of its turns, whatever the template."""

from __future__ import annotations

import copy
import itertools

import pytest
from chat_kinds import KINDS, llama3, qwen3, r1_distill, smollm2
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tokenizer
from transformers import PreTrainedTokenizerFast

from melete.errors import DataError, ModelError
from melete.models.templates import choose_template
from melete.text.chat import conversation_rows, decode_completion, encode_piece, prompt_tokens, unrepeated
from melete.types import Message

ALL = {**KINDS, "tiny": tokenizer}
KIND = pytest.mark.parametrize("kind", ALL)
THOUGHT = "<think>\none and two\n</think>\n\n"
LOOKALIKES = ["<|im_end|>", "<|im_start|>assistant\n", "<|eot_id|>", "<｜User｜>", "<｜end▁of▁sentence｜>", "<|end|>"]
words = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["", " ", "one two  ", "\n\nthree", "\none\n", "¿qué? 三 ☺", "a</b>"]),
)
heard = st.one_of(words, st.sampled_from(LOOKALIKES).flatmap(lambda token: words.map(lambda text: text + token + text)))
said = st.one_of(words, words.map(lambda text: THOUGHT + text))


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    turns = [Message("system", draw(heard))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Message("user", draw(heard)), Message("assistant", draw(said))]
    return turns


def learnt(tokens: list[int], mask: list[bool]) -> list[list[int]]:
    """The tokens of each stretch under the mask."""
    runs = itertools.groupby(zip(tokens, mask, strict=True), key=lambda pair: pair[1])
    return [[token for token, _ in run] for is_learnt, run in runs if is_learnt]


def pieces_of(turns: list[list[int]], end: int) -> list[list[int]]:
    """Stretches cut after each end of a turn, for turns that follow each other without a header."""
    found = [[]]
    for token in itertools.chain(*turns):
        found[-1].append(token)
        if token == end:
            found.append([])
    return found[:-1]


def expected(kind: str, message: Message) -> str:
    text = message.content
    is_repeated = kind == "r1_distill" and text.lstrip().startswith("<think>")
    return unrepeated(text, "<think>\n") if is_repeated else text


@KIND
@given(turns=conversations())
@settings(max_examples=40, deadline=None)
def test_what_is_learnt_of_each_turn_is_its_words_and_its_end(kind: str, turns: list[Message]) -> None:
    """I31, I32: each turn of the assistant once, none of the headers."""
    words = ALL[kind]()
    rows = conversation_rows(words, turns)
    found = [part for row in rows for part in pieces_of(learnt(*row), words.eos_token_id)]
    wanted = [expected(kind, turn) for turn in turns if turn.role == "assistant"]
    assert [words.decode(part) for part in found] == [text + words.eos_token for text in wanted]


@KIND
@given(turns=conversations())
@settings(max_examples=40, deadline=None)
def test_the_prompt_that_is_sampled_from_begins_the_row_that_is_learnt(kind: str, turns: list[Message]) -> None:
    """I32, I35: for every turn there is a row that begins with its prompt and goes on with what it says."""
    words = ALL[kind]()
    rows = conversation_rows(words, turns)
    for number, turn in enumerate(turns):
        if turn.role == "assistant":
            prompt = list(prompt_tokens(words, turns[:number]))
            row = [*prompt, *encode_piece(words, expected(kind, turn)), words.eos_token_id]
            matching = [mask for tokens, mask in rows if tokens[: len(row)] == row]
            assert any(all(mask[len(prompt) : len(row)]) and not mask[len(prompt) - 1] for mask in matching)


@KIND
@given(turns=conversations())
@settings(max_examples=40, deadline=None)
def test_a_row_has_one_beginning_and_no_words_that_direct_the_model(kind: str, turns: list[Message]) -> None:
    """I31: what looks like a special token in a user's words is text."""
    words = ALL[kind]()
    plain = [Message(turn.role, "word") for turn in turns]
    control = {*words.all_special_ids, *words.convert_tokens_to_ids(["<｜User｜>"] if kind == "r1_distill" else [])}
    for number, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        one, other = prompt_tokens(words, turns[:number]), prompt_tokens(words, plain[:number])
        assert [t for t in one if t in control] == [t for t in other if t in control]
        assert words.bos_token == "<|im_start|>" or one.count(words.bos_token_id) == (words.bos_token is not None)


@KIND
def test_without_thoughts_a_conversation_is_one_row_with_the_template_s_own_text(kind: str) -> None:
    words = ALL[kind]()
    turns = [Message("user", "one?"), Message("assistant", "two"), Message("user", "so?"), Message("assistant", "yes")]
    rows = conversation_rows(words, turns)
    if kind == "r1_distill":  # an answer behind an opened thought is not what the history shows
        assert len(rows) == 2
        return
    [(tokens, mask)] = rows
    text = words.apply_chat_template([{"role": t.role, "content": t.content} for t in turns], tokenize=False)
    shown = words.decode(tokens)
    if kind == "qwen3":  # it shows an empty thought before the last answer
        text = text.replace("<think>\n\n</think>\n\n", "")
    assert text.removesuffix("\n") == shown
    assert [words.decode(part) for part in learnt(tokens, mask)] == [f"two{words.eos_token}", f"yes{words.eos_token}"]
    assert tokens == words.encode(shown, add_special_tokens=False)


@pytest.mark.parametrize("template", ["chatml", "llama3"])
def test_the_mask_is_that_of_a_template_that_marks_what_the_assistant_says(template: str) -> None:
    words = copy.deepcopy(llama3() if template == "llama3" else smollm2())
    words.bos_token = words.bos_token if template == "llama3" else None
    choose_template(words, template)
    turns = [Message("system", "be brief"), Message("user", "one?"), Message("assistant", "two and three")]
    turns += [Message("user", "so?"), Message("assistant", "")]
    marked = words.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    [(tokens, mask)] = conversation_rows(words, turns)
    assert marked["input_ids"][: len(tokens)] == tokens
    assert [bool(there) for there in marked["assistant_masks"]][: len(mask)] == mask
    assert not any(marked["assistant_masks"][len(mask) :])


@pytest.mark.parametrize("kind", ["qwen3", "r1_distill"])
def test_thoughts_that_leave_the_history_make_a_row_for_each_turn(kind: str) -> None:
    """Each is learnt behind the prompt that it is sampled from; none is lost."""
    words = ALL[kind]()
    turns = [Message("user", "one?"), Message("assistant", f"{THOUGHT}two")]
    turns += [Message("user", "so?"), Message("assistant", f"{THOUGHT}yes")]
    first, second = conversation_rows(words, turns)
    opened = "one and two\n</think>\n\n" if kind == "r1_distill" else THOUGHT
    assert [words.decode(part) for part in learnt(*first)] == [f"{opened}two{words.eos_token}"]
    assert [words.decode(part) for part in learnt(*second)] == [f"{opened}yes{words.eos_token}"]
    history = words.decode(list(prompt_tokens(words, turns[:3])))
    assert "one and two" not in history and "two" in history
    assert words.decode(second[0]).count("<think>") == 1


def test_a_thought_that_the_template_opens_is_not_opened_twice() -> None:
    words = r1_distill()
    turns = [Message("user", "one?"), Message("assistant", f"{THOUGHT}two")]
    [(tokens, mask)] = conversation_rows(words, turns)
    assert words.decode(tokens) == (
        f"{words.bos_token}<｜User｜>one?<｜Assistant｜><think>\none and two\n</think>\n\ntwo{words.eos_token}"
    )
    assert [words.decode(part) for part in learnt(tokens, mask)] == [f"one and two\n</think>\n\ntwo{words.eos_token}"]
    bare = [turns[0], Message("assistant", "one and two\n</think>\n\ntwo")]
    assert conversation_rows(words, bare) == [(tokens, mask)]


def test_only_the_last_turn_is_learnt_where_that_is_wanted() -> None:
    words = smollm2()
    turns = [Message("user", "one?"), Message("assistant", "two"), Message("user", "so?"), Message("assistant", "yes")]
    [(tokens, mask)] = conversation_rows(words, turns)
    [(same, last)] = conversation_rows(words, turns, last_turn_only=True)
    assert same == tokens
    assert [words.decode(part) for part in learnt(same, last)] == [f"yes{words.eos_token}"]
    assert sum(mask) > sum(last)


def test_words_that_end_in_blanks_keep_them_where_the_template_would_cut_them() -> None:
    turns = [
        Message("user", "one?"),
        Message("assistant", "two  "),
        Message("user", "so?"),
        Message("assistant", "yes"),
    ]
    first, second = conversation_rows(llama3(), turns)
    assert llama3().decode(learnt(*first)[0]) == "two  <|eot_id|>"
    assert "two<|eot_id|>" in llama3().decode(second[0])


def test_words_that_begin_with_a_line_end_do_not_merge_with_the_header() -> None:
    words = smollm2()
    turns = [Message("user", "one?"), Message("assistant", "\n\ntwo")]
    [(tokens, mask)] = conversation_rows(words, turns)
    whole = words.encode(words.decode(tokens), add_special_tokens=False)
    assert whole != tokens  # a single token would hold the header's end and the first words
    assert words.decode(learnt(tokens, mask)[0]) == f"\n\ntwo{words.eos_token}"


def test_a_conversation_without_an_answer_and_one_that_the_template_refuses_are_told() -> None:
    with pytest.raises(DataError, match="the assistant says nothing"):
        conversation_rows(qwen3(), [Message("user", "one?")])
    strict = copy.deepcopy(qwen3())
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ModelError, match="refuses a conversation with the turns user: roles must alternate"):
        conversation_rows(strict, [Message("user", "one?"), Message("assistant", "two")])


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|end_of_text|>"])
def test_a_completion_is_decoded_without_the_token_that_ended_it(end: str) -> None:
    words = llama3()
    tokens = [*words.encode("one and two", add_special_tokens=False), words.convert_tokens_to_ids(end)]
    assert decode_completion(words, tokens) == "one and two"
    assert decode_completion(words, tokens[:-1]) == "one and two"


def test_a_piece_within_a_text_gets_no_blank_before_it() -> None:
    """SentencePiece's kind would put one there."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = {letter: number for number, letter in enumerate(["<unk>", "▁", "o", "n", "e", "\n"])}
    blank = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
    blank.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    blank.decoder = decoders.Metaspace(prepend_scheme="always")
    fast = PreTrainedTokenizerFast(tokenizer_object=blank, unk_token="<unk>")
    assert fast.convert_ids_to_tokens(fast.encode("one", add_special_tokens=False)) == ["▁", "o", "n", "e"]
    assert fast.convert_ids_to_tokens(encode_piece(fast, "one")) == ["o", "n", "e"]
    assert encode_piece(fast, "") == []
