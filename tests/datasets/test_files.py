"""Data sets on disk: what is written is read, and a row that is not of its kind is named by file, line and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from melete.datasets.files import first_rows, num_rows, read_rows, write_rows
from melete.errors import DataError
from melete.types import Demonstration, LabelledCompletion, LabelledSteps, Message, PreferencePair, RankedCompletions

TURNS = (Message("system", "be brief"), Message("user", "¿Cuánto es 1+2?\n"))
ROWS: dict[type, list[Any]] = {
    PreferencePair: [
        PreferencePair("a", TURNS, "3", "4"),
        PreferencePair("b", TURNS[1:], "", "<answer>3</answer>", 1.5),
    ],
    RankedCompletions: [RankedCompletions("a", TURNS, ("3", "4", "5")), RankedCompletions("b", TURNS, ("", "3"))],
    Demonstration: [Demonstration("a", TURNS, '"3"\n'), Demonstration("b", TURNS, "3 ☺")],
    LabelledCompletion: [LabelledCompletion("a", TURNS, "3", True), LabelledCompletion("b", TURNS, "4", False)],
    LabelledSteps: [LabelledSteps("a", TURNS, ("1+2=3\n", "3"), (True, False)), LabelledSteps("b", TURNS, (), ())],
}
GOOD: dict[type, dict[str, Any]] = {
    PreferencePair: {"pair_id": "a", "prompt": "?", "chosen": "x", "rejected": "y"},
    RankedCompletions: {"row_id": "a", "prompt": "?", "completions": ["x", "y"]},
    Demonstration: {"row_id": "a", "prompt": "?", "completion": "x"},
    LabelledCompletion: {"row_id": "a", "prompt": "?", "completion": "x", "label": True},
    LabelledSteps: {"row_id": "a", "prompt": "?", "steps": ["x"], "labels": [True]},
}


def written(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def refusal(path: Path, kind: type) -> DataError:
    with pytest.raises(DataError) as caught:
        read_rows(path, kind)
    return caught.value


@pytest.mark.parametrize("kind", ROWS)
def test_rows_that_are_written_are_read_back(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    write_rows(path, ROWS[kind])
    assert read_rows(path, kind) == ROWS[kind]
    assert len(path.read_text(encoding="utf-8").split("\n")) == 3  # a row per line


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives(tmp_path: Path, text: str) -> None:
    rows = [Demonstration("a", (Message("user", text),), text), Demonstration("b", TURNS, "")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", Demonstration) == rows


@pytest.mark.parametrize("separator", ["\x85", "\u2028", "\u2029", "\r\n", "\x0b", "\x1e"])
def test_a_line_separator_within_a_text_ends_no_row(separator: str, tmp_path: Path) -> None:
    """JSON leaves some of them as they are, and only a newline ends a row."""
    rows = [Demonstration("a", TURNS, f"one{separator}two")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", Demonstration) == rows


def test_lines_that_end_in_windows_manner_and_empty_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = json.dumps(GOOD[Demonstration])
    path.write_bytes(f"{row}\r\n\r\n{row}\r\n".encode())
    assert len(read_rows(path, Demonstration)) == 2


def test_a_prompt_stands_for_messages_and_the_line_for_an_id(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", "", {"prompt": "?", "chosen": "x", "rejected": "y"})
    assert read_rows(path, PreferencePair) == [PreferencePair("2", (Message("user", "?"),), "x", "y")]


def test_columns_of_other_programs_are_passed_over(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", GOOD[Demonstration] | {"source": "elsewhere", "score": 3})
    assert read_rows(path, Demonstration)[0].completion == "x"


@pytest.mark.parametrize("line", ["{", "not json", "[1, 2]", '"text"', "null", "[" * 100_000])
def test_a_line_that_is_no_object_is_named(line: str, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", GOOD[Demonstration], line)
    error = refusal(path, Demonstration)
    assert "not a JSON object" in error.what
    assert error.place == f"{path}, line 2"
    assert error.remedy


@pytest.mark.parametrize(
    ("kind", "column", "given_as"),
    [
        (PreferencePair, "chosen", "choosen"),
        (PreferencePair, "rejected", "reject"),
        (RankedCompletions, "completions", "completion"),
        (Demonstration, "completion", "completions"),
        (LabelledCompletion, "label", "labels"),
        (LabelledSteps, "steps", "step"),
        (LabelledSteps, "labels", "lables"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest(kind: type, column: str, given_as: str, tmp_path: Path) -> None:
    row = dict(GOOD[kind])
    row[given_as] = row.pop(column)
    path = written(tmp_path / "rows.jsonl", "", GOOD[kind], row)
    error = refusal(path, kind)
    assert f"column {column} is missing" in error.what and f"did you mean {given_as}?" in error.what
    assert error.place == f"{path}, line 3"
    assert column in error.remedy


@pytest.mark.parametrize(
    ("kind", "column", "value", "reason"),
    [
        (PreferencePair, "chosen", 3, "must be text, not 3"),
        (PreferencePair, "rejected", None, "must be text, not None"),
        (PreferencePair, "margin", -1, "must be a number of at least 0"),
        (PreferencePair, "margin", "much", "must be a number of at least 0"),
        (PreferencePair, "margin", True, "must be a number of at least 0"),
        (RankedCompletions, "completions", "x", "must be a list, not 'x'"),
        (RankedCompletions, "completions", [1, 2], "must be text"),
        (Demonstration, "completion", ["x"], "must be text"),
        (LabelledCompletion, "label", "yes", "must be true or false, not 'yes'"),
        (LabelledCompletion, "label", None, "must be true or false"),
        (LabelledCompletion, "label", 2, "must be true or false"),
        (LabelledSteps, "steps", "x", "must be a list, not 'x'"),
        (LabelledSteps, "steps", {"x": 1}, "must be a list"),
        (LabelledSteps, "steps", [1], "must be text"),
        (LabelledSteps, "labels", ["right"], "must be true or false"),
        (LabelledSteps, "labels", True, "must be a list"),
        (Demonstration, "messages", [{"role": "user"}], "is no message"),
        (Demonstration, "messages", ["?"], "is no message"),
        (Demonstration, "messages", [{"role": "user", "content": 3}], "is no message"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_by_line_and_column(
    kind: type, column: str, value: Any, reason: str, tmp_path: Path
) -> None:
    row = GOOD[kind] | {column: value}
    if column == "messages":
        del row["prompt"]
    path = written(tmp_path / "rows.jsonl", GOOD[kind], row)
    error = refusal(path, kind)
    assert reason in error.what
    assert error.place == f"{path}, line 2, column {column}"


@pytest.mark.parametrize("change", [{}, {"messages": []}, {"messages": "?"}, {"prompt": 3}, {"prompt": None}])
def test_a_row_without_a_prompt_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"completion": "x"} | change)
    error = refusal(path, Demonstration)
    assert "neither prompt nor messages" in error.what
    assert error.place == f"{path}, line 1" and "prompt" in error.remedy


def test_steps_and_labels_of_different_number_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", GOOD[LabelledSteps] | {"labels": [True, False]})
    error = refusal(path, LabelledSteps)
    assert "1 steps but 2 labels" in error.what and error.place == f"{path}, line 1"


@pytest.mark.parametrize("content", [b"", b"\n \n", b'{"prompt": "\xff"}'])
def test_a_file_without_rows_or_not_in_utf8_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    error = refusal(path, Demonstration)
    assert ("cannot be read" if b"\xff" in content else "is empty") in error.what
    assert error.place == str(path) and error.remedy


@pytest.mark.parametrize(
    ("name", "reason"), [(".", "not a directory that `save_to_disk` wrote"), ("nowhere.jsonl", "cannot be read")]
)
def test_what_is_no_file_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    error = refusal(tmp_path / name, Demonstration)
    assert reason in error.what and error.place == str(tmp_path / name) and error.remedy


def test_the_first_rows_and_their_number_are_told_of_any_file(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", GOOD[Demonstration], "{", {"x": 1}, GOOD[Demonstration], "")
    assert first_rows(path, 9) == []  # a file that cannot be read is not guessed at
    path = written(tmp_path / "rows.jsonl", GOOD[Demonstration], {"x": 1}, "", GOOD[Demonstration])
    assert [row.completion for row in first_rows(path, 9)] == ["x", "x"]
    assert len(first_rows(path, 1)) == 1 and num_rows(path) == 3
    table = tmp_path / "rows.csv"
    table.write_text('q,completion\n"a\nb",c\nd,e\n', encoding="utf-8")
    assert num_rows(table) == 2
    assert [row.messages[0].content for row in first_rows(table, 9, columns={"prompt": "q"})] == ["a\nb", "d"]
    assert first_rows(tmp_path / "nowhere.csv", 9) == []
