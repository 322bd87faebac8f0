"""Judges as parts of a reward, in a whole stage: over real HTTP, and with a model on this machine."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from melete.config import parse_recipe
from melete.live import View
from melete.pipeline import run_recipe

_SERVER = Path(__file__).parents[1] / "rewards" / "fault_server.py"
_SPEC = importlib.util.spec_from_file_location("fault_server", _SERVER)
assert _SPEC and _SPEC.loader
fault_server = importlib.util.module_from_spec(_SPEC)
sys.modules["fault_server"] = fault_server
_SPEC.loader.exec_module(fault_server)


def judged(judge: dict[str, Any]) -> dict[str, Any]:
    stage = {
        "name": "rl",
        "kind": "rl",
        "task": {"name": "arithmetic_chain", "min_terms": 3, "max_terms": 3},
        "num_steps": 2,
        "warmup_steps": 0,
        "prompts_per_step": 2,
        "group_size": 4,
        "max_new_tokens": 24,
        "rewards": {"right": 1.0, "format": 0.1},
        "reward_judges": {"right": judge},
        "reward_parts": {"right": {"gate": "format"}},
        "evaluation": {"at": []},
        "support": {"num_problems": 0},
    }
    return {"name": "judged", "stage": [stage]}


def run(tables: dict[str, Any], path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    recipe = parse_recipe(tables)
    with View(["rl"], plain=True, console=Console(file=io.StringIO())) as view:
        run_dir = run_recipe(recipe, path, view=view, command="melete run judged")
    read = [
        [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "rollouts.jsonl")
    ]
    return [row for row in read[0] if "kind" not in row], read[1]


def test_a_judge_behind_an_endpoint_is_a_part_of_the_reward(tmp_path: Path) -> None:
    with fault_server.FaultServer(lambda _asked: fault_server.ok('{"verdict": "correct", "reason": "?"}')) as server:
        steps, rollouts = run(judged({"model": "judge", "base_url": server.url, "num_calls": 1}), tmp_path / "r")
    assert server.asked and len(server.asked) <= 16
    assert all(row["reward_parts"]["right"] in (0.0, 1.0) for row in rollouts)  # 0 for an answer of nothing
    assert max(step["reward/right"] for step in steps) > 0.5 and steps[0]["grader_failures"] == 0


def test_an_endpoint_that_is_not_there_gives_no_reward_and_the_run_goes_on(tmp_path: Path) -> None:
    judge = {"model": "judge", "base_url": "http://127.0.0.1:9/v1", "num_calls": 1, "timeout_s": 0.2}
    steps, rollouts = run(judged(judge), tmp_path / "r")
    assert len(steps) == 2 and all(step["grader_failures"] > 0 for step in steps)
    assert any(row["reward"] is None and row["reason"].startswith("right: ") for row in rollouts)


def test_a_judge_on_this_machine_that_gives_no_verdict_gives_no_reward(tmp_path: Path) -> None:
    """The bundled base writes sums, not verdicts."""
    steps, rollouts = run(judged({"model": "tiny", "num_calls": 1, "max_new_tokens": 16}), tmp_path / "r")
    assert len(steps) == 2 and any("right: " in row["reason"] for row in rollouts)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"model": "nowhere"}, "rl.reward_judges.right.model: 'nowhere' is neither"),
        (
            {"model": "tiny", "verdict": "win_rate", "num_calls": 1},
            "rl.reward_judges.right.num_calls: must be at least 2",
        ),
        ({"model": "tiny", "verdcit": "win_rate"}, "rl.reward_judges.right.verdcit"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused(judge: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="cannot be used") as refusal:
        parse_recipe(judged(judge))
    assert message in str(refusal.value)


def test_a_judge_makes_the_pairs_of_online_dpo(tmp_path: Path) -> None:
    """One that calls every second answer correct."""
    stage = {
        "name": "rl",
        "kind": "preference",
        "task": {"name": "arithmetic_chain", "min_terms": 3, "max_terms": 3},
        "num_steps": 2,
        "warmup_steps": 0,
        "pairs_per_step": 2,
        "max_new_tokens": 24,
        "evaluation": {"at": []},
    }

    def verdict(asked: Any) -> Any:
        word = "correct" if asked.number % 2 else "incorrect"
        return fault_server.ok(json.dumps({"verdict": word, "reason": "?"}))

    with fault_server.FaultServer(verdict) as server:
        stage["judge"] = {"model": "judge", "base_url": server.url, "num_calls": 1, "concurrency": 1}
        run_dir = tmp_path / "r"
        with View(["rl"], plain=True, console=Console(file=io.StringIO())) as view:
            run_recipe(parse_recipe({"name": "r", "stage": [stage]}), run_dir, view=view, command="melete run r")
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert sum(step["num_pairs"] for step in steps) > 0 and 0 < steps[0]["reward"] < 1


def test_a_judge_makes_a_data_set_of_pairs(tmp_path: Path) -> None:
    """One that likes what is shown first finds no pair; one that likes the longer answer finds some."""
    stage = {
        "name": "pairs",
        "kind": "pairs",
        "task": {"name": "verse"},
        "num_prompts": 6,
        "samples_per_prompt": 2,
        "max_new_tokens": 48,
    }

    def pairs(verdict: Any, name: str) -> dict[str, Any]:
        with fault_server.FaultServer(verdict) as server:
            stage["judge"] = {"model": "judge", "base_url": server.url, "num_calls": 2}
            recipe = parse_recipe({"name": "r", "stage": [stage]})
            with View(["pairs"], plain=True, console=Console(file=io.StringIO())) as view:
                run_recipe(recipe, tmp_path / name, view=view, command="melete run r")
        return json.loads((tmp_path / name / "summary.json").read_text())["stages"][0]

    def longer(asked: Any) -> Any:
        first, second = re.findall(r"answer [AB]:\n===\w+===\n(.*?)\n===", asked.text, re.DOTALL)
        verdict = "A=B" if len(first) == len(second) else "A>>B" if len(first) > len(second) else "B>>A"
        return fault_server.ok(f"[[{verdict}]]")

    lazy = pairs(lambda _asked: fault_server.ok("[[A>>B]]"), "lazy")
    assert lazy["num_rows"] == 0 and lazy["num_without_verdict"] > 0
    made = pairs(longer, "other")
    rows = [json.loads(line) for line in (tmp_path / "other" / "data" / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == made["num_rows"] > 0
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in rows)
