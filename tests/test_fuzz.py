"""Bad input in its small form: a few cases of every kind, and that a case which breaks the law is noticed."""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from melete.errors import DataError

ROOT = Path(__file__).parents[1]
FEW = 150


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the fuzzer by its name."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.fuzz.{name}")


@pytest.mark.parametrize("kind", ["recipes", "overrides", "data", "templates", "servers"])
def test_bad_input_is_refused_in_plain_words(kind: str, part: Any) -> None:
    run = part("run")
    results = [run.run_case(kind, 1, number) for number in range(FEW)]
    assert [result for result in results if result.startswith("broken")] == []
    assert 0 < results.count("accepted") < FEW and results.count("accepted") + results.count("refused") == FEW


def test_every_kind_has_its_share(part: Any) -> None:
    run = part("run")
    assert set(run.kinds()) == set(run.SHARES)


def test_a_case_is_the_same_whenever_it_is_run(part: Any, tmp_path: Path) -> None:
    found = [part("mutate").changed_tree(random.Random("x-1"), {"a": [1, {"b": "c"}]}, 5) for _ in range(2)]
    assert repr(found[0]) == repr(found[1])


def raising(error: Exception) -> Callable[[], None]:
    def case() -> None:
        raise error

    return case


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("x"), "traceback"),
        (DataError("wrong", remedy="mend it"), "no place"),
        (DataError("wrong" * 9000, place="here"), "a message of"),
        (OSError("the disk"), "does not say what or where"),
    ],
)
def test_what_is_no_message_for_people_is_noticed(error: Exception, says: str, part: Any, tmp_path: Path) -> None:
    law = part("law")
    with pytest.raises(law.Broken, match=says):
        law.outcome(raising(error), tmp_path)
    assert law.outcome(raising(DataError("wrong", place="here")), tmp_path) == "refused"


def test_a_hang_and_a_file_left_behind_are_noticed(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    law = part("law")
    monkeypatch.setattr(law, "MAX_SECONDS", 0.1)
    with pytest.raises(law.Broken, match="no answer"):
        law.outcome(lambda: time.sleep(5), tmp_path)

    def half() -> None:
        (tmp_path / "half.jsonl").touch()
        raise DataError("wrong", place="here")

    with pytest.raises(law.Broken, match=r"half\.jsonl"):
        law.outcome(half, tmp_path)


def test_the_grader_pool_loses_no_item_and_judges_none_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small form of `python -m benchmarks.grader_load`."""
    monkeypatch.syspath_prepend(str(ROOT))
    assert importlib.import_module("benchmarks.grader_load").run(1500, 2, 2) == []
    assert len(capsys.readouterr().out.splitlines()) >= 5  # of the ways to fail
