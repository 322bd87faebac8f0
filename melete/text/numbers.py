"""Reading numbers out of untrusted text without evaluating anything."""

from __future__ import annotations

import re

_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)


def parse_integer(text: str) -> int | None:
    """The integer that `text` is, or `None`: one number and nothing else, at most 18 digits.

    >>> parse_integer(" 42 "), parse_integer("42."), parse_integer("7 or 8"), parse_integer("4" * 40)
    (42, 42, None, None)
    """
    cleaned = text.strip().removesuffix(".").strip()
    return int(cleaned) if _INTEGER.fullmatch(cleaned) else None
