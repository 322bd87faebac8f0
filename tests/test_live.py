import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from melete.live import View, _evaluation_line, duration, sparkline, visible


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _run(plain: bool | None, *, terminal: bool = False, text: str = "<think>3+5=8</think>") -> str:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=terminal, width=100, markup=False, highlight=False)
    with View(["rl", "report"], plain, console=console, clock=clock) as view:
        view.stage_started("rl", 40)
        view.step("rl", 0, {"label": "base", "pass@1": 0.38, "pass@1/low": 0.35, "pass@1/high": 0.41, "maj@16": 0.6})
        for step in range(40):
            clock.now += 2.0
            view.step("rl", step, {"reward": step / 40, "share_thinking": 0.5, "lr": 1e-4}, text)
        view.message("92 % of groups are all correct: raise the difficulty")
        view.stage_finished("rl", "pass@1 0.38 -> 0.86")
    return out.getvalue()


def test_without_a_terminal_there_are_plain_lines_and_no_control_codes() -> None:
    text = _run(None)
    assert "\x1b" not in text and "\r" not in text
    lines = text.splitlines()
    assert "rl: started, 40 steps" in lines
    assert "rl: base: pass@1 0.380 [0.350, 0.410]  maj@16 0.600" in lines
    assert "92 % of groups are all correct: raise the difficulty" in lines
    assert "rl: pass@1 0.38 -> 0.86" in lines
    assert 20 <= sum(line.startswith("rl ") for line in lines) <= 21
    assert any("rl 21/40" in line and "38 s left" in line for line in lines)


def test_with_a_terminal_stages_reward_and_completion_are_shown() -> None:
    text = _run(None, terminal=True)
    for shown in ("report", "reward", "pass@1", "one completion", "3+5=8", "left", "raise the difficulty"):
        assert shown in text


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in _run(None, terminal=True)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[36m" in _run(None, terminal=True)


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_model_writes_cannot_steer_the_terminal(terminal: bool) -> None:
    shown = _run(None, terminal=terminal, text="[red]\x1b]0;owned\x07 [/nonsense]")
    assert "\x1b]0;" not in shown and "\x07" not in shown


@given(st.text())
def test_visible_text_has_no_control_characters(text: str) -> None:
    assert all(c.isprintable() or c == "\n" for c in visible(text))
    assert len(visible(text)) == len(text)


@given(st.lists(st.floats(-2, 2), max_size=100), st.integers(1, 40))
def test_a_sparkline_fits_its_width(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(len(values), width)


def test_a_rising_line_rises() -> None:
    line = sparkline([i / 99 for i in range(100)], 8)
    assert line == "".join(sorted(line)) and line[0] == "▁" and line[-1] == "█"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (59.6, "1 min 00 s"), (3599.7, "1 h 00 min"), (59.4, "59 s")]
)
def test_durations_carry_over(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_unknown_stage_does_not_end_a_run() -> None:
    with View([], True, console=Console(file=io.StringIO())) as view:
        view.step("surprise", 0, {"reward": None})
        view.stage_finished("other", "done")


def test_where_answers_are_graded_the_grade_is_told() -> None:
    found = {"pass@1": 0.0, "pass@1/low": 0.0, "pass@1/high": 0.0, "score": 0.34, "score/low": 0.3, "score/high": 0.4}
    assert _evaluation_line(found | {"win_rate": 0.571}) == "score 0.340 [0.300, 0.400]  win rate 0.571"
    assert _evaluation_line({"pass@1": 0.5, "score": 0.5}) == "pass@1 0.500"
