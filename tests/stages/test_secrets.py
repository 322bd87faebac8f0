"""A whole run with a judge behind an endpoint: its key is nowhere, and nothing goes anywhere but to the judge."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from rewards.fault_server import Act, Asked, FaultServer, error, ok
from typer.testing import CliRunner

from melete.cli import app

KEY = "sk-canary/7f3b+0123456789abcdef"
# what is bound, asked for and connected to is told by the interpreter itself
_WATCHED = """
import sys
seen = open(sys.argv[1], "a")
def hook(event, given):
    if event in ("socket.bind", "socket.connect", "socket.sendto", "socket.getaddrinfo", "urllib.Request"):
        address = given[1] if event in ("socket.bind", "socket.connect", "socket.sendto") else given
        if not isinstance(address, (str, bytes)):  # not of the network: a socket between processes
            seen.write(f"{event} {tuple(address)[:2]}\\n"); seen.flush()
sys.addaudithook(hook)
from melete.cli import main
sys.argv = ["melete", *sys.argv[2:]]
main()
"""
STAGE: dict[str, Any] = {
    "name": "rl",
    "kind": "rl",
    "task": {"name": "arithmetic_chain", "min_terms": 3, "max_terms": 3},
    "num_steps": 1,
    "warmup_steps": 0,
    "prompts_per_step": 2,
    "group_size": 2,
    "max_new_tokens": 24,
    "evaluation": {"at": []},
    "support": {"num_problems": 0},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where speeds are kept that are measured once."""
    return tmp_path_factory.mktemp("cache")


def watched(folder: Path, cache: Path, stage: dict[str, Any]) -> tuple[list[str], str]:
    """What a run had to do with the network, and all that it said."""
    (folder / "r.json").write_text(json.dumps({"name": "r", "stage": [stage]}))
    command = [sys.executable, "-c", _WATCHED, "seen", "run", "r.json"]
    environment = os.environ | {"JUDGE_KEY": KEY, "NO_PROXY": "127.0.0.1", "MELETE_CACHE": str(cache)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "seen").read_text().splitlines(), done.stdout + done.stderr


def forms_of(secret: str) -> list[bytes]:
    """The key as it stands, and as encodings would hide it."""
    escaped = json.dumps(secret)[1:-1]
    return [form.encode() for form in {secret, escaped, quote(secret, safe=""), secret[:16]}] + [
        base64.b64encode(secret.encode())[:-4]
    ]


def test_the_key_of_a_judge_is_in_no_file_and_in_no_message_of_a_run(tmp_path: Path, cache: Path) -> None:
    """The judge says it back, in replies and in errors."""

    def behave(asked: Asked) -> Act:
        given = asked.headers["authorization"]
        assert KEY in given
        acts = [ok(json.dumps({"verdict": "correct", "reason": given})), error(400, f"wrong key: {given}"), ok(given)]
        return acts[asked.number % 3]

    with FaultServer(behave) as server:
        judge = {"model": "judge", "base_url": server.url, "num_calls": 1, "key_variable": "JUDGE_KEY"}
        stage = STAGE | {"rewards": {"right": 1.0, "format": 0.1}, "reward_judges": {"right": judge}}
        seen, said = watched(tmp_path, cache, stage)
        port = int(server.url.rsplit(":", 1)[1].split("/")[0])
        assert len(server.asked) >= 3
    files = [path for place in (tmp_path, cache) for path in place.rglob("*") if path.is_file()]
    assert {"metrics.jsonl", "rollouts.jsonl", "recipe.json", "report.html", "judge_cache.sqlite"} <= {
        f.name for f in files
    }
    for form in forms_of(KEY):
        assert form not in said.encode()
        assert [path for path in files if form in path.read_bytes()] == []
    assert seen and {line for line in seen if f"'127.0.0.1', {port})" not in line} == set()


def test_a_run_without_a_judge_has_nothing_to_do_with_the_network(tmp_path: Path, cache: Path) -> None:
    seen, _ = watched(tmp_path, cache, STAGE | {"rewards": {"accuracy": 1.0}})
    assert seen == []


@pytest.mark.parametrize(
    "judge",
    [
        {"key_variable": KEY, "base_url": "https://h/v1"},
        {"base_url": f"https://me:{KEY}@h/v1"},
        {"base_url": f"https://h/v1?k={KEY}"},
    ],
)
@pytest.mark.parametrize("by_option", [False, True])
def test_a_key_in_a_recipe_is_refused_and_neither_kept_nor_shown(
    judge: dict[str, str], by_option: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    part = {"model": "judge"} if by_option else {"model": "judge", **judge}
    stage = STAGE | {"rewards": {"right": 1.0}, "reward_judges": {"right": part}}
    (tmp_path / "r.json").write_text(json.dumps({"name": "r", "stage": [stage]}))
    options = [f"--set=rl.reward_judges.right.{key}={value}" for key, value in judge.items()] if by_option else []
    done = CliRunner().invoke(app, ["run", "r.json", *options])
    assert done.exit_code == 2 and "rl.reward_judges.right" in done.output
    assert KEY not in done.output and KEY[:16] not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
