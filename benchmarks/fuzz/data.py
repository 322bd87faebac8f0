"""Data files of every form and format, changed in their values, their columns or their bytes."""

from __future__ import annotations

import csv
import io
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from benchmarks.fuzz.law import outcome
from benchmarks.fuzz.mutate import changed_bytes, changed_tree, misspelt
from melete.datasets.checks import findings, seen_rows
from melete.datasets.files import read_any
from melete.datasets.prompts import read_prompts
from melete.labelling.items import read_items
from melete.models.load import load_tokenizer
from melete.tasks.base import Split
from melete.tasks.rows import ROLES, make_rows
from melete.types import Demonstration, LabelledCompletion, LabelledSteps, PreferencePair, RankedCompletions

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 2?"}]
SAID = [{"role": "assistant", "content": "<think>1 and 2</think><answer>3</answer>"}]
CALLED = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day"}]
FORMS: tuple[dict[str, Any], ...] = (
    {"prompt": "What is 1 + 2?", "completion": "3"},
    {"messages": ASKED + SAID},
    {"conversations": CALLED},
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"prompt": "1 + 2?", "chosen": "3", "rejected": "4"},
    {"prompt": ASKED, "chosen": SAID, "rejected": [{"role": "assistant", "content": "no"}]},
    {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: go away"},
    {"prompt": "1 + 2?", "completion": "3", "label": True},
    {"prompt": "1 + 2?", "completions": ["3", "4"], "scores": [1.0, 0.0]},
    {"prompt": "1 + 2?", "completions": ["1 + 2 = 3", "so 3"], "labels": [True, True]},
    {"question": "1 + 2?", "answer": "3"},
    {"problem": "What is 1 + 2?", "solution": "It is #### 3"},
    {"task_id": "add", "prompt": "def add(a, b):", "tests": ["assert add(1, 2) == 3"], "entry_point": "add"},
)
SPLITS: tuple[Split, ...] = ("train", "held_out")
KINDS_OF_ROW = (Demonstration, PreferencePair, LabelledCompletion, RankedCompletions, LabelledSteps)


@cache
def _tokenizer() -> Any:
    return load_tokenizer("tiny")


def data(draw: random.Random, directory: Path) -> str:
    """A table of a few rows, read as one of the uses that there are for tables."""
    good = draw.choice(FORMS)
    rows = [good if draw.random() < 0.6 else changed_tree(draw, good, draw.choice([1, 1, 3])) for _ in range(3)]
    if draw.random() < 0.1:
        rows.append(draw.choice(FORMS))
    file = _written(draw, rows, directory)
    columns = _columns(draw, good) if draw.random() < 0.2 else {}
    return outcome(lambda: _used(draw, file, columns), directory)


def _used(draw: random.Random, file: Path, columns: dict[str, str]) -> None:
    use = draw.randrange(6)
    if use == 0:
        read_prompts(file)
    elif use == 1:
        read_items(file, draw.choice(["compare", "safety"]))
    elif use == 2:
        grader = draw.choice(["exact", "integer", "math", "choice"])
        known = {role: column for role, column in columns.items() if role in ROLES}
        task = make_rows({"path": str(file), "grader": grader, "columns": known})
        for split in SPLITS:
            if task.rows[split]:
                task.grade(task.problem(split, 0), "3")
    else:
        kinds = draw.choice([*([kind] for kind in KINDS_OF_ROW), list(KINDS_OF_ROW)])
        found, _ = read_any(file, kinds, columns=columns)
        for row in found:
            seen_rows(_tokenizer(), row)
        findings(found, _tokenizer(), 512)


def _columns(draw: random.Random, good: dict[str, Any]) -> dict[str, str]:
    roles = [*good, "prompt", "chosen", "question", "answer"]
    return {misspelt(draw, draw.choice(roles)) if draw.random() < 0.3 else draw.choice(roles): draw.choice(roles)}


def _written(draw: random.Random, rows: list[Any], directory: Path) -> Path:
    ending = draw.choice(["jsonl"] * 4 + ["json", "csv", "tsv", "parquet", "txt"])
    file = directory / f"rows.{ending}"
    content = _content(ending, rows)
    if draw.random() < 0.35:
        content = changed_bytes(draw, content, draw.choice([1, 1, 2, 10]))
    file.write_bytes(content)
    return file


def _content(ending: str, rows: list[Any]) -> bytes:
    if ending == "json":
        return json.dumps(rows).encode()
    tables = [row if isinstance(row, dict) else {"value": row} for row in rows]
    if ending == "parquet":
        plain = [{str(key): json.dumps(value) for key, value in row.items()} for row in tables]
        try:
            buffer = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), buffer)
            return buffer.getvalue()
        except (pyarrow.ArrowException, UnicodeEncodeError, TypeError):
            return b"PAR1"
    if ending in ("csv", "tsv"):
        text = io.StringIO()
        names = list(dict.fromkeys(str(name) for row in tables for name in row))
        writer = csv.writer(text, delimiter="," if ending == "csv" else "\t")
        writer.writerow(names)
        writer.writerows([[_cell(row.get(name)) for name in names] for row in tables])
        return text.getvalue().encode("utf-8", "surrogatepass")
    return "".join(json.dumps(row, ensure_ascii=index % 2 == 0) + "\n" for index, row in enumerate(rows)).encode(
        "utf-8", "surrogatepass"
    )


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


KINDS = {"data": data}
