"""What goes wrong in the middle of a run is said, loses nothing, and the same command ends as if it had not been."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import math
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melete.errors import RunError, TrainingError
from melete.learning.updater import Updater
from melete.rewards.endpoint import EndpointSettings
from melete.runs.directory import RunDirectory
from melete.runs.manifest import MANIFEST
from melete.stages import Interrupted
from melete.stages import rewards as stage_rewards
from melete.types import Rollout

Differences = Callable[[Path, Path], list[str]]


@pytest.fixture
def stopped(tables: dict[str, Any], run: Any, tmp_path: Path) -> Path:
    """The run after a Ctrl-C in the fifth step of `rl`: what is saved is of steps 4 and 5."""
    run_dir = tmp_path / "little"

    def interrupt(line: str) -> None:
        if re.match(r"rl 4/5", line):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        run(tables, run_dir, interrupt)
    return run_dir


def saved(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints" / "rl").iterdir())


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def changed(tables: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The tables with other settings of `rl`."""
    found = copy.deepcopy(tables)
    found["stage"][-1] |= settings
    return found


def test_what_the_tests_of_resuming_call_the_same_is_the_same(
    whole: Path, differences: Differences, tmp_path: Path
) -> None:
    """A changed byte, a file too many and another weight are seen; other seconds are not."""
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    timings = other / "timings.jsonl"
    timings.write_text(re.sub(r"(seconds\": )[\d.e-]+", r"\g<1>7.0", timings.read_text()))
    assert differences(whole, other) == []
    (other / "data" / ".partial-x").write_text("half")
    weights = other / "models" / "rl" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    (other / "checkpoints" / "rl" / "step-000005").rename(other / "checkpoints" / "rl" / "step-000003")
    assert differences(whole, other) == [
        "data/.partial-x is in one of them only",
        "models/rl/model.safetensors differs",
        "the last checkpoint of rl differs",
    ]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_the_same_end(
    damage: str, stopped: Path, tables: dict[str, Any], run: Any, whole: Path, differences: Differences
) -> None:
    """I37."""
    assert saved(stopped) == ["step-000002", "step-000004"]
    file = stopped / "checkpoints" / "rl" / "step-000004" / "tensors.pt"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-100])
    else:
        file.unlink()
    shown = run(tables, stopped)
    assert f"checkpoint {file.parent} is damaged" in shown and "the one before it is used" in shown
    assert "rl: continues at step 2 of 5" in shown
    assert differences(whole, stopped) == []


def test_where_every_checkpoint_is_damaged_the_stage_begins_anew_and_says_so(
    stopped: Path, tables: dict[str, Any], run: Any, whole: Path, differences: Differences
) -> None:
    for manifest in (stopped / "checkpoints" / "rl").glob("*/manifest.json"):
        manifest.write_text("{")
    shown = run(tables, stopped)
    assert "there is none before it: the stage begins anew" in shown and "rl: continues" not in shown
    assert differences(whole, stopped) == []


def test_a_checkpoint_of_another_version_is_refused_with_the_reason_and_kept(
    stopped: Path, tables: dict[str, Any], run: Any
) -> None:
    manifest = stopped / "checkpoints" / "rl" / "step-000004" / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    with pytest.raises(RunError, match="checkpoint of format 0, this version reads format 1") as refusal:
        run(tables, stopped)
    assert "continue with the version that wrote it" in refusal.value.remedy
    assert saved(stopped) == ["step-000002", "step-000004"]


def test_what_other_code_had_saved_is_not_continued_and_that_is_said(
    stopped: Path, tables: dict[str, Any], run: Any, whole: Path, differences: Differences
) -> None:
    """The stage under way was begun by other code than this: a half of each would be the work of neither."""
    begun = stopped / "stages" / "rl.begun.json"
    record = json.loads(begun.read_text())
    begun.write_text(json.dumps({**record, "made_from": {**record["made_from"], "code": "0.0.1+0123456789abcdef"}}))
    shown = run(tables, stopped)
    assert "rl: made again: the code has changed; what it had saved at step 4 cannot be continued" in shown
    assert differences(whole, stopped) == []


def test_a_run_that_was_moved_elsewhere_goes_on(
    stopped: Path, tables: dict[str, Any], run: Any, whole: Path, differences: Differences, tmp_path: Path
) -> None:
    moved = tmp_path / "another place" / "little"
    moved.parent.mkdir()
    stopped.rename(moved)
    assert "rl: continues at step 4 of 5" in run(tables, moved)
    assert differences(whole, moved) == []
    assert not stopped.exists()


