"""Measurements kept between runs, in the user's cache: one file for each model's content on each machine."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from melete.errors import RunError
from melete.models.places import cache_directory
from melete.planning.estimate import Lengths, Speed
from melete.runs.atomic import json_text, write_atomically

FORMAT = 3


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of a model; `asked` is how long completions were allowed to be, by the text's key."""

    num_parameters: int = 0
    speed: Speed | None = None
    lengths: Mapping[str, Lengths] = field(default_factory=dict)
    asked: Mapping[str, int] = field(default_factory=dict)

    def is_enough(self, text: str, max_new_tokens: int) -> bool:
        """Whether the lengths of this text need not be measured again for such a limit."""
        known = self.lengths.get(text)
        return known is not None and not (known.is_cut(max_new_tokens) and max_new_tokens > self.asked.get(text, 0))


def directory(environment: Mapping[str, str] = os.environ) -> Path:
    """`measured` in the user's cache."""
    return cache_directory(environment) / "measured"


def read(folder: Path, key: str) -> Kept:
    """What is kept under this key; nothing where there is no such file or it cannot be read."""
    try:
        found = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            return Kept()
        lengths = {
            name: Lengths(**(row | {"completions": tuple(row["completions"])}))
            for name, row in found["lengths"].items()
        }
        return Kept(found["num_parameters"], Speed(**found["speed"]), lengths, found["asked"])
    except (OSError, ValueError, KeyError, TypeError):
        return Kept()


def write(folder: Path, key: str, kept: Kept) -> None:
    """Keeps it, if the folder can be written; if not, it is measured again the next time."""
    found = {"format": FORMAT, **asdict(kept)}
    with contextlib.suppress(OSError, RunError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{key}.json", json_text(found, indent=1) + "\n")
