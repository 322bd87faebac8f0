"""How far two people agree, and whether a person prefers a side of the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from melete.labelling.journal import FIRST, SECOND, SKIP, Entry, Journal


@dataclass(frozen=True, slots=True)
class Agreement:
    """`num` items that both have judged; `kappa` is None where it is not defined."""

    other: str
    num: int
    share: float
    kappa: float | None
    differing: tuple[str, ...]


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement beyond what chance gives: (p_o - p_e) / (1 - p_e). Cohen 1960.

    None without items, and where both gave one and the same answer throughout.

    >>> cohens_kappa([("a", "a"), ("a", "a"), ("b", "b"), ("a", "b")])
    0.5
    """
    if not pairs:
        return None
    num = len(pairs)
    seen = sum(one == other for one, other in pairs) / num
    left, right = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    by_chance = sum(left[answer] * right[answer] for answer in left) / num**2
    return None if by_chance == 1 else (seen - by_chance) / (1 - by_chance)


def agreements(journal: Journal, by: str, items: Sequence[str]) -> list[Agreement]:
    """With each other person, on `items` that both have judged, as each judged before any review."""
    answers: dict[str, dict[str, str]] = {}
    for (person, item), entry in journal.current(independent=True).items():
        if entry.answer != SKIP:
            answers.setdefault(person, {})[item] = entry.answer
    now = {key: entry.answer for key, entry in journal.current().items()}
    found: list[Agreement] = []
    for other in sorted(answers.keys() - {by}):
        common = [item for item in items if item in answers.get(by, {}) and item in answers[other]]
        pairs = [(answers[by][item], answers[other][item]) for item in common]
        if pairs:
            share = sum(one == two for one, two in pairs) / len(pairs)
            differing = tuple(item for item in common if now.get((by, item)) != now.get((other, item)))
            found.append(Agreement(other, len(pairs), share, cohens_kappa(pairs), differing))
    return found


def left_share(entries: Mapping[tuple[str, str], Entry]) -> tuple[float, int]:
    """How often the answer on the left was preferred, of how many preferences: near a half without a bias."""
    sides = [(entry.answer == SECOND) == entry.swapped for entry in entries.values() if entry.answer in (FIRST, SECOND)]
    return (sum(sides) / len(sides) if sides else 0.5), len(sides)
