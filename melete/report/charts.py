"""Line charts as inline SVG: no scripts, colours from the page's style sheet, the same bytes for the same numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 44, 12, 30
_LABEL_GAP = 12.0
PERCENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True, slots=True)
class Series:
    """One line: `points` are (x, y); `band` is (x, low, high); `faint` draws what was smoothed, behind."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    faint: Sequence[tuple[float, float]] = ()
    dots: bool = False
    colour: int = 1


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart and the words around it. `log2` spaces x by doublings; `share` writes y as percentages."""

    title: str
    caption: str
    series: Sequence[Series]
    x_label: str = "step"
    share: bool = False
    log2: bool = False
    x_ticks: Sequence[float] = field(default=())


def smoothed(points: Sequence[tuple[float, float]], width: int | None = None) -> list[tuple[float, float]]:
    """A centred moving mean, cut off at the ends, so that the last value is a mean too and not one noisy step.

    >>> smoothed([(0, 0.0), (1, 3.0), (2, 0.0)], 3)
    [(0, 1.5), (1, 1.0), (2, 1.5)]
    """
    width = width or max(len(points) // 12, 1) | 1
    half, result = width // 2, []
    for i, (x, _) in enumerate(points):
        window = [y for _, y in points[max(i - half, 0) : i + half + 1]]
        result.append((x, sum(window) / len(window)))
    return result


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from just below `low` to just above `high`, about `count` steps apart.

    >>> nice_ticks(0.13, 0.94)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.10g}") + 0.0 for i in range(first, last + 1)]


def number(value: float, share: bool = False) -> str:
    """A number for people: percent for shares, else three significant digits without a tail of zeros.

    >>> number(0.875, share=True), number(61.25), number(-0.0), number(1234.5), number(0.00042)
    ('88\\xa0%', '61.2', '0', '1,234', '0.00042')
    """
    if share:
        return f"{round(value * 100) + 0:d}{PERCENT}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value + 0.0:.3g}" if abs(value) < 100 else f"{value:.0f}"


def draw(chart: Chart) -> Markup:
    """The chart as an `<svg>` element that scales with its column."""
    scale = _Scale.of(chart)
    body = [*_grid(chart, scale), *_x_axis(chart, scale)]
    body += [_band(series, scale) for series in chart.series if series.band]
    body += [_line(series.faint, scale, f"line faint c{series.colour}") for series in chart.series if series.faint]
    for series in chart.series:
        body.append(_line(series.points, scale, f"line c{series.colour}"))
        body += _dots(chart, series, scale)
    body += _end_labels(chart, scale)
    label = escape(f"{chart.title}. {describe(chart)}")
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>')


def describe(chart: Chart) -> str:
    """The chart in words, for those who cannot see it: where each line starts and ends."""
    parts = []
    for series in chart.series:
        (x0, y0), (x1, y1) = series.points[0], series.points[-1]
        ends = f"from {number(y0, chart.share)} at {number(x0)} to {number(y1, chart.share)} at {number(x1)}"
        parts.append(f"{series.name}: {ends}")
    return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class _Scale:
    x_low: float
    x_high: float
    y_ticks: Sequence[float]
    log2: bool

    @classmethod
    def of(cls, chart: Chart) -> _Scale:
        xs = [x for series in chart.series for x, _ in series.points]
        ys = [y for series in chart.series for line in (series.points, series.faint) for _, y in line]
        ys += [y for series in chart.series for _, low, high in series.band for y in (low, high)]
        low = min(0.0, *ys)  # lines that start at zero cannot exaggerate
        return cls(min(xs), max(xs), nice_ticks(low, max(ys) if max(ys) > low else low + 1), chart.log2)

    def x(self, value: float) -> float:
        low, high, value = (math.log2(v) if self.log2 else v for v in (self.x_low, self.x_high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


def _grid(chart: Chart, scale: _Scale) -> list[str]:
    parts = []
    for tick in scale.y_ticks:
        y = scale.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 5}" y="{y + 3.5:.1f}">{number(tick, chart.share)}</text>')
    return parts


def _x_axis(chart: Chart, scale: _Scale) -> list[str]:
    ticks = chart.x_ticks or [t for t in nice_ticks(scale.x_low, scale.x_high) if scale.x_low <= t <= scale.x_high]
    y = HEIGHT - _BOTTOM + 13
    parts = [f'<text class="tick mid" x="{scale.x(t):.1f}" y="{y}">{number(t)}</text>' for t in ticks]
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    return [*parts, f'<text class="tick mid" x="{middle:.0f}" y="{HEIGHT - 3}">{escape(chart.x_label)}</text>']


def _line(points: Sequence[tuple[float, float]], scale: _Scale, style: str) -> str:
    path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in points)
    return f'<polyline class="{style}" points="{path}"/>'


def _band(series: Series, scale: _Scale) -> str:
    there = [f"{scale.x(x):.1f},{scale.y(high):.1f}" for x, _, high in series.band]
    back = [f"{scale.x(x):.1f},{scale.y(low):.1f}" for x, low, _ in reversed(series.band)]
    return f'<polygon class="band c{series.colour}" points="{" ".join([*there, *back])}"/>'


def _dots(chart: Chart, series: Series, scale: _Scale) -> list[str]:
    points = series.points if series.dots else series.points[-1:]
    parts = []
    for x, y in points:
        hint = escape(f"{series.name}: {number(y, chart.share)} at {number(x)}")
        parts.append(
            f'<circle class="dot c{series.colour}" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="3.5">'
            f"<title>{hint}</title></circle>"
        )
    return parts


def _end_labels(chart: Chart, scale: _Scale) -> list[str]:
    """The last value of each line, written beside it; labels that would overlap are pushed apart."""
    ends = sorted(((scale.y(series.points[-1][1]), series) for series in chart.series), key=lambda end: end[0])
    placed: list[float] = []
    for y, _ in ends:
        placed.append(max(y, placed[-1] + _LABEL_GAP) if placed else y)
    overflow = max(placed[-1] - (HEIGHT - _BOTTOM), 0.0)
    x = WIDTH - _RIGHT + 7
    return [
        f'<text class="end-label c{series.colour}" x="{x}" y="{y - overflow + 4:.1f}">'
        f"{number(series.points[-1][1], chart.share)}</text>"
        for y, (_, series) in zip(placed, ends, strict=True)
    ]
