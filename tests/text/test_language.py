"""Telling languages apart, word by word, and n-grams that repeat."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melete.text.language import count_words, guess_language, language_share, scripts_of, word_language
from melete.text.repetition import repeated_share, units

ENGLISH = [
    "We start with 12 apples. Ana buys 5 more, so she has 17. Then she gives half of them to Luis.",
    "Let me think about this step by step. First, we need to find the value of x.",
    "The train travels at 60 miles per hour for 3 hours, so the distance is 180 miles.",
    "Wait, that is not right. Let's check the sum again: 3+5=8, and 8-2=6.",
    "How many ways are there to choose two books from a shelf of seven?",
]
SPANISH = [
    "Empezamos con 12 manzanas. Ana compra 5 más, así que tiene 17. Luego da la mitad a Luis.",
    "Vamos a pensar paso a paso. Primero, necesitamos encontrar el valor de x.",
    "El tren viaja a 60 kilómetros por hora durante 3 horas, entonces la distancia es de 180 kilómetros.",
    "Espera, eso no es correcto. Comprobamos la suma otra vez: 3+5=8, y 8-2=6.",
    "¿De cuántas maneras se pueden elegir dos libros de un estante de siete?",
]


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_english(text: str):
    share, other = language_share(text, "en"), language_share(text, "es")
    assert guess_language(text) == "en" and share is not None and other is not None
    assert share > 0.9 and other < 0.15


@pytest.mark.parametrize("text", SPANISH)
def test_spanish_is_spanish(text: str):
    share, other = language_share(text, "es"), language_share(text, "en")
    assert guess_language(text) == "es" and share is not None and other is not None
    assert share > 0.85 and other < 0.15


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("我们先算三加五等于八", "zh"),
        ("りんごは全部でいくつありますか。", "ja"),
        ("사과가 몇 개 남았습니까?", "ko"),
        ("Сколько яблок осталось?", "ru"),
        ("كم تفاحة بقيت؟", "ar"),
        ("कितने सेब बचे हैं?", "hi"),
        ("כמה תפוחים נשארו?", "he"),
        ("Πόσα μήλα έμειναν;", "el"),
        ("เหลือแอปเปิ้ลกี่ลูก", "th"),
        ("Wie viele Äpfel sind noch da, und wer hat sie?", "other"),
        ("Nous avons des pommes et il en reste une dans le sac", "other"),
        ("", ""),
        ("3 + 5 = 8", ""),
        ("$x^2$ \\frac{1}{2}", ""),
    ],
)
def test_other_languages_are_told_by_their_script_or_common_words(text: str, language: str):
    assert guess_language(text) == language


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("first we add, entonces sumamos", "en", 0.6),
        ("first we add, entonces sumamos", "es", 0.4),
        ("first we add 我们算", "en", 0.5),
        ("我们 now 算", "zh", 0.75),
        ("Сначала сложим, then subtract", "ru", 0.5),
        ("because", "es", 0.0),
        ("x y z", "en", None),  # variables
        ("x y z", "es", 1.0),  # `y` is a word of Spanish
        ("x = 5", "en", None),
        ("", "en", None),
        ("12 + 3 = 15", "es", None),
        ("Madrid", "en", 1.0),
        ("Madrid", "es", 1.0),
        ("Madrid", "zh", 0.0),
    ],
)
def test_the_share_is_that_of_the_words_that_tell(text: str, language: str, share: float | None):
    found = language_share(text, language)
    assert found is None if share is None else found == pytest.approx(share)


@pytest.mark.parametrize(
    "left_out",
    [
        "$the = of$",
        r"\(the\)",
        r"\[ the \]",
        "$$the$$",
        r"\text",
        "`the`",
        "```python\nfor the in of: pass\n```",
        "the_of",
        "the(",
        "<think>",
        "https://the.of/and",
        "123",
        "1.5e3",
        "!?",
        "```\nthe code never ends",
    ],
)
def test_code_formulas_numbers_tags_and_links_are_no_words(left_out: str):
    assert language_share(f"entonces sumamos {left_out}", "es") == 1.0


def test_a_dollar_price_does_not_open_a_formula():
    text = "It costs $5 and then " + "entonces " * 400 + " $"
    assert language_share(text, "en") < 0.1  # type: ignore[operator]


def test_words_keep_accents_and_apostrophes_and_are_counted_in_small_letters():
    assert count_words("Así así ASI\u0301 don’t") == {("así", "latin"): 3, ("don't", "latin"): 1}


def test_the_lists_of_two_languages_do_not_decide_a_word_of_both():
    assert word_language("final", "latin") == word_language("he", "latin") == ""


@pytest.mark.parametrize("language", ["", "english", "EN", "e", "e1"])
def test_what_is_no_language_is_refused(language: str):
    with pytest.raises(ValueError, match="two small letters"):
        scripts_of(language)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200), st.sampled_from(["en", "es", "zh", "ja", "ru", "de"]))
def test_a_share_is_a_share_and_order_of_lines_does_not_matter(text: str, language: str):
    share = language_share(text, language)
    assert share is None or 0 <= share <= 1
    plain = [line for line in text.replace("`", "").replace("$", "").replace("\\", "").splitlines()]
    assert language_share("\n".join(plain), language) == language_share("\n".join(reversed(plain)), language)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20))
def test_the_share_is_exact(english: int, spanish: int):
    text = "because " * english + "entonces " * spanish
    expected = english / (english + spanish) if english + spanish else None
    assert language_share(text, "en") == expected


@pytest.mark.parametrize(
    ("items", "size", "share"),
    [
        ("", 2, 0.0),
        ("a", 2, 0.0),
        ("ab", 2, 0.0),
        ("aaa", 2, 0.5),
        ("aaaa", 2, 2 / 3),
        ("abab", 2, 1 / 3),
        ("aaa", 1, 2 / 3),
    ],
)
def test_the_repeated_share_of_n_grams(items: str, size: int, share: float):
    assert repeated_share(list(items), size) == pytest.approx(share)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4))
def test_the_repeated_share_equals_a_naive_count(items: list[int], size: int):
    grams = [tuple(items[i : i + size]) for i in range(len(items) - size + 1)]
    naive = 1 - len(set(grams)) / len(grams) if grams else 0.0
    assert repeated_share(items, size) == pytest.approx(naive)


def test_scripts_without_spaces_are_counted_by_character():
    assert units("我们 ok") == ["我", "们", "ok"] and units("Ab c") == ["ab", "c"]


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a ",
        "é",
        "好",
        "ɐ̈",
        "a'",
        "'",
        "_",
        "a_",
        "a(",
        "$",
        "$a",
        "`",
        "```",
        "\\",
        "\\a",
        r"\(",
        "<",
        "<a",
        "<a>",
        "http://",
        "h",
        "\n",
        "\x00",
        "ก",
    ],
    ids=ascii,
)
def test_a_megabyte_of_anything_takes_little_time(unit: str):
    text = (unit * 1_000_000)[:1_000_000]
    start = time.process_time()
    language_share(text, "en")
    assert time.process_time() - start < 1.5  # about half a second on an idle core
    start = time.process_time()
    repeated_share(units(text), 3)
    assert time.process_time() - start < 1.5
