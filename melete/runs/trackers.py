"""TensorBoard, wandb and trackio: the rows of metrics.jsonl, sent as they are written.

A tracker hears of each row once, whatever is interrupted, continued or rewound: what was sent stands in
`trackers/sent.json` of the run. One that fails is left out of the rest of the run, which is said once.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from melete.errors import RecipeError
from melete.imports import require
from melete.runs.atomic import json_text
from melete.suggest import did_you_mean

VARIABLE = "MELETE_TRACK"
PLACE, SENT = "trackers", "sent.json"
_NOT_METRICS = {"stage", "step", "kind", "label", "model"}


class Tracker(Protocol):
    """Where numbers are sent."""

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """One row; each name begins with the stage."""
        ...

    def close(self) -> None:
        """Sends what is held back."""
        ...


class TensorBoardTracker:
    """Event files in trackers/tensorboard."""

    def __init__(self, place: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.writer = SummaryWriter(str(place))

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Scalars at `step`."""
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        self.writer.flush()

    def close(self) -> None:
        """Ends the event file."""
        self.writer.close()


class WandbTracker:
    """A run of wandb, kept in trackers/wandb unless WANDB_MODE=online; the project is melete unless WANDB_PROJECT."""

    def __init__(self, place: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.run = require("wandb", extra="wandb").init(
            project=os.environ.get("WANDB_PROJECT", "melete"),
            name=name,
            id=run_id,
            resume="allow",
            dir=str(place),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )
        self.stages: set[str] = set()

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Each stage counts its own steps, so it has an axis of its own."""
        if stage not in self.stages:
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({**numbers, f"{stage}/step": step})

    def close(self) -> None:
        """Ends the run; `wandb sync` sends one that was kept offline."""
        self.run.finish()


class TrackioTracker:
    """A run of trackio in its own local database (TRACKIO_DIR); the project is melete unless TRACKIO_PROJECT."""

    def __init__(self, place: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        project = os.environ.get("TRACKIO_PROJECT", "melete")
        self.run = require("trackio", extra="trackio").init(
            project=project, name=f"{name}-{run_id}", resume="allow", config=dict(config)
        )

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """The stage's own step is a number among the others: trackio has one axis."""
        self.run.log({**numbers, f"{stage}/step": step})

    def close(self) -> None:
        """Writes what is held back."""
        self.run.finish()


MAKERS: Mapping[str, Callable[[Path, str, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}


def tracker_names(asked: Iterable[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """What was asked for, and what the variable MELETE_TRACK lists.

    Raises `RecipeError` for one that is not known or not installed.

    >>> tracker_names([], {"MELETE_TRACK": ""})
    []
    """
    names = list(dict.fromkeys([*asked, *filter(None, environment.get(VARIABLE, "").replace(",", " ").split())]))
    for name in names:
        if name not in MAKERS:
            what = f"{name!r} is no tracker; {did_you_mean(name, list(MAKERS))}"
            raise RecipeError(what, place=f"--track or {VARIABLE}", remedy=f"one of {', '.join(MAKERS)}")
        require(name, extra=name)
    return names


class Trackers:
    """An observer of a run's metrics rows. Use as a context manager."""

    def __init__(
        self,
        run_dir: Path,
        names: Sequence[str],
        config: Mapping[str, Any],
        say: Callable[[str], object],
        rows: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self.place, self.say = run_dir / PLACE, say
        self._open: dict[str, Tracker] = {}
        self._sent: dict[str, dict[str, Any]] = {}
        if names:
            self._sent = self._kept()
        for name in names:
            known = self._sent.setdefault(name, {"id": uuid.uuid4().hex[:8], "steps": {}})
            self._try(name, lambda name=name, known=known: self._start(name, run_dir.name, known["id"], config))
        for row in rows:  # what is there from before, as far as a tracker has not heard of it
            self(row)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *exception: object) -> None:
        for name in list(self._open):
            self._try(name, self._open[name].close)

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Sends a row to each tracker that has not heard of it."""
        stage, step, series = str(row.get("stage", "")), int(row.get("step", 0)), _series(row)
        numbers = _numbers(row)
        is_new = False
        for name in list(self._open) if numbers else ():
            steps = self._sent[name]["steps"].setdefault(stage, {})
            if step > steps.get(series, -1):
                self._try(name, lambda name=name: self._open[name].log(stage, step, numbers))
                steps[series], is_new = step, True
        if is_new:
            self._keep()

    def forget(self, stage: str) -> None:
        """The stage is made again: its rows are new ones."""
        for known in self._sent.values():
            known["steps"].pop(stage, None)
        if self._open:
            self._keep()

    def _start(self, name: str, run: str, run_id: str, config: Mapping[str, Any]) -> None:
        self._open[name] = MAKERS[name](self.place / name, run, run_id, config)

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever another library does must not stop a run
            self._open.pop(name, None)
            self.say(f"{name} fails and hears no more of this run: {type(error).__name__}: {error}")

    def _kept(self) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads((self.place / SENT).read_text(encoding="utf-8"))
            return {str(name): {"id": str(one["id"]), "steps": dict(one["steps"])} for name, one in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _keep(self) -> None:
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            temporary = self.place / f"{SENT}.new"
            temporary.write_text(json_text(self._sent) + "\n", encoding="utf-8")
            os.replace(temporary, self.place / SENT)
        except OSError as error:
            self._open.clear()
            self.say(f"trackers hear no more of this run, for what was sent cannot be kept: {error}")


def _series(row: Mapping[str, Any]) -> str:
    """Rows that may share a step: of training, of each kind of evaluation, of each model that is examined."""
    return "/".join(str(row[key]) for key in ("kind", "label", "model") if row.get(key) is not None)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row under "stage/metric", and "stage/kind/metric" for a row that has a kind."""
    names = [str(row.get(key)) for key in ("stage", "kind", "model") if row.get(key)]
    prefix = "/".join(names)
    return {
        f"{prefix}/{key}": float(value)
        for key, value in row.items()
        if key not in _NOT_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
    }
