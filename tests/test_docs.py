"""Every ```python block of the documentation runs, top to bottom, and the number of blocks is known.

The blocks of one page share their names, as a reader would type them in one session; each page runs in an empty
directory.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NUM_BLOCKS = 12  # a block that stops being found is a block that stops being tested
_FENCE = re.compile(r"^```python[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line and code of each block of a page."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)) + 1, found.group(1)) for found in _FENCE.finditer(text)]


def test_no_block_is_lost():
    assert sum(len(blocks(page)) for page in PAGES) == NUM_BLOCKS


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    session = ModuleType("documentation")
    monkeypatch.setitem(sys.modules, session.__name__, session)  # where dataclasses look for their own module
    for line, code in blocks(page):
        # the empty lines in front make a traceback point at the page's own line
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), session.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_test_that_a_promise_names_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 8
    for path, test in named:
        assert (ROOT / path).is_file() and f"def {test}" in (ROOT / path).read_text(encoding="utf-8"), (path, test)
