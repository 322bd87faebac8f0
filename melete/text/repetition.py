"""How much of a text repeats itself, by n-grams of its words."""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def units(text: str) -> list[str]:
    """The words of a text in small letters; in scripts without spaces (Chinese, Japanese, Thai) its characters.

    >>> units("So So, 我们 go")
    ['so', 'so,', '我', '们', 'go']
    """
    return _UNIT.findall(text.lower())


def repeated_share(items: Sequence[object], size: int) -> float:
    """The share of n-grams of that size that are not the first of their kind; 0 where there is none.

        1 - distinct / number

    Raises `ValueError` for a size below 1.

    >>> repeated_share("a b a b a b".split(), 2), repeated_share(["a"], 2)
    (0.6, 0.0)
    """
    if size < 1:
        raise ValueError(f"the size of an n-gram must be at least 1, not {size}")
    number = len(items) - size + 1
    if number < 1:
        return 0.0
    distinct = len(set(zip(*(items[i:] for i in range(size)), strict=False)))
    return 1 - distinct / number
