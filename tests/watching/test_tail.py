"""Files that grow, are cut back and are replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from melete.errors import RunError
from melete.watching.run import MAX_POINTS, MAX_ROLLOUTS, Curve, WatchedRun
from melete.watching.tail import Tail


def test_each_whole_line_is_read_once(tmp_path: Path):
    file, tail = tmp_path / "x.jsonl", Tail(tmp_path / "x.jsonl")
    assert tail.read() == (False, [])
    file.write_text('{"a": 1}\n{"a": ')
    assert tail.read() == (False, [{"a": 1}])
    assert tail.read() == (False, [])
    with file.open("a") as more:
        more.write('2}\n[]\nnot json\n{"a": 3}\n')
    assert tail.read() == (False, [{"a": 2}, {"a": 3}])


@pytest.mark.parametrize("way", ["cut", "replaced", "rewritten", "gone"])
def test_rows_that_are_no_longer_there_are_void(tmp_path: Path, way: str):
    file, tail = tmp_path / "x.jsonl", Tail(tmp_path / "x.jsonl")
    file.write_text('{"a": 1}\n{"a": 2}\n')
    tail.read()
    if way == "cut":
        os.truncate(file, 9)
    elif way == "replaced":
        (tmp_path / "y").write_text('{"a": 1}\n')
        os.replace(tmp_path / "y", file)
    elif way == "rewritten":
        file.write_text('{"a": 1}\n' + '{"a": 7}\n' * 5)
    else:
        file.unlink()
    is_void, rows = tail.read()
    assert is_void
    assert rows == [{"a": 1}] * (way != "gone") + [{"a": 7}] * 5 * (way == "rewritten")
    assert tail.read() == (False, [])


def test_a_long_file_is_read_from_near_its_end(tmp_path: Path):
    (tmp_path / "x.jsonl").write_text("".join(f'{{"a": {n}}}\n' for n in range(100)))
    _, rows = Tail(tmp_path / "x.jsonl", only_last=30).read()
    assert rows == [{"a": 98}, {"a": 99}]


def test_a_curve_keeps_few_points_and_the_newest():
    curve = Curve()
    for step in range(10_000):
        curve.add(step, step / 2)
    shown = curve.shown()
    assert len(shown) <= MAX_POINTS + 1
    assert shown[0] == (0, 0.0) and shown[-1] == (9999, 4999.5)
    assert shown == sorted(shown)


def test_rollouts_have_their_advantages_newest_first_and_are_bounded(tmp_path: Path):
    (tmp_path / "recipe.json").write_text('{"stage": [{"name": "rl", "kind": "rl", "num_steps": 4}]}')
    run = WatchedRun(tmp_path)
    assert run.overview()["stages"][0]["done"] == 0
    row = '{"stage": "rl", "step": %d, "problem_id": "p", "sibling": %d, "reward": 1, "credit": [["x", %s]]}\n'
    (tmp_path / "rollouts.jsonl").write_text("".join(row % (n, s, s) for n in range(100) for s in (0, 1, 2)))
    found = run.stage("rl")["rollouts"]
    assert len(found) == MAX_ROLLOUTS
    assert [(one["step"], one["credit"]) for one in found[:3]] == [(99, [("x", float(n))]) for n in range(3)]


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match=r"no recipe\.json"):
        WatchedRun(tmp_path)