def test_a_clock_that_jumps_changes_nothing(
    tables: dict[str, Any],
    run: Any,
    whole: Path,
    differences: Differences,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time of day goes back and forth by years, as after a dead battery; files are dated with it."""
    draw, real, gmtime = random.Random(0), time.time, time.gmtime

    def jumping() -> float:
        return real() + draw.uniform(-3e8, 3e8)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "gmtime", lambda seconds=None: gmtime(jumping() if seconds is None else seconds))
    run(tables, tmp_path / "little")
    assert differences(whole, tmp_path / "little") == []


def test_a_run_that_another_process_has_open_is_refused_and_not_touched(
    stopped: Path, tables: dict[str, Any], run: Any
) -> None:
    recipe = json.loads((stopped / "recipe.json").read_text())
    with RunDirectory.create_or_open(stopped, recipe):
        before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
        with pytest.raises(RunError, match="another process") as refusal:
            run(tables, stopped)
        assert "wait for it or stop it" in refusal.value.remedy
        assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def break_an_update_of_rl(patch: pytest.MonkeyPatch, value: float) -> None:
    """The loss of the critic's third update, in the third step, is this."""
    real = Updater.step

    def step(self: Updater, losses: Any, **settings: Any) -> dict[str, float]:
        is_broken = self.num_updates == 2 and self.settings.num_steps == 5
        return real(self, (loss * value if is_broken else loss for loss in losses), **settings)

    patch.setattr(Updater, "step", step)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_refuses_the_step_and_keeps_its_rollouts(
    value: float, tables: dict[str, Any], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the stage, the step and where the rollouts are; what was saved before is still there."""
    run_dir = tmp_path / "little"
    break_an_update_of_rl(monkeypatch, value)
    with pytest.raises(TrainingError, match="is not a finite number; the step was refused") as refusal:
        run(tables, run_dir)
    told = f"rl, step 2, update 2; its 6 rollouts are the last of {run_dir / 'rollouts.jsonl'}"
    assert refusal.value.place == told and "the weights are unchanged" in refusal.value.remedy
    rows = read(run_dir / "rollouts.jsonl")
    refused = [row for row in rows if row.get("refused")]
    assert len(refused) == 6 and rows[-6:] == refused
    assert {row["step"] for row in refused} == {2} and len({row["problem_id"] for row in refused}) == 3
    assert saved(run_dir) == ["step-000002"]


def test_a_step_that_was_refused_leaves_no_trace_once_its_cause_is_gone(
    tables: dict[str, Any],
    run: Any,
    whole: Path,
    differences: Differences,
    tmp_path: Path,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_an_update_of_rl(patch, math.nan)
        for _ in range(2):
            with pytest.raises(TrainingError):
                run(tables, tmp_path / "little")
    run(tables, tmp_path / "little")
    assert differences(whole, tmp_path / "little") == []


def sometimes_infinite(rollout: Rollout) -> float:
    """A broken grader: no number for about a third of the answers of the third step."""
    if rollout.completion.policy_version == 2 and sum(rollout.completion.tokens) % 3 == 0:
        return math.inf if rollout.sibling else math.nan
    return len(rollout.completion.tokens) / 10


def test_a_reward_that_is_no_number_costs_its_rollout_alone_and_is_kept_with_its_reason(
    tables: dict[str, Any], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "broken_graders", sys.modules[__name__])
    run(changed(tables, rewards={"broken_graders:sometimes_infinite": 1.0}), tmp_path / "little")
    metrics = read(tmp_path / "little" / "metrics.jsonl")
    failures = {row["step"]: row["grader_failures"] for row in metrics if "grader_failures" in row}
    assert failures[2] > 0 and sum(failures.values()) == failures[2]
    rows = read(tmp_path / "little" / "rollouts.jsonl")
    broken = [row for row in rows if row["reward"] is None]
    assert len(broken) == failures[2], "also those of other problems than the first"
    assert all("not finite" in row["reason"] and row["step"] == 2 for row in broken)


def test_a_judge_whose_server_dies_midway_costs_what_it_did_not_judge(
    tables: dict[str, Any], run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = functools.partial(EndpointSettings, num_tries=2, first_wait=0.01)
    monkeypatch.setattr(stage_rewards, "EndpointSettings", impatient)
    place = Path(__file__).parents[1] / "rewards" / "fault_server.py"
    spec = importlib.util.spec_from_file_location("fault_server", place)
    assert spec and spec.loader
    faults = importlib.util.module_from_spec(spec)
    sys.modules["fault_server"] = faults
    spec.loader.exec_module(faults)

    with faults.FaultServer(lambda _asked: faults.ok('{"verdict": "correct", "reason": "?"}')) as server:

        def die(line: str) -> None:
            if re.match("rl 2/3", line):
                server.kill()

        judge = {"model": "judge", "base_url": server.url, "num_calls": 1, "timeout_s": 0.2, "concurrency": 4}
        judged = {"rewards": {"right": 1.0}, "reward_judges": {"right": judge}, "num_steps": 3}
        sums = {"task": {"name": "arithmetic_chain", "min_terms": 3, "max_terms": 3}, "max_new_tokens": 24}
        run(changed(tables, model="tiny", **sums, **judged), tmp_path / "little", die)
    metrics = read(tmp_path / "little" / "metrics.jsonl")
    failures = [row["grader_failures"] for row in metrics if row["stage"] == "rl" and "kind" not in row]
    assert failures[:2] == [0, 0] and failures[2] > 0


def test_what_killed_processes_left_half_written_is_gone_wherever_it_lies(
    stopped: Path, tables: dict[str, Any], run: Any, whole: Path, differences: Differences
) -> None:
    for place in ("evaluations/rl", "checkpoints/rl", "stages", "data", "compare/sides"):
        (stopped / place).mkdir(parents=True, exist_ok=True)
        (stopped / place / ".partial-x").write_text("half")
    (stopped / "stages" / "dev.begun.json").write_text('{"made_from": {}, "started": ""}\n')  # killed just before that
    run(tables, stopped)
    assert not list(stopped.rglob(".partial-*"))
    assert differences(whole, stopped) == []


def test_a_stage_that_makes_pairs_stops_when_asked(base: Path, run: Any, tmp_path: Path) -> None:
    pairs = {"name": "pairs", "kind": "pairs", "model": str(base), "task": {"name": "verse"}, "max_new_tokens": 4}

    def interrupt(line: str) -> None:
        if line.startswith("pairs 1/3"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        run({"name": "two", "stage": [pairs | {"num_prompts": 96}]}, tmp_path / "two", interrupt)
    assert not list((tmp_path / "two").glob("data/*"))
