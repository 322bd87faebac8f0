"""Numbers with intervals side by side, as inline SVG: one row for each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from melete.report.charts import nice_ticks, number

_WIDTH, _LEFT, _RIGHT, _ROW = 340, 142, 44, 23
_TOP, _BOTTOM = 6, 24


@dataclass(frozen=True, slots=True)
class Range:
    """A mean and where it may lie; rows of another `colour` are another kind."""

    label: str
    mean: float
    low: float
    high: float
    colour: int = 1


@dataclass(frozen=True, slots=True)
class Ranges:
    """A plot and the words around it."""

    title: str
    caption: str
    rows: Sequence[Range]
    share: bool = True


def draw_ranges(plot: Ranges) -> Markup:
    """A dot for each mean on a bar from low to high; the axis begins at zero."""
    ticks = nice_ticks(0.0, max(1.0, *(row.high for row in plot.rows)), 2)
    height = _TOP + _ROW * len(plot.rows) + _BOTTOM

    def x(of: float) -> float:
        return _LEFT + (of - ticks[0]) / (ticks[-1] - ticks[0]) * (_WIDTH - _LEFT - _RIGHT)

    end = height - _BOTTOM
    parts = [f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{_TOP}" y2="{end}"/>' for t in ticks]
    parts += [f'<text class="tick mid" x="{x(t):.1f}" y="{end + 15}">{number(t, plot.share)}</text>' for t in ticks]
    for place, row in enumerate(plot.rows):
        y = _TOP + _ROW * (place + 0.5)
        parts.append(f'<text class="name" x="0" y="{y + 4:.1f}">{escape(row.label)}</text>')
        ends = f'x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y}" y2="{y}"'
        parts.append(f'<line class="bar c{row.colour}" {ends}/>')
        parts.append(f'<circle class="dot c{row.colour}" cx="{x(row.mean):.1f}" cy="{y}" r="3.5"/>')
        written = number(row.mean, plot.share)
        parts.append(f'<text class="end-label" x="{_WIDTH - _RIGHT + 8}" y="{y + 4:.1f}">{written}</text>')
    told = "; ".join(f"{row.label}: {_told(row, plot.share)}" for row in plot.rows)
    label = escape(f"{plot.title}. {told}")
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>')


def _told(row: Range, share: bool) -> str:
    return f"{number(row.mean, share)}, from {number(row.low, share)} to {number(row.high, share)}"
