"""`melete data`: rows as the model sees them, what is amiss, and our own form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from melete.cli import app
from melete.datasets.files import read_rows
from melete.types import Demonstration, LabelledCompletion, Message, PreferencePair

USER = {"role": "user", "content": "1+2?"}
SAID = {"role": "assistant", "content": "3"}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def told(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    turns = [USER, SAID, {"role": "user", "content": "sure?\x1b[2J<|end|>"}, {"role": "assistant", "content": "yes"}]
    return written(tmp_path / "chat.jsonl", {"messages": turns}, {"messages": [USER, SAID]})


def test_what_is_learnt_is_marked_where_there_is_no_colour(chat: Path) -> None:
    """I31, I32."""
    result = told("show", chat)
    assert result.exit_code == 0, result.output
    assert "2 demonstrations, of the form 'messages'" in result.output
    assert "<|bos|><|user|>1+2?<|assistant|>⟦3<|end|>⟧<|user|>sure?" in result.output
    assert "<|assistant|>⟦yes<|end|>⟧" in result.output
    assert "\x1b" not in result.output and "\\x1b[2J" in result.output
    assert "⟦3<|end|>⟧<|user|>sure?" not in told("show", chat, "--last-turn").output


def test_tokens_are_shown_one_in_a_line(chat: Path) -> None:
    result = told("show", chat, "--tokens", "-n", 1, "--start", 1)
    lines = [line for line in result.output.splitlines() if line.endswith("|")]
    assert [line.split()[1:] for line in lines[-3:]] == [["|<|assistant|>|"], ["⟦", "|3|"], ["⟦", "|<|end|>|"]]
    assert "row 1 (id 2), demonstration" in result.output and "row 0" not in result.output


def test_a_check_says_form_numbers_and_what_is_amiss(tmp_path: Path) -> None:
    rows = [{"prompt": "1+2?", "chosen": "3", "rejected": "4"}] * 2 + [{"prompt": "?", "chosen": "", "rejected": "x"}]
    path = written(tmp_path / "pairs.jsonl", *rows)
    result = told("check", path, "--max-tokens", 7)
    assert result.exit_code == 0, result.output
    assert "pairs (pairs, for `melete dpo` and `melete rm`)" in result.output
    assert "3, 6 rows of tokens" in result.output
    assert "the limit is 7" in result.output and "too long" in result.output
    assert "1 say the same" in result.output and "1 have an answer of nothing" in result.output


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"conversations": [{"from": "human", "value": "1+2?"}, {"from": "gpt", "value": "3"}]}, Demonstration),
        ({"prompt": "1+2?", "completion": "3", "label": True}, LabelledCompletion),
        ({"chosen": [USER, SAID], "rejected": [USER, SAID | {"content": "4"}]}, PreferencePair),
    ],
)
def test_any_form_is_converted_into_ours(row: object, kind: type, tmp_path: Path) -> None:
    path, out = written(tmp_path / "in.jsonl", row), tmp_path / "out.jsonl"
    result = told("convert", path, out)
    assert result.exit_code == 0, result.output
    assert read_rows(out, kind) == read_rows(path, kind)
    again = told("convert", path, out)
    assert again.exit_code == 2 and "there already" in again.output


def test_columns_of_other_names_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", {"q": "1+2?", "a": "3"})
    out = tmp_path / "out.jsonl"
    result = told("convert", path, out, "--columns", "prompt=q", "--columns", "completion=a")
    assert result.exit_code == 0, result.output
    assert read_rows(out, Demonstration) == [Demonstration("1", (Message("user", "1+2?"),), "3")]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["show", "nowhere.jsonl"], "it is not there"),
        (["show", "CHAT", "--kind", "pair"], "did you mean pairs?"),
        (["show", "CHAT", "--kind", "pairs"], "demonstrations are for `melete sft`"),
        (["show", "CHAT", "--start", "9"], "there is no row 9: it has 2"),
        (["show", "CHAT", "--columns", "prompt"], "is no mapping"),
        (["show", "CHAT", "--part", "train"], "a file has no part"),
        (["check", "CHAT", "--model", "nobody"], "nobody"),
        (["convert", "CHAT", "out.csv"], "out.jsonl"),
    ],
)
def test_mistakes_are_told_without_a_traceback(arguments: list[str], reason: str, chat: Path) -> None:
    result = told(*(str(chat) if word == "CHAT" else word for word in arguments))
    assert result.exit_code == 2
    assert reason in result.output and "Traceback" not in result.output
