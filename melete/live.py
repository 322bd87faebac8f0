"""What the terminal shows while a run works: the stages, the time left, reward and pass@1, one completion.

With a terminal a view that redraws itself, without one plain lines; `NO_COLOR` is honoured (by rich).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 32
_NUM_PLAIN_LINES = 20
_NUM_MESSAGES = 4
_NUM_TEXT_LINES = 12
_SHOWN = (
    "reward",
    "share_thinking",
    "length_mean",
    "dead_groups",
    "entropy",
    "loss",
    "tokens_per_second",
    "floor_share",
)


def sparkline(values: Sequence[float], width: int = _SPARK_WIDTH, *, low: float = 0.0, high: float = 1.0) -> str:
    """Values as a row of bars from `low` to `high`; more values than `width` are averaged in bins.

    >>> sparkline([0, 0.5, 1])
    '▁▅█'
    """
    if len(values) > width:
        edges = [i * len(values) // width for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    scale = (high - low) or 1.0
    return "".join(_BARS[round(min(max((value - low) / scale, 0.0), 1.0) * (len(_BARS) - 1))] for value in values)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(9.4), duration(125), duration(7300)
    ('9 s', '2 min 05 s', '2 h 01 min')
    """
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def visible(text: str) -> str:
    """Model text made safe for a terminal: control characters, which could move the cursor, become pictures."""
    return "".join(
        c if c.isprintable() or c == "\n" else chr(0x2400 + ord(c)) if ord(c) < 32 else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


@dataclass
class _Stage:
    name: str
    total_steps: int = 0
    num_done: int = 0
    started: float | None = None
    finished: str | None = None
    rewards: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)


class View:
    """The live view of a run; `plain=None` asks the terminal."""

    def __init__(
        self,
        stages: Sequence[str],
        plain: bool | None = None,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(highlight=False, markup=False)
        self._plain = not self._console.is_terminal if plain is None else plain
        self._clock = clock
        self._stages = {name: _Stage(name) for name in stages}
        self._messages: list[str] = []
        self._metrics: dict[str, Any] = {}
        self._sample: str | None = None
        self._live: Live | None = None
        if not self._plain:
            self._live = Live(console=self._console, get_renderable=self._render, auto_refresh=False)

    def __enter__(self) -> View:
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._sample = None  # what stays on the screen is the outcome
            self._live.refresh()
            self._live.stop()

    def stage_started(self, name: str, total_steps: int) -> None:
        stage = self._stages.setdefault(name, _Stage(name))
        stage.started, stage.total_steps = self._clock(), total_steps
        self._say(f"{name}: started" + (f", {total_steps} steps" if total_steps else ""))

    def step(self, stage: str, step: int, metrics: Mapping[str, Any], sample_text: str | None = None) -> None:
        """One step is done. A row with "pass@1" is an evaluation and does not count as a step."""
        current = self._stages.setdefault(stage, _Stage(stage))
        if metrics.get("pass@1") is not None:
            current.passes.append(float(metrics["pass@1"]))
            self._say(f"{stage}: {_evaluation_line(metrics)}")
            return
        current.num_done += 1
        if metrics.get("reward") is not None:
            current.rewards.append(float(metrics["reward"]))
        self._metrics = dict(metrics)
        self._sample = sample_text if sample_text is not None else self._sample
        self._step_line(current, step)

    def message(self, text: str) -> None:
        """A warning or a remark in plain words."""
        self._messages = [*self._messages, text][-_NUM_MESSAGES:]
        self._say(text)

    def stage_finished(self, name: str, text: str) -> None:
        self._stages.setdefault(name, _Stage(name)).finished = text
        self._say(f"{name}: {text}")

    def _say(self, line: str) -> None:
        if self._live:
            self._live.refresh()
        else:
            self._console.print(Text(visible(line)), soft_wrap=True)

    def _step_line(self, stage: _Stage, step: int) -> None:
        if self._live:
            self._live.refresh()
            return
        every = max(stage.total_steps // _NUM_PLAIN_LINES, 1)
        if step % every == 0 or step + 1 == stage.total_steps:
            total = f"/{stage.total_steps}" if stage.total_steps else ""
            line = f"{stage.name} {step + 1}{total}  {_metrics_line(self._metrics)}  {self._time_left(stage)}"
            self._console.print(Text(line.rstrip()), soft_wrap=True)

    def _time_left(self, stage: _Stage) -> str:
        if not (stage.num_done and stage.total_steps and stage.started is not None) or stage.finished:
            return ""
        per_step = (self._clock() - stage.started) / stage.num_done
        return f"{duration(per_step * max(stage.total_steps - stage.num_done, 0))} left"

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [self._checklist()]
        if self._metrics:
            parts.append(Text(_metrics_line(self._metrics), style="dim"))
        if self._sample is not None:
            lines = visible(self._sample).splitlines()[:_NUM_TEXT_LINES]
            parts.append(Panel(Text("\n".join(lines)), title="one completion", title_align="left", border_style="dim"))
        parts += [Text(f"! {visible(message)}", style="yellow") for message in self._messages]
        return Group(*parts)

    def _checklist(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for stage in self._stages.values():
            begun = stage.started is not None
            mark, style = ("✓", "green") if stage.finished else ("●", "cyan") if begun else ("○", "dim")
            progress = f"{stage.num_done}/{stage.total_steps}" if begun and stage.total_steps else ""
            note = stage.finished or self._time_left(stage)
            table.add_row(Text(mark, style), Text(stage.name, style), Text(progress), Text(visible(note)))
            for label, values in (("reward", stage.rewards), ("pass@1", stage.passes)):
                if values:
                    top = max(*values, 1.0) if label == "reward" else 1.0
                    spark = Text(sparkline(values, high=top), "cyan")
                    table.add_row("", Text(label, "dim"), Text(f"{values[-1]:.2f}"), spark)
        return table


def _metrics_line(metrics: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {metrics[name]:.3g}" for name in _SHOWN if isinstance(metrics.get(name), int | float))


def _evaluation_line(metrics: Mapping[str, Any]) -> str:
    label = f"{metrics['label']}: " if "label" in metrics else ""
    name = "score" if _is_graded(metrics) else "pass@1"
    line = f"{label}{name} {metrics[name]:.3f}"
    if f"{name}/low" in metrics:
        line += f" [{metrics[f'{name}/low']:.3f}, {metrics[f'{name}/high']:.3f}]"
    line += f"  maj@16 {metrics['maj@16']:.3f}" if "maj@16" in metrics else ""
    return line + (f"  win rate {metrics['win_rate']:.3f}" if metrics.get("win_rate") is not None else "")


def _is_graded(metrics: Mapping[str, Any]) -> bool:
    """Whether answers earn grades between wrong and right, so that the mean grade says more."""
    return metrics.get("score", metrics["pass@1"]) != metrics["pass@1"]
