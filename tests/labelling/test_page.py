"""The page to judge on, in a real browser."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from browser import Browser, served
from fastapi.testclient import TestClient

from melete.labelling.items import read_items
from melete.labelling.journal import Journal
from melete.labelling.site import label_app

HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>&amp;"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "d.jsonl"
    rows = [
        {"prompt": f"{HOSTILE} {n}?", "completions": [f"<think>hm</think>a{n}{HOSTILE}", f"b{n}"]} for n in range(4)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def shown(browser: Browser, previous: str = "") -> str:
    browser.wait_for(f"document.body.dataset.item && document.body.dataset.item !== {previous!r}")
    return browser.evaluate("document.body.dataset.item")


def test_items_are_judged_with_the_keyboard_and_the_page_resumes(browser: Browser, data: Path, tmp_path: Path):
    items, journal = read_items(data), Journal(tmp_path / "j.jsonl")
    with served(label_app(items, journal, by="ann", mode="compare")) as url:
        browser.open(url)
        first = shown(browser)
        assert first == items[0].item_id
        left = browser.evaluate("document.querySelector('.answer .text').textContent")
        assert HOSTILE in browser.evaluate("document.querySelector('.turn').textContent")
        assert browser.evaluate("document.querySelectorAll('main img, main script').length") == 0
        assert browser.evaluate("document.querySelector('.thought').open") is False
        browser.press("u")
        browser.press("2")
        browser.wait_for("document.querySelectorAll('.answer')[1].classList.contains('unsafe')")
        browser.press("1")
        second = shown(browser, first)
        (entry,) = Journal(journal.path).entries
        number = {"first": 0, "second": 1}[entry.answer]
        assert entry.completions[number].endswith(left) and entry.unsafe == (1 - number,)
        assert entry.swapped == items[0].is_swapped("ann")
        browser.press("0")
        third = shown(browser, second)
        browser.open(url)
        assert shown(browser) == third
        browser.press("z")
        assert shown(browser, third) == second
        browser.press("ArrowRight")
        shown(browser, second)
        browser.press("s")
        shown(browser, third)
        browser.press("1")
        browser.wait_for("!document.getElementById('finished').hidden")
        assert browser.evaluate("document.getElementById('count').textContent") == "4 of 4"
        assert browser.evaluate("window.hacked === undefined")
        assert browser.problems == []
    assert len(Journal(journal.path).current("ann")) == 4


def test_a_second_tab_answers_nothing_twice(browser: Browser, data: Path, tmp_path: Path):
    items, journal = read_items(data), Journal(tmp_path / "j.jsonl")
    with served(label_app(items, journal, by="ann", mode="compare")) as url:
        browser.open(url)
        first = shown(browser)
        body = {"id": "another-tab", "item": first, "answer": "tie"}
        assert browser.evaluate(
            "fetch('/api/answer', {method: 'POST', headers: {'content-type': 'application/json'}, "
            f"body: {json.dumps(json.dumps(body))}}}).then((reply) => reply.ok)"
        )
        browser.press("1")
        assert shown(browser, first) == items[1].item_id
        assert "another tab" in browser.evaluate("document.getElementById('note').textContent")
    assert [entry.answer for entry in Journal(journal.path).entries] == ["tie"]


def test_the_server_may_be_killed_in_between(browser: Browser, data: Path, tmp_path: Path):
    journal = tmp_path / "j.jsonl"
    port = "0"
    for expected in (0, 1):
        command = [sys.executable, "-m", "melete.cli", "label", str(data), "--out", str(journal), "--by", "ann"]
        process = subprocess.Popen([*command, "--port", port], stdout=subprocess.PIPE, text=True, env=os.environ)
        try:
            assert process.stdout is not None
            address = next(m for line in process.stdout if (m := re.search(r"http://\S+:(\d+)/", line)))
            port = address[1]
            if not expected:
                browser.open(address[0])
                first = shown(browser)
                browser.press("1")
                second = shown(browser, first)
            else:
                browser.press("0")  # the page was not reloaded
                shown(browser, second)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if not expected:
            browser.press("0")
            browser.wait_for("document.getElementById('note').textContent.includes('not saved')")
            assert browser.evaluate("document.body.dataset.item") == second
    assert len(Journal(journal).entries) == 2


def test_a_second_labeller_sees_agreement_and_reviews(browser: Browser, data: Path, tmp_path: Path):
    items, journal = read_items(data), Journal(tmp_path / "j.jsonl")
    for by, answers in (("bob", "llll"), ("ann", "lllt")):
        client = TestClient(label_app(items, journal, by=by, mode="compare"), base_url="http://127.0.0.1")
        for item, short in zip(items, answers, strict=True):
            # the side where the first completion stands
            answer = {"l": ("left", "right")[item.is_swapped(by)], "t": "tie"}[short]
            body = {"id": f"{by}-{item.item_id}", "item": item.item_id, "answer": answer}
            assert client.post("/api/answer", json=body).status_code == 200
    with served(label_app(items, journal, by="ann", mode="compare")) as url:
        browser.open(url)
        browser.wait_for("document.getElementById('agreement').textContent.includes('75% the same on 4')")
        browser.click("#review")
        assert shown(browser, "none") == items[3].item_id
        assert "bob: " in browser.evaluate("document.getElementById('said').textContent")
        browser.press("1")
        browser.wait_for("document.getElementById('finished').textContent.includes('review')")


@pytest.mark.parametrize(
    "body", [{}, {"id": "12345678", "item": "no", "answer": "tie"}, {"id": "12345678", "item": "ITEM", "answer": "x"}]
)
def test_what_is_no_answer_is_refused_and_not_kept(data: Path, tmp_path: Path, body: dict[str, str]):
    items, journal = read_items(data), Journal(tmp_path / "j.jsonl")
    client = TestClient(label_app(items, journal, by="ann", mode="compare"), base_url="http://127.0.0.1")
    body = {key: items[0].item_id if value == "ITEM" else value for key, value in body.items()}
    assert client.post("/api/answer", json=body).status_code == 400
    assert journal.entries == []
