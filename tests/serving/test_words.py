"""From tokens to words: whole characters, no stop string, thoughts apart."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tokenizer

from melete.serving.words import StopSearch, ThoughtSplitter, parts_of
from melete.text.answers import without_thought
from melete.text.stream import TextStream

words = st.text(st.sampled_from("aé漢😀 \n<>/thinkEND"), max_size=80)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[begin:end] for begin, end in pairwise(ends)]


@settings(max_examples=40, deadline=None)
@given(words)
def test_the_pieces_of_a_text_are_the_text_and_no_character_is_split(text: str):
    stream = TextStream(tokenizer())
    tokens = tokenizer().encode(text, add_special_tokens=False)
    pieces = [stream.add(token) for token in tokens]
    assert "�" not in "".join(pieces)
    assert "".join(pieces) + stream.rest() == text


def test_bytes_that_are_no_text_are_not_held_for_ever():
    lonely = [t for t in range(len(tokenizer())) if tokenizer().decode([t]) == "�"][:1] * 200
    stream = TextStream(tokenizer())
    shown = "".join(stream.add(token) for token in lonely)
    assert len(shown) >= 190 and len(shown + stream.rest()) == 200


@settings(max_examples=40, deadline=None)
@given(words, st.lists(st.integers(0, 80), max_size=8), st.lists(st.text("END", min_size=1, max_size=3), max_size=3))
def test_text_is_let_through_up_to_the_first_stop_string_however_it_comes(
    text: str, places: list[int], stops: list[str]
):
    search = StopSearch(stops)
    shown = "".join(map(search.add, cut(text, places)))
    shown += search.rest()
    # a stop string is found when its last character comes, so the one that ends first counts
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert search.found == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert text.startswith(shown) and not any(stop in shown for stop in stops)


@settings(max_examples=60, deadline=None)
@given(words, st.lists(st.integers(0, 80), max_size=8), st.booleans())
def test_thought_and_answer_do_not_depend_on_how_the_text_comes(text: str, places: list[int], opened: bool):
    splitter = ThoughtSplitter(opened=opened)
    pieces = [pair for part in cut(text, places) for pair in splitter.add(part)] + list(splitter.rest())
    for number, kind in enumerate(("thought", "answer")):
        assert "".join(piece for part, piece in pieces if part == kind) == parts_of(text, opened=opened)[number]


@pytest.mark.parametrize(
    ("text", "opened", "parts"),
    [
        (" 7 ", False, ("", " 7 ")),
        ("<think>\n6 or 7\n</think>\n\n7\n", False, ("6 or 7", "7\n")),
        ("6\n</think>7", True, ("6", "7")),
        ("never ends ", True, ("never ends ", "")),
        ("a <think>b</think> c", False, ("b", "a c")),
        ("1 < 2 </think>", False, ("", "1 < 2 </think>")),
    ],
)
def test_parts_of_a_text(text: str, opened: bool, parts: tuple[str, str]):
    assert tuple(map(str.strip, parts_of(text, opened=opened))) == tuple(map(str.strip, parts))
    if text.count("think>") == 2:
        assert without_thought(text, thought_opened=opened).split() == parts[1].split()
