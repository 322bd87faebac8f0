"""docs/algorithms.md says what the table does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from melete.algorithms import ALGORITHMS, AlgorithmSettings
from melete.functional.aggregate import MODES
from melete.functional.kl import ESTIMATORS

PAGE = (Path(__file__).parents[1] / "docs" / "algorithms.md").read_text()


def test_the_code_blocks_of_the_page_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/algorithms.md", "exec"), {})


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_the_page_has_the_row_as_it_is(name: str) -> None:
    row = ALGORITHMS[name]
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    assert f"`{row.loss.__name__}`" in line
    assert f"`{row.aggregation}`" in line
    assert (f"{row.kl[0]} in the {row.kl[1]}, {row.kl_coef}" if row.kl[1] else "none") in line
    assert all(stream.removesuffix("_logprobs") in line.split("|")[-2] for stream in row.needs)


def test_the_page_names_every_setting_mode_and_estimator() -> None:
    names = [*AlgorithmSettings.__dataclass_fields__, *MODES, *ESTIMATORS]
    assert [name for name in names if f"`{name}`" not in PAGE and name != "name"] == []
