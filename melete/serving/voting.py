"""Majority voting: of several answers to one question, the final answer that most of them give (Wang et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from melete.text.final_answer import comparable, final_answer


@dataclass(frozen=True, slots=True)
class Vote:
    """A final answer, the share of the texts that give it, and which those are; "" stands for no final answer."""

    answer: str
    share: float
    members: tuple[int, ...]

    def as_json(self) -> dict[str, object]:
        """For the page."""
        return {"answer": self.answer, "share": self.share, "members": list(self.members)}


def votes(texts: Sequence[str]) -> list[Vote]:
    r"""The final answers of these texts, that of most first; texts without one come last, as one.

    Equal are answers that are the same but for spacing and the like. Of equally many the one that came first leads.

    >>> [(vote.answer, vote.share) for vote in votes([r"\boxed{7}", "It is 8.", "#### 7", "well"])]
    [('7', 0.5), ('8', 0.25), ('', 0.25)]
    """
    groups: dict[str, list[int]] = {}
    written: dict[str, str] = {}
    for number, text in enumerate(texts):
        found = final_answer(text, bare_number=True)
        name = comparable(found) if found is not None else ""
        written.setdefault(name, found or "")
        groups.setdefault(name, []).append(number)
    order = sorted(groups, key=lambda name: (name == "", -len(groups[name]), groups[name][0]))
    return [Vote(written[name], len(groups[name]) / len(texts), tuple(groups[name])) for name in order]
