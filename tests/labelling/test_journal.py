"""The journal of answers: nothing lost, nothing twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from melete.datasets.files import read_rows
from melete.errors import DataError, RunError
from melete.labelling.agreement import agreements, cohens_kappa, left_share
from melete.labelling.export import export
from melete.labelling.items import Item, make_item, read_items
from melete.labelling.journal import AlreadyAnswered, Entry, Journal, newest
from melete.types import LabelledCompletion, Message, PreferencePair

ITEMS = [make_item([Message("user", f"{n}?")], [f"a{n}", f"b{n}"]) for n in range(4)]


def entry(number: int, answer: str, by: str = "ann", id: str = "", **further: object) -> Entry:
    item = ITEMS[number]
    messages = tuple({"role": m.role, "content": m.content} for m in item.messages)
    name = id or f"{by}-{number}-{answer}"
    return Entry(name, item.item_id, by, answer, messages, item.completions, **further)  # type: ignore[arg-type]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "j.jsonl")


def test_what_was_answered_is_there_when_the_journal_is_opened_again(journal: Journal):
    journal.add(entry(0, "first", unsafe=(1,), swapped=True, seconds=2.5))
    assert (
        Journal(journal.path).entries == journal.entries == [entry(0, "first", unsafe=(1,), swapped=True, seconds=2.5)]
    )


def test_a_repeated_request_writes_nothing_twice(journal: Journal):
    journal.add(entry(0, "first", id="same"))
    size = journal.path.stat().st_size
    assert journal.add(entry(0, "first", id="same"), refuse=lambda _: "no").id == "same"
    assert journal.path.stat().st_size == size


def test_a_torn_last_line_is_left_out_saying_so(journal: Journal):
    journal.add(entry(0, "first"))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + whole[: len(whole) // 2])
    again = Journal(journal.path)
    assert len(again.entries) == 1
    assert "was cut off" in again.notes[0]
    again.add(entry(1, "tie"))
    assert [one.answer for one in Journal(journal.path).entries] == ["first", "tie"]


def test_two_processes_share_a_journal(journal: Journal):
    other = Journal(journal.path)
    journal.add(entry(0, "first"))
    with pytest.raises(AlreadyAnswered):
        other.add(entry(0, "second"), refuse=lambda e: "there" if ("ann", e.item) in other.current("ann") else None)
    other.add(entry(0, "second", by="bob"))
    journal.refresh()
    assert [one.by for one in journal.entries] == ["ann", "bob"]


def test_a_full_disk_leaves_the_journal_as_it_was(journal: Journal, monkeypatch: pytest.MonkeyPatch):
    journal.add(entry(0, "first"))
    before = journal.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="disk is full"):
            journal.add(entry(1, "first"))
    assert journal.path.read_bytes() == before
    journal.add(entry(1, "first"))
    assert len(Journal(journal.path).entries) == 2


def test_an_undo_takes_back_the_last_answer_and_then_the_one_before(journal: Journal):
    for number in (0, 1):
        journal.add(entry(number, "first"))
    for number in (1, 0):
        last = newest(journal.entries, "ann")
        assert last is not None and last.item == ITEMS[number].item_id
        journal.add(entry(number, "undo"))
    assert newest(journal.entries, "ann") is None
    assert journal.current() == {}


@pytest.mark.parametrize("line", ["{", '{"prompt": "x"}', "[1]", "null"])
def test_another_file_is_no_journal(tmp_path: Path, line: str):
    (tmp_path / "j.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match="no line of a journal"):
        Journal(tmp_path / "j.jsonl")
    assert (tmp_path / "j.jsonl").read_text() == line + "\n"


def test_agreement_is_of_answers_before_a_review(journal: Journal):
    for number, (mine, theirs) in enumerate([("first", "first"), ("first", "first"), ("second", "second")]):
        journal.add(entry(number, mine))
        journal.add(entry(number, theirs, by="bob"))
    journal.add(entry(3, "first"))
    journal.add(entry(3, "second", by="bob"))
    names = [item.item_id for item in ITEMS]
    (found,) = agreements(journal, "ann", names)
    assert (found.num, found.share, found.kappa) == (4, 0.75, 0.5)
    assert found.differing == (ITEMS[3].item_id,)
    journal.add(entry(3, "second", id="rev", review=True))
    (found,) = agreements(journal, "ann", names)
    assert (found.share, found.differing) == (0.75, ())


def test_kappa_without_a_choice_is_not_defined():
    assert cohens_kappa([]) is None
    assert cohens_kappa([("a", "a")]) is None
    assert cohens_kappa([("a", "b"), ("b", "a")]) == -1


def test_a_preference_for_the_left_shows(journal: Journal):
    journal.add(entry(0, "first"))  # not swapped: the first stands on the left
    journal.add(entry(1, "second", swapped=True))
    journal.add(entry(2, "first", swapped=True))
    journal.add(entry(3, "tie"))
    assert left_share(journal.current()) == (2 / 3, 3)


def test_pairs_are_what_the_stages_read(journal: Journal, tmp_path: Path):
    journal.add(entry(0, "second"))
    journal.add(entry(1, "tie"))
    journal.add(entry(2, "skip"))
    journal.add(entry(3, "first"))
    journal.add(entry(3, "second", by="bob"))
    counts = export(journal, tmp_path / "p.jsonl", "pairs")
    assert counts["rows"] == counts["tie"] == counts["skip"] == counts["disagreement"] == 1
    (pair,) = read_rows(tmp_path / "p.jsonl", PreferencePair)
    assert (pair.messages, pair.chosen, pair.rejected) == (ITEMS[0].messages, "b0", "a0")
    assert export(journal, tmp_path / "p.jsonl", "pairs", by="ann")["rows"] == 2


def test_labels_are_what_the_stages_read(journal: Journal, tmp_path: Path):
    journal.add(entry(0, "second"))
    journal.add(entry(1, "first", unsafe=(0,)))
    export(journal, tmp_path / "l.jsonl", "labels")
    rows = read_rows(tmp_path / "l.jsonl", LabelledCompletion)
    assert {row.completion: row.label for row in rows} == {"a0": False, "b0": True, "a1": False, "b1": False}


def test_an_export_of_nothing_writes_nothing(journal: Journal, tmp_path: Path):
    journal.add(entry(0, "tie"))
    with pytest.raises(DataError, match="nothing to write"):
        export(journal, tmp_path / "p.jsonl", "pairs")
    with pytest.raises(DataError, match="replace the journal"):
        export(journal, journal.path, "pairs")
    assert not (tmp_path / "p.jsonl").exists()


def test_items_are_all_pairs_that_differ_and_none_twice(tmp_path: Path):
    file = tmp_path / "d.jsonl"
    file.write_text(
        '{"prompt": "x", "completions": ["a", "b", "c", "a"]}\n{"prompt": "x", "completions": ["b", "a"]}\n'
        '{"prompt": "y", "completions": ["a", "b"]}\n'
    )
    assert [item.completions for item in read_items(file)] == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b")]
    assert len(read_items(file, "safety")) == 5


def test_sides_are_dealt_at_random_and_stay():
    items = [Item(f"{n}", (), ("a", "b")) for n in range(200)]
    swapped = [item.is_swapped("ann") for item in items]
    assert 70 < sum(swapped) < 130
    assert swapped == [item.is_swapped("ann") for item in items] != [item.is_swapped("bob") for item in items]
