"""Kills runs with signal 9 at seeded random moments of every stage, continues them, and compares every byte.

    python benchmarks/kill_resume.py --kills 50 --seed 0          # everything
    python benchmarks/kill_resume.py --recipes kinds --kills 5    # the small form that the tests use

Each recipe is run once without a cut. Then lives of it begin: a run is killed, the same command is given again, it is
killed once more, until its kills are used up, and the end is held against the run without a cut. Half of the kills
happen at a chosen touch of the run's files, half at a chosen time within a stage. Processes take turns between two
servers whose sets and dictionaries of strings are ordered differently.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]
NAME = "run"
Kind = Literal["touch", "time"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A recipe in its short form."""

    name: str
    recipe: str
    overrides: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Kill:
    """A moment in a stage: right before the `touch`th touch of a file, or after a share of the stage's time."""

    stage: str
    kind: Kind
    at: float

    def __str__(self) -> str:
        return f"{self.stage} {f'before touch {self.at:.0f}' if self.kind == 'touch' else f'at {self.at:.0%} of it'}"


@dataclass
class Whole:
    """The run without a cut: where it lies, and what of each stage happened when."""

    run_dir: Path
    touches: Mapping[str, int]
    seconds: Mapping[str, float]


@dataclass
class Tally:
    """What was done and found; kills are counted by the kind of their stage."""

    kills: Counter[str] = field(default_factory=Counter)
    lives: int = 0
    different: list[str] = field(default_factory=list)


