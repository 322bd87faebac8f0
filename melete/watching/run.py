"""What the page of a run shows, gathered from its files as they grow, in bounded memory."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from melete.errors import RunError
from melete.health import Watch
from melete.runs.directory import METRICS, ROLLOUTS
from melete.watching.tail import MAX_BYTES, Tail

MAX_POINTS = 400  # of a curve; of a longer one every second, fourth, eighth... is kept
MAX_CURVES = 200  # of a stage
MAX_ROLLOUTS = 128  # of a stage, the newest
MAX_TEXT = 8000  # letters of a rollout
_ROLLOUT_BYTES = 64 * MAX_BYTES
_NOT_CURVES = {"stage", "step", "kind", "label", "model"}


class Curve:
    """The points of one number; when there are too many every second one is dropped."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []
        self._stride, self._seen = 1, 0
        self._newest: tuple[int, float] | None = None

    def add(self, step: int, value: float) -> None:
        """The next point."""
        self._newest = (step, value)
        if self._seen % self._stride == 0:
            self.points.append(self._newest)
            if len(self.points) > MAX_POINTS:
                self.points = self.points[::2]
                self._stride *= 2
        self._seen += 1

    def shown(self) -> list[tuple[int, float]]:
        """The points that are kept, and always the newest."""
        is_there = not self._newest or (self.points and self.points[-1] == self._newest)
        return self.points if is_there else [*self.points, self._newest or (0, 0.0)]


class _Stage:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.curves: dict[str, Curve] = {}
        self.rollouts: deque[dict[str, Any]] = deque(maxlen=MAX_ROLLOUTS)
        self.last_step = -1
        self.health = Watch(settings) if settings.get("health") else None


class WatchedRun:
    """A run directory; every method first reads what has come since the last."""

    def __init__(self, path: Path) -> None:
        if not (path / "recipe.json").is_file():
            what = "this is not the directory of a run: it has no recipe.json"
            raise RunError(what, place=str(path), remedy="give a directory such as runs/NAME, once its run has begun")
        self.path = path
        self._guard = threading.Lock()
        self._metrics, self._rollouts = Tail(path / METRICS), Tail(path / ROLLOUTS, only_last=_ROLLOUT_BYTES)
        self._stages: dict[str, _Stage] = {}
        self._version = 0

    def overview(self) -> dict[str, Any]:
        """The stages with their progress, and what was found about their health."""
        with self._guard:
            self._read()
            stages = [self._stage_row(settings) for settings in self._settings()]
            return {"run": self.path.resolve().name, "version": self._version, "stages": stages}

    def stage(self, name: str) -> dict[str, Any]:
        """Curves and the newest rollouts of a stage."""
        with self._guard:
            self._read()
            found = self._stages.get(name)
            curves = {key: curve.shown() for key, curve in found.curves.items()} if found else {}
            rollouts = _newest_first(found.rollouts) if found else []
            return {"stage": name, "version": self._version, "curves": curves, "rollouts": rollouts}

    def config(self) -> dict[str, Any]:
        """The resolved recipe."""
        return _json(self.path / "recipe.json")

    def _settings(self) -> list[Mapping[str, Any]]:
        stages = self.config().get("stage", [])
        return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []

    def _stage_row(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        name = str(settings.get("name", ""))
        record = _json(self.path / "stages" / f"{Path(name).name}.json")
        found = self._stages.get(name)
        live = [finding.as_dict() for finding in found.health.findings()] if found and found.health else []
        return {
            "name": name,
            "kind": settings.get("kind", ""),
            "is_finished": bool(record),
            "done": found.last_step + 1 if found else 0,
            "total": settings.get("num_steps"),
            "has_rows": found is not None,
            "health": live or record.get("health", []),
        }

    def _read(self) -> None:
        self._read_metrics()
        self._read_rollouts()

    def _read_metrics(self) -> None:
        while True:
            is_void, rows = self._metrics.read()
            if is_void:
                for stage in self._stages.values():
                    stage.curves, stage.last_step = {}, -1
                self._health_again()
            for row in rows:
                self._take_metrics(row)
            self._version += bool(rows) or is_void
            if not rows:
                return

    def _read_rollouts(self) -> None:
        while True:
            is_void, rows = self._rollouts.read()
            if is_void:
                for stage in self._stages.values():
                    stage.rollouts.clear()
            for row in rows:
                self._of(row).rollouts.append(_rollout(row))
            self._version += bool(rows) or is_void
            if not rows:
                return

    def _of(self, row: Mapping[str, Any]) -> _Stage:
        name = str(row.get("stage", ""))
        if name not in self._stages:
            settings = next((stage for stage in self._settings() if stage.get("name") == name), {})
            self._stages[name] = _Stage(settings)
        return self._stages[name]

    def _health_again(self) -> None:
        for settings in self._settings():
            if found := self._stages.get(str(settings.get("name", ""))):
                found.health = Watch(settings) if settings.get("health") else None

    def _take_metrics(self, row: Mapping[str, Any]) -> None:
        stage = self._of(row)
        step = row.get("step")
        if not isinstance(step, int):
            return
        if "kind" not in row:
            stage.last_step = max(stage.last_step, step)
        if stage.health:
            with contextlib.suppress(KeyError, TypeError, ValueError):  # a row of another version
                stage.health.feed(row)
        prefix = "/".join(str(row[key]) for key in ("kind", "model") if row.get(key))
        for key, value in row.items():
            if key in _NOT_CURVES or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            name = f"{prefix}/{key}" if prefix else key
            if math.isfinite(value) and (name in stage.curves or len(stage.curves) < MAX_CURVES):
                stage.curves.setdefault(name, Curve()).add(step, float(value))


def _rollout(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("step", "problem_id", "sibling", "reward", "reward_parts", "reason", "num_tokens", "finish_reason", "gold")
    found = {name: row.get(name) for name in names}
    texts = {name: str(row.get(name, ""))[:MAX_TEXT] for name in ("prompt", "text")}
    return found | texts | {"credit": _spans(row.get("credit"))}


def _spans(credit: Any) -> list[tuple[str, float]]:
    """The text in pieces, each with the advantage of its tokens, as the run has written them."""
    pieces = credit if isinstance(credit, list) else []
    return [(str(text)[:MAX_TEXT], float(value)) for text, value in pieces[:MAX_TEXT]]


def _newest_first(rollouts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rollouts, key=lambda row: -(row["step"] if isinstance(row["step"], int) else 0))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
