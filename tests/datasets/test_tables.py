"""Tables: every form gives the same rows, and what is wrong is named by file, line and column."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from melete.datasets.tables import TableRow, json_object, read_table
from melete.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"question": "What is 3+5?", "answer": "8"},
    {"question": 'two\nlines, "quoted"; \u2028 ☺', "answer": ""},
    {"question": "", "answer": "'; DROP TABLE rows; --"},
]
FORMS = ("rows.jsonl", "rows.ndjson", "rows.json", "rows.csv", "rows.tsv", "rows.jsonl.gz", "rows.csv.gz", "ROWS.JSONL")


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    name = path.name.lower().removesuffix(".gz")
    plain = path.with_name("plain")
    if name.endswith((".csv", ".tsv")):
        with plain.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
        plain.write_text(text, encoding="utf-8")
    content = plain.read_bytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.name.lower().endswith(".gz") else content)
    return path


def refusal(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_table(path, **options)
    return caught.value


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    rows = read_table(written(tmp_path / name, ROWS))
    assert [dict(row.values) for row in rows] == ROWS
    assert len({row.place for row in rows}) == len(ROWS) and all(str(tmp_path / name) in row.place for row in rows)


def test_parquet_and_directories_of_datasets_give_the_same_rows(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    one, empty = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:1])
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": empty}).save_to_disk(str(tmp_path / "several"))
    for path, part in (("rows.parquet", ""), ("one", ""), ("several", "train")):
        rows = read_table(tmp_path / path, part=part)
        assert [dict(row.values) for row in rows] == ROWS
        assert rows[1].place == f"{tmp_path / path}, row 1"
    error = refusal(tmp_path / "several")
    assert "several parts" in error.what and "train, test" in error.remedy
    assert "did you mean train?" in refusal(tmp_path / "several", part="trian").what
    assert "no part" in refusal(tmp_path / "one", part="train").what
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nonsense")
    assert refusal(tmp_path / "broken.parquet").place == str(tmp_path / "broken.parquet")
    for file in (tmp_path / "one").glob("*.arrow"):
        file.write_bytes(b"nonsense")
    assert "cannot be read" in refusal(tmp_path / "one").what


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), min_size=1, max_size=5))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_in_json_and_csv(tmp_path: Path, texts: list[str]) -> None:
    rows = [{"question": text, "answer": "1"} for text in texts]
    for name in ("rows.jsonl", "rows.csv"):
        assert [row.text("question") for row in read_table(written(tmp_path / name, rows))] == texts


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', "null", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_a_line_that_is_no_object_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n\n{line}\n")
    error = refusal(path)
    assert "not a JSON object" in error.what and error.place == f"{path}, line 3" and error.remedy
    with pytest.raises(DataError):
        json_object(line, "here")


def test_half_a_character_is_refused_where_it_stands(tmp_path: Path) -> None:
    """JSON can spell a lone surrogate, which no file, hash or tokenizer takes."""
    for name, place in (("rows.jsonl", "line 2"), ("rows.json", "item 1")):
        path = written(tmp_path / name, [{"a": "\\ud83d \u2028"}, {"a": ["x", {"\ud83d": 1}]}])
        error = refusal(path)
        assert "half a character" in error.what and error.place == f"{path}, {place}"
    assert read_table(written(tmp_path / "whole.jsonl", [{"a": "\U0001f600"}]))[0].text("a") == "\U0001f600"


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        ("question,answer\na,1\nb\n", "line 3", "1 fields, but the header has 2"),
        ("question,answer\n'a,b',1\n", "line 2", "3 fields"),
        ('question,answer\n"a\nb",1\n"c"d,2\n', "line 4", "not CSV"),
        ('question,answer\n"a,1\n', "line 2", "not CSV"),
        ("question,question\na,1\n", "line 1", "no name of its own"),
        ("question,\na,1\n", "line 1", "no name of its own"),
    ],
)
def test_a_broken_row_of_csv_is_named_by_its_line(content: str, place: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    error = refusal(path)
    assert reason in error.what and error.place == f"{path}, {place}"


def test_a_long_field_and_a_byte_order_mark_are_read_and_the_limit_of_csv_stays(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = tmp_path / "rows.csv"
    path.write_text("\ufeffquestion,answer\n" + "x" * 300_000 + ",1\n", encoding="utf-8")
    assert len(read_table(path)[0].text("question")) == 300_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.txt", b"{}"),
        ("rows.jsonl", b""),
        ("rows.jsonl", b'{"a": "\xff"}'),
        ("rows.jsonl.gz", b"no gzip"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}' * 99, mtime=0)[:-9]),
        ("rows.json", b"{}"),
        ("rows.json", b"[1]"),
        ("rows.json", b"["),
        ("rows.csv", b"question,answer\n"),
    ],
)
def test_what_is_no_table_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refusal(path)
    assert error.place.startswith(str(path)) and error.remedy


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "nowhere.jsonl").what
    assert "save_to_disk" in refusal(tmp_path).what
    assert "no part" in refusal(written(tmp_path / "rows.jsonl", ROWS), part="train").what


def test_a_missing_column_is_named_with_what_there_is_and_the_nearest() -> None:
    row = TableRow({"qestion": "?", "answer": 3, "note": None}, "a.jsonl, line 7")
    with pytest.raises(DataError) as caught:
        row.get("question")
    assert "did you mean qestion?" in caught.value.what and caught.value.place == "a.jsonl, line 7"
    assert "qestion, answer, note" in caught.value.remedy
    with pytest.raises(DataError) as caught:
        row.column_of("question", {}, ("question", "prompt"))
    assert "did you mean qestion?" in caught.value.what and "qestion, answer" in caught.value.remedy
    with pytest.raises(DataError, match="column problem is missing"):
        row.column_of("question", {"question": "problem"}, ("question",))
    with pytest.raises(DataError, match="must be text, not 3") as caught:
        row.text("answer")
    assert caught.value.place == "a.jsonl, line 7, column answer"
    assert row.text_or_number("answer") == "3" and not row.has("note")


@pytest.mark.parametrize("value", ["text", [], None, [{"role": "user"}], [{"role": "tool", "content": "x"}], [1], 3])
def test_what_is_no_list_of_messages_is_named(value: Any) -> None:
    with pytest.raises(DataError) as caught:
        TableRow({"messages": value}, "line 1").messages("messages")
    assert caught.value.place == "line 1, column messages"
