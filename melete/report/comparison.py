"""Several algorithms on one task: a row of the table for each, and a plot of what they gained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from melete.report.charts import nice_ticks, number
from melete.report.files import Row, RunFiles

_WIDTH, _LEFT, _RIGHT, _ROW = 700, 210, 60, 26
_TOP, _BOTTOM = 10, 40


def content(files: RunFiles) -> dict[str, Any] | None:
    """The stages of a run that compare algorithms: name, cells of the table, best gain first, and the plot."""
    found = []
    for stage in files.entries:
        if rows := stage.get("comparison"):
            ordered = sorted(rows, key=lambda row: -row["gain_mean"])
            cells = [_cells(row) for row in ordered]
            found.append({"name": stage["name"], "rows": cells, "plot": draw_gains(ordered), "num_seeds": _seeds(rows)})
    return {"stages": found} if found else None


def _seeds(rows: Sequence[Row]) -> int:
    return max(len(row["after"]) for row in rows)


def _cells(row: Row) -> tuple[str, ...]:
    before, after = (sum(row[side]) / len(row[side]) for side in ("before", "after"))
    shares = (number(before, share=True), number(after, share=True))
    thinking = number(row["share_thinking_after"], share=True)
    return (row["algorithm"], *shares, gain(row), thinking, number(row["length_after"]))


def gain(row: Row) -> str:
    """A gain in percentage points with its standard error over seeds.

    >>> gain({"gain_mean": 0.275, "gain_se": 0.041}), gain({"gain_mean": -0.1, "gain_se": None})
    ('+28 ± 4', '-10')
    """
    error = "" if row["gain_se"] is None else f" ± {100 * row['gain_se']:.0f}"
    return f"{100 * row['gain_mean']:+.0f}{error}"


def draw_gains(rows: Sequence[Row]) -> Markup:
    """A line for each algorithm: a small dot for each seed, a large one for the mean, a bar of two standard errors."""
    seeds = [[after - before for before, after in zip(row["before"], row["after"], strict=True)] for row in rows]
    bars = [2 * (row["gain_se"] or 0.0) for row in rows]
    reach = [g for gains in seeds for g in gains]
    reach += [row["gain_mean"] + side * bar for row, bar in zip(rows, bars, strict=True) for side in (-1, 1)]
    low, high = min(0.0, *reach), max(0.0, *reach)
    ticks = nice_ticks(low, high if high > low else low + 0.1)
    height = _TOP + _ROW * len(rows) + _BOTTOM

    def x(value: float) -> float:
        return _LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_WIDTH - _LEFT - _RIGHT)

    end = height - _BOTTOM
    parts = [f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{_TOP}" y2="{end}"/>' for t in ticks]
    parts += [f'<text class="tick mid" x="{x(t):.1f}" y="{end + 16}">{_points(t)}</text>' for t in ticks]
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{_TOP}" y2="{end}"/>')
    middle = (x(ticks[0]) + x(ticks[-1])) / 2
    caption = "gain in right answers, percentage points"
    parts.append(f'<text class="tick mid" x="{middle:.0f}" y="{height - 6}">{caption}</text>')
    for place, (row, gains, bar) in enumerate(zip(rows, seeds, bars, strict=True)):
        y = _TOP + _ROW * (place + 0.5)
        mean, name = row["gain_mean"], escape(row["algorithm"])
        parts.append(f'<text class="tick end" x="{_LEFT - 10}" y="{y + 4:.1f}">{name}</text>')
        if bar:
            parts.append(f'<line class="bar" x1="{x(mean - bar):.1f}" x2="{x(mean + bar):.1f}" y1="{y}" y2="{y}"/>')
        parts += [f'<circle class="dot faint c1" cx="{x(g):.1f}" cy="{y}" r="2.5"/>' for g in gains]
        hint = f"<title>{name}: {escape(gain(row))}</title>"
        parts.append(f'<circle class="dot c1" cx="{x(mean):.1f}" cy="{y}" r="4.5">{hint}</circle>')
        parts.append(f'<text class="end-label c1" x="{_WIDTH - _RIGHT + 8}" y="{y + 4:.1f}">{_points(mean)}</text>')
    label = escape("; ".join(f"{row['algorithm']} {gain(row)}" for row in rows))
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Gains: {label}">{"".join(parts)}</svg>')


def _points(value: float) -> str:
    return f"{100 * value:+.0f}" if value else "0"
