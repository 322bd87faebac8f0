"""Forms of data: each is told by its columns, and what is none is told with the columns that were found."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from melete.datasets.files import read_any, read_rows
from melete.datasets.formats import FORMATS
from melete.datasets.prompts import read_prompts
from melete.errors import DataError
from melete.types import Demonstration, LabelledCompletion, LabelledSteps, Message, PreferencePair, RankedCompletions

ASKED = {"role": "user", "content": "1+2?"}
SAID = {"role": "assistant", "content": "3"}
WRONG = {"role": "assistant", "content": "4"}
BRIEF = {"role": "system", "content": "be brief"}
USER, SYSTEM = Message("user", "1+2?"), Message("system", "be brief")
HUMAN, GPT = {"from": "human", "value": "1+2?"}, {"from": "gpt", "value": "3"}
THREE = Demonstration("1", (USER,), "3")
PAIR = PreferencePair("1", (USER,), "3", "4")
KINDS = (LabelledSteps, PreferencePair, LabelledCompletion, RankedCompletions, Demonstration)
PRM800K = {
    "question": {"problem": "1+2?", "ground_truth_answer": "3"},
    "label": {
        "steps": [
            {"completions": [{"text": "one", "rating": -1}, {"text": "1+2", "rating": 1}], "chosen_completion": 1},
            {"completions": [{"text": "so", "rating": 0}], "chosen_completion": 0},
            {
                "completions": [{"text": "no", "rating": -1}],
                "chosen_completion": None,
                "human_completion": {"text": "is", "rating": None},
            },
            {"completions": [{"text": "4", "rating": -1}], "chosen_completion": None, "human_completion": None},
        ]
    },
}
# name of the form, a row of it, and what it is read as
ROWS: list[tuple[str, dict[str, Any], Any]] = [
    ("prompt and completion", {"prompt": "1+2?", "completion": "3"}, THREE),
    ("prompt and completion", {"prompt": [ASKED], "completion": [SAID]}, THREE),
    ("prompt and completion", {"system": "be brief", "prompt": "1+2?", "completion": "3"}, (SYSTEM, USER)),
    ("prompt and completion", {"id": 7, "messages": [ASKED], "completion": "3"}, Demonstration("7", (USER,), "3")),
    ("messages", {"messages": [ASKED, SAID]}, THREE),
    ("messages", {"messages": [BRIEF, ASKED, SAID]}, (SYSTEM, USER)),
    ("messages", {"messages": [ASKED, SAID, ASKED, SAID]}, (USER, Message("assistant", "3"), USER)),
    ("messages", {"messages": [ASKED, SAID, ASKED]}, THREE),
    ("messages", {"messages": [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "3"}]}]}, THREE),
    ("ShareGPT", {"conversations": [HUMAN, GPT]}, THREE),
    ("ShareGPT", {"system": "be brief", "conversations": [HUMAN, GPT]}, (SYSTEM, USER)),
    ("ShareGPT", {"conversations": [{"from": "system", "value": "be brief"}, HUMAN, GPT]}, (SYSTEM, USER)),
    ("ShareGPT", {"conversations": [ASKED, SAID]}, THREE),
    ("ShareGPT", {"conversations": {"from": ["human", "gpt"], "value": ["1+2?", "3"]}}, THREE),
    ("Alpaca", {"instruction": "1+2?", "input": "", "output": "3"}, THREE),
    ("Alpaca", {"instruction": "1+2?", "output": "3"}, THREE),
    ("Alpaca", {"instruction": "Sum.", "input": "1+2", "output": "3"}, (Message("user", "Sum.\n\n1+2"),)),
    ("pairs", {"prompt": "1+2?", "chosen": "3", "rejected": "4"}, PAIR),
    ("pairs", {"prompt": [ASKED], "chosen": [SAID], "rejected": [WRONG]}, PAIR),
    ("pairs", {"prompt": "1+2?", "chosen": [ASKED, SAID], "rejected": [ASKED, WRONG]}, PAIR),
    (
        "pairs",
        {"messages": [ASKED], "chosen": "3", "rejected": "4", "margin": 2},
        PreferencePair("1", (USER,), "3", "4", 2),
    ),
    ("implicit prompt", {"chosen": [ASKED, SAID], "rejected": [ASKED, WRONG]}, PAIR),
    (
        "implicit prompt",
        {"chosen": "\n\nHuman: 1+2?\n\nAssistant: 3", "rejected": "\n\nHuman: 1+2?\n\nAssistant: 4"},
        PAIR,
    ),
    (
        "labelled",
        {"prompt": "1+2?", "completion": "3", "label": False},
        LabelledCompletion("1", (USER,), "3", False),
    ),
    (
        "labelled",
        {"prompt": [ASKED], "completion": [SAID], "label": 1},
        LabelledCompletion("1", (USER,), "3", True),
    ),
    ("rankings", {"prompt": "1+2?", "completions": ["3", "4"]}, RankedCompletions("1", (USER,), ("3", "4"))),
    (
        "steps",
        {"prompt": "1+2?", "steps": ["so", "3"], "labels": [True, False]},
        LabelledSteps("1", (USER,), ("so", "3"), (True, False)),
    ),
    (
        "prompt, completions, labels",
        {"prompt": "1+2?", "completions": ["so", "3"], "labels": [1, 0]},
        LabelledSteps("1", (USER,), ("so", "3"), (True, False)),
    ),
    (
        "PRM800K",
        PRM800K,
        LabelledSteps("1", (USER,), ("1+2\n", "so\n", "is\n", "4\n"), (True, True, True, False)),
    ),
]
FIRST = {name: row for name, row, _ in reversed(ROWS)}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(path: Path, kind: type, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_rows(path, kind, **options)
    return caught.value


def test_every_form_is_tried_here() -> None:
    assert {name for name, _, _ in ROWS} == {form.name for form in FORMATS}


@pytest.mark.parametrize(("name", "row", "expected"), ROWS)
def test_a_form_is_told_by_its_columns(name: str, row: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", row)
    [found], form = read_any(path, KINDS)
    assert form.name == name
    if isinstance(expected, tuple):
        assert found.messages == expected
        assert getattr(found, "completion", "3") == "3"
    else:
        assert found == expected
    assert read_rows(path, form.kind) == [found]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ""])
def test_the_same_rows_come_out_of_every_kind_of_file(suffix: str, tmp_path: Path) -> None:
    rows = [{"prompt": "1+2?", "completion": "3, or\nthree"}, {"prompt": "¿?", "completion": ""}]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".parquet":
        pytest.importorskip("pyarrow")
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == "":
        datasets = pytest.importorskip("datasets")
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(path))
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    found = read_rows(path, Demonstration, part="train" if suffix == "" else "")
    assert [(row.messages[0].content, row.completion) for row in found] == [tuple(row.values()) for row in rows]


def test_lists_and_flags_in_a_table_of_text_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["prompt", "completion", "label"], [json.dumps([BRIEF, ASKED]), "3", "True"]])
        writer.writerow(["1+2?", "4", "0"])
    first, second = read_rows(path, LabelledCompletion)
    assert first.messages == (SYSTEM, USER) and first.label is True
    assert second.messages == (USER,) and second.label is False


def test_a_label_that_is_no_judgement_makes_no_labelled_completion(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", *[{"prompt": "1+2?", "completion": "3", "label": "sums"}] * 2)
    rows, form = read_any(path, KINDS)
    assert form.name == "prompt and completion" and rows[0] == THREE


def test_columns_of_other_names_are_given_their_roles(tmp_path: Path) -> None:
    row = {"question": "1+2?", "answer": "3", "prompt": "something else", "messages": "of another program"}
    path = written(tmp_path / "rows.jsonl", row)
    assert read_rows(path, Demonstration, columns={"prompt": "question", "completion": "answer"}) == [THREE]
    path = written(tmp_path / "pairs.jsonl", {"q": "1+2?", "good": "3", "bad": "4", "key": "k"})
    roles = {"prompt": "q", "chosen": "good", "rejected": "bad", "id": "key"}
    assert read_rows(path, PreferencePair, columns=roles) == [PreferencePair("k", (USER,), "3", "4")]


def test_a_role_that_does_not_exist_and_a_column_that_is_not_there_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"question": "1+2?", "answer": "3"})
    error = refusal(path, Demonstration, columns={"promt": "question"})
    assert "no role 'promt'; did you mean prompt?" in error.what
    error = refusal(path, Demonstration, columns={"prompt": "qestion", "completion": "answer"})
    assert "column qestion is missing; did you mean question?" in error.what
    assert "question, answer" in error.remedy


def test_columns_of_no_form_are_told_with_the_mapping_that_would_do(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"question": "1+2?", "response": "3", "source": "x"})
    error = refusal(path, Demonstration)
    assert "columns found: question, response, source" in error.what
    assert 'columns = { prompt = "question", completion = "response" }' in error.remedy
    assert "instruction, output" in error.remedy


@pytest.mark.parametrize(
    ("row", "kind", "what", "taker"),
    [
        (FIRST["pairs"], Demonstration, "these are pairs", "`melete dpo`"),
        (FIRST["implicit prompt"], Demonstration, "these are pairs", "`melete rm`"),
        (FIRST["prompt and completion"], PreferencePair, "these are demonstrations", "`melete sft`"),
        ({"messages": [ASKED, SAID]}, PreferencePair, "these are demonstrations", "`melete sft`"),
        (FIRST["rankings"], PreferencePair, "these are rankings", "--loss rankings"),
        (FIRST["steps"], Demonstration, "these are labelled steps", "--loss steps"),
        (PRM800K, Demonstration, "these are labelled steps", "--loss steps"),
        (FIRST["labelled"], Demonstration, "these are labelled completions", "--loss pointwise"),
    ],
)
def test_data_of_another_kind_name_the_command_that_takes_them(
    row: dict[str, Any], kind: type, what: str, taker: str, tmp_path: Path
) -> None:
    error = refusal(written(tmp_path / "rows.jsonl", row), kind)
    assert what in error.what and taker in error.remedy


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({"prompt": "1+2?", "completion": "3"}, {"messages": [ASKED, SAID]}, ["prompt and completion", "messages"]),
        ({"conversations": [HUMAN, GPT]}, {"instruction": "1+2?", "output": "3"}, ["ShareGPT", "Alpaca"]),
        (
            {"messages": [ASKED, SAID]},
            {"prompt": "1+2?", "chosen": "3", "rejected": "4"},
            ["messages", "pairs"],
        ),
    ],
)
def test_two_forms_in_one_file_are_refused_with_both_lines(
    first: dict[str, Any], second: dict[str, Any], names: list[str], tmp_path: Path
) -> None:
    path = written(tmp_path / "rows.jsonl", first, first, second)
    error = refusal(path, Demonstration)
    assert "two forms in one file" in error.what and f"{path}, line 1" in error.what
    assert all(repr(name) in error.what for name in names)
    assert error.place == f"{path}, line 3"


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        ({"messages": [ASKED]}, Demonstration, "the assistant says nothing"),
        ({"question": "1+2?", "label": "3"}, LabelledSteps, "these columns make no labelled steps"),
        ({"conversations": [{"from": "robot", "value": "3"}]}, Demonstration, "nobody is called 'robot'"),
        ({"conversations": [{"from": "human"}]}, Demonstration, "is no message"),
        (
            {"messages": [ASKED, {"role": "assistant", "content": [{"type": "image", "url": "x"}]}]},
            Demonstration,
            "is no message",
        ),
        ({"prompt": "1+2?", "completion": [ASKED, SAID]}, Demonstration, "one turn of the assistant, not 2"),
        ({"chosen": "3", "rejected": "4"}, PreferencePair, "there is no prompt beside this text"),
        (
            {"chosen": [ASKED, SAID], "rejected": [BRIEF, ASKED, WRONG]},
            PreferencePair,
            "do not begin with the same conversation",
        ),
        ({"chosen": [ASKED, SAID], "rejected": [SAID, ASKED]}, PreferencePair, "ends with a turn of the user"),
        ({"prompt": "1+2?", "chosen": None, "rejected": "4"}, PreferencePair, "must be text, not None"),
        ({"question": {}, "label": {"steps": [{}]}}, LabelledSteps, "not a row of PRM800K"),
        ({"prompt": "1+2?", "completions": ["3"]}, RankedCompletions, "at least two completions"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(row: dict[str, Any], kind: type, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", row)
    error = refusal(path, kind)
    assert reason in error.what and error.place.startswith(f"{path}, line 1")


def test_prompts_are_read_from_conversations_of_every_form(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", {"conversations": [HUMAN, GPT]}, {"messages": [BRIEF, ASKED, SAID]})
    assert read_prompts(path) == [(USER,), (SYSTEM, USER)]
