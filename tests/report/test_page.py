"""The page of a report in a real browser: what a model wrote does nothing there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from fabricate import write_run
from fabricate_r1 import write_r1

from melete.report import build_report

HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>&amp;"
WRITTEN = {"text", "prompt", "gold", "told", "description", "learnt", "answer", "final_answer"}


def hostile(value: Any, key: str = "") -> Any:
    """The same with markup after everything that a model, or the data, might have written."""
    if isinstance(value, dict):
        return {name: hostile(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner, key) for inner in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) and key in WRITTEN else value


@pytest.mark.parametrize("write", [write_run, write_r1])
def test_what_a_model_wrote_stays_text_in_a_browser(
    write: Callable[[Path], Path], browser: Browser, tmp_path: Path
) -> None:
    run = write(tmp_path / "run")
    for file in run.rglob("*.json*"):
        lines = file.read_text(encoding="utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        file.write_text("".join(json.dumps(hostile(json.loads(line))) + "\n" for line in lines))
    build_report(run)
    browser.open((run / "report.html").as_uri())
    assert HOSTILE in browser.evaluate("document.body.textContent")
    assert browser.evaluate("document.querySelectorAll('script, img, iframe, object').length") == 0
    assert browser.evaluate("window.hacked === undefined")
    assert browser.problems == []
