"""The page to chat, in a real browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, served
from scripted_engine import THOUGHT, Script
from tiny_models import llama, tokenizer

from melete.serving.engine import Engine
from melete.serving.site import chat_app

HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>&amp;"


@pytest.fixture(scope="module")
def scripts() -> dict[str, Script]:
    return {name: Script(Engine(llama(), tokenizer(), name=name)) for name in ("one", "two")}


@pytest.fixture(scope="module")
def url(scripts: dict[str, Script]) -> Iterator[str]:
    with served(chat_app({name: script.engine for name, script in scripts.items()})) as address:
        yield address


@pytest.fixture(autouse=True)
def fresh(scripts: dict[str, Script]) -> None:
    for script in scripts.values():
        script.texts, script.stop_at = [THOUGHT], -1
        script.gate = threading.Event()


@pytest.fixture
def page(browser: Browser, url: str) -> Browser:
    browser.resize(1280, 800)
    browser.open(url)
    browser.wait_for("document.querySelectorAll('#model option').length === 2")
    return browser


def ask(page: Browser, text: str = "2+2?") -> None:
    page.evaluate("document.getElementById('input').focus()")
    page.write(text)
    page.press("Enter")


def is_idle(page: Browser) -> None:
    page.wait_for("!document.getElementById('send').hidden && document.querySelectorAll('.turn').length")


def test_a_thought_unfolds_as_it_comes_and_folds_when_the_answer_begins(page: Browser, scripts: dict[str, Script]):
    script = scripts["one"]
    words = script.engine.tokenizer
    script.stop_at = len(words.encode("<think>\nTwo and two.", add_special_tokens=False))
    ask(page)
    page.wait_for("document.querySelector('.thought')?.open")
    page.wait_for("document.querySelector('.thought div').textContent.startsWith('Two and')")
    assert page.evaluate("document.querySelector('.content').textContent") == ""
    assert page.evaluate("document.querySelector('.thought summary').textContent") == "Thinking…"
    script.gate.set()
    is_idle(page)
    assert page.evaluate("document.querySelector('.thought').open") is False
    assert page.evaluate("document.querySelector('.thought summary').textContent") == "Thought, 6 words"
    assert page.evaluate("document.querySelector('.content').textContent") == "It is <answer>4</answer>."
    page.click(".thought summary")
    page.wait_for("document.querySelector('.thought').open")
    assert page.evaluate("document.querySelector('.thought div').textContent") == "Two and two.\nThat is four."
    assert page.problems == []


@pytest.mark.parametrize("text", [HOSTILE, f"<think>{HOSTILE}</think>{HOSTILE}", rf"\boxed{{{HOSTILE}}}"])
def test_what_a_model_writes_stays_text(page: Browser, scripts: dict[str, Script], text: str):
    scripts["one"].texts = [text]
    page.evaluate("document.getElementById('votes').value = '2'")
    ask(page, HOSTILE)
    is_idle(page)
    page.wait_for("document.querySelectorAll('.tally li').length")
    assert HOSTILE in page.evaluate("document.querySelector('.content').textContent")
    assert page.evaluate("document.querySelector('.mine').textContent") == HOSTILE
    assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
    assert page.evaluate("window.hacked === undefined")
    assert page.problems == []


def test_the_conversation_goes_on_and_is_there_after_a_reload(page: Browser, scripts: dict[str, Script], url: str):
    seen: list[int] = []
    engine = scripts["one"].engine
    submit = engine.submit
    engine.submit = lambda *jobs: (seen.append(len(jobs[0].prompt)), submit(*jobs))[1]  # type: ignore[method-assign]
    try:
        ask(page)
        is_idle(page)
        ask(page, "And 3+3?")
        page.wait_for("document.querySelectorAll('.turn').length === 2")
        is_idle(page)
    finally:
        engine.submit = submit  # type: ignore[method-assign]
    assert seen[1] > seen[0] + 5
    page.open(url)
    page.wait_for("document.querySelectorAll('.turn').length === 2")
    assert page.evaluate("document.querySelector('.turn .main-answer .content').textContent").startswith("It is")
    page.click("#reset")
    page.wait_for("document.querySelectorAll('.turn').length === 0")
    page.open(url)
    page.wait_for("document.querySelectorAll('#model option').length === 2")
    assert page.evaluate("document.querySelectorAll('.turn').length") == 0


@pytest.mark.parametrize("by", ["Escape", "button"])
def test_an_answer_can_be_stopped_and_another_asked(page: Browser, scripts: dict[str, Script], by: str):
    scripts["one"].texts = ["word " * 60]
    scripts["one"].stop_at = 12
    ask(page)
    page.wait_for("document.querySelector('.content')?.textContent.length > 8")
    if by == "button":
        page.click("#stop")
    else:
        page.press("Escape")
    is_idle(page)
    scripts["one"].gate.set()
    assert "stopped" in page.evaluate("document.querySelector('.lane > .note').textContent")
    scripts["one"].texts, scripts["one"].stop_at = [THOUGHT], -1
    ask(page)
    page.wait_for("document.querySelectorAll('.turn').length === 2")
    is_idle(page)
    assert page.evaluate("[...document.querySelectorAll('.main-answer .content')].at(-1).textContent").startswith(
        "It is"
    )


def test_shift_and_enter_begins_a_line_and_enter_sends(page: Browser):
    page.evaluate("document.getElementById('input').focus()")
    page.write("a")
    page.press("Shift+Enter")
    page.write("b")
    assert page.evaluate("document.getElementById('input').value") == "a\nb"
    assert page.evaluate("document.querySelectorAll('.turn').length") == 0
    page.press("Enter")
    is_idle(page)
    assert page.evaluate("document.querySelector('.mine').textContent") == "a\nb"
    assert page.evaluate("document.activeElement.id") == "input"


def test_the_majority_of_several_answers_is_shown_with_the_shares(page: Browser, scripts: dict[str, Script]):
    scripts["one"].texts = [r"\boxed{5}", r"\boxed{4}", "<think>a</think> It is 4.", "no"]
    page.click("#toggle")
    page.evaluate("document.getElementById('votes').value = '4'")
    ask(page)
    is_idle(page)
    lines = page.wait_for("[...document.querySelectorAll('.tally li')].map((line) => line.textContent)")
    assert lines == ["450 % (2 of 4)", "525 % (1 of 4)", "no final answer25 % (1 of 4)"]
    assert page.evaluate("document.querySelector('.main-answer .content').textContent") == r"\boxed{4}"
    assert page.evaluate("document.querySelectorAll('.one').length") == 4


def test_two_models_answer_side_by_side(page: Browser, scripts: dict[str, Script], tmp_path: Path):
    scripts["two"].texts = ["It is 5."]
    page.evaluate("document.getElementById('compare').value = 'two'")
    ask(page)
    is_idle(page)
    names = page.evaluate("[...document.querySelectorAll('.lane .name')].map((name) => name.textContent)")
    assert names == ["one", "two"]
    places = (
        "[...document.querySelectorAll('.lane')].map((lane) => [lane.getBoundingClientRect().left, lane.offsetTop])"
    )
    (left, top), (other_left, other_top) = page.evaluate(places)
    assert left < other_left and top == other_top
    for width, dark in ((1280, True), (390, False)):
        page.resize(width, 800, dark=dark)
        page.screenshot(tmp_path / f"{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    (left, top), (other_left, other_top) = page.evaluate(places)
    assert left == other_left and top < other_top


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page: Browser, scripts: dict[str, Script], width: int):
    scripts["one"].texts = ["<think>" + "w" * 60 + "</think>" + "unbroken" * 12]
    page.resize(width, 700)
    page.click("#toggle")
    ask(page, "x" * 300)
    is_idle(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.getElementById('log').scrollWidth <= document.getElementById('log').clientWidth")


def test_an_error_is_shown_and_the_page_goes_on(page: Browser):
    ask(page, "long " * 300)
    is_idle(page)
    assert "tokens" in page.wait_for("document.querySelector('.problem').textContent")
    ask(page)
    page.wait_for("document.querySelectorAll('.turn').length === 2")
    is_idle(page)
    assert page.evaluate("[...document.querySelectorAll('.content')].at(-1).textContent") is not None


def test_every_control_is_reached_by_the_keyboard(page: Browser):
    page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(8):
        page.press("Tab")
        seen.append(page.evaluate("document.activeElement.id"))
    assert {"model", "compare", "toggle", "reset", "input", "send"} <= set(seen)
    page.evaluate("document.getElementById('toggle').focus()")
    page.press(" ")
    page.wait_for("!document.getElementById('settings').hidden")
