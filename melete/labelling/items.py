"""What is judged: two completions of a prompt, or one."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from melete.datasets.files import read_any
from melete.errors import DataError
from melete.types import LabelledCompletion, Message, PreferencePair, RankedCompletions


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt with two completions, or with one where safety is judged."""

    item_id: str
    messages: tuple[Message, ...]
    completions: tuple[str, ...]

    def is_swapped(self, by: str) -> bool:
        """Whether the second completion stands on the left for this person: at random, and always the same."""
        return len(self.completions) == 2 and hashlib.sha256(f"{self.item_id}/{by}".encode()).digest()[0] % 2 == 1


def read_items(path: Path, mode: str = "compare") -> list[Item]:
    """Every pair of differing completions of each row; with `safety` every completion. No item comes twice.

    A row has `completions`, or `chosen` and `rejected` (what they say is not shown), or for safety one completion.
    """
    kinds = [RankedCompletions, PreferencePair, *([LabelledCompletion] if mode == "safety" else [])]
    rows, _ = read_any(path, kinds)
    found: dict[str, Item] = {}
    for row in rows:
        for completions in _chosen(_completions(row), mode):
            item = make_item(row.messages, completions)
            found.setdefault(item.item_id, item)
    if not found:
        remedy = "each row needs a prompt and at least two completions that differ"
        raise DataError("there is nothing to judge", place=str(path), remedy=remedy)
    return list(found.values())


def make_item(messages: Sequence[Message], completions: Sequence[str]) -> Item:
    """An item whose name is made of its text alone, in whichever order the completions came."""
    told = [[[message.role, message.content] for message in messages], sorted(completions)]
    item_id = hashlib.sha256(json.dumps(told, ensure_ascii=False).encode(errors="replace")).hexdigest()[:16]
    return Item(item_id, tuple(messages), tuple(sorted(completions)))


def _completions(row: object) -> list[str]:
    if isinstance(row, RankedCompletions):
        return list(row.completions)
    if isinstance(row, PreferencePair):
        return [row.chosen, row.rejected]
    assert isinstance(row, LabelledCompletion)
    return [row.completion]


def _chosen(completions: Sequence[str], mode: str) -> list[tuple[str, ...]]:
    differing = list(dict.fromkeys(completions))
    return list(itertools.combinations(differing, 2 if mode == "compare" else 1))
