"""One line of the doctor's: what it is about, what is so, whether that is well, and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "problem"]
"""Well; worth knowing; broken. Only the last makes the command fail."""
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, slots=True)
class Line:
    """What was found. `facts` are its numbers, for scripts: sizes are in bytes."""

    topic: str
    says: str
    level: Level = "ok"
    mend: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"topic": self.topic, "level": self.level, "says": self.says, "mend": self.mend, **self.facts}

    def text(self) -> str:
        """For the terminal: one line, and one more where something can be mended."""
        mend = f"\n{'':<23}mend: {self.mend}" if self.mend else ""
        return f"{self.level:<8} {self.topic:<13} {self.says}{mend}"


def size(num_bytes: int | None) -> str:
    """Bytes for people.

    >>> size(3 * 2**29), size(5 * 2**20), size(None)
    ('1.5 GiB', '5 MiB', 'unknown')
    """
    if num_bytes is None:
        return "unknown"
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.0f} MiB"
