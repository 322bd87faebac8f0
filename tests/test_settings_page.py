"""docs/settings.md is made from the schema; `python tests/test_settings_page.py` rewrites it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from melete.one_stage import COMMANDS
from melete.recipe_page import page
from melete.recipe_settings import all_settings, described
from melete.schema import STAGE_KINDS

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"


def test_the_page_is_up_to_date():
    assert page() == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", list(STAGE_KINDS))
def test_the_page_has_every_setting_with_its_meaning(kind: str):
    text = page()
    for setting in all_settings(STAGE_KINDS[kind]):
        name = setting.key.rpartition(".")[2]
        assert f"| `{name}` |" in text
        assert setting.meaning and setting.meaning.replace("|", "\\|") in text, setting.key
        assert described(setting)


def test_the_page_names_every_command_and_function():
    text = page()
    for command in COMMANDS.values():
        assert f"`melete {command.name}`" in text and f"`melete.{command.function}`" in text


def test_every_link_of_the_page_leads_to_a_heading():
    text = page()
    headings = {
        re.sub(r"[^a-z0-9_ -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_no_line_of_a_table_has_a_cell_too_many():
    tables = [block for block in page().split("\n\n") if "\n|---" in block]
    for table in tables:
        lines = [re.sub(r"\\\|", "", line) for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1, table


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
