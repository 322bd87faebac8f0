"""Chatting in the terminal, and the two commands."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from scripted_engine import THOUGHT, Script
from tiny_models import llama, tokenizer
from typer.testing import CliRunner

from melete.cli import app
from melete.errors import MeleteError
from melete.serving.engine import Engine
from melete.serving.load import served_names
from melete.serving.terminal import DIM, ChatSettings, TerminalChat

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    made = Script(Engine(llama(), tokenizer(), name="one"))
    yield made
    made.engine.close()


def talk(script: Script, *lines: str, styled: bool = False, answer_only: bool = False, votes: int = 1) -> str:
    """What the screen shows after these lines."""
    out, err = io.StringIO(), io.StringIO()
    chat = TerminalChat([script.engine], ChatSettings(votes=votes), out, err, styled=styled, answer_only=answer_only)
    waiting = iter(lines)

    def read(_: str) -> str:
        line = next(waiting, None)
        if line is None:
            raise EOFError
        return line

    chat.run(read)
    return out.getvalue()


def test_a_thought_is_folded_to_a_line_and_can_be_shown(script: Script):
    script.texts = [THOUGHT]
    shown = talk(script, "2+2?", "/thought", "3+3?")
    folded, _, rest = shown.partition("thoughts are shown")
    assert "▸ thought, 6 words; /thought shows it\nIt is <answer>4</answer>.\n" in folded
    assert "Two and two.\nThat is four." in folded  # what /thought showed
    assert "Two and two.\nThat is four.\n\nIt is" in rest


def test_on_a_screen_a_thought_streams_dimmed_and_is_taken_back(script: Script):
    script.texts = [THOUGHT]
    shown = talk(script, "2+2?", styled=True)
    assert re.search(re.escape(DIM) + r"Two and two\.", shown)
    assert "\x1b[1A\r\x1b[J▸ thought, 6 words" in shown


def test_what_a_model_writes_cannot_move_the_cursor(script: Script):
    script.texts = ["a\x1b[2Jb\rc\x07"]
    shown = talk(script, "hello", styled=True)
    assert "\x1b[2J" not in shown and "a�[2Jb�c�" in shown


def test_the_majority_and_its_share_are_shown(script: Script):
    script.texts = [r"\boxed{5}", "It is 4.", "<think>x</think>so 4"]
    shown = talk(script, "/votes 3", "2+2?")
    assert "It is 4.\n 67 %  2 of 3  4\n 33 %  1 of 3  5\n" in shown
    assert "votes must be" in talk(script, "/votes 0") and "votes must be 16 or less" in talk(script, "/votes 99")


def test_the_conversation_is_kept_forgotten_and_saved(script: Script, tmp_path: Path):
    script.texts = [THOUGHT]
    file = tmp_path / "talk.jsonl"
    shown = talk(
        script,
        "/save",
        f"/save {file}",
        "/system Be brief.",
        "one",
        "two\\",
        "lines",
        f"/save {file}",
        "/reset",
        f"/save {file}",
    )
    assert "takes the name of a file" in shown and shown.count("nothing has been said yet") == 2
    (row,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert [turn["role"] for turn in row["messages"]] == ["system", *["user", "assistant"] * 2]
    assert row["messages"][3]["content"] == "two\nlines"
    assert row["messages"][2]["content"] == "It is <answer>4</answer>."


@pytest.mark.parametrize("line", ["/nothing", "/temperature hot", "/temperature 9", "/votes", "/save /no/such/place"])
def test_a_mistake_is_told_and_the_chat_goes_on(script: Script, line: str):
    script.texts = ["fine"]
    shown = talk(script, line, "hello")
    assert ("error" in shown or "no command" in shown or "nothing" in shown) and shown.rstrip().endswith("fine")


def test_what_does_not_fit_is_told_with_the_numbers(script: Script):
    script.texts = ["fine"]
    shown = talk(script, "word " * 300, "hello")
    assert "tokens, and one takes 256" in shown and shown.rstrip().endswith("fine")


def test_an_answer_that_is_stopped_leaves_the_chat_running(script: Script, monkeypatch: pytest.MonkeyPatch):
    script.texts = ["word " * 40]
    original = TerminalChat._write
    writes = []

    def interrupted(self: TerminalChat, text: str) -> None:
        original(self, text)
        writes.append(text)
        if len(writes) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(TerminalChat, "_write", interrupted)
    shown = talk(script, "first", "second")
    assert shown.count("stopped") == 1 and shown.rstrip().endswith("word")
    assert script.engine.num_rows == 0


def test_only_the_answer_is_written_where_one_question_is_piped(script: Script):
    script.texts = [THOUGHT]
    out, err = io.StringIO(), io.StringIO()
    TerminalChat([script.engine], ChatSettings(), out, err, styled=False, answer_only=True).ask("2+2?")
    assert out.getvalue() == "It is <answer>4</answer>.\n" and err.getvalue() == ""
    cut = TerminalChat([script.engine], ChatSettings(max_new_tokens=5), out, err, styled=False, answer_only=True)
    cut.ask("2+2?")
    assert err.getvalue() == "the answer was cut off at 5 tokens\n"
    with pytest.raises(MeleteError, match="takes 256"):
        cut.ask("word " * 300)


def test_names_are_short_and_different():
    assert served_names(["tiny", "tiny"]) == ["tiny-1", "tiny-2"]
    assert served_names(["/a/b/runs/x/models/sft", "runs/y/models/sft"]) == ["x/sft", "y/sft"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chat", "tinny"], "tiny"),
        (["chat", "tiny", "--device", "gpu"], "one of auto, cpu, cuda, mps"),
        (["chat", "tiny"], "nothing was asked"),
        (["serve", "tiny", "--host", "0.0.0.0"], "--token env"),
        (["serve", "tiny", "--token", "secret"], "can be read by everybody"),
        (["serve", "tinny", "--port", "0"], "tiny"),
    ],
)
def test_bad_arguments_are_told_plainly(arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MELETE_TOKEN", raising=False)
    done = CliRunner().invoke(app, arguments, input="hello" if "tinny" in arguments else "")
    assert done.exit_code == 2 and told in done.output and "Traceback" not in done.output


def test_a_question_through_a_pipe():
    done = CliRunner().invoke(app, ["chat", "tiny", "--temperature", "0", "--max-new-tokens", "16"], input="2+2")
    assert done.exit_code == 0 and done.stdout.strip() and "thought" not in done.stdout


def test_the_terminal_program_stops_an_answer_and_ends_at_the_end_of_input():
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "melete.cli", "chat", "tiny", "--temperature", "2"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=ROOT, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )  # fmt: skip
    os.close(theirs)
    seen = ""

    def hear() -> None:
        nonlocal seen
        if select.select([ours], [], [], 0.2)[0]:
            try:
                seen += os.read(ours, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                time.sleep(0.05)

    def wait_for(is_there: Callable[[], bool], *, interrupting: bool = False) -> None:
        """A signal that comes between the prompt and the reading of a line waits for a key: so it is sent again."""
        end, again = time.monotonic() + 60, 0.0
        while not is_there():
            assert time.monotonic() < end, seen
            if interrupting and time.monotonic() > again:
                process.send_signal(signal.SIGINT)
                again = time.monotonic() + 2
            hear()

    wait_for(lambda: "> " in seen)
    wait_for(lambda: "leaves\x1b[0m\r\n" in seen.split("> ", 1)[1], interrupting=True)
    os.write(ours, b"tell me\n")
    wait_for(lambda: "tell me\r\n" in seen)
    before = len(seen)
    wait_for(lambda: "\n" in seen[before:], interrupting=True)
    while process.poll() is None:  # after a stopped answer the program still listens
        os.write(ours, b"\x04")
        hear()
    assert process.returncode == 0 and "Traceback" not in seen
    os.close(ours)


def test_the_server_program_answers_and_ends_with_its_signal():
    environment = {**os.environ, "MELETE_TOKEN": "a-token-of-enough-length"}
    process = subprocess.Popen(
        [sys.executable, "-m", "melete.cli", "serve", "tiny", "student-qwen", "--port", "0", "--context", "100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert lines[0] == "tiny: 100 tokens of context, 32 answers at once\n"
    url = lines[2].split()[2]
    headers = {"Authorization": "Bearer a-token-of-enough-length"}
    assert httpx.get(f"{url}v1/models").status_code == 401
    assert [m["id"] for m in httpx.get(f"{url}v1/models", headers=headers).json()["data"]] == ["tiny", "student-qwen"]
    assert "melete" in httpx.get(url, headers=headers).text
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "a-token" not in "".join([*lines, out, err])
