"""From a journal to the rows that stages train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from melete.datasets.files import write_rows
from melete.errors import DataError
from melete.labelling.journal import FIRST, SAFE, SECOND, SKIP, TIE, UNSAFE, Entry, Journal
from melete.types import LabelledCompletion, Message, PreferencePair

FORMS = ("pairs", "labels")


def export(journal: Journal, out: Path, form: str, *, by: str = "") -> dict[str, int]:
    """Writes what people agreed on by majority, and counts the rows and what was left out.

    `pairs` are for `melete dpo` and `melete rm`, `labels` for `melete rm --loss pointwise`. Among labels, what was
    preferred is good and the other is not, unless safety was judged; what was marked unsafe is never good.
    """
    if form not in FORMS:
        raise DataError(f"{form!r} is no form", place="--as", remedy=f"one of {', '.join(FORMS)}")
    if journal.path.resolve() == out.resolve():
        raise DataError("this would replace the journal", place=str(out), remedy="give another file")
    by_item = _by_item(journal, by)
    counts: Counter[str] = Counter(rows=0, tie=0, skip=0, disagreement=0, unsafe_preferred=0)
    rows: list[PreferencePair | LabelledCompletion] = []
    seen: dict[tuple[str, str], LabelledCompletion | None] = {}
    for item, entries in sorted(by_item.items()):
        verdict = _verdict(entries)
        if verdict not in (FIRST, SECOND, SAFE, UNSAFE):
            counts[verdict] += 1
        elif form == "labels":
            for row in _labels(item, entries, verdict):
                _keep(seen, row)
        elif verdict in (FIRST, SECOND):
            rows.append(_pair(item, entries[0], verdict))
            counts["unsafe_preferred"] += (verdict == SECOND) in {number for e in entries for number in e.unsafe}
        else:
            counts["no_pair"] += 1
    if form == "labels":
        counts["contradicted"] = sum(row is None for row in seen.values())
        rows += [row for row in seen.values() if row]
    if not rows:
        remedy = "judge some items first: melete label DATA --out " + str(journal.path)
        raise DataError(f"the journal has nothing to write as {form}", place=str(journal.path), remedy=remedy)
    counts["rows"] = len(rows)
    write_rows(out, rows)
    return dict(counts)


def _by_item(journal: Journal, by: str) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in journal.current(by or None).values():
        found.setdefault(entry.item, []).append(entry)
    return found


def _verdict(entries: Sequence[Entry]) -> str:
    """The answer of most, skips aside."""
    votes = Counter(entry.answer for entry in entries if entry.answer != SKIP).most_common(2)
    if not votes:
        return SKIP
    if len(votes) == 2 and votes[0][1] == votes[1][1]:
        return "disagreement"
    return TIE if votes[0][0] == TIE else votes[0][0]


def _messages(entry: Entry) -> tuple[Message, ...]:
    return tuple(Message(**message) for message in entry.messages)


def _pair(item: str, entry: Entry, verdict: str) -> PreferencePair:
    chosen, rejected = entry.completions if verdict == FIRST else reversed(entry.completions)
    return PreferencePair(item, _messages(entry), chosen, rejected)


def _labels(item: str, entries: Sequence[Entry], verdict: str) -> list[LabelledCompletion]:
    entry = entries[0]
    unsafe = {number for one in entries for number in one.unsafe}
    good = {FIRST: 0, SECOND: 1, SAFE: 0, UNSAFE: -1}[verdict]
    return [
        LabelledCompletion(f"{item}-{number}", _messages(entry), text, number == good and number not in unsafe)
        for number, text in enumerate(entry.completions)
    ]


def _keep(seen: dict[tuple[str, str], LabelledCompletion | None], row: LabelledCompletion) -> None:
    """A completion of several pairs gets one label; None where the pairs contradict each other."""
    key = (repr(row.messages), row.completion)
    known = seen.setdefault(key, row)
    if known is not None and known.label != row.label:
        seen[key] = None
