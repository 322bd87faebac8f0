"""What trackers hear: each row once, and nothing that stops a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from melete.errors import RecipeError
from melete.runs import trackers
from melete.runs.directory import RunDirectory
from melete.runs.trackers import Trackers, tracker_names

Heard = list[tuple[str, int, Mapping[str, float]]]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """A tracker under the name wandb that keeps what it hears."""
    found: Heard = []

    class Kept:
        def __init__(self, place: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
            found.append((f"id {run_id}", -1, {}))

        def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
            if numbers.get("rl/reward") == 13:
                raise ConnectionError("away")
            found.append((stage, step, dict(numbers)))

        def close(self) -> None:
            found.append(("closed", -1, {}))

    monkeypatch.setattr(trackers, "MAKERS", {"wandb": Kept})
    return found


def row(step: int, reward: float = 0.5, **further: Any) -> dict[str, Any]:
    return {"stage": "rl", "step": step, "reward": reward, **further}


def rows_of(heard: Heard) -> list[tuple[int, Mapping[str, float]]]:
    return [(step, numbers) for stage, step, numbers in heard if stage == "rl"]


def test_names_are_those_of_the_metrics_and_text_is_left_out(tmp_path: Path, heard: Heard):
    with Trackers(tmp_path, ["wandb"], {}, print) as sent:
        sent(row(0, kind="evaluation", label="base", **{"pass@1": 0.25, "note": "x", "ok": True, "none": None}))
        sent(row(0))
    assert rows_of(heard) == [
        (0, {"rl/evaluation/reward": 0.5, "rl/evaluation/pass@1": 0.25}),
        (0, {"rl/reward": 0.5}),
    ]
    assert heard[-1][0] == "closed"


def test_a_resumed_run_goes_on_with_its_id_and_sends_no_row_twice(tmp_path: Path, heard: Heard):
    for steps in ((0, 1, 2), (1, 2, 3)):  # rewound to step 1 in between
        with Trackers(tmp_path, ["wandb"], {}, print) as sent:
            for step in steps:
                sent(row(step))
    assert [step for step, _ in rows_of(heard)] == [0, 1, 2, 3]
    assert len({name for name, _, _ in heard if name.startswith("id ")}) == 1


def test_rows_from_before_are_sent_first(tmp_path: Path, heard: Heard):
    with Trackers(tmp_path, ["wandb"], {}, print, [row(0), row(1)]) as sent:
        sent(row(2))
    assert [step for step, _ in rows_of(heard)] == [0, 1, 2]


def test_a_stage_that_is_made_again_is_sent_again(tmp_path: Path, heard: Heard):
    with (
        RunDirectory.create_or_open(tmp_path / "run", {"name": "x"}) as run,
        Trackers(run.path, ["wandb"], {}, print) as sent,
    ):
        run.observers.append(sent)
        run.log_metrics(row(0, 0.25))
        run.forget("rl")
        run.log_metrics(row(0, 0.75))
    assert [numbers["rl/reward"] for _, numbers in rows_of(heard)] == [0.25, 0.75]


def test_a_tracker_that_fails_is_told_of_once_and_stops_nothing(tmp_path: Path, heard: Heard):
    said: list[str] = []
    with (
        RunDirectory.create_or_open(tmp_path / "run", {"name": "x"}) as run,
        Trackers(run.path, ["wandb"], {}, said.append) as sent,
    ):
        run.observers.append(sent)
        for step in range(4):
            run.log_metrics(row(step, 13 if step else 0.5))
        assert len(run.metrics()) == 4
    assert len(said) == 1 and "wandb fails" in said[0] and "ConnectionError: away" in said[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"wandb": 3}'])
def test_a_broken_record_of_what_was_sent_begins_anew(tmp_path: Path, heard: Heard, content: str):
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "sent.json").write_text(content)
    with Trackers(tmp_path, ["wandb"], {}, print) as sent:
        sent(row(0))
    assert json.loads((tmp_path / "trackers" / "sent.json").read_text())["wandb"]["steps"] == {"rl": {"": 0}}


def test_no_tracker_leaves_no_trace(tmp_path: Path):
    with Trackers(tmp_path, [], {}, print) as sent:
        sent(row(0))
        sent.forget("rl")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_tracker_is_refused_before_work():
    with pytest.raises(RecipeError, match="tensorboard"):
        tracker_names(["tensorbord"], {})
    with pytest.raises(RecipeError, match="is no tracker"):
        tracker_names([], {"MELETE_TRACK": "mlflow"})


def test_tensorboard_reads_what_was_written(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Trackers(tmp_path, tracker_names(["tensorboard"], {}), {}, print) as sent:
        for step in range(3):
            sent(row(step, step / 4))
    found = EventAccumulator(str(tmp_path / "trackers" / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("rl/reward")] == [(0, 0.0), (1, 0.25), (2, 0.5)]
