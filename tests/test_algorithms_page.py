"""docs/algorithms.md is made from the tables; `python tests/test_algorithms_page.py` rewrites it."""

from __future__ import annotations

from pathlib import Path

import pytest

from melete.algorithms import ALGORITHMS, AlgorithmSettings
from melete.algorithms.entries import KL_ESTIMATOR, overview
from melete.algorithms.explain import page
from melete.algorithms.metrics import METRICS
from melete.algorithms.preference import PreferenceSettings
from melete.functional.aggregate import MODES

PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"


def test_the_page_is_up_to_date():
    assert page() == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_the_page_has_the_row_as_it_is(name: str):
    row = ALGORITHMS[name]
    line = next(line for line in page().splitlines() if line.startswith(f"| `{name}` |"))
    assert all(f"`{part}`" in line for part in (row.credit.__name__, row.loss.__name__, row.aggregation))
    assert (f"{row.kl[0]} in the {row.kl[1]}, {row.kl_coef:g}" if row.kl[1] else "| none |") in line
    assert all(stream.removesuffix("_logprobs").replace("_", " ") in line.split("|")[-2] for stream in row.needs)


def test_the_page_names_every_setting_mode_metric_and_estimator():
    settings = {*AlgorithmSettings.__dataclass_fields__, *PreferenceSettings.__dataclass_fields__} - {"name"}
    estimators = [entry.name for entry in overview() if entry.family == KL_ESTIMATOR]
    text = page()
    assert [name for name in (*settings, *MODES, *METRICS, *estimators) if f"`{name}`" not in text] == []


def test_every_row_has_a_heading_with_its_formula_and_its_source():
    text = page()
    for entry in overview():
        if entry.family != KL_ESTIMATOR:
            section = text.partition(f"### {entry.name}\n")[2].partition("\n#")[0]
            assert entry.formula.split(";  ")[0] in section
            assert "\nSource: " in section


def test_no_line_of_a_table_has_a_cell_too_many():
    tables = [block for block in page().split("\n\n") if "\n|---" in block]
    for table in tables:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1, table


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
