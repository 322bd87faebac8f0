import pytest
from hypothesis import given
from hypothesis import strategies as st

from melete.report.charts import Chart, Series, describe, draw, nice_ticks, number, smoothed

FLOATS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 6))


@given(FLOATS, FLOATS)
def test_ticks_enclose_the_range_and_are_few(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    slack = (high - low) * 1e-6 + 1e-6
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 1 <= len(ticks) <= 8


@given(st.lists(FLOATS, min_size=1, max_size=60))
def test_any_numbers_can_be_drawn_and_stay_on_the_canvas(ys: list[float]) -> None:
    svg = str(draw(Chart("t", "c", [Series("s", list(enumerate(ys)), dots=True)])))
    assert "nan" not in svg and "inf" not in svg
    heights = [float(part.split('"')[0]) for part in svg.split('cy="')[1:]]
    assert all(0 <= y <= 200 for y in heights)


def test_smoothing_keeps_a_constant_and_the_steps() -> None:
    points = [(step, 0.7) for step in range(30)]
    assert [x for x, _ in smoothed(points)] == list(range(30))
    assert [y for _, y in smoothed(points)] == pytest.approx([0.7] * 30)


def test_names_in_a_chart_are_escaped() -> None:
    assert "<b>" not in draw(Chart("<b>", "c", [Series("<b>", [(0, 1)], dots=True)], x_label="<b>"))


def test_a_chart_in_words() -> None:
    chart = Chart("t", "c", [Series("pass@1", [(0, 0.25), (100, 0.5)])], share=True)
    assert describe(chart).replace("\xa0", " ") == "pass@1: from 25 % at 0 to 50 % at 100"


def test_a_vanishing_negative_is_written_as_zero() -> None:
    assert number(-0.001, share=True) == "0\xa0%"
    assert number(-0.0) == "0"


@pytest.mark.parametrize("height", [1e-30, 1e-12, 1e12])
def test_ticks_of_very_small_and_very_large_numbers_are_apart(height: float) -> None:
    ticks = nice_ticks(0.0, height)
    assert len(set(ticks)) == len(ticks) > 2 and ticks[-1] >= height * (1 - 1e-9)
