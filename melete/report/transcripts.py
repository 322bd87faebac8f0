"""Completions for people: the thought set apart from the answer, and words of reflection marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from melete.evaluation.reflection import R1_WORDS
from melete.evaluation.transcripts import RULE
from melete.report.files import Row, RunFiles

_TAG = re.compile(r"(</?think>|</?answer>)")
_WORD = re.compile(rf"(?<!\w)({'|'.join(R1_WORDS)})(?!\w)", re.IGNORECASE)


class Segment(NamedTuple):
    """A piece of a completion, of kind "thought", "answer" or "text"; `pieces` are (text, is a word of reflection)."""

    kind: str
    pieces: Sequence[tuple[str, bool]]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


def content(files: RunFiles) -> dict[str, Any] | None:
    """The same problems before and after a stage."""
    entries = files.transcripts()
    return {"entries": [_entry(entry) for entry in entries], "rule": RULE} if entries else None


def group(files: RunFiles) -> dict[str, Any] | None:
    """A group of attempts with unlike rewards."""
    rows = one_group(files.rollouts)
    stage = files.label(rows[0]["stage"]) if rows and len(files.planned()) > 1 else ""
    return {"rows": rows, "stage": stage} if rows else None


def _entry(entry: Row) -> dict[str, Any]:
    sides = {side: {**entry[side], "segments": segments(entry[side]["text"])} for side in ("before", "after")}
    return {**entry, **sides}


def segments(text: str) -> list[Segment]:
    """A completion taken apart at its tags, whatever their order; nothing that was written is left out but the tags.

    >>> [(s.kind, s.text) for s in segments("<think>3+5=8</think><answer>8</answer>")]
    [('thought', '3+5=8'), ('answer', '8')]
    """
    found, kind = [], "text"
    for piece in _TAG.split(text):
        if _TAG.fullmatch(piece):
            kind = {"<think>": "thought", "<answer>": "answer"}.get(piece, "text")
        elif piece.strip():
            marked = [(part, i % 2 == 1) for i, part in enumerate(_WORD.split(piece.strip())) if part]
            found.append(Segment(kind, marked))
    return found


def one_group(rollouts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The group that shows how a step teaches: the first with unlike rewards from the middle of the log on.

    Each row gains its "difference" from the mean reward of the rows shown, which is what credit is made of.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rollouts:
        if row["reward"] is not None:
            groups.setdefault((row["stage"], row["step"], row["problem_id"]), []).append(row)
    ordered = list(groups.values())
    for group in ordered[len(ordered) // 2 :] + ordered[: len(ordered) // 2]:
        rewards = [row["reward"] for row in group]
        if len(set(rewards)) > 1:
            mean = sum(rewards) / len(rewards)
            return [{**row, "difference": row["reward"] - mean, "segments": segments(row["text"])} for row in group]
    return []
