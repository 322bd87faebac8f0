"""The comparison of algorithms in the report: best first, every seed drawn, nothing in a name is markup."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from fabricate import write_run

from melete.report import build_report
from melete.report.comparison import draw_gains, gain

HOSTILE_NAME = "mine:<script>alert(1)</script>|x"


def row(algorithm: str, after: list[float], se: float | None = 0.05, before: float = 0.4) -> dict[str, Any]:
    gains = [last - before for last in after]
    return {
        "algorithm": algorithm,
        "before": [before] * len(after),
        "after": after,
        "gain_mean": sum(gains) / len(gains),
        "gain_se": se,
        "length_after": 24.0,
        "share_thinking_after": 0.9,
        "num_steps": 6,
    }


ROWS = [row("grpo", [0.5, 0.7]), row(HOSTILE_NAME, [0.8, 0.9]), row("rloo", [0.3, 0.3], se=0.0)]


def compared(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_run(path)
    summary = json.loads((path / "summary.json").read_text())
    summary["stages"] = [{"name": "compare", "kind": "compare", "seconds": 1.0, "evaluations": [], "comparison": rows}]
    (path / "summary.json").write_text(json.dumps(summary))
    build_report(path)
    return path


def test_the_report_has_a_table_and_a_plot_best_first(tmp_path: Path) -> None:
    run = compared(tmp_path / "r", ROWS)
    page, words = (run / "report.html").read_text(), (run / "report.md").read_text()
    for text in (page, words):
        assert "The algorithms side by side" in text and "+45 ± 5" in text and "-10 ± 0" in text
        assert text.index("+45 ± 5") < text.index("+20 ± 5") < text.index("-10 ± 0")
        assert "<script>alert(1)" not in text
    assert page.count('class="dot faint c1"') == 6 and page.count('class="bar"') == 2
    assert "\\|x" in words  # a bar in a name does not end a cell


def test_a_run_without_a_comparison_has_none(tmp_path: Path) -> None:
    build_report(write_run(tmp_path / "r"))
    assert "side by side" not in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [row("grpo", [0.4], se=None)], [row("a", [0.1, 0.0])]])
def test_a_plot_is_well_formed_and_nothing_lies_outside(rows: list[dict[str, Any]]) -> None:
    picture = ET.fromstring(str(draw_gains(rows)))
    width = float(picture.attrib["viewBox"].split()[2])
    circles = [float(circle.attrib["cx"]) for circle in picture.iter("circle")]
    assert len(circles) == sum(len(one["after"]) + 1 for one in rows)
    assert all(0 < place < width for place in circles)


def test_a_gain_is_in_points_with_its_error() -> None:
    assert gain(row("grpo", [0.7, 0.5], se=0.041)) == "+20 ± 4"
