"""Every block of code of the documentation runs, top to bottom, and the number of blocks is known.

The blocks of one page share their names and files, as a reader would type them in one session; each page runs in an
empty directory. A bundled recipe as it stands takes minutes and is only planned; a command that reads an earlier run
finds a short one. What needs a network or another program is named in `ELSEWHERE`, with what tests it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.request import Request, urlopen

import pytest
from typer.testing import CliRunner

from melete.cli import app
from melete.config import checked

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NUM_BLOCKS = {"python": 28, "bash": 39, "toml": 15}  # a block that stops being found is a block that stops being tested
_FENCE = re.compile(r"^```(python|bash|toml)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {
    "make": "Makefile; .ci/run",
    "pip install": "Makefile; .ci/run",
    "python benchmarks/": "tests/rewards, tests/sandbox",
    "melete models get": "tests/models/test_fetch.py",
    "melete models show smollm2-135m": "tests/models/test_models_command.py",
}
YOURS = {  # files of the reader's own
    "my.jsonl": {"prompt": "3+5-2=?", "completion": "<answer>6</answer>"},
    "answers.jsonl": {"prompt": "Write a line about winter.", "completions": ["It is cold.", "Snow, and a fire."]},
}
SERVERS = ("serve", "watch", "label")


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """Line, language and code of each block of a page."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(2)) + 1, *found.groups()) for found in _FENCE.finditer(text)]


def test_no_block_is_lost():
    languages = [language for page in PAGES for _, language, _ in blocks(page)]
    assert {language: languages.count(language) for language in NUM_BLOCKS} == NUM_BLOCKS


@pytest.fixture(scope="session")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, in the place of one that a reader has made before."""
    folder = tmp_path_factory.mktemp("earlier")
    short = [
        "rl.num_steps=1",
        "rl.warmup_steps=0",
        "rl.prompts_per_step=2",
        "rl.evaluation.num_problems=2",
        "rl.support.num_problems=0",
    ]
    settings = [part for key in short for part in ("--set", key)]
    done = CliRunner().invoke(app, ["run", "r1-zero-tiny", "--runs-dir", str(folder), *settings])
    assert done.exit_code == 0, done.output
    return folder / "r1-zero-tiny"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_run: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    session = ModuleType("documentation")
    monkeypatch.setitem(sys.modules, session.__name__, session)  # where dataclasses look for their own module
    for line, language, code in blocks(page):
        if language == "python":
            # the empty lines in front make a traceback point at the page's own line
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), session.__dict__)
        elif language == "bash":
            for command in commands(code):
                run(command, f"{page.name}:{line}", a_run)
        else:
            check_recipe(code, f"{page.name}:{line}")


def commands(code: str) -> Iterator[str]:
    """The commands of a block that are run here, without their remarks."""
    for line in code.splitlines():
        command = re.sub(r"\s+#.*", "", line).strip()
        if command and not command.startswith(tuple(ELSEWHERE)):
            yield command


def run(command: str, place: str, a_run: Path) -> None:
    """Runs a line as a shell would, in this process where it can be."""
    echoed = re.fullmatch(r'echo "([^"]*)" \| (.*)', command)
    text, command = echoed.groups() if echoed else ("2+2", command)
    program, *arguments = shlex.split(command)
    assert program == "melete", f"{place}: who runs {command!r}?"
    for needed in earlier_runs(arguments):
        if not needed.exists():
            shutil.copytree(a_run, needed)
    for name, row in YOURS.items():
        if name in arguments and not Path(name).exists():
            Path(name).write_text(json.dumps(row) + "\n")
    if arguments[0] == "run" and "num_steps" not in command and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    if arguments[0] in SERVERS and arguments[1] != "export":
        serve(arguments, place)
        return
    done = CliRunner().invoke(app, arguments, input=text)
    assert done.exit_code == 0, f"{place}: {command}\n{done.output}\n{done.exception!r}"


def earlier_runs(arguments: list[str]) -> list[Path]:
    """The runs that a command reads."""
    if arguments[:2] in (["runs", "show"], ["runs", "compare"]):
        return [Path("runs") / name for name in arguments[2:]]
    if arguments == ["runs", "ls"]:
        return [Path("runs") / "an-earlier-one"]
    if arguments[:2] == ["doctor", "--run"]:
        return [Path(arguments[2])]
    return [Path(arguments[1])] if arguments[0] in ("report", "watch") else []


def serve(arguments: list[str], place: str) -> None:
    """Starts a server, waits for its address, asks for its page, and ends it as Ctrl-C would.

    A labeller answers the first question.
    """
    arguments = arguments if "--port" in arguments else [*arguments, "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "melete.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as server:
        assert server.stdout is not None
        said: list[str] = []
        for line in server.stdout:
            said.append(line)
            if found := re.search(r"http://[\d.:]+", line):
                address = found.group()
                break
        else:
            pytest.fail(f"{place}: {' '.join(arguments)} ended\n{''.join(said)}")
        try:
            with urlopen(address) as page:
                assert page.status == 200
            if arguments[0] == "label":
                label_one(address)
        finally:
            server.send_signal(signal.SIGINT)
            rest = server.communicate(timeout=30)[0]
        assert server.returncode == 0, f"{place}: {''.join(said)}{rest}"


def label_one(address: str) -> None:
    with urlopen(f"{address}/api/state") as state:
        item = json.load(state)["item"]["id"]
    answer = json.dumps({"item": item, "id": "first-of-page", "answer": "left", "seconds": 1.0}).encode()
    with urlopen(Request(f"{address}/api/answer", answer, {"Content-Type": "application/json"})) as kept:
        assert kept.status == 200


def check_recipe(code: str, place: str) -> None:
    """A whole recipe must be one; tables of a stage must be right in a stage of some kind."""
    tables = tomllib.loads(code)
    if isinstance(tables.get("stage"), list):
        found = problems({"name": "page", **tables})
        assert found == [], f"{place}: {found}"
        return
    told: list[Any] = []
    for kind in ({"kind": "rl", "num_steps": 10}, {"kind": "reject"}, {"kind": "sft", "data": "rows.jsonl"}):
        stage = {"name": "one", "task": {"name": "arithmetic_chain"}, **kind, **tables["stage"]}
        told.append(problems({"name": "page", "stage": [stage]}))
    assert [] in told, f"{place}: {told}"


def problems(tables: dict[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with a recipe, but for files and models of the reader's own that are not here."""
    absent = ("not there", "neither a file", "neither a directory")
    return [(key, what) for key, what in checked(tables)[1] if not any(said in what for said in absent)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