class Warm:
    """A server of `warm_runs.py`; `hash_seed` decides the order of its sets."""

    def __init__(self, hash_seed: int) -> None:
        more = {"PYTHONHASHSEED": str(hash_seed), "MELETE_THREADS": "1", "OMP_NUM_THREADS": "1"}
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "loops")])
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm_runs.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **more, "PYTHONPATH": paths},
            bufsize=0,
        )
        self._rest = b""

    def ready(self) -> None:
        """Waits until it can take a job."""
        self._line(None)

    def start(self, job: Mapping[str, Any]) -> int:
        """Begins a job; returns the number of its process."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        return self._line(None)["pid"]

    def status(self, seconds: float | None = None) -> int | None:
        """The exit status of the job (negative: a signal), or None when it has not ended in time."""
        found = self._line(seconds)
        return found["status"] if found else None

    def close(self) -> None:
        """Ends the server."""
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()

    def _line(self, seconds: float | None) -> dict[str, Any]:
        assert self.process.stdout
        until = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = None if until is None else until - time.monotonic()
            if left is not None and (left <= 0 or not select.select([self.process.stdout], [], [], left)[0]):
                return {}
            data = self.process.stdout.read(65536)
            if not data:
                raise SystemExit("the server of warm runs has ended")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


def scenarios() -> dict[str, Scenario]:
    """Recipes that together have every kind of stage, short; the bundled ones as the tests shorten them."""
    from test_bundled import SHORT

    several = (
        *SHORT["r1-zero-tiny"],
        "rl.num_steps=5",
        "rl.group_size=4",
        "rl.num_epochs=2",
        "rl.num_minibatches=2",
        "rl.reference_refresh_steps=2",
        "rl.algorithm_settings={ kl_coef = 0.01 }",
        "rl.evaluation.quick_every_steps=2",
        "rl.evaluation.at=[0.0, 0.5, 1.0]",
    )
    ppo = (
        *SHORT["ppo-tiny"],
        "rl.num_steps=5",
        "rl.num_epochs=2",
        "rl.algorithm_settings={ kl_coef = 0.05, kl_target = 0.01, kl_horizon = 50 }",
    )
    r1 = (*SHORT["r1-tiny"], *(f"{name}.num_steps=3" for name in ("zero", "dev2", "r1", "rl_qwen", "rl_llama")))
    found = [
        Scenario("kinds", str(ROOT / "tests" / "resume" / "kinds.toml")),
        Scenario("r1-tiny", "r1-tiny", r1),
        # every step is kept, or every second or third: then steps after the last one are made again
        Scenario("grpo, kept every step", "r1-zero-tiny", (*several, "rl.checkpoint_every_steps=1")),
        Scenario("grpo, kept every 3 steps", "r1-zero-tiny", (*several, "rl.checkpoint_every_steps=3")),
        Scenario(
            "grpo, sampler 1 behind", "r1-zero-tiny", (*several, "rl.checkpoint_every_steps=1", "rl.max_staleness=1")
        ),
        Scenario("ppo, kept every step", "ppo-tiny", (*ppo, "rl.checkpoint_every_steps=1")),
        Scenario(
            "ppo, kept every 2 steps", "ppo-tiny", (*ppo, "rl.checkpoint_every_steps=2", "rl.critic.trunk=shared")
        ),
    ]
    for name in ("rlhf-tiny", "iterative-grpo-tiny", "dpo-tiny", "kto-tiny", "online-dpo-tiny", "distill-tiny"):
        every = [f"{stage}.checkpoint_every_steps=1" for stage in _trained(name)]
        found.append(Scenario(name, name, (*SHORT[name], *every)))
    found.append(Scenario("pretrain-tiny", "pretrain-tiny", SHORT["pretrain-tiny"]))
    return {scenario.name: scenario for scenario in found}


def _trained(recipe: str) -> list[str]:
    return [stage.name for stage in load(Scenario("", recipe)).stages if hasattr(stage, "checkpoint_every_steps")]


def job_of(scenario: Scenario, folder: Path, **more: Any) -> dict[str, Any]:
    """The job of `melete run` for a scenario in a folder; it is the same command each time."""
    changes = [part for change in scenario.overrides for part in ("--set", change)]
    arguments = ["run", scenario.recipe, "--runs-dir", str(folder), "--name", NAME, *changes]
    return {"arguments": arguments, "run_dir": str(folder / NAME), "log": str(folder / "log.txt"), **more}


def run_whole(warm: Warm, scenario: Scenario, folder: Path) -> Whole:
    """The run without a cut."""
    folder.mkdir(parents=True)
    counts = folder / "counts.json"
    warm.start(job_of(scenario, folder, counts=str(counts)))
    if warm.status() != 0:
        raise SystemExit(f"{scenario.name} does not end well:\n{tail(folder)}")
    found = json.loads(counts.read_text(encoding="utf-8"))
    began = found["began"]
    ends = [*list(began.values())[1:], found["ended"]]
    seconds = {stage: end - start for (stage, start), end in zip(began.items(), ends, strict=True)}
    return Whole(folder / NAME, {stage: found["touches"].get(stage, 1) for stage in began}, seconds)


def plan(whole: Whole, draw: random.Random, num_kills: int) -> list[Kill]:
    """Kills at moments of their own, every stage as often as another: a long one is no likelier."""
    stages = list(whole.touches)
    draw.shuffle(stages)
    picked = Counter(stages[number % len(stages)] for number in range(num_kills))
    kills = []
    for number, name in enumerate(stage for stage in whole.touches for _ in range(picked[stage])):
        if number % 2:
            kills.append(Kill(name, "touch", draw.randint(1, whole.touches[name])))
        else:
            kills.append(Kill(name, "time", draw.random()))
    return kills


def live(
    warms: Sequence[Warm], scenario: Scenario, folder: Path, whole: Whole, kills: Sequence[Kill]
) -> tuple[list[Kill], list[Kill]]:
    """One life: killed again and again, then left alone until it ends. Returns the kills that were done, and the rest.

    At most three in a row are of the same stage; the next is for another life. A kill of a stage that is finished by
    then is one of the stage that is under way.
    """
    folder.mkdir(parents=True)
    done: list[Kill] = []
    left: list[Kill] = []
    for planned in kills:
        stage = next((name for name in whole.touches if not _is_finished(folder, name)), "")
        if sum(other.stage == planned.stage for other in done) == 3 or not stage:
            left.append(planned)
            continue
        kill = replace(planned, stage=stage) if _is_finished(folder, planned.stage) else planned
        status = _killed(warms[len(done) % len(warms)], scenario, folder, whole, kill)
        if status not in (0, -signal.SIGKILL):
            raise SystemExit(f"{scenario.name}, {kill}: a killed run does not go on (status {status}):\n{tail(folder)}")
        if status:
            done.append(kill)
        else:  # it was at its end before the time had come
            left.append(replace(planned, at=planned.at / 2))
    last = warms[len(done) % len(warms)]
    last.start(job_of(scenario, folder))
    if status := last.status():
        raise SystemExit(f"{scenario.name}: a killed run does not end (status {status}):\n{tail(folder)}")
    return done, left


def _is_finished(folder: Path, stage: str) -> bool:
    return (folder / NAME / "stages" / f"{stage}.json").exists()


def _killed(warm: Warm, scenario: Scenario, folder: Path, whole: Whole, kill: Kill) -> int | None:
    if kill.kind == "touch":
        warm.start(job_of(scenario, folder, fuse={"stage": kill.stage, "touches": int(kill.at)}))
        return warm.status()
    return _killed_in_time(warm, scenario, folder, kill, kill.at * whole.seconds[kill.stage])


def _killed_in_time(warm: Warm, scenario: Scenario, folder: Path, kill: Kill, seconds: float) -> int:
    records = folder / NAME / "stages"
    pid = warm.start(job_of(scenario, folder))
    while not ((records / f"{kill.stage}.begun.json").exists() or (records / f"{kill.stage}.json").exists()):
        if (status := warm.status(0.005)) is not None:
            return status
    if (status := warm.status(max(seconds, 0.001))) is not None:
        return status
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    status = warm.status()
    assert status is not None
    return status


def tail(folder: Path) -> str:
    """The end of what the commands printed."""
    return (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-4000:]


def examine(warms: Sequence[Warm], scenario: Scenario, folder: Path, num_kills: int, seed: int, tally: Tally) -> None:
    """A scenario without a cut, then its lives."""
    from same_run import differences

    began = time.monotonic()
    whole = run_whole(warms[0], scenario, folder / "whole")
    say(f"{scenario.name}: {len(whole.touches)} stages, {time.monotonic() - began:.0f} s without a cut")
    kills = plan(whole, random.Random(f"{seed}/{scenario.name}"), num_kills)
    kinds = {stage.name: stage.kind for stage in load(scenario).stages}
    number = 0
    while kills:
        began, life = time.monotonic(), folder / f"life-{number}"
        done, kills = live(warms, scenario, life, whole, kills)
        found = differences(whole.run_dir, life / NAME)
        say(f"  {len(done)} kills, {time.monotonic() - began:.0f} s, {len(found)} differences")
        say(f"    {'; '.join(map(str, done))}")
        for line in found:
            say(f"    {line}")
        tally.kills.update(kinds[kill.stage] for kill in done)
        tally.lives += 1
        tally.different += [f"{scenario.name}, life {number}: {line}" for line in found]
        number += 1
        if not found:
            shutil.rmtree(life)


def load(scenario: Scenario) -> Any:
    """The recipe of a scenario."""
    from melete.config import load_recipe

    return load_recipe(scenario.recipe, scenario.overrides)


def say(line: str) -> None:
    """Prints at once."""
    print(line, flush=True)


def main() -> None:
    """The command."""
    known = scenarios()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many kills, over all recipes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="*", choices=list(known), default=list(known))
    parser.add_argument("--keep", type=Path, help="a new folder for the runs; those that differ stay in it")
    chosen = parser.parse_args()
    began, tally = time.monotonic(), Tally()
    with contextlib.ExitStack() as stack:
        folder = chosen.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        warms = [Warm(hash_seed) for hash_seed in (0, 1)]
        for warm in warms:
            stack.callback(warm.close)
        for warm in warms:
            warm.ready()
        for name, count in shares(chosen.kills, [known[name] for name in chosen.recipes]).items():
            examine(warms, known[name], folder / name.replace(" ", "-").replace(",", ""), count, chosen.seed, tally)
    of_kinds = ", ".join(f"{count} {kind}" for kind, count in tally.kills.most_common())
    say(f"{tally.kills.total()} kills in {tally.lives} lives, {time.monotonic() - began:.0f} s: {of_kinds}")
    say(f"{len(tally.different)} differences from runs without a cut")
    sys.exit(bool(tally.different))


def shares(kills: int, chosen: Sequence[Scenario]) -> dict[str, int]:
    """How many kills each recipe gets: in proportion to its stages, and at least one."""
    stages = {scenario.name: len(load(scenario).stages) + 1 for scenario in chosen}
    total = sum(stages.values())
    return {name: max(1, round(kills * count / total)) for name, count in stages.items()}


if __name__ == "__main__":
    main()
