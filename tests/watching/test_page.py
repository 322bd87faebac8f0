"""The page of a run that grows, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, served
from fastapi.testclient import TestClient

from melete.runs.directory import RunDirectory
from melete.watching.run import WatchedRun
from melete.watching.site import watch_app

HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>&amp;"
RECIPE: dict[str, Any] = {
    "name": "grow",
    "stage": [{"name": "rl", "kind": "rl", "num_steps": 40}, {"name": "dpo", "kind": "preference"}],
}


def grow(run: RunDirectory, step: int) -> None:
    run.log_metrics({"stage": "rl", "step": step, "reward": step / 10, "reward/format": 0.5, "entropy": 1.0, "odd": 2})
    run.log_rollouts(
        {
            "stage": "rl",
            "step": step,
            "problem_id": HOSTILE,
            "prompt": HOSTILE,
            "text": f"{step} {HOSTILE}",
            "reward": float(sibling),
            "reward_parts": {HOSTILE: float(sibling)},
            "sibling": sibling,
            "num_tokens": 3,
            "credit": [[f"{step} ", sibling - 0.5], [HOSTILE, 0.25 - sibling]],
        }
        for sibling in (0, 1)
    )


def test_the_page_follows_a_run_and_its_rewind(browser: Browser, tmp_path: Path):
    with RunDirectory.create_or_open(tmp_path / "grow", RECIPE) as run:
        before = sorted(path.name for path in run.path.iterdir())
        with served(watch_app(WatchedRun(run.path))) as url:
            browser.resize(1280, 900)
            browser.open(url)
            browser.wait_for("document.getElementById('status').textContent === 'live'")
            assert sorted(path.name for path in run.path.iterdir()) == before
            for step in range(3):
                grow(run, step)
            browser.wait_for("document.querySelector('figure[data-name=reward]')?.textContent.includes('at step 2')")
            assert browser.evaluate("document.querySelector('nav .dim').textContent") == "3 of 40"
            marks = run.marks("rl")
            for step in range(3, 6):
                grow(run, step)
            browser.wait_for("document.querySelector('figure[data-name=reward]').textContent.includes('at step 5')")
            run.rewind("rl", marks)
            browser.wait_for("document.querySelector('figure[data-name=reward]').textContent.includes('at step 2')")
            text = browser.evaluate("document.getElementById('rollouts').textContent")
            assert "2 <img" in text and "advantage -0.500 to +0.250" in text and "5 <img" not in text
            shades = browser.evaluate(
                "[...document.querySelector('.text').children].map((s) => s.style.backgroundColor)"
            )
            assert "" not in shades and shades[0] != shades[1]
            assert browser.evaluate("document.querySelectorAll('main img, main script').length") == 0
            assert browser.evaluate("window.hacked === undefined")
            browser.evaluate(
                "(() => { const plot = document.querySelector('figure[data-name=reward] svg');"
                "const box = plot.getBoundingClientRect(); plot.dispatchEvent(new PointerEvent('pointermove',"
                "{clientX: box.left + box.width / 2, clientY: box.top})) })()"
            )
            caption = browser.evaluate("document.querySelector('figure[data-name=reward] figcaption').textContent")
            assert "step 1: 0.100" in caption
            assert browser.problems == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_runs_out_of_the_page(browser: Browser, tmp_path: Path, width: int):
    with RunDirectory.create_or_open(tmp_path / "grow", RECIPE) as run:
        for step in range(20):
            grow(run, step)
    with served(watch_app(WatchedRun(run.path))) as url:
        browser.resize(width, 800)
        browser.open(url)
        browser.wait_for("document.querySelectorAll('.rollout').length")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_no_request_reaches_another_file(tmp_path: Path):
    (tmp_path / "secret.json").write_text('{"health": ["secret"]}')
    (tmp_path / "run" / "stages").mkdir(parents=True)
    (tmp_path / "run" / "recipe.json").write_text(json.dumps({"stage": [{"name": "../../secret", "kind": "rl"}]}))
    client = TestClient(watch_app(WatchedRun(tmp_path / "run")), base_url="http://127.0.0.1")
    for path in ("/api/run", "/api/stage?name=../../secret", "/../secret.json", "/recipe.json", "/metrics.jsonl"):
        assert '["secret"]' not in client.get(path).text
    assert client.get("/metrics.jsonl").status_code == 404
    assert client.post("/api/run").status_code == 405
